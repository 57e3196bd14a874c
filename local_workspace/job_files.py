"""What goes into the folder of a job, and what comes out of it.

In: copies of blobs, since a scoring script may write to its input. Out: the files that it has left, which
become blobs where they lie.
"""

import errno
from pathlib import Path

from local_workspace.errors import ServiceError, UserError
from local_workspace.files import copy, local_path, walk
from local_workspace.store import Blob, Store, name_problem

OCTETS = {"content_type": "application/octet-stream"}
NO_FILE = (errno.ENAMETOOLONG, errno.EILSEQ)  # a blob may have the name, a file of this system cannot
TAKEN = (FileExistsError, NotADirectoryError)

Location = dict[str, str]  # container, path: where a folder or file of the workspace lies
Problems = list[tuple[str, str]]  # the name of a file, and what is wrong with it


def stage(store: Store, place: Location, folder: Path, *, keep_name: bool = False) -> tuple[int, Problems]:
    """Copy the blob at `place`, or every blob below it, into `folder`: how many, and which cannot be files.

    With `keep_name` the last name of the path stays: `folder/model/...` for `.../model`.
    Raises UserError where two blobs would be one file: a file system may ignore case, for example.
    """
    path = place["path"].rstrip("/")
    single = store.blob(place["container"], place["path"])
    found = list(store.blobs(place["container"], path + "/" if path else ""))
    if single and found:
        message = f"{path!r} is a blob, and a folder with {found[0].name!r} in it: which of them is meant?"
        raise UserError(message, "delete one of them")
    start = path.rfind("/") + 1 if single or keep_name else len(path) + 1 if path else 0
    staged: list[tuple[str, Path]] = []
    problems: Problems = []
    for blob in [single] if single else found:
        try:
            staged.append((blob.name, _stage_one(blob, local_path(folder, blob.name[start:]), staged)))
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            problems.append((blob.name, error.strerror))
    return len(staged), problems


def _stage_one(blob: Blob, target: Path, staged: list[tuple[str, Path]]) -> Path:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(blob.path, target)
    except TAKEN:
        other = _where(target, staged)
        message = f"the blobs {other!r} and {blob.name!r} would be one file on this machine"
        raise UserError(message, "upload one of them under another name") from None
    return target


def _where(target: Path, staged: list[tuple[str, Path]]) -> str:
    """The blob whose file, or a folder of it, is in the way of `target`."""
    blocker = next(path for path in (target, *target.parents) if path.exists())
    return next(name for name, path in staged if any(one.samefile(blocker) for one in (path, *path.parents)))


def publish(store: Store, place: Location, folder: Path) -> Problems:
    """Make every file below `folder` a blob at `place`, or none where one is there; which cannot be blobs."""
    names: dict[str, Path] = {}
    problems: Problems = []
    for path, problem in walk(folder):
        inner = path.relative_to(folder).as_posix()
        name = f"{place['path']}/{inner}" if place["path"] else inner
        problem = problem or name_problem(name)
        if problem:
            problems.append((inner, problem))
        else:
            names[name] = path
    existing = next((name for name in names if store.blob(place["container"], name)), None)
    if existing:
        raise ServiceError(409, "UserError", f"the output file exists already: {existing}")
    for name, path in names.items():
        store.publish(place["container"], name, path, OCTETS)
    return problems
