"""The sample's two downloads, answered with zips of the embedded model and photos, or the user's own.

Whoever has the article's real files puts `model.zip` or `imagenet-1000.zip` into `samples/` of the state
folder. Nothing else at that host is answered.
"""

import sys
import threading
import zipfile
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from local_workspace.errors import ServiceError, UserError
from local_workspace.workspace import Call

_making = threading.Lock()  # both downloads may come at once


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
        with _making:
            _make(path, samples / "embedded" / folder)
    print(f"local workspace: {name} is {what}: {path}", file=sys.stderr, flush=True)
    return FileResponse(path, media_type="application/zip")


def _make(path: Path, folder: Path) -> None:
    from local_workspace.samples import prepare  # only for a download

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        prepare(path.parent)
    except UserError as error:
        raise ServiceError(500, "InternalServerError", f"{path.name}: {error.message}") from None
    if path.is_file() and path.stat().st_mtime_ns >= folder.stat().st_mtime_ns:
        return
    unfinished = path.with_suffix(".part")
    start = folder.parent if folder.name == "model" else folder
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.write(file, file.relative_to(start))
    unfinished.replace(path)
