"""What is said to a person: on stderr, since stdout is for data."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
