"""Files that a scoring script may have left, and names that a client chose: paths, what is opened, copies.

A script runs as the same user and can leave anything in the folders of its job: a pipe, which keeps its
reader waiting, a device, a link that leads elsewhere. Only regular files are opened.
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


def open_regular(path: Path, mode: str = "rb", *, links: bool = True, **options: Any) -> IO[Any]:
    """open() of a regular file, of a link to one unless `links` says no, or of a new one.

    Raises OSError for anything else, at once: a named pipe would wait for its other end, and a device need
    not end. Raises ValueError for a path that no file can have.
    """
    with suppress(FileNotFoundError):
        _check_regular(path, os.stat(path, follow_symlinks=links))
    more = os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    file = open(path, mode, opener=lambda name, flags: os.open(name, flags | more, 0o666), **options)  # noqa: SIM115
    try:
        _check_regular(path, os.fstat(file.fileno()))  # exchanged meanwhile
    except OSError:
        file.close()
        raise
    return file


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_text(path: Path) -> str:
    """What a regular file holds as text, whatever its bytes are; nothing where there is none."""
    try:
        with open_regular(path, "r", links=False, encoding="utf-8", errors="replace") as file:
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
    with open_regular(source, links=False) as reader, os.fdopen(descriptor, "wb") as writer:
        with suppress(OSError, AttributeError):  # not here, or not between these two file systems
            while os.copy_file_range(reader.fileno(), descriptor, LARGEST_COPY):
                pass
        reader.seek(writer.seek(0, os.SEEK_END))  # what it has not copied
        shutil.copyfileobj(reader, writer)
