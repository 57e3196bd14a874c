"""Image files as cameras, scanners and other programs write them, and Pillow does not: made byte by byte."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

TYPES = {"BYTE": (1, "B"), "SHORT": (3, "H"), "LONG": (4, "I"), "RATIONAL": (5, "II"), "SSHORT": (8, "h")}
TYPES |= {"SBYTE": (6, "b"), "UNDEFINED": (7, "B"), "SLONG": (9, "i"), "FLOAT": (11, "f"), "ASCII": (2, "s")}
TURNED = {  # how the picture lies in the file, by its orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
Tag = tuple[int, int, int, bytes]  # its number, type and count, and its values


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def tag(number: int, type_: str, *values: float, order: str = "<") -> Tag:
    code, letters = TYPES[type_]
    if type_ == "ASCII":
        text = b"%d\0" % values
        return number, code, len(text), text
    values = tuple(part for value in values for part in ((value, 1) if type_ == "RATIONAL" else (value,)))
    count = len(values) // len(letters)
    return number, code, count, struct.pack(order + letters * count, *values)


def directory(tags: list[Tag], order: str = "<", start: int = 8) -> bytes:
    """A directory of TIFF, whose far values come behind it; `start` is its place."""
    far, entries = b"", b""
    place = start + 2 + 12 * len(tags) + 4
    for number, type_, count, values in sorted(tags):
        near = values
        if len(values) > 4:
            near = struct.pack(order + "I", place + len(far))
            far += values + bytes(len(values) % 2)
        entries += struct.pack(order + "HHI", number, type_, count) + near.ljust(4, b"\0")
    return struct.pack(order + "H", len(tags)) + entries + bytes(4) + far


def exif(*tags: Tag, order: str = "<") -> bytes:
    return b"Exif\0\0" + head(order) + directory(list(tags), order)


def head(order: str) -> bytes:
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)


def packed(values: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Rows of numbers of so many bits each, as TIFF and PNG have them."""
    if bits == 16:
        return values.astype(order + "u2").tobytes()
    rows = ("".join(f"{value:0{bits}b}" for value in row) for row in values)
    padded = (row + "0" * (-len(row) % 8) for row in rows)
    return b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in padded)


def tiff(
    pixels: bytes,
    size: tuple[int, int],
    bits: int,
    photometric: int,
    *tags: Tag,
    order: str = "<",
    **parts: int,
) -> bytes:
    """A TIFF of one strip. `parts`: channels; compression (8: zlib; another is that of `pixels` already);
    listed: how many strips it says that there are.
    """
    listed = parts.get("listed", 1)
    channels, compression = parts.get("channels", 1), parts.get("compression", 1)
    strip = zlib.compress(pixels) if compression == 8 else pixels
    numbers = {256: size[0], 257: size[1], 259: compression, 262: photometric, 277: channels, 278: size[1]}
    known = [tag(number, "LONG", value, order=order) for number, value in numbers.items()]
    known += [tag(258, "SHORT", *[bits] * channels, order=order), tag(279, "LONG", len(strip), order=order)]
    length = len(directory([*known, *tags, tag(273, "LONG", *[0] * listed)]))
    strips = tag(273, "LONG", *[8 + length] * listed, order=order)
    return head(order) + directory([*known, *tags, strips], order) + strip


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: list[bytes], width: int, bits: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG of the colour type `colour` (0 gray, 2 RGB, 3 palette, 4 gray and alpha)."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def bmp(pixels: np.ndarray, header: int, masks: tuple[int, ...]) -> bytes:
    """A BMP of 32 bits: `pixels` (height, width, 4) blue first, a header of so many bytes, and its masks."""
    height, width, _ = pixels.shape
    rows = pixels[::-1].astype("u1").tobytes()
    compression = 3 if masks else 0
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, 32, compression, len(rows), 0, 0, 0, 0)
    packed_masks = b"".join(struct.pack("<I", mask) for mask in masks)
    info += packed_masks if header == 40 else packed_masks.ljust(header - 40, b"\0")
    offset = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset) + info + rows


def with_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive gray JPEG that ends in so many more scans, empty ones, of all its pixels."""
    contents = encode(Image.new("L", (width, height), 128), "jpeg", progressive=True)
    return contents[:-2] + contents[contents.rindex(b"\xff\xda") : -2] * scans + b"\xff\xd9"
