"""The errors that a person, or a client of the local workspace, can do something about."""


class UserError(Exception):
    """Something in the reader's files, values or machine is not as it has to be.

    `message` says which file or value, what was found and what was expected; `hint` says what to do.
    The command line prints `error: <message>`, a blank line and `hint: <hint>`, and no traceback.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ServiceError(Exception):
    """What Azure would answer with an error body: the HTTP status, Azure's error code, a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
