"""A model that cannot be used, or should not be, ends the job with a message; a damaged zip makes nothing.

test_models.py has the models that are used, and what is no model of images at all.
"""

from __future__ import annotations

import importlib
import io
import os
import random
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf
from model_kinds import SIDE
from PIL import Image
from score_runs import COMMAND
from scoring import NAMES, ROOT, load

from local_workspace import samples
from local_workspace.errors import UserError

ZIPS = int(os.environ.get("BAD_ZIPS", "60"))  # damaged zips of each method; thousands were tried by hand


# --- models that carry code


def with_code(file: Path, library: str, trace: Path) -> None:
    """A model file with Python code that makes the file `trace` when it is called."""
    layers = importlib.import_module(library).layers
    code = eval(f"lambda x: (__import__('pathlib').Path({str(trace)!r}).touch(), x[:, 0, 0, :])[1]")
    parts = [layers.Input((SIDE, SIDE, 3)), layers.Lambda(code, output_shape=(3,))]
    model = importlib.import_module(library).Sequential(parts)
    model(tf.zeros((1, SIDE, SIDE, 3)))
    model.save(file)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("ending", ["keras", "h5"])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_code_in_a_model_file_is_refused_and_never_runs(
    library: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, folder = tmp_path / "trace", tmp_path / "model"
    folder.mkdir()
    with_code(folder / f"model.{ending}", library, trace)
    assert trace.exists(), "the code does not run, so its refusal proves nothing"
    trace.unlink()
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"model\.{ending}: not a model .*[Ll]ambda"):
            load(name, {"AZUREML_MODEL_DIR": str(folder)}, monkeypatch)
    assert not trace.exists()


# --- SavedModels that do not do what a classifier does


def save(folder: Path, function: Callable, *inputs: tf.TensorSpec) -> None:
    module = tf.Module()
    module.serve = tf.function(function, input_signature=list(inputs))
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


def image(shape: tuple = (None, SIDE, SIDE, 3), dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec(shape, dtype, name="image")


def means(image: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(image, tf.float32), (1, 2))


NO_CLASSIFIER: dict[str, tuple[Callable, list[tf.TensorSpec], str]] = {
    "two rows for each": (
        lambda image: {"o": tf.repeat(means(image), 2, 0)},
        [image()],
        r"\((2|32), 3\)",
    ),
    "no classes": (lambda image: {"o": means(image)[:, :0]}, [image()], r"float32 \((1|16), 0\), expected"),
    "text": (lambda image: {"o": tf.strings.as_string(means(image))}, [image()], "string .* of numbers for"),
    "one score": (
        lambda image: {"o": means(image)[:, 0]},
        [image()],
        r"float32 \((1|16),\), ex",
    ),
    "signed bytes in": (
        lambda image: {"o": means(image)},
        [image(dtype=tf.int8)],
        "takes int8.*one tensor of numbers up to 255",
    ),
    "files in": (
        lambda image: {"o": image},
        [image((None,), tf.string)],
        r"takes string \(None,\).*one tensor of numbers",
    ),
    "four channels": (
        lambda image: {"o": means(image)},
        [image((None, SIDE, SIDE, 4))],
        r"takes float32 \(None, 32, 32, 4\), expected .* 1 or 3 channels",
    ),
    "four images": (
        lambda image: {"o": means(image)},
        [image((4, SIDE, SIDE, 3))],
        r"takes float32 \(4, 32, 32, 3\), expected",
    ),
    "two inputs": (
        lambda image, more: {"o": means(image)},
        [image(), tf.TensorSpec((), tf.float32, name="more")],
        "expected one tensor of images",
    ),
}


@pytest.mark.parametrize("case", NO_CLASSIFIER)
def test_a_model_that_is_no_classifier_is_refused_before_it_scores(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, inputs, message = NO_CLASSIFIER[case]
    save(tmp_path / "model", function, *inputs)
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"{tmp_path / 'model'}: .*{message}"):
            load(name, {"AZUREML_MODEL_DIR": str(tmp_path)}, monkeypatch)


def test_one_row_for_all_images_is_refused_where_there_can_be_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "model", lambda image: {"o": means(image)[:1]}, image())
    with pytest.raises(ValueError, match=r"returns float32 \(1, 3\), expected .* for 16 images"):
        load("score-by-batch", {"AZUREML_MODEL_DIR": str(tmp_path)}, monkeypatch)


def test_a_savedmodel_without_the_signature_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"its signatures are \[\], expected serving_default"):
        load(NAMES[0], {"AZUREML_MODEL_DIR": str(tmp_path)}, monkeypatch)


def test_a_job_with_such_a_model_fails_and_says_why(tmp_path: Path) -> None:
    """The whole way: worker, executor, command line."""
    for folder in ("model", "data"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model" / "saved_model.pb").write_text("not a model")
    Image.new("RGB", (9, 9)).save(tmp_path / "data" / "a.png")
    command = [*COMMAND, ROOT / "deployment-by-file.yml", "--model", tmp_path / "model"]
    command += ["--data", tmp_path / "data", "--output", tmp_path / "output"]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert job.returncode == 1
    (error,) = [line for line in job.stderr.splitlines() if line.startswith("error: ")]
    assert "init() failed 3 times" in error
    assert "model: not a model to classify images with: " in error and "found: saved_model.pb" in error
    assert "Traceback" not in job.stderr


# --- zips


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


def write_zip(method: int) -> bytes:
    file, chance = io.BytesIO(), random.Random(0)
    with zipfile.ZipFile(file, "w", method) as archive:
        for number in range(4):
            archive.writestr(f"data/{number}.JPEG", chance.randbytes(300) + bytes(3000))
    return file.getvalue()


def damaged(contents: bytes, chance: random.Random) -> bytes:
    """`contents` cut short, or with a few flipped bits, most of them in the zip's directory at the end."""
    if chance.random() < 0.2:
        return contents[: chance.randrange(len(contents))]
    changed = bytearray(contents)
    for _ in range(chance.randint(1, 6)):
        begin = chance.choice([0, len(changed) - 400])
        changed[chance.randrange(begin, len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_zip_is_unpacked_whole_or_not_at_all(method: int, tmp_path: Path) -> None:
    chance, contents, refused = random.Random(method), write_zip(method), 0
    for _ in range(ZIPS):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "imagenet-1000.zip").write_bytes(damaged(contents, chance))
        try:
            samples.prepare_part(samples.DATA, folder)
        except UserError as error:
            assert "imagenet-1000.zip" in error.message
            assert [path.name for path in folder.rglob("*") if path.is_file()] == ["imagenet-1000.zip"]
            refused += 1
        assert os.listdir(tmp_path) == ["folder"]
        shutil.rmtree(folder)
    assert refused > ZIPS / 2


def test_an_encrypted_or_nested_zip_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive, warnings.catch_warnings():
        archive.writestr("model.zip", write_zip(zipfile.ZIP_STORED))
    with pytest.raises(UserError, match=r"model.zip holds no model: found model.zip"):
        samples.prepare_part(samples.MODEL, tmp_path)
    contents = bytearray(write_zip(zipfile.ZIP_STORED))
    contents[contents.index(b"PK\1\2") + 8] |= 1  # the flag of an encrypted entry
    (tmp_path / "imagenet-1000.zip").write_bytes(contents)
    with pytest.raises(UserError, match=r"cannot unpack .*imagenet-1000.zip: .*encrypted"):
        samples.prepare_part(samples.DATA, tmp_path)
