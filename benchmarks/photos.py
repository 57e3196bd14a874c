"""What the contenders score: photos, large photos, and very many empty files."""

from __future__ import annotations

import os
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from local_workspace import samples
from local_workspace.errors import UserError

SIZES = (375, 400, 427, 450, 480, 500, 560, 640)  # pixels of the long side; ImageNet's are mostly 500 x 375
LARGE = (6000, 4000)  # pixels: 24 megapixels
FILES_A_FOLDER = 10_000
ENDINGS = (".jpg", ".jpeg")


def embedded_photos(folder: Path) -> tuple[list[Path], str]:
    """The photos of `python -m local_workspace samples` as JPEGs in several sizes; and what they are."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        samples.write_photos(folder)
        for path in list(folder.iterdir()):
            with Image.open(path) as image:
                for size in SIZES:
                    small = image.convert("RGB")
                    scale = size / max(image.size)
                    small = small.resize((round(image.width * scale), round(image.height * scale)))
                    small.save(folder / f"{path.stem}-{size}.jpeg", quality=90)
            path.unlink()
    found = sorted(folder.iterdir())
    return found, (
        f"the {len(samples.PHOTOS)} embedded photos, each as a JPEG of {len(SIZES)} sizes "
        f"({SIZES[0]} to {SIZES[-1]} pixels), repeated under other names"
    )


def photos_in(folder: Path) -> tuple[list[Path], str]:
    found = sorted(path.absolute() for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not found:
        raise UserError(f"{folder}: no JPEGs in it", "name a folder of photos with --data")
    return found, f"{len(found)} photos of your own, repeated under other names where more are scored"


def lay_out(photos: list[Path], count: int, folder: Path) -> list[str]:
    """Links to the first `count` photos, again from the first one when there are fewer; their paths."""
    folder.mkdir(parents=True)
    for number, photo in enumerate(islice(cycle(photos), count)):
        (folder / f"{number:05}-{photo.name}").symlink_to(photo.absolute())
    return sorted(map(str, folder.iterdir()))


def write_large(photos: list[Path], folder: Path) -> list[Path]:
    """Four of the photos as JPEGs of 24 megapixels."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.jpeg" for number in range(4)]
    for path, photo in zip(paths, photos[:: max(1, len(photos) // 4)]):
        if not path.is_file():
            with Image.open(photo) as image:
                image.convert("RGB").resize(LARGE).save(path, quality=90)
    return [path for path in paths if path.is_file()]


def write_empty(count: int, folder: Path) -> None:
    """Hard links to one empty file in each folder: to make a million files can take ten minutes."""
    for number in range(count):
        if number % FILES_A_FOLDER == 0:
            first = folder / f"{number // FILES_A_FOLDER:04}" / f"{number:07}.jpeg"
            first.parent.mkdir(parents=True)
            first.touch()
        else:
            os.link(first, first.with_name(f"{number:07}.jpeg"))
