"""The photos that rows name, found in the input, and small pictures of them."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

from PIL import Image, ImageOps

from local_workspace.errors import UserError
from local_workspace.files import open_regular
from local_workspace.listing import walk
from local_workspace.mlflow_driver.driver_photo import open_photo

SIZE = (320, 240)  # pixels, width and height, of a picture on the page
SEARCHED = 1_000_000  # files of the input
SORTED = 200_000  # files of an input whose order is looked at
OPEN = threading.Semaphore(2)  # pictures in memory: a browser asks for six at once, and a job may be running


@lru_cache(maxsize=8)
def find_photos(
    data: Path, files: tuple[str, ...], batches: tuple[tuple[int, int], ...] = ()
) -> list[list[str]]:
    """For each of `files`, the names or paths in the first rows, the input files that it can mean.

    One path is the photo, none is no such file, and with several it cannot be told which one is meant.
    `batches`, the files and rows of each mini-batch in order, can tell it: a row is about a file of its own
    mini-batch. Only what lies in `data` is found, so a row leads nowhere else. Raises UserError where `data`
    cannot be searched.
    """
    wanted: dict[str, list[str]] = {os.path.basename(file): [] for file in files}
    count = 0
    for count, path in enumerate(input_files(data), 1):
        if (name := os.path.basename(path)) in wanted:
            wanted[name].append(path)
        if count > SEARCHED:
            raise UserError(f"{data}: more than {SEARCHED:,} files, no photo is looked for among so many")
    found = [
        sorted(path for path in wanted[os.path.basename(file)] if is_meant(path, file)) for file in files
    ]
    whole = sum(size for size, _ in batches) == count <= SORTED  # else the input is not what was scored
    if whole and any(len(paths) > 1 for paths in found):
        return in_their_batches(found, sorted(input_files(data)), batches)
    return found


def in_their_batches(
    found: list[list[str]], scored: list[str], batches: tuple[tuple[int, int], ...]
) -> list[list[str]]:
    """`found` without the paths that are in another mini-batch than the row."""
    rows, paths, left = iter(found), iter(scored), []
    for size, count in batches:
        batch = set(islice(paths, size))
        left += [[path for path in row if path in batch] or row for row in islice(rows, count)]
    return left + list(rows)


def input_files(data: Path) -> Iterator[str]:
    return iter([str(data)]) if data.is_file() else walk(str(data), [], subfolders=True)


def is_meant(path: str, file: str) -> bool:
    return path == file or path.endswith(f"{os.sep}{file}")


@lru_cache(maxsize=256)
def thumbnail(path: Path) -> bytes | None:
    """The whole picture as a small JPEG; None where it cannot be read. Staged files never change."""
    picture = small_picture(path, SIZE)
    if picture is None:
        return None
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    return content.getvalue()


def small_picture(path: Path, size: tuple[int, int]) -> Image.Image | None:
    """The whole photo in RGB, upright, as fits into `size` (width, height); None if it is no photo."""
    try:
        with OPEN, open_regular(path) as file, open_photo(os.dup(file.fileno()), least=max(size)) as photo:
            return ImageOps.contain(photo, size)
    except Exception:  # whatever is wrong with one picture must not cost the others
        return None
