"""The error that a person can do something about."""


class UserError(Exception):
    """Something in the reader's files, values or machine is not as it has to be.

    `message` says which file or value, what was found and what was expected; `hint` says what to do.
    The command line prints `error: <message>`, a blank line and `hint: <hint>`, and no traceback.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
