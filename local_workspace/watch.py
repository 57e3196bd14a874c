"""A clock for deadlines that others have to keep."""

from __future__ import annotations

import time

LONGEST_LOOK = 1.0  # seconds between two looks that count


class Watch:
    """`seconds` in which this process was there to look.

    What passes while it is stopped (Ctrl-Z, a laptop asleep), or is held up, is nobody else's time.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked = time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        self.seconds += min(now - self._looked, LONGEST_LOOK)
        self._looked = now
