"""Any photo as upright pixels of 8 bits: what both scoring scripts share to read images.

The folder of each scoring script is a code asset of its own: this file stands in both, the same.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from threading import Lock

import numpy as np
from PIL import Image, TiffImagePlugin

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # for others Pillow may start a program (EPS)
MAX_PIXELS = 150_000_000  # of an image; a larger one is refused as a decompression bomb
LARGE_PIXELS = 25_000_000  # of an image; larger ones are read one at a time, which bounds the memory
MAX_BYTES = 2**29  # of a file
# What a JPEG may cost, 3 s on a current processor: pixels x scans, of which it can have many and almost empty
# ones, and for each byte of a progressive one as much as for 80 pixels (0.34 ns and 27 ns, measured).
MAX_WORK = 8_000_000_000
BYTE_WORK = 80
SCAN_BYTES = 10  # that a scan has at least
UPRIGHT = {  # by the orientation of EXIF and XMP; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GRAY_LEVELS = {"1": 255, "L;2": 85, "L;4": 17}  # what Pillow multiplies a gray PNG of few bits by
WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # by the type of an EXIF tag
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274  # tags of a TIFF
ROWS, TILE_WIDTH, TILE_ROWS = 278, 322, 323

TiffImagePlugin.OPEN_INFO |= {  # gray TIFFs that Pillow decodes, but does not know
    (b"II", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
}
Image.MAX_IMAGE_PIXELS = None  # Pillow's own two limits give way to the one in refuse_bomb()
large_images = Lock()


@contextmanager
def open_photo(path: str | int, mode: str = "RGB", least: int | None = None) -> Iterator[Image.Image]:
    """The image at `path`, or in a file descriptor, upright, in `mode`: L or RGB on white, or RGBA.

    A large JPEG is decoded at 1/2, 1/4 or 1/8, but not below `least` pixels a side. Large images take turns
    until the caller has made them small. Raises an exception for what is no image, or costs too much.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{size:,} bytes, at most {MAX_BYTES:,} are read")
        image = Image.open(file, formats=FORMATS)
        refuse_bomb(image, size)
        with large_images if image.width * image.height > LARGE_PIXELS else nullcontext():
            if least:
                image.draft(image.mode, (least, least))
            scale_transparent_value(image)
            image.load()
            turn = UPRIGHT.get(orientation(image))
            photo = convert(in_8_bits(image), mode)
            yield photo if turn is None else photo.transpose(turn)  # 0 is one of them


def crop_centre(photo: Image.Image, width: int, height: int) -> Image.Image:
    """The centre of `photo` in the shape of width x height: 7/8 of what fits, as ImageNet is evaluated."""
    across = max(1, min(photo.width, photo.height * width // height) * 7 // 8)
    down = max(1, min(photo.height, photo.width * height // width) * 7 // 8)
    left, top = (photo.width - across) // 2, (photo.height - down) // 2
    return photo.crop((left, top, left + across, top + down))


def refuse_bomb(image: Image.Image, size: int) -> None:
    """Raises ValueError if the image, in a file of `size` bytes, would take too much memory or time."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read")
    tags = getattr(image, "tag_v2", {})
    if image.format not in ("JPEG", "MPO") and tags.get(COMPRESSION) not in (6, 7):
        return
    bytes_work = size * BYTE_WORK if image.info.get("progressive") or tags else 0
    if pixels * (size // SCAN_BYTES) + bytes_work <= MAX_WORK:
        return
    image.fp.seek(0)
    scans = image.fp.read().count(b"\xff\xda")
    if tags:  # a strip or tile of a TIFF is a JPEG of its own
        pixels = tags.get(TILE_WIDTH, tags[WIDTH]) * tags.get(
            TILE_ROWS, min(tags.get(ROWS, pixels), tags[HEIGHT])
        )
    if pixels * scans + bytes_work > MAX_WORK:
        raise ValueError(f"{scans:,} scans of {pixels:,} pixels in {size:,} bytes take too long to decode")


def scale_transparent_value(image: Image.Image) -> None:
    """Brings the transparent value of a PNG from the bits of the file to the 8 that its pixels get."""
    layout = image.tile[0].args if image.format == "PNG" and image.tile else None
    value = image.info.get("transparency")
    if layout == "RGB;16B" and isinstance(value, tuple):
        image.info["transparency"] = tuple(part >> 8 for part in value)
    elif layout in GRAY_LEVELS and isinstance(value, int):
        image.info["transparency"] = value * GRAY_LEVELS[layout]


def orientation(image: Image.Image) -> int:
    """1 (upright) to 8, as EXIF or XMP has it, of whatever type; Pillow has turned a TIFF by itself."""
    with suppress(Exception):  # no EXIF, or none of whole numbers
        return orientation_in(image.info["exif"].removeprefix(b"Exif\0\0"))
    with suppress(Exception):
        found = image.getexif().get(ORIENTATION, 1)
        return int(found[0] if isinstance(found, bytes | tuple) else found)
    return 1  # damaged: viewers show such a photo, too


def orientation_in(exif: bytes) -> int:
    """That in a block of EXIF, whatever else is damaged in it: Pillow stops at the first damaged tag."""
    order = {b"II": "<", b"MM": ">"}[exif[:2]]
    (start,) = struct.unpack_from(order + "I", exif, 4)
    (tags,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, start + 2 + 12 * tags, 12):
        tag, type_, count = struct.unpack_from(order + "HHI", exif, entry)
        if tag == ORIENTATION:
            number = order + WHOLE_NUMBERS[type_]
            near = struct.calcsize(number) * count <= 4  # else their place is there
            place = entry + 8 if near else struct.unpack_from(order + "I", exif, entry + 8)[0]
            return struct.unpack_from(number, exif, place)[0]
    raise KeyError(ORIENTATION)


def in_8_bits(image: Image.Image) -> Image.Image:
    """`image` with channels of 8 bits."""
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no agreed range")
    if image.mode.startswith("I;16"):  # convert() would clip 16 bits to white instead of scaling them
        return gray_in_8_bits(image)
    if image.format == "BMP" and image.mode == "RGBA" and image.getextrema()[3] == (0, 0):
        return image.convert("RGB")  # the fourth byte is no alpha: viewers show such a picture
    return image


def gray_in_8_bits(image: Image.Image) -> Image.Image:
    """A gray `image` of 16 bits, or of 12 in 16; in a TIFF 0 may be white."""
    tags = getattr(image, "tag_v2", {})
    pixels = np.asarray(image)
    gray = (pixels >> min(max(tags.get(BITS, (16,))[0], 8), 16) - 8).astype(np.uint8)
    small = Image.fromarray(255 - gray if tags.get(PHOTOMETRIC) == 0 else gray)
    if isinstance(image.info.get("transparency"), int):
        small.putalpha(Image.fromarray(np.uint8(255) * (pixels != image.info["transparency"])))
    return small


def convert(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data and mode != "RGBA":
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)  # which would copy it
