"""The sample's two downloads, answered with zips of the embedded model and photos, or the user's own.

Whoever has the article's real files puts `model.zip` or `imagenet-1000.zip` into `samples/` of the state
folder. Nothing else at that host is answered.
"""

import sys
import zipfile
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from local_workspace.workspace import Call


async def get_model(call: Call) -> FileResponse:
    """`model.zip`: one folder `model`, as the article unzips it."""
    return await run_in_threadpool(_hand_out, call.store.folder / "samples", "model.zip", "model")


async def get_images(call: Call) -> FileResponse:
    """`imagenet-1000.zip`: the photos at its top, as the article unzips it into `data`."""
    return await run_in_threadpool(_hand_out, call.store.folder / "samples", "imagenet-1000.zip", "data")


def _hand_out(samples: Path, name: str, folder: str) -> FileResponse:
    path, what = samples / name, "your own file"
    if not path.is_file():
        path, what = samples / "embedded" / name, "made from the embedded model and photos"
    if not path.is_file():
        _prepare(samples / "embedded")
        _zip(path, samples / "embedded" / folder, keep_folder=folder == "model")
    print(f"local workspace: {name} is {what}: {path}", file=sys.stderr, flush=True)
    return FileResponse(path, media_type="application/zip")


def _prepare(folder: Path) -> None:
    from local_workspace import samples  # imports what makes the model: only for a download

    folder.mkdir(parents=True, exist_ok=True)
    samples.prepare(folder)


def _zip(path: Path, folder: Path, *, keep_folder: bool) -> None:
    start = folder.parent if keep_folder else folder
    unfinished = path.with_suffix(".part")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.write(file, file.relative_to(start))
    unfinished.replace(path)
