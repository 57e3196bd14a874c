"""Whatever is in an image file, it costs no worker and no other image's row, and keeps to the bounds stated.

Each deployment is run by `score` over one folder: files of every kind, whole, cut short and with flipped
bits, and files made to be slow or large, with good pictures between them.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from model_kinds import colours
from PIL import Image, ImageCms, TiffImagePlugin
from score_runs import COMMAND
from scoring import ROOT
from test_mlflow import RGB, write_model

FLIPPED = int(os.environ.get("BAD_IMAGES", "8"))  # damaged copies of each kind; thousands were tried by hand
CHANGES = (
    "resources.instance_count=1",
    "settings.mini_batch_size=40",
    "settings.error_threshold=-1",
    "settings.retry_settings.timeout=300",  # seconds, far above what 40 files take
)
MEMORY = 3000  # MB that a worker may need at most for these files, the model included
COLOURS = ("red", "lime", "blue")  # classes 0, 1, 2 of the model
DEPLOYMENTS = ["deployment-by-file.yml", "deployment-by-batch.yml", "deployment-mlflow.yml"]


# --- files of every kind


def encode(image: Image.Image, format_: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG with that header, in RGB, and these chunks before its end."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def interlaced(image: Image.Image) -> bytes:
    """A PNG in the seven passes of Adam7, which Pillow reads but does not write."""
    lines = bytearray()
    for left, top, step_x, step_y in PASSES:
        for y in range(top, image.height, step_y):
            row = [image.getpixel((x, y)) for x in range(left, image.width, step_x)]
            lines += b"\0" + b"".join(map(bytes, row))
    header = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 1)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def two(image: Image.Image) -> dict[str, object]:
    return {"save_all": True, "append_images": [image.rotate(90)]}


def kinds(image: Image.Image) -> dict[str, bytes]:
    """`image` as the scoring scripts read it: in all six formats."""
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    cmyk, gray, palette = image.convert("CMYK"), image.convert("L"), image.quantize(64)
    transparent = image.convert("RGBA")
    transparent.putalpha(gray)
    cmyk_jpeg = encode(cmyk, "jpeg")
    marker = cmyk_jpeg.index(b"Adobe") + 11  # 0: CMYK, 2: YCCK
    sixteen = Image.frombytes("I;16", gray.size, bytes(2 * gray.width * gray.height))
    return {
        "baseline.jpg": encode(image, "jpeg"),
        "progressive.jpg": encode(image, "jpeg", progressive=True),
        "gray.jpg": encode(gray, "jpeg"),
        "cmyk.jpg": cmyk_jpeg,
        "ycck.jpg": cmyk_jpeg[:marker] + b"\x02" + cmyk_jpeg[marker + 1 :],
        "restarts.jpg": encode(image, "jpeg", restart_marker_rows=1, subsampling=0),
        "exif-icc.jpg": encode(image, "jpeg", exif=exif, icc_profile=profile, comment=b"hello"),
        "two.jpg": encode(image, "mpo", **two(image)),
        "rgb.png": encode(image, "png"),
        "bits.png": encode(image.convert("1"), "png"),
        "gray.png": encode(gray, "png"),
        "palette.png": encode(palette, "png", transparency=bytes(range(64))),
        "gray-alpha.png": encode(transparent.convert("LA"), "png"),
        "alpha.png": encode(transparent, "png", exif=exif, icc_profile=profile),
        "sixteen.png": encode(sixteen, "png"),
        "interlaced.png": interlaced(image),
        "animated.png": encode(image, "png", **two(image)),
        "palette.gif": encode(palette, "gif"),
        "animated.gif": encode(palette, "gif", loop=0, **two(palette)),
        "rgb.bmp": encode(image, "bmp"),
        "palette.bmp": encode(palette, "bmp"),
        "bits.bmp": encode(image.convert("1"), "bmp"),
        "lossy.webp": encode(image, "webp", exif=exif),
        "lossless.webp": encode(transparent, "webp", lossless=True),
        "animated.webp": encode(image, "webp", **two(image)),
        "raw.tiff": encode(image, "tiff"),
        "fax.tiff": encode(image.convert("1"), "tiff", compression="group4"),
        "jpeg.tiff": encode(image, "tiff", compression="jpeg"),
        "sixteen.tiff": encode(sixteen, "tiff"),
        "pages.tiff": encode(image, "tiff", compression="tiff_lzw", **two(image)),
        "big.tiff": encode(image, "tiff", compression="tiff_adobe_deflate", big_tiff=True, exif=exif),
        "cmyk.tiff": encode(cmyk, "tiff", compression="packbits"),
    }


def other_kinds(image: Image.Image) -> dict[str, bytes]:
    """`image` in formats that are not read: each would get a row with all that Pillow can open."""
    formats = ("ICO", "PPM", "PCX", "TGA", "ICNS", "JPEG2000", "EPS", "SGI", "DDS", "QOI", "IM", "PDF")
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    return {f"other.{format_}": encode(image, format_) for format_ in formats} | {"other.svg": svg}


def polyglots(image: Image.Image) -> dict[str, bytes]:
    """Images that are something else as well, or are named as another."""
    page = b"<html><script>alert(1)</script></html>"
    return {
        "zip.jpg": encode(image, "jpeg") + b"PK\x03\x04" + bytes(100),
        "html.gif": encode(image.quantize(64), "gif", comment=page) + page,
        "jpeg-in-jpeg.jpg": encode(image, "jpeg", comment=encode(image.resize((16, 16)), "jpeg")),
        "a-jpeg.png": encode(image, "jpeg"),
        "a-png.jpg": encode(image, "png"),
    }


# --- files made to take memory or time


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG that ends in so many empty scans of all its pixels."""
    contents = encode(Image.new("L", (width, height), 128), "jpeg", progressive=True)
    return contents[:-2] + contents[contents.rindex(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def text_bomb() -> bytes:
    """100 MB of text, in 100 kB, beside one pixel."""
    text = zlib.compress(bytes(100_000_000))
    pixel = chunk(b"IDAT", zlib.compress(bytes(4)))
    return png(1, 1, chunk(b"zTXt", b"a\0\0" + text), pixel, chunk(b"iTXt", b"a\0\1\0\0\0" + text))


def profile_bomb() -> bytes:
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    return png(1, 1, profile, chunk(b"IDAT", zlib.compress(bytes(4))))


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]


def frames(format_: str) -> bytes:
    first, *others = (Image.new("L", (2, 2), number % 256) for number in range(1000))
    return encode(first, format_, save_all=True, append_images=others)


def tags(image: Image.Image) -> bytes:
    """A TIFF with a thousand tags of its own, one of them of a megabyte."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag in range(33000, 34000):
        directory.tagtype[tag] = 1  # bytes
        directory[tag] = b"tag"
    directory[33000] = bytes(1_000_000)
    return encode(image, "tiff", tiffinfo=directory)


def bombs(image: Image.Image) -> dict[str, tuple[bytes, str | None]]:
    """Files, and why each is refused; None: it gets its row."""
    jpeg, row = encode(image, "jpeg"), None
    canvas = b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14)
    webp = b"WEBPVP8L" + struct.pack("<I", 5) + canvas + b"\0"
    return {
        "scans.jpg": (many_scans(1000, 1000, 1_000_000), "scans of 1,000,000 pixels"),
        "scans-of-large.jpg": (many_scans(12_000, 12_000, 1000), "scans of 144,000,000 pixels"),
        "some-scans.jpg": (many_scans(300, 300, 200), row),
        "pixels.png": (png(60_000, 60_000, chunk(b"IDAT", b"")), "60000 x 60000 pixels, at most"),
        "pixels.webp": (b"RIFF" + struct.pack("<I", len(webp)) + webp, "16383 x 16383 pixels, at most"),
        "pixels.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(99), "cannot identify|pixels"),
        "text.png": (text_bomb(), "too large"),
        "profile.png": (profile_bomb(), "too large"),
        "frames.gif": (frames("gif"), row),
        "frames.png": (frames("png"), row),
        "frames.webp": (frames("webp"), row),
        "tags.tiff": (tags(image), row),
        "profile.jpg": (with_segment(jpeg, 0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000)), row),
        "exif.jpg": (with_segment(jpeg, 0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff" + bytes(986)), row),
        "one.gif": (encode(Image.new("P", (1, 1)), "gif"), row),
        "wide.jpg": (encode(Image.new("RGB", (65_000, 1)), "jpeg"), row),
        "high.png": (encode(Image.new("RGB", (1, 65_000)), "png"), row),
    }


# --- the folder


def damaged(contents: bytes, chance: random.Random) -> bytes:
    """`contents` with one to eight flipped bits, half of the time all in its first hundred bytes."""
    changed = bytearray(contents)
    end = min(len(changed), chance.choice([100, len(changed)]))
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def write_data(folder: Path, image: Image.Image) -> dict[str, str | None]:
    """All files, each with what its row or reason must be: a class's name, a reason, or None for either."""
    chance = random.Random(0)
    files: list[tuple[str, bytes, str | None]] = []
    whole = kinds(image) | polyglots(image)
    for name, contents in whole.items():
        files.append((f"whole-{name}", contents, "row"))
        cuts = [(f"cut{tenth}-{name}", contents[: len(contents) * tenth // 10], None) for tenth in range(10)]
        files += cuts + [(f"flip{n}-{name}", damaged(contents, chance), None) for n in range(FLIPPED)]
    files += [(name, contents, "cannot identify image file") for name, contents in other_kinds(image).items()]
    files += [(name, contents, reason or "row") for name, (contents, reason) in bombs(image).items()]
    expected = {}
    for number, (name, contents, reason) in enumerate(files):
        # Of a type that the deployment of an MLflow model takes: what is in a file decides how it is read.
        path = folder / f"{number:05d}-{name}.jpg"
        path.write_bytes(contents)
        expected[path.name] = reason
        if number % 5 == 0:
            colour = COLOURS[number // 5 % 3]
            good = folder / f"{number:05d}-good.{'png' if number % 2 else 'jpg'}"
            Image.new("RGB", (60, 50), colour).save(good)
            expected[good.name] = colour
    return expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/, for the scoring scripts, and mlflow/model/: both know the three colours."""
    import keras

    folder = tmp_path_factory.mktemp("images")
    colours(keras).export(folder / "model", verbose=False)
    (folder / "mlflow").mkdir()
    write_model(folder / "mlflow", "return data.mean(axis=(1, 2)).argmax(axis=1)", RGB)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path, samples_folder: Path) -> dict[str, str | None]:
    """What must come of each file in data/."""
    (folder / "data").mkdir()
    with Image.open(samples_folder / "data" / "coffee.png") as photo:
        return write_data(folder / "data", photo.convert("RGB").resize((90, 60)))


def score(folder: Path, deployment: str) -> tuple[dict[str, int], dict[str, str], dict]:
    """The class of each file with a row, the reason of each without, and the summary."""
    model = folder / ("mlflow/model" if "mlflow" in deployment else "model")
    output = folder / deployment
    command = [*COMMAND, ROOT / deployment, "--model", model, "--data", folder / "data", "--output", output]
    for change in CHANGES:
        command += ["--set", change]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
    with (output / "score" / "predictions.csv").open(newline="") as lines:
        if "mlflow" in deployment:
            rows = {file: int(class_) for class_, file in csv.reader(lines)}
        else:
            rows = {file: int(class_) for file, class_, _ in csv.reader(lines, delimiter=" ")}
    with (output / "failed.csv").open(newline="") as lines:
        reasons = {Path(row["file"]).name: row["reason"] for row in csv.DictReader(lines)}
    with next(output.rglob("processed_mini-batches.csv")).open(newline="") as lines:
        assert {row["attempts"] for row in csv.DictReader(lines)} == {"1"}, "run() raised, or a worker died"
    return rows, reasons, json.loads((output / "summary.json").read_text())


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
def test_no_file_costs_a_worker_or_the_row_of_another(
    deployment: str, folder: Path, expected: dict[str, str | None]
) -> None:
    rows, reasons, summary = score(folder, deployment)
    assert rows.keys() | reasons.keys() == expected.keys()
    assert not rows.keys() & reasons.keys()
    for name, wanted in expected.items():
        if wanted in COLOURS:
            assert rows[name] == COLOURS.index(wanted), name
        elif wanted == "row":
            assert name in rows, reasons[name]
        elif wanted:
            assert name in reasons and any(part in reasons[name] for part in wanted.split("|")), (name, rows)
    assert all(f"{name}: left out: " in reason for name, reason in reasons.items())
    assert summary["peak_memory_of_a_worker_mb"] < MEMORY
