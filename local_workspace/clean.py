"""`make clean`: delete what `make run` and `make score` have made here, and nothing that the user brought.

    python -m local_workspace.clean [FOLDER]

A file in model/, data/ or named-outputs/ goes if it is, to the byte, one that the local workspace handed out
or that its job gave. So a photo that was put into data/ stays, and what stays is named. It needs nothing but
Python, for .venv may be gone.
"""

from __future__ import annotations

import filecmp
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from local_workspace.errors import UserError
from local_workspace.samples import DATA, MODEL, RECORDS, STATE, Part, list_files, read_record
from local_workspace.store import CONTENT, is_state_folder, lock

RESULTS = ("named-outputs", "outputs/high-throughput/named-outputs")  # of `make run`
# Of `make score`, which overwrites them; and the logs of failed jobs.
SCORED = ("outputs/by-file", "outputs/by-batch", "outputs/mlflow", "outputs/logs")
MLFLOW_MODEL, OUR_LOADER = "mlflow-model", "loader_module: imagenet_classifier"


def clean(folder: Path) -> list[Path]:
    """Delete what is ours in `folder`, and return what stays of the places in which it was.

    Raises UserError where a local workspace is running there.
    """
    state = folder / STATE
    if is_state_folder(state):
        lock(state).close()
    handed_out = state / "samples" / "embedded"
    for part in (MODEL, DATA):
        for path in made_files(folder, part, handed_out):
            path.unlink()
        delete_empty(folder / part.name)
        if is_copy(folder / part.archive, [handed_out / part.archive]):
            (folder / part.archive).unlink()
    for name in RESULTS:
        delete_results(folder / name, list(state.glob("jobs/*/output/score/predictions.csv")))
    for name in SCORED:
        shutil.rmtree(folder / name, ignore_errors=True)
    if is_our_mlflow_model(folder / MLFLOW_MODEL):
        shutil.rmtree(folder / MLFLOW_MODEL)
    delete_state(state)
    delete_empty(folder / "outputs")
    places = (MODEL.name, DATA.name, MODEL.archive, DATA.archive, *RESULTS, "outputs", MLFLOW_MODEL, STATE)
    return [folder / name for name in places if (folder / name).exists()]


def made_files(folder: Path, part: Part, handed_out: Path) -> list[Path]:
    """Return the files of model/ or data/ that were prepared here, or that a workspace has handed out."""
    target = folder / part.name
    if target.is_symlink():
        return []
    prepared = read_record(folder, part).get("files", {})
    return [
        target / name
        for name, seen in list_files(target).items()
        if prepared.get(name) == seen or is_copy(target / name, [handed_out / part.name / name])
    ]


def is_copy(path: Path, originals: Iterable[Path]) -> bool:
    """Whether `path` is a file with the content of one of `originals`."""
    if path.is_symlink() or not path.is_file():
        return False
    return any(original.is_file() and filecmp.cmp(path, original, shallow=False) for original in originals)


def delete_empty(folder: Path) -> None:
    """Delete `folder` and the folders in it, so far as they are empty."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        delete_empty(path)
    if not any(folder.iterdir()):
        folder.rmdir()


def delete_results(folder: Path, kept: list[Path]) -> None:
    """Delete the predictions that a job of the workspace gave, which it has kept, and the picture of them."""
    copies = [path for path in folder.glob("score/predictions.csv*") if is_copy(path, kept)]
    for path in copies:
        path.unlink()
    if copies:
        (folder / "predictions.png").unlink(missing_ok=True)
        delete_empty(folder)


def is_our_mlflow_model(folder: Path) -> bool:
    described = folder / "MLmodel"
    return described.is_file() and OUR_LOADER in described.read_text(encoding="utf-8")


def delete_state(state: Path) -> None:
    """Delete what workspaces have written, but not the zips that a user has put into samples/."""
    for name in (*CONTENT, *RECORDS):
        path = state / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    delete_empty(state)


if __name__ == "__main__":
    try:
        for left in clean(Path(*sys.argv[1:])):
            print(f"{left} stays: it holds what was not made here", file=sys.stderr)
    except UserError as error:
        sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
