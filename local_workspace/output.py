"""What a program does when whoever read its output has gone, as in `| head`: it ends, with no traceback."""

import os
import sys
from collections.abc import Callable

CLOSED_PIPE = 141  # what a shell says of cat or grep then: 128 + SIGPIPE


def run_while_read(program: Callable[[], int]) -> int:
    """The program's exit code, or 141 where standard output or error was closed before it had all."""
    try:
        try:
            return program()
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed from the start
                stream.flush()
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(null, number)  # Python writes what is left when it ends
        return CLOSED_PIPE
