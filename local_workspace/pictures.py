"""Small pictures of a job's staged input, for its page."""

from __future__ import annotations

import io
import os
import threading
import warnings
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from pathlib import Path

from PIL import Image, ImageOps

from local_workspace.errors import UserError
from local_workspace.listing import walk

SIZE = (320, 240)  # pixels, width and height
MAX_PIXELS = 50_000_000  # 200 MB while it is read; a JPEG is read at an eighth of its size
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")  # reading some of the others runs a program
SEARCHED = 200_000  # files of the input
OPEN = threading.Semaphore(2)  # pictures in memory: a browser asks for six at once, and a job may be running
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is the bound here


@lru_cache(maxsize=8)
def find_pictures(data: Path, files: tuple[str, ...]) -> dict[str, Path]:
    """The input file that each of `files` means: a name, or a path, as the scoring script wrote it.

    Only what lies in `data` is found, so a row leads nowhere else; a name that two folders have is not.
    """
    wanted: dict[str, list[str]] = {os.path.basename(file): [] for file in files}
    with suppress(UserError):
        for path in islice(walk(str(data), [], subfolders=True), SEARCHED):
            if (name := os.path.basename(path)) in wanted and not os.path.islink(path):
                wanted[name].append(path)
    found = {
        file: [path for path in wanted[os.path.basename(file)] if is_meant(path, file)] for file in files
    }
    return {file: Path(paths[0]) for file, paths in found.items() if len(paths) == 1}


def is_meant(path: str, file: str) -> bool:
    return path == file or path.endswith(f"{os.sep}{file}")


@lru_cache(maxsize=256)
def thumbnail(path: Path) -> bytes | None:
    """The whole picture as a small JPEG; None where it cannot be read. Staged files never change."""
    Image.init()  # without it, open() knows only some of FORMATS
    try:
        with OPEN, Image.open(path, formats=FORMATS) as image:
            image.draft("RGB", SIZE)
            if image.width * image.height > MAX_PIXELS:
                return None
            return as_jpeg(ImageOps.exif_transpose(image))
    except Exception:  # whatever is wrong with one picture must not cost the page
        return None


def as_jpeg(image: Image.Image) -> bytes:
    """What is transparent becomes white."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    content = io.BytesIO()
    ImageOps.contain(image.convert("RGB"), SIZE).save(content, "JPEG", quality=85)
    return content.getvalue()
