"""What a worker says on its pipe: read whole, within bounds, and believed only where it is an answer.

A scoring script can write to the pipe, too, and what it writes must cost the executor nothing.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from local_workspace.worker import LONGEST_ANSWER

READ_SIZE = 1 << 16  # bytes, as many as a pipe holds; reading more at once takes 20 times as long
HEADER = re.compile(rb"(-1|0|[1-9]\d{0,18}) ([1-9]\d{0,9})\n")
LONGEST_HEADER = 32  # bytes
MOST_ROWS = 2**53


class NoAnswerError(Exception):
    """Something else than an answer, or the answer to something else."""


@dataclass
class Rows:
    """What run() has returned."""

    rows: int
    text: str
    failed: list[list[str]]  # file, reason

    def is_sound(self) -> bool:
        return (
            type(self.rows) is int
            and 0 <= self.rows <= MOST_ROWS
            and isinstance(self.text, str)
            and (not self.text or self.rows <= self.text.count("\n"))
            and isinstance(self.failed, list)
            and all(isinstance(pair, list) and len(pair) == 2 for pair in self.failed)
            and all(isinstance(part, str) for pair in self.failed for part in pair)
        )


@dataclass
class Raised:
    """What init() or run() has raised."""

    error: str
    traceback: str
    fails_job: bool

    def is_sound(self) -> bool:
        texts = isinstance(self.error, str) and isinstance(self.traceback, str)
        return texts and isinstance(self.fails_job, bool)


class Answer(NamedTuple):
    order: int  # the offset of a mini-batch, or INIT
    said: Rows | Raised


class Answers:
    """The executor's end of a worker's pipe."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe
        self._received = bytearray()

    def receive(self) -> Answer | None:
        """An answer once it is whole. Raises EOFError when the pipe is closed, and NoAnswerError."""
        data = os.read(self.pipe, READ_SIZE)
        if not data:
            raise EOFError
        self._received += data
        header = HEADER.match(self._received)
        if not header:
            if b"\n" in self._received or len(self._received) > LONGEST_HEADER:
                raise NoAnswerError
            return None
        order, length = map(int, header.groups())
        end = header.end() + length
        if length > LONGEST_ANSWER or len(self._received) > end:  # nobody has ordered another answer
            raise NoAnswerError
        if len(self._received) < end:
            return None
        said = parse(self._received[header.end() :])
        self._received.clear()
        return Answer(order, said)


def parse(body: bytes | bytearray) -> Rows | Raised:
    try:
        values = json.loads(body)
        said = Raised(**values) if "error" in values else Rows(**values)
    except (ValueError, TypeError, RecursionError):
        raise NoAnswerError from None
    if not said.is_sound():
        raise NoAnswerError
    return said
