"""How the files of a run are opened: a scoring script can leave anything in its output folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file, or a link to one, to be read.

    Raises OSError for anything else, at once: a named pipe would wait for a writer, and a device need not
    end. Raises ValueError for a path that no file can have.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(number, "rb")
