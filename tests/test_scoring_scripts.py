"""Both scoring scripts, through init() and run(), as the batch executor of Azure calls them."""

from __future__ import annotations

import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scoring import NAMES, SHARED, load

from local_workspace.samples import PHOTOS, read_labels

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scripts(samples_folder: Path) -> dict[str, ModuleType]:
    """Both scripts with the embedded model; AZUREML_MODEL_DIR is the parent of model/."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return {name: load(name, {"AZUREML_MODEL_DIR": str(samples_folder)}, monkeypatch) for name in NAMES}


@pytest.fixture(params=NAMES)
def script(request: pytest.FixtureRequest, scripts: dict[str, ModuleType]) -> ModuleType:
    return scripts[request.param]


@pytest.fixture(scope="session")
def coffee(samples_folder: Path) -> Image.Image:
    return Image.open(samples_folder / "data" / "coffee.png").convert("RGB")


ESPRESSO = 968  # index of the label in ImageNetLabels.txt


# --- the photos


def test_the_photos_get_their_labels(script: ModuleType, samples_folder: Path) -> None:
    labels = read_labels(samples_folder / "model")
    frame = script.run([str(samples_folder / "data" / name) for name in PHOTOS])
    assert list(frame.columns) == ["file", "class", "probability"]
    assert dict(zip(frame["file"], [labels[index] for index in frame["class"]])) == PHOTOS
    assert frame["probability"].between(0.3, 1).all()


def test_rows_come_in_the_order_given(script: ModuleType, samples_folder: Path) -> None:
    backwards = sorted(PHOTOS, reverse=True)
    frame = script.run([str(samples_folder / "data" / name) for name in backwards])
    assert list(frame["file"]) == backwards


def test_the_scripts_agree_on_every_photo(
    scripts: dict[str, ModuleType], samples_folder: Path, tmp_path: Path
) -> None:
    """On crops of the four photos: class, and probability to the thousandth."""
    for name in PHOTOS:
        with Image.open(samples_folder / "data" / name) as image:
            whole = image.convert("RGB")
        for number in range(25):
            box = (number, number // 2, whole.width - number // 2, whole.height - number // 3)
            whole.crop(box).save(tmp_path / f"{name}{number}.jpg", quality=90)
    paths = sorted(map(str, tmp_path.iterdir()))
    by_file, by_batch = (scripts[name].run(paths) for name in NAMES)
    assert list(by_file["file"]) == list(by_batch["file"])
    assert list(by_file["class"]) == list(by_batch["class"])
    assert (by_file["probability"] - by_batch["probability"]).abs().max() < 1e-3


def test_what_the_scripts_share_is_the_same_in_both_folders() -> None:
    folders = [ROOT / "code" / name for name in NAMES]
    for module in SHARED:
        contents = [(folder / f"{module}.py").read_bytes() for folder in folders]
        assert contents[0] == contents[1], module
    driver = ROOT / "local_workspace" / "mlflow_driver" / "driver_photo.py"
    assert driver.read_bytes() == (folders[0] / "photo.py").read_bytes()


# --- kinds of images: each way to write the cup of coffee must be read as the cup of coffee


def animated(image: Image.Image, path: Path) -> None:
    first = image.quantize(256)
    first.save(path, save_all=True, append_images=[Image.new("P", image.size)])


def sixteen_bits(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257).save(path)


def turned(image: Image.Image, path: Path, orientation: int, byte_order: bytes = b"II") -> None:
    turn_back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif.endian = "<" if byte_order == b"II" else ">"
    exif[0x0112] = orientation
    image.transpose(turn_back[orientation]).save(path, exif=exif, quality=95)


def cut_out(image: Image.Image, path: Path) -> None:
    """The cup on a transparent ground whose hidden colour is a garish noise."""
    pixels = np.dstack([np.asarray(image), np.full(image.size[::-1], 255, np.uint8)])
    noise = np.random.default_rng(0).integers(0, 255, pixels.shape, np.uint8)
    noise[..., 3] = 0
    rows, columns = np.ogrid[: image.height, : image.width]
    outside = (rows - image.height / 2) ** 2 + (columns - image.width / 2) ** 2 > (image.height / 2) ** 2
    Image.fromarray(np.where(outside[..., np.newaxis], noise, pixels)).save(path)


KINDS: dict[str, Callable[[Image.Image, Path], None]] = {
    "rgb.jpg": lambda image, path: image.save(path, quality=95),
    "progressive.jpg": lambda image, path: image.save(path, quality=95, progressive=True),
    "gray.jpg": lambda image, path: image.convert("L").save(path, quality=95),
    "cmyk.jpg": lambda image, path: image.convert("CMYK").save(path, quality=95),
    "turned3.jpg": lambda image, path: turned(image, path, 3),
    "turned6.jpg": lambda image, path: turned(image, path, 6),
    "turned8.jpg": lambda image, path: turned(image, path, 8, b"MM"),
    "turned6.png": lambda image, path: turned(image, path, 6),
    "large.jpg": lambda image, path: image.resize((3600, 2400)).save(path, quality=90),
    "rgb.png": lambda image, path: image.save(path),
    "gray.png": lambda image, path: image.convert("L").save(path),
    "palette.png": lambda image, path: image.quantize(256).save(path),
    "alpha.png": cut_out,
    "gray-alpha.png": lambda image, path: image.convert("LA").save(path),
    "sixteen-bits.png": sixteen_bits,
    "sixteen-bits.tiff": sixteen_bits,
    "rgb.tiff": lambda image, path: image.save(path),
    "cmyk.tiff": lambda image, path: image.convert("CMYK").save(path),
    "animated.gif": animated,
    "rgb.bmp": lambda image, path: image.save(path),
    "rgb.webp": lambda image, path: image.save(path, quality=95),
    "no-extension": lambda image, path: image.save(path, "jpeg"),
    "a name with spaces and 'quotes'.jpg": lambda image, path: image.save(path, quality=95),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read_rightly(
    script: ModuleType, kind: str, coffee: Image.Image, tmp_path: Path
) -> None:
    KINDS[kind](coffee, tmp_path / kind)
    frame = script.run([str(tmp_path / kind)])
    assert list(frame["file"]) == [kind]
    assert list(frame["class"]) == [ESPRESSO]
    assert frame["probability"][0] > 0.5


SIZES = {
    "1x1.png": (1, 1),
    "1x1.jpg": (1, 1),
    "wide.jpg": (65_000, 1),
    "tall.png": (3, 5000),
    "2x3.gif": (2, 3),
}


@pytest.mark.parametrize("name", SIZES)
def test_every_size_gives_a_row(scripts: dict[str, ModuleType], name: str, tmp_path: Path) -> None:
    Image.new("RGB", SIZES[name], "teal").save(tmp_path / name)
    Image.new("RGB", (300, 300), "teal").save(tmp_path / "square.png")
    for script in scripts.values():
        frame = script.run([str(tmp_path / name), str(tmp_path / "square.png")])
        assert frame["class"].nunique() == 1, "one colour is one colour at any size"
        assert np.ptp(frame["probability"]) < 0.03


def test_what_is_transparent_is_white(script: ModuleType, tmp_path: Path) -> None:
    Image.new("RGBA", (300, 300), (0, 0, 0, 0)).save(tmp_path / "transparent.png")
    Image.new("RGB", (300, 300), "white").save(tmp_path / "white.png")
    frame = script.run([str(tmp_path / "transparent.png"), str(tmp_path / "white.png")])
    assert frame["class"].nunique() == frame["probability"].nunique() == 1


# --- what cannot be read


def first_half(image: Image.Image, path: Path) -> None:
    image.save(path, "jpeg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def claims(width: int, height: int) -> Callable[[Image.Image, Path], None]:
    """A PNG of a few bytes whose header claims that size."""

    def write(image: Image.Image, path: Path) -> None:
        parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT", b"IEND"]
        chunks = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))

    return write


UNREADABLE: dict[str, tuple[Callable[[Image.Image, Path], None], str]] = {
    "empty.jpg": (lambda image, path: path.touch(), "cannot identify image file"),
    "text.jpg": (lambda image, path: path.write_text("not an image"), "cannot identify image file"),
    "half.jpg": (first_half, "truncated"),
    "half.png": (lambda image, path: (image.save(path), cut_in_half(path)), "truncated"),
    "folder.jpg": (lambda image, path: path.mkdir(), "Is a directory"),
    "missing.jpg": (lambda image, path: None, "No such file"),
    "bomb.png": (claims(100_000, 100_000), "100000 x 100000 pixels, at most 150,000,000"),
    "bomb.jpg": (lambda image, path: Image.new("L", (20_000, 10_000)).save(path), "20000 x 10000 pixels"),
    "float.tiff": (lambda image, path: Image.new("F", (300, 300)).save(path), "mode F"),
}


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_image_is_logged_and_costs_no_other_row(
    script: ModuleType, kind: str, coffee: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, reason = UNREADABLE[kind]
    write(coffee, tmp_path / kind)
    for name in ("before.jpg", "later.png"):
        coffee.save(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        frame = script.run([str(tmp_path / name) for name in ("before.jpg", kind, "later.png")])
    assert list(frame["file"]) == ["before.jpg", "later.png"]
    assert list(frame["class"]) == [ESPRESSO, ESPRESSO]
    (message,) = [record.getMessage() for record in caplog.records]
    assert str(tmp_path / kind) in message
    assert reason in message


def test_an_empty_result_is_an_empty_frame(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    for paths in ([], [str(tmp_path / "text.jpg")]):
        frame = script.run(paths)
        assert isinstance(frame, pd.DataFrame)
        assert list(frame.columns) == ["file", "class", "probability"]
        assert len(frame) == 0


def test_a_name_that_is_not_utf_8_gets_its_row(
    script: ModuleType, coffee: Image.Image, tmp_path: Path
) -> None:
    paths = [os.fsdecode(bytes(tmp_path) + name) for name in (b"/caf\xe9.jpg", b"/caf\xe9.png")]
    for path in paths:
        coffee.save(path)
    frame = script.run(paths)
    assert list(frame["file"]) == [os.path.basename(path) for path in paths]
    assert list(frame["class"]) == [ESPRESSO, ESPRESSO]


# --- settings


@pytest.mark.parametrize("name", NAMES)
def test_stretch_sees_what_the_crop_cuts_off(
    name: str, samples_folder: Path, coffee: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cup in the right third of a wide white picture."""
    wide = Image.new("RGB", (coffee.width * 3, coffee.height), "white")
    wide.paste(coffee, (coffee.width * 2, 0))
    wide.save(tmp_path / "wide.jpg")
    environment = {"AZUREML_MODEL_DIR": str(samples_folder)}
    crop = load(name, environment, monkeypatch).run([str(tmp_path / "wide.jpg")])
    stretch = load(name, {**environment, "IMAGE_FIT": "stretch"}, monkeypatch).run(
        [str(tmp_path / "wide.jpg")]
    )
    assert crop["probability"][0] < 0.2, "all that the crop sees is white"
    assert stretch["class"][0] != crop["class"][0]


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_gives_the_same_labels(
    name: str, scripts: dict[str, ModuleType], samples_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow as tf

    environment = {"AZUREML_MODEL_DIR": str(samples_folder), "MIXED_PRECISION": "1"}
    paths = [str(samples_folder / "data" / photo) for photo in ("camera.png", "coffee.png")]
    try:
        mixed = load(name, environment, monkeypatch).run(paths)
        assert tf.config.optimizer.get_experimental_options()["auto_mixed_precision_onednn_bfloat16"]
    finally:
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": False})
    exact = scripts[name].run(paths)
    assert list(mixed["class"]) == list(exact["class"])
    assert np.allclose(mixed["probability"], exact["probability"], atol=0.05)


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [(name, variable, "2") for name in NAMES for variable in ("IMAGE_FIT", "MIXED_PRECISION")]
    + [("score-by-batch", "DEVICE_BATCH_SIZE", "0")],
)
def test_a_wrong_setting_is_named(
    name: str, variable: str, value: str, samples_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"AZUREML_MODEL_DIR": str(samples_folder), variable: value}
    with pytest.raises(ValueError, match=f"{variable}='?{value}'?, expected"):
        load(name, environment, monkeypatch)


@pytest.mark.parametrize(("size", "expected"), [("3", [3, 3, 1]), ("100", [7])])
def test_the_device_batch_is_what_the_model_gets(
    size: str, expected: list[int], samples_folder: Path, coffee: Image.Image, tmp_path: Path, monkeypatch
) -> None:
    environment = {"AZUREML_MODEL_DIR": str(samples_folder), "DEVICE_BATCH_SIZE": size}
    script = load("score-by-batch", environment, monkeypatch)
    score, got = script.classifier.score, []
    monkeypatch.setattr(
        script.classifier, "score", lambda images: (got.append(len(images)), score(images))[1]
    )
    for number in range(7):
        coffee.save(tmp_path / f"{number}.jpg")
    frame = script.run([str(tmp_path / f"{number}.jpg") for number in range(7)])
    assert got == expected
    assert list(frame["class"]) == [ESPRESSO] * 7
