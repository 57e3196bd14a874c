"""The guard of a job's workers, for when the executor has been killed."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

# A process that outlives the executor, even one that is killed, and then ends its workers. They could not do
# so themselves: a scoring script may hold the interpreter's lock. Each line is the group of a worker that
# has started or, the second time, ended.
GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    groups ^= {int(line)}
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class Guard:
    """The process that ends the workers when this one has been killed; close() when there are none left."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", GUARD],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the executor's
        )

    def note(self, group: int) -> None:
        with suppress(BrokenPipeError):  # someone has killed it; the job can do without
            self._process.stdin.write(b"%d\n" % group)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
