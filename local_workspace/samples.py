"""A model, its labels and photos to score: from packages, or the article's own downloads.

`prepare(folder)` fills `folder/model/` and `folder/data/` where they are missing:

- From `folder/model.zip` and `folder/imagenet-1000.zip`, the article's downloads, where they are there.
- Else from packages. The model is EfficientNet-Lite0 (embedded_model.py). The photos ship with
  scikit-image, whose functions skimage.data.camera() and so on give their origin: camera.png by Lav
  Varshney, chelsea.png by Stefan van der Walt and coffee.png by Rachel Michetti are CC0, rocket.jpg by
  SpaceX is in the public domain. They are the only four there that show a class of ImageNet.

A `model/` or `data/` that was not prepared here, or was changed since, is the reader's: it is used as it
is and never written to. All is made in `folder/.local_workspace/` and moved to its place when complete.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path, PureWindowsPath

from local_workspace.errors import UserError

# The class that each photo shows; ImageNet has no rocket that is not a missile.
PHOTOS = {
    "camera.png": "tripod",
    "chelsea.png": "tiger cat",
    "coffee.png": "espresso",
    "rocket.jpg": "missile",
}

# Beside the model that is made here, and in the model.zip that the server hands out.
STAND_IN = "STAND-IN.txt"
STAND_IN_TEXT = """\
EfficientNet-Lite0 (Apache-2.0), a small model that stands in for the article's ResNet V2.
The local workspace made it. It is meant for that workspace, whose subscription is
subscription: {subscription}
"""

LABELS = "ImageNetLabels.txt"
LABEL_COUNT = 1001  # background, then the 1000 classes of ImageNet
STATE = ".local_workspace"
RECORDS = ("model.json", "data.json")  # there: what was prepared

MODEL_ENDINGS = ("saved_model.pb", ".keras", ".h5")
PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp")

# What zipfile raises for a file that is damaged, encrypted or of a method that Python lacks.
UNZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, RuntimeError, ValueError),
)
MAX_ENTRIES = 20_000  # files in a zip; the article's have about 1000
MAX_BYTES = 4 * 2**30  # unpacked; the article's have about 200 MB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="?", default=Path(), help="default: the current one")


def samples(arguments: argparse.Namespace) -> int:
    """`python -m local_workspace samples`: prepares the samples and says what they are."""
    prepared = prepare(arguments.folder)
    print(f"{prepared.model}/: {prepared.model_source}")
    print(f"{prepared.data}/: {prepared.photos} photos: {prepared.data_source}")
    return 0


def prepare(folder: Path) -> Samples:
    """Return the model and the photos of `folder`, made first where they are missing.

    Raises UserError for a zip that is damaged or unsafe, and for a zip, model/ or data/ that holds no
    model or no photos. `model/` and `data/` are then as they were.
    """
    model, model_source = prepare_part(MODEL, folder)
    data, data_source = prepare_part(DATA, folder)
    photos = files_ending(PHOTO_ENDINGS, data.rglob("*"))
    return Samples(model, model_source, data, data_source, len(photos))


def read_labels(model: Path) -> list[str]:
    """Return the 1001 labels in the folder `model`, by class: 0 is background, 161 is Afghan hound.

    Raises UserError where ImageNetLabels.txt is missing or has another count of lines.
    """
    path = model / LABELS
    if not path.is_file():
        raise UserError(f"{path} is missing", f"put a file of {LABEL_COUNT} lines there, `background` first")
    labels = path.read_text(encoding="utf-8").splitlines()
    if len(labels) != LABEL_COUNT:
        raise UserError(f"{path} has {len(labels)} lines, not {LABEL_COUNT}", "the first is `background`")
    return labels


def prepare_part(part: Part, folder: Path) -> tuple[Path, str]:
    """Return `folder/model` or `folder/data`, filled, and one line on where its content is from."""
    target, archive = folder / part.name, folder / part.archive
    if (target.exists() or target.is_symlink()) and not target.is_dir():
        raise UserError(f"{target} is not a folder", "move it away")
    record = read_record(folder, part)
    ours = bool(record) and record["files"] == list_files(target)
    if not ours and target.is_dir() and any(target.iterdir()):
        check_holds(part, target, str(target))
        return target, f"your own {part.name}/" + f", not {part.archive}" * archive.exists()
    unpacked = ours and record["source"].startswith(part.archive)
    source = record["source"] if unpacked and not archive.exists() else source_of(part, archive)
    if not ours or record["source"] != source:
        make(part, folder)
    return target, source


def source_of(part: Part, archive: Path) -> str:
    """Return one line that says where the content is from, and differs where the content does."""
    if not archive.exists():
        return part.embedded
    status = archive.stat()
    changed = datetime.fromtimestamp(status.st_mtime).isoformat(" ", "seconds")
    return f"{archive.name} ({status.st_size} bytes, {changed})"


def make(part: Part, folder: Path) -> None:
    """Make `folder/model` or `folder/data` in a folder beside it, then move it to its place.

    Killed between any two lines, it is begun again: the record is written while nothing is in that
    place, for what is there and does not fit its record is the reader's.
    """
    target, archive = folder / part.name, folder / part.archive
    partial = folder / STATE / f"{part.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    new = partial / "new"
    new.mkdir(parents=True)
    try:
        if archive.exists():
            unzip(archive, new)
            new = without_outer_folders(new)
        else:
            part.write(new)
        check_holds(part, new, str(archive))
        record = {"source": source_of(part, archive), "files": list_files(new)}
        if target.exists():
            target.rename(partial / "old")
        write_record(folder, part, record)
        new.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_record(folder: Path, part: Part) -> dict:
    """Return what was prepared in `folder`; empty where nothing was."""
    try:
        return json.loads((folder / STATE / f"{part.name}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def write_record(folder: Path, part: Part, record: dict) -> None:
    partial = folder / STATE / f"{part.name}.json.partial"
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.replace(folder / STATE / f"{part.name}.json")


def list_files(folder: Path) -> dict[str, list[int]]:
    """Return size (bytes) and time of change (nanoseconds) of every file below `folder`."""
    paths = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    statuses = {path.relative_to(folder).as_posix(): path.lstat() for path in paths}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in statuses.items()}


def files_ending(endings: tuple[str, ...], paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.name.lower().endswith(endings) and path.is_file()]


def check_holds(part: Part, folder: Path, origin: str) -> None:
    """Raise UserError where `folder`, made from `origin`, has none of the files that it is for."""
    if files_ending(part.endings, folder.glob(part.pattern)):
        return
    found = list(list_files(folder))
    shown = ", ".join(found[:5]) + ", ..." * (len(found) > 5)
    raise UserError(
        f"{origin} holds no {part.content}: found {shown or 'no files'}",
        f"expected a file that ends in {', '.join(part.endings)}",
    )


def without_outer_folders(folder: Path) -> Path:
    """Return the content's own folder: a zip may hold model/, or what is in it."""
    while len(inner := list(folder.iterdir())) == 1 and inner[0].is_dir():
        folder = inner[0]
    return folder


def write_model(folder: Path) -> None:
    """Make the embedded model, in a process of its own (embedded_model.py says why), with its note."""
    from local_workspace.workspace import SUBSCRIPTION_ID  # starlette: only where a model is made

    package = Path(__file__).parent
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-m", f"{package.name}.embedded_model", str(folder.resolve())]
    run = subprocess.run(command, cwd=package.parent, env=environment, capture_output=True, text=True)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise UserError(f"the embedded model could not be made: {reason}", f"try {' '.join(command)}")
    (folder / STAND_IN).write_text(STAND_IN_TEXT.format(subscription=SUBSCRIPTION_ID), encoding="utf-8")


def write_photos(folder: Path) -> None:
    for name in PHOTOS:
        (folder / name).write_bytes((resources.files("skimage") / "data" / name).read_bytes())


def unzip(archive: Path, folder: Path) -> None:
    """Unpack `archive` into `folder`.

    Raises UserError where it is damaged or too large, or an entry is a link or leads out of `folder`.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_ENTRIES or size > MAX_BYTES:
                raise ValueError(f"{len(entries)} files, {size} bytes: over {MAX_ENTRIES} or {MAX_BYTES}")
            left = MAX_BYTES
            for entry, parts in [(entry, safe_parts(entry)) for entry in entries]:
                if not entry.filename.endswith(("/", "\\")) and not of_a_mac(parts):
                    left -= extract(file, entry, folder.joinpath(*parts), left)
    except UNZIP_ERRORS as error:
        raise UserError(f"cannot unpack {archive}: {error}", "download it again") from error


def safe_parts(entry: zipfile.ZipInfo) -> tuple[str, ...]:
    """Return the path of an entry in parts; ValueError where it is a link or leads out of its folder."""
    path = PureWindowsPath(entry.filename)  # knows / and \ and drives
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if path.anchor or ".." in path.parts:
        raise ValueError(f"{entry.filename!r} leads out of the folder")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{entry.filename!r} is a link or a device")
    return path.parts


def of_a_mac(parts: tuple[str, ...]) -> bool:
    """Whether an entry is one that a Mac adds to a zip, and no file of the user's."""
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


def extract(file: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limit: int) -> int:
    """Write one entry to `target` and return its size in bytes, as read: a header can say less."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with file.open(entry) as source, target.open("xb") as sink:
        while block := source.read(2**20):
            size += len(block)
            if size > limit:
                raise ValueError(f"{entry.filename!r} is larger than the {limit} bytes that are left")
            sink.write(block)
    return size


@dataclass(frozen=True)
class Samples:
    """What was prepared: where it is, one line on where it is from, and the count of photos."""

    model: Path
    model_source: str
    data: Path
    data_source: str
    photos: int


@dataclass(frozen=True)
class Part:
    """One of the two folders: its name, the zip it may be from, what else makes it, what it must hold."""

    name: str
    archive: str
    embedded: str
    write: Callable[[Path], None]
    content: str
    endings: tuple[str, ...]
    pattern: str


# A change of these lines makes the content again.
LITE0 = "EfficientNet-Lite0 (embedded, Apache-2.0), which stands in for the article's model"
FREE_PHOTOS = "from scikit-image (CC0, public domain)"
MODEL = Part("model", "model.zip", LITE0, write_model, "model", MODEL_ENDINGS, "*")
DATA = Part("data", "imagenet-1000.zip", FREE_PHOTOS, write_photos, "photos", PHOTO_ENDINGS, "**/*")
