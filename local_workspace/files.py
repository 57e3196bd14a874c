"""Files of a state folder: where a name lies, what may be opened, copies that share nothing.

A scoring script runs as the same user and can leave anything in the folders of its job: a pipe, which keeps
its reader waiting, a device, a link that leads elsewhere. Only regular files are opened.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

LARGEST_COPY = 1 << 30  # bytes that the system is asked to copy at once


def local_path(folder: Path, name: str) -> Path:
    """The file for a blob or resource name below `folder`: no name leads out of it.

    The only place where a client's name becomes a path. A segment that means something else in a path
    (empty, `.`, `..`) or cannot be in one (NUL) is percent-encoded; all others arrive as they are.
    """
    return folder.joinpath(*(_file_name(segment) for segment in name.split("/")))


def _file_name(segment: str) -> str:
    if segment in ("", ".", ".."):
        return "%2E" * len(segment) or "%"
    return segment.replace("\0", "%00")


def open_regular(path: Path, mode: str = "rb", **options: Any) -> IO[Any]:
    """open() of a regular file, or of a new one. Never waits; OSError for anything else, also for a link."""
    with suppress(FileNotFoundError):
        _check_regular(path, os.lstat(path))
    file = open(path, mode, opener=_open_at_once, **options)  # noqa: SIM115  # the caller closes it
    try:
        _check_regular(path, os.fstat(file.fileno()))  # exchanged meanwhile
    except OSError:
        file.close()
        raise
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, 0o666)


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_text(path: Path) -> str:
    """What a regular file holds as text, whatever its bytes are; nothing where there is none."""
    try:
        with open_regular(path, "r", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """Everything below `folder` but folders, each with what keeps it from being read: "" for a file."""
    folders = [folder]
    while folders:
        inner = folders.pop()
        try:
            entries = sorted(os.scandir(inner), key=lambda entry: entry.name)
        except OSError as error:  # not there; not to be read; a path that is too long
            yield inner, error.strerror
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                yield Path(entry.path), "" if entry.is_file(follow_symlinks=False) else "not a regular file"


def copy(source: Path, target: Path) -> None:
    """A new file that has nothing in common with `source`: what is written to one does not change the other.

    The system copies, and shares the blocks where the file system can. FileExistsError where there is one.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    with open_regular(source) as reader, os.fdopen(descriptor, "wb") as writer:
        with suppress(OSError, AttributeError):  # not here, or not between these two file systems
            while os.copy_file_range(reader.fileno(), descriptor, LARGEST_COPY):
                pass
        reader.seek(writer.seek(0, os.SEEK_END))  # what it has not copied
        shutil.copyfileobj(reader, writer)
