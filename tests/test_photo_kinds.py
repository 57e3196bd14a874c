"""Every kind of photo is read as viewers show it: upright, in 8 bits, white where it is transparent.

photo.py is the same in both scoring scripts, in the MLflow driver and where pictures are drawn.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from image_files import TURNED, bmp, chunk, encode, exif, packed, png, tag, tiff, with_scans
from PIL import Image, ImageCms, PngImagePlugin
from scoring import CODE

ORIENTATION = 274
ALL_MASKS = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


@pytest.fixture(scope="module")
def photo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("photo", CODE / "score-by-file" / "photo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def read(photo: ModuleType, tmp_path: Path) -> Any:
    """From the bytes of a file to the pixels that photo.py reads."""

    def read(contents: bytes, **options: Any) -> np.ndarray:
        (tmp_path / "file").write_bytes(contents)
        with photo.open_photo(str(tmp_path / "file"), **options) as image:
            return np.asarray(image).astype(int)

    return read


def same(found: np.ndarray, expected: Any, tolerance: float = 1) -> bool:
    expected = np.asarray(expected).astype(int)
    return found.shape == expected.shape and abs(found - expected).mean() <= tolerance


# --- turned photos


def upright() -> Image.Image:
    """A picture that no turn maps to itself."""
    picture = Image.new("RGB", (60, 40), "red")
    picture.paste("blue", (0, 0, 60, 10))
    picture.paste("lime", (0, 10, 15, 40))
    return picture


def turned(orientation: int) -> Image.Image:
    return upright().transpose(TURNED[orientation])


def formats(image: Image.Image, tags: bytes) -> dict[str, bytes]:
    return {
        "JPEG": encode(image, "jpeg", exif=tags, quality=95, subsampling=0),
        "PNG": encode(image, "png", exif=tags),
        "WebP": encode(image, "webp", exif=tags, lossless=True),
    }


WHOLE = ("BYTE", "SHORT", "LONG", "SBYTE", "SSHORT", "SLONG")
CORRUPT = pytest.mark.filterwarnings(
    "ignore:Corrupt EXIF",
    "ignore:Possibly corrupt EXIF",
    "ignore:Truncated File Read",
    "ignore:Metadata Warning",
)


@CORRUPT
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("type_", [*WHOLE, "UNDEFINED", "RATIONAL", "FLOAT", "ASCII"])
def test_each_orientation_of_each_type(read: Any, type_: str, order: str) -> None:
    for orientation in TURNED:
        tags = exif(tag(ORIENTATION, type_, orientation, order=order), order=order)
        for format_, contents in formats(turned(orientation), tags).items():
            assert same(read(contents), upright(), 4), (format_, orientation)


@CORRUPT
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("type_", WHOLE)
def test_the_first_of_several_orientations_counts(read: Any, type_: str, order: str, count: int) -> None:
    tags = exif(tag(ORIENTATION, type_, 6, *[1] * (count - 1), order=order), order=order)
    for format_, contents in formats(turned(6), tags).items():
        assert same(read(contents), upright(), 4), format_


# Another tag in the same EXIF: its number, type, count and the four bytes for its values or their place.
OTHERS = {
    "a negative number where only others are known": (0x9000, 8, 1, b"\xfd\xff\0\0"),
    "a long number where a short one is known": (0x128, 4, 1, b"\0\0\1\0"),
    "text far beyond the end": (0x10F, 2, 100_000, b"\0\0\1\0"),
    "text at no place": (0x10E, 2, 100, b"\xff\xff\xff\xff"),
    "an unknown type": (0x10F, 99, 1, b"\0\0\0\0"),
    "type 0": (0x10F, 0, 1, b"\0\0\0\0"),
    "no values": (0x10F, 3, 0, b"\0\0\0\0"),
    "a directory at no place": (0x8769, 4, 1, b"\xf0\xff\xff\xff"),
    "a directory in itself": (0x8825, 4, 1, b"\x08\0\0\0"),
    "not a number": (0x9290, 11, 1, b"\0\0\xc0\x7f"),
    "text that is none": (0x10F, 7, 4, b"\xff\xfe\xfd\0"),
}


@CORRUPT
@pytest.mark.parametrize("case", OTHERS)
def test_whatever_is_wrong_with_another_tag(read: Any, case: str) -> None:
    tags = exif(OTHERS[case], tag(ORIENTATION, "SHORT", 6))
    for format_, contents in formats(turned(6), tags).items():
        assert same(read(contents), upright(), 4), format_


@CORRUPT
def test_a_damaged_exif_costs_no_row(read: Any) -> None:
    """Cut short anywhere: the photo is turned if its orientation is still there, else it is as it lies."""
    tags = exif(tag(ORIENTATION, "SHORT", 6), (0x131, 2, 40, b"x" * 40))
    for length in range(6, len(tags)):
        found = read(encode(turned(6), "jpeg", exif=tags[:length], quality=95, subsampling=0))
        assert same(found, upright(), 4) if length >= 26 else same(found, turned(6), 4), length


@pytest.mark.parametrize("value", [0, 1, 9, 255])
def test_an_orientation_that_is_none_turns_nothing(read: Any, value: int) -> None:
    for contents in formats(upright(), exif(tag(ORIENTATION, "SHORT", value))).values():
        assert same(read(contents), upright(), 4)


def test_an_orientation_behind_a_large_profile_in_a_progressive_jpeg(read: Any) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(195_000)
    contents = encode(turned(6), "jpeg", progressive=True, icc_profile=profile, quality=95, subsampling=0)
    tags = exif(tag(ORIENTATION, "LONG", 6))
    end = contents.index(b"\xff\xdb")  # of the profile's segments
    segment = b"\xff\xe1" + (len(tags) + 2).to_bytes(2, "big") + tags
    assert same(read(contents[:end] + segment + contents[end:]), upright(), 4)


DESCRIPTIONS = (
    'tiff:Orientation="6"/>',
    "><tiff:Orientation>6</tiff:Orientation></rdf:Description>",
)


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_an_orientation_in_xmp_alone(read: Any, description: str) -> None:
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description {description}</rdf:RDF></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp)
    pixels = (turned(6).tobytes(), (40, 60), 8, 2)
    for contents in (
        encode(turned(6), "jpeg", xmp=xmp.encode(), quality=95, subsampling=0),
        encode(turned(6), "webp", xmp=xmp.encode(), lossless=True),
        encode(turned(6), "png", pnginfo=text),
        tiff(*pixels, (700, 1, len(xmp), xmp.encode()), channels=3),
    ):
        assert same(read(contents), upright(), 4)


@CORRUPT
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("type_", WHOLE)
def test_a_turned_tiff_is_turned_once(read: Any, type_: str, order: str, compression: int) -> None:
    for orientation in TURNED:
        picture = turned(orientation)
        for others in ([], [(0x9000, 8, 1, b"\xfd\xff\0\0")], [(0x8769, 4, 1, b"\xf0\xff\xff\xff")]):
            tags = [tag(ORIENTATION, type_, orientation, order=order), *others]
            parts = {"order": order, "channels": 3, "compression": compression}
            assert same(read(tiff(picture.tobytes(), picture.size, 8, 2, *tags, **parts)), upright())


# --- gray, in any number of bits


def ramp() -> np.ndarray:
    """A third dark, a third middling, a third bright."""
    return np.repeat([[40, 120, 200]], 16, axis=1).repeat(16, axis=0)


def gray(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., np.newaxis], 3, axis=2)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("zero", [0, 1], ids=["0 is white", "0 is black"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16])
def test_a_gray_tiff(read: Any, bits: int, zero: int, order: str, compression: int) -> None:
    most = 2**bits - 1
    values = np.rint(ramp() * most / 255).astype(int)
    pixels = packed(values if zero else most - values, bits, order)
    found = read(tiff(pixels, (48, 16), bits, zero, order=order, compression=compression))
    assert same(found, gray(values * 255 // most))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_gray_png_and_its_transparent_value(read: Any, bits: int) -> None:
    most = 2**bits - 1
    values = np.rint(ramp() * most / 255).astype(int)
    rows = [packed(row[np.newaxis], bits, ">") for row in values]
    assert same(read(png(rows, 48, bits, 0)), gray(values * 255 // most))
    for transparent in np.unique(values).tolist():
        found = read(png(rows, 48, bits, 0, chunk(b"tRNS", transparent.to_bytes(2, "big"))))
        assert same(found, gray(np.where(values == transparent, 255, values * 255 // most))), transparent


def test_pixels_without_an_agreed_range_are_refused(read: Any) -> None:
    for bits, type_, format_ in ((32, "f4", 3), (32, "i4", 2), (16, "i2", 2)):
        contents = tiff(ramp().astype(type_).tobytes(), (48, 16), bits, 1, tag(339, "SHORT", format_))
        with pytest.raises(ValueError, match="have no agreed range"):
            read(contents)


# --- what is transparent is white, and what only seems so is not


def coloured() -> np.ndarray:
    return np.dstack([ramp(), ramp()[:, ::-1], np.full((16, 48), 90)])


def alphas() -> np.ndarray:
    return np.where(ramp() == 200, 0, 255)


def on_white(pixels: np.ndarray) -> np.ndarray:
    return np.where(alphas()[..., np.newaxis] == 0, 255, pixels)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_in_colour_and_its_transparent_value(read: Any, bits: int) -> None:
    scale = 1 if bits == 8 else 257
    rows = [packed(row.reshape(1, -1) * scale, bits, ">") for row in coloured()]
    assert same(read(png(rows, 48, bits, 2)), coloured())
    first = coloured()[0, 0]
    colour = b"".join(int(part * scale).to_bytes(2, "big") for part in first)
    found = read(png(rows, 48, bits, 2, chunk(b"tRNS", colour)))
    assert same(found, np.where((coloured() == first).all(axis=2)[..., np.newaxis], 255, coloured()))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [4, 6], ids=["gray", "RGB"])
def test_a_png_with_alphas(read: Any, colour: int, bits: int) -> None:
    pixels = ramp()[..., np.newaxis] if colour == 4 else coloured()
    values = np.dstack([pixels, alphas()]) * (1 if bits == 8 else 257)
    rows = [packed(row.reshape(1, -1), bits, ">") for row in values]
    expected = on_white(np.broadcast_to(pixels, (16, 48, 3)))
    assert same(read(png(rows, 48, bits, colour)), expected)
    assert same(
        read(png(rows, 48, bits, colour), mode="L"), Image.fromarray(expected.astype("u1")).convert("L")
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_palette_with_transparency(read: Any, bits: int) -> None:
    numbers = (ramp() > 100).astype(int)
    rows = [packed(row[np.newaxis], bits) for row in numbers]
    palette = chunk(b"PLTE", bytes([40, 50, 60, 200, 210, 220]))
    colours = np.where(numbers[..., np.newaxis], [200, 210, 220], [40, 50, 60])
    assert same(read(png(rows, 48, bits, 3, palette)), colours)
    found = read(png(rows, 48, bits, 3, palette, chunk(b"tRNS", b"\0")))
    assert same(found, np.where(numbers[..., np.newaxis], colours, 255))


@pytest.mark.parametrize("header", [56, 108, 124], ids=["V3", "V4", "V5"])
def test_a_bmp_is_opaque_where_all_its_alphas_are_0(read: Any, header: int) -> None:
    colours = coloured()[..., ::-1]
    for alpha, expected in ((alphas(), on_white(coloured())), (0 * alphas(), coloured())):
        assert same(read(bmp(np.dstack([colours, alpha]), header, ALL_MASKS)), expected)


@pytest.mark.parametrize("masks", [(), ALL_MASKS[:3]], ids=["none", "of colours"])
@pytest.mark.parametrize("header", [40, 108, 124])
def test_the_fourth_byte_of_a_bmp_without_its_mask_is_no_alpha(
    read: Any, header: int, masks: tuple[int, ...]
) -> None:
    contents = bmp(np.dstack([coloured()[..., ::-1], alphas()]), header, masks)
    assert same(read(contents), coloured())


@pytest.mark.parametrize(("extra", "expected"), [(0, coloured()), (2, on_white(coloured()))])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_fourth_channel_of_a_tiff(read: Any, bits: int, extra: int, expected: np.ndarray) -> None:
    values = np.dstack([coloured(), alphas()]) * (1 if bits == 8 else 257)
    pixels = packed(values.reshape(16, -1), bits)
    assert same(read(tiff(pixels, (48, 16), bits, 2, tag(338, "SHORT", extra), channels=4)), expected)


# --- JPEGs made to be slow


def test_scans_cost_as_much_as_their_pixels(read: Any) -> None:
    assert read(with_scans(100, 80, 500)).shape == (80, 100, 3)
    with pytest.raises(ValueError, match=r"5\d\d scans of 144,000,000 pixels in .* take too long"):
        read(with_scans(12_000, 12_000, 500))


def test_the_strips_of_a_tiff_share_its_scans_as_they_share_its_pixels(read: Any) -> None:
    """A strip is a JPEG of its own. A directory may list more than there are; one alone costs it all."""
    jpeg = with_scans(12_000, 12_000, 90)
    with pytest.raises(ValueError, match=r"9\d scans of 144,000,000 pixels"):
        read(tiff(jpeg, (12_000, 12_000), 8, 1, compression=7))
    with pytest.raises(ValueError, match=r"9\d scans of 144,000,000 pixels"):
        read(tiff(jpeg, (12_000, 12_000), 8, 1, compression=7, listed=10_000))
    many = encode(Image.new("RGB", (2000, 12_000)), "tiff", compression="jpeg", tiffinfo={278: 16})
    assert many.count(b"\xff\xda") > 700
    assert read(many).shape == (12_000, 2000, 3)


def test_a_large_photo_is_decoded_small_and_turned(read: Any, photo: ModuleType, tmp_path: Path) -> None:
    large = turned(6).resize((3000, 4500))
    contents = encode(large, "jpeg", exif=exif(tag(ORIENTATION, "SHORT", 6)), quality=90)
    small = upright().resize((563, 375), Image.Resampling.NEAREST)
    assert same(read(contents, least=256), small, 12)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)  # as the MLflow driver opens it
    with photo.open_photo(descriptor, "RGBA", least=256) as image:
        assert (image.size, image.mode) == ((563, 375), "RGBA")
