"""Both scoring scripts find and load a model in every format that users have.

The models have one layer of known weights over the mean colour, so that class and probability are known:
a red picture is class 0, a green one 1, a blue one 2.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from model_kinds import LOGIT, PROBABILITY, SIDE, colours, write_colours
from scoring import NAMES, ROOT, load


def write_models(folder: Path) -> None:
    """Each format in a folder `NAME/model`, as a model registered from a folder lies in Azure."""
    import keras
    import tf_keras

    for name in ("keras2.keras", "keras2.h5", "keras3.keras", "keras3.h5", "keras2-folder", "keras3-folder"):
        (folder / name / "model").mkdir(parents=True)
    colours(tf_keras).save(folder / "keras2-folder" / "model", save_format="tf")
    colours(keras).export(folder / "keras3-folder" / "model", verbose=False)
    for name, library in (("keras2", tf_keras), ("keras3", keras)):
        for ending in ("keras", "h5"):
            colours(library).save(folder / f"{name}.{ending}" / "model" / f"classifier.{ending}")


def score_all(folder: Path) -> dict[str, Any]:
    """Classes and probabilities of the pictures, by script and format."""
    pictures = write_colours(folder / "pictures")
    results = {}
    for name in NAMES:
        for model in sorted(path.parent for path in folder.glob("*/model")):
            with pytest.MonkeyPatch.context() as monkeypatch:
                script = load(name, {"AZUREML_MODEL_DIR": str(model)}, monkeypatch)
                frame = script.run(pictures)
            results[f"{name} {model.name}"] = [frame["class"].tolist(), frame["probability"].tolist()]
    return results


@pytest.mark.parametrize("legacy", ["0", "1"])
def test_every_format_loads_whatever_keras_tensorflow_prefers(legacy: str, tmp_path: Path) -> None:
    """In a process of its own: TensorFlow reads TF_USE_LEGACY_KERAS once."""
    code = (
        "import json, pathlib, sys, test_models as t; folder = pathlib.Path(sys.argv[1]);"
        "t.write_models(folder); print(json.dumps(t.score_all(folder)))"
    )
    environment = {
        **os.environ,
        "TF_USE_LEGACY_KERAS": legacy,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
    }
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads(run.stdout.splitlines()[-1])
    assert len(results) == 12
    for name, (classes, probabilities) in results.items():
        assert classes == [0, 1, 2], name
        assert probabilities == pytest.approx([PROBABILITY] * 3, abs=1e-3), name


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AZUREML_MODEL_DIR with one small model."""
    import keras

    folder = tmp_path_factory.mktemp("models")
    (folder / "model").mkdir()
    colours(keras).save(folder / "model" / "colours.keras")
    return folder


def run_model(model: Any, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The rows of the three pictures, scored with the Keras model `model` by the script `name`."""
    model.save(folder / "model.keras")
    script = load(name, {"AZUREML_MODEL_DIR": str(folder)}, monkeypatch)
    return script, script.run(write_colours(folder / "pictures"))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_ends_in_a_softmax_is_not_squeezed_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    _, frame = run_model(colours(keras, activation="softmax"), name, tmp_path, monkeypatch)
    assert frame["probability"].tolist() == pytest.approx([PROBABILITY] * 3, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("side", "expected"), [(SIDE, SIDE), (96, 96), (None, 224)])
def test_the_input_size_is_the_model_s_else_224(
    name: str, side: int | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    script, frame = run_model(colours(keras, side), name, tmp_path, monkeypatch)
    assert script.classifier.images.shape == (expected, expected, 3)
    assert script.read_image(str(tmp_path / "pictures" / "red.png")).shape == (expected, expected, 3)
    assert frame["class"].tolist() == [0, 1, 2]


def a_counter(folder: Path) -> None:
    """A model that changes a variable in each call, and adds what it was before to the scores."""
    import tensorflow as tf

    class Counter(tf.Module):
        def __init__(self) -> None:
            self.calls = tf.Variable(0.0)

        @tf.function(autograph=False)
        def score(self, images: tf.Tensor) -> tf.Tensor:
            calls = self.calls.assign_add(1)
            return LOGIT * tf.reduce_mean(images, axis=(1, 2)) + calls - 1

    save_module(Counter(), folder)


def a_table(folder: Path) -> None:
    """A model that looks up the weight of the colour."""
    import tensorflow as tf

    class Table(tf.Module):
        def __init__(self) -> None:
            weights = tf.lookup.KeyValueTensorInitializer(["colour"], [LOGIT])
            self.table = tf.lookup.StaticHashTable(weights, 0.0)
            self.one = tf.Variable(1.0)

        @tf.function(autograph=False)
        def score(self, images: tf.Tensor) -> tf.Tensor:
            return self.one * self.table.lookup(tf.constant("colour")) * tf.reduce_mean(images, axis=(1, 2))

    save_module(Table(), folder)


def save_module(module: Any, folder: Path) -> None:
    import tensorflow as tf

    signature = module.score.get_concrete_function(tf.TensorSpec((None, SIDE, SIDE, 3)))
    tf.saved_model.save(module, str(folder / "model"), signatures=signature)


def let_constants_have(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets weights of up to `most` bytes become constants in the script that was loaded last."""
    for key in (("0", 1), ("0", None)):
        monkeypatch.setitem(sys.modules["classifier"].MAX_CONSTANTS, key, most)


@pytest.mark.parametrize("write", [a_counter, a_table])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_whose_variables_cannot_become_constants_is_scored_as_it_is(
    name: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    script = load(name, {"AZUREML_MODEL_DIR": str(tmp_path)}, monkeypatch)
    let_constants_have(2**20, monkeypatch)
    caplog.set_level("INFO")
    script.init()
    assert "the weights stay variables" in caplog.text
    frame = script.run(write_colours(tmp_path / "pictures"))
    assert frame["class"].tolist() == [0, 1, 2]
    assert frame["probability"].tolist() == pytest.approx([PROBABILITY] * 3, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_weights_become_constants_up_to_a_size(
    name: str, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load(name, {"AZUREML_MODEL_DIR": str(model_dir)}, monkeypatch)
    pictures = write_colours(model_dir / "pictures")
    rows = []
    for most, variables in ((2**20, 0), (0, 2)):  # the weights and biases of a layer
        let_constants_have(most, monkeypatch)
        script.init()
        assert len(script.classifier.score.captured_inputs) == variables
        rows.append(script.run(pictures))
    assert rows[0]["class"].tolist() == rows[1]["class"].tolist() == [0, 1, 2]
    assert rows[0]["probability"].tolist() == pytest.approx(rows[1]["probability"].tolist())


@pytest.mark.parametrize("name", NAMES)
def test_scores_that_are_not_finite_are_left_out_and_logged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A model whose score for blue overflows, on blue pictures only."""
    import keras

    model = colours(keras)
    weights = [np.diag([0, 0, 3e38]).astype("f4"), np.array([0, 0, 3e38], "f4")]
    model.layers[-1].set_weights(weights)
    _, frame = run_model(model, name, tmp_path, monkeypatch)
    assert frame["file"].tolist() == ["red.png", "lime.png"]
    (message,) = [record.getMessage() for record in caplog.records if "not finite" in record.getMessage()]
    assert "blue.png" in message


# --- no model that can be used


def no_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "readme.txt").write_text("the weights are elsewhere")


def two_models(folder: Path) -> None:
    for name in ("first.keras", "second.h5"):
        (folder / name).write_bytes(b"")


def not_a_model(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "saved_model.pb").write_text("not a model")


def not_a_zip(folder: Path) -> None:
    (folder / "model.keras").write_text("not a model")


def a_map_of_scores(folder: Path) -> None:
    import keras

    model = keras.Sequential([keras.layers.Input((SIDE, SIDE, 3)), keras.layers.Conv2D(3, 1)])
    model.save(folder / "model.keras")


NO_MODEL = {
    "nothing": (lambda folder: None, "0 models, expected one .*found: nothing"),
    "no_model": (no_model, "0 models, expected one .*found: model, model/readme.txt"),
    "two_models": (two_models, "2 models, expected one .*found: first.keras, second.h5"),
    "not_a_model": (not_a_model, "model: not a model to classify images with.*found: saved_model.pb"),
    "not_a_zip": (not_a_zip, "model.keras: not a model to classify images with.*found: 11 bytes"),
    "a_map_of_scores": (a_map_of_scores, r"the model returns .*32, 32, 3\), expected \(images, classes\)"),
}


@pytest.mark.parametrize("case", NO_MODEL)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_model_is_said_with_what_was_found(
    name: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, message = NO_MODEL[case]
    write(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(name, {"AZUREML_MODEL_DIR": str(tmp_path)}, monkeypatch)


def test_a_model_lies_in_a_folder_or_directly(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (model_dir, model_dir / "model"):
        script: ModuleType = load(NAMES[0], {"AZUREML_MODEL_DIR": str(folder)}, monkeypatch)
        assert script.classifier.images.shape == (SIDE, SIDE, 3)
