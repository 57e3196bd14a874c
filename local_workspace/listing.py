"""The listing of a job's input files: a file with a path, as a JSON string, on each line, sorted.

It is a file, not a list, so that a million files cost no memory, and JSON, so that any name fits on a
line. Work is split by the number of files alone (Microsoft's how-to-use-batch-model-deployments).
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from local_workspace.errors import UserError

SORTED_AT_ONCE = 50_000  # paths in memory
LONGEST_PATH = 1000  # bytes, that every system takes at once
RESULTS = (  # what runs leave in the output folder
    *("score", "logs", ".job", "failed.csv", "misses.csv", "model-labels.txt", "summary.json"),
    "progress.json",
)
Identity = tuple[int, int]  # the device and the inode of a file or folder, whatever the path to it


@dataclass(frozen=True)
class MiniBatch:
    """The paths that one run() gets: `files` lines of the listing, from the byte `offset` on."""

    number: int  # from 0, in the order of the listing
    offset: int
    files: int


def list_input_files(
    data: Path, listing: TextIO, subfolders: bool = True, output: Path | None = None
) -> tuple[int, list[str]]:
    """Writes the sorted paths of the files under `data` to `listing`.

    Returns how many files there are, and what was left out because it is neither a file nor a folder
    (sockets, devices, links to nowhere, what is gone by now), or is a folder though `subfolders` are not to
    be walked: those of an MLflow deployment's input are not (Microsoft's how-to-mlflow-batch). `data` may be
    a single file. The `output` folder, and links to the results in it, are no input and left out, too.
    """
    left_out: list[str] = []
    no_input = results_in(output) if output else set()
    if identity(data) in no_input:
        raise UserError(f"{data}: holds the results, and cannot be the input", "choose another --output")
    files = [str(data)] if data.is_file() else walk(str(data), left_out, subfolders, no_input)
    count = 0
    with ExitStack() as open_runs:
        for path in sort_on_disk(files, open_runs):
            listing.write(json.dumps(path) + "\n")
            count += 1
    return count, sorted(left_out)


def results_in(output: Path) -> set[Identity]:
    """The folder itself, and what runs have left in it, which may be reached on several paths."""
    results = [output / name for name in RESULTS]
    folders = [folder for result in results for folder in os.walk(result)]
    within = [os.path.join(at, name) for at, _, names in folders for name in ("", *names)]
    found = {identity(path, follow_links=False) for path in (*results, *within)}
    return found - {None} | {identity(output)}


def identity(path: str | Path, follow_links: bool = True) -> Identity | None:
    try:
        status = os.stat(path, follow_symlinks=follow_links)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def walk(
    folder: str, left_out: list[str], subfolders: bool, no_input: Set[Identity] = frozenset()
) -> Iterator[str]:
    folders = [folder]
    while folders:
        folder = folders.pop()
        try:
            with scan(folder) as entries:
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    if is_one_of(no_input, entry):
                        left_out.append(path)
                    elif subfolders and entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif is_file(entry):
                        yield path
                    else:
                        left_out.append(path)
        except FileNotFoundError:  # someone has removed it since its name was read
            left_out.append(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror}") from None


@contextmanager
def scan(folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    """os.scandir(), also of a folder whose path is longer than the system takes at once."""
    opened, rest = None, os.fsencode(folder)
    try:
        while rest:
            part = rest if len(rest) < LONGEST_PATH else rest[: rest.rindex(b"/", 0, LONGEST_PATH)]
            within, opened = opened, os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=opened)
            if within is not None:
                os.close(within)
            rest = rest[len(part) :].lstrip(b"/")
        with os.scandir(opened) as entries:
            yield entries
    finally:
        if opened is not None:
            os.close(opened)


def is_one_of(no_input: Set[Identity], entry: os.DirEntry[str]) -> bool:
    """Whether a folder, or what a link leads to, is; a file that is no link has no other path."""
    if not no_input or not (entry.is_symlink() or entry.is_dir()):
        return False
    try:
        status = entry.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) in no_input


def is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, or into a folder that is closed to us
        return False


def sort_on_disk(paths: Iterable[str], open_runs: ExitStack) -> Iterator[str]:
    """`paths` in order: sorted in runs, which are merged from temporary files when there are several."""
    paths = iter(paths)
    run = sorted(islice(paths, SORTED_AT_ONCE))
    runs: list[Iterator[str]] = []
    while following := sorted(islice(paths, SORTED_AT_ONCE)):
        runs.append(on_disk(run, open_runs))
        run = following
    return heapq.merge(*runs, run)


def on_disk(run: list[str], open_runs: ExitStack) -> Iterator[str]:
    lines = open_runs.enter_context(tempfile.TemporaryFile("w+", encoding="ascii"))  # noqa: SIM115
    lines.writelines(json.dumps(path) + "\n" for path in run)
    lines.seek(0)
    return map(json.loads, lines)


def split_into_mini_batches(listing: Path, size: int) -> Iterator[MiniBatch]:
    """The mini-batches of `size` files, the last one of what is left."""
    offset = number = 0
    with listing.open("rb") as lines:
        while chunk := list(islice(lines, size)):
            yield MiniBatch(number, offset, len(chunk))
            offset += sum(map(len, chunk))
            number += 1


def read_paths(listing: Path, mini_batch: MiniBatch) -> list[str]:
    with listing.open("rb") as lines:
        lines.seek(mini_batch.offset)
        return [json.loads(line) for line in islice(lines, mini_batch.files)]
