"""Every kind of output: class and probability come out right, or init() says what was found and what decides.

The log says which kind the scores are. Labels fit the classes, or are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
from model_kinds import LOGIT, PROBABILITY, SIDE, check_colours, means, refusal, save, start, write_colours
from scoring import NAMES


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logits(image: tf.Tensor) -> tf.Tensor:
    return LOGIT * means(image) @ tf.eye(3)


def scaled(image: tf.Tensor) -> tf.Tensor:
    """Logits that do not come out of a product."""
    return tf.multiply(means(image) - 0.1, LOGIT)


def mixture(image: tf.Tensor) -> tf.Tensor:
    """Softmaxes, weighted by a product."""
    both = tf.stack([tf.nn.softmax(logits(image)), tf.nn.softmax(2 * logits(image))], 2)
    return tf.linalg.matvec(both, tf.constant([1.0, 0.0]))


def many(image: tf.Tensor) -> tf.Tensor:
    """1,000 logits, of which those of the colours are high."""
    return tf.pad(10 * means(image), [[0, 0], [0, 997]])


MANY = math.exp(10) / (math.exp(10) + 999)
HIGH = math.exp(2 * LOGIT) / (math.exp(2 * LOGIT) + 2)

# What the model gives, the kind that the log says, and the probability of each picture's colour.
SCORES: dict[str, tuple[Callable, str, float]] = {
    "logits": (logits, "3 logits", PROBABILITY),
    "a bias": (lambda image: logits(image) + 7.0, "3 logits", PROBABILITY),
    "scaled logits": (scaled, "3 logits", PROBABILITY),
    "log of softmax": (lambda image: tf.nn.log_softmax(logits(image)), "3 logits", PROBABILITY),
    "softmax": (lambda image: tf.nn.softmax(logits(image)), "3 softmax", PROBABILITY),
    "an ensemble": (
        lambda image: (tf.nn.softmax(logits(image)) + tf.nn.softmax(logits(image))) / 2,
        "3 softmax",
        PROBABILITY,
    ),
    "a mixture": (mixture, "3 softmax", PROBABILITY),
    "sigmoids": (lambda image: tf.sigmoid(LOGIT * (means(image) - 0.5)), "3 sigmoid", sigmoid(LOGIT / 2)),
    "bfloat16": (lambda image: tf.cast(logits(image), tf.bfloat16), "3 logits", PROBABILITY),
    "scaled bfloat16": (lambda image: tf.cast(scaled(image), tf.bfloat16) * 1, "3 logits", PROBABILITY),
    "float16": (lambda image: tf.cast(logits(image), tf.float16), "3 logits", PROBABILITY),
    "float64": (lambda image: tf.cast(logits(image), tf.float64), "3 logits", PROBABILITY),
    "1,000 in bfloat16": (lambda image: tf.cast(many(image), tf.bfloat16), "1,000 logits", MANY),
    "softmax of 1,000 in bfloat16": (
        lambda image: tf.nn.softmax(tf.cast(many(image), tf.bfloat16)),
        "1,000 softmax",
        MANY,
    ),
    "softmax of 1,000 in float16": (
        lambda image: tf.nn.softmax(tf.cast(many(image), tf.float16)),
        "1,000 softmax",
        MANY,
    ),
    "uint8": (lambda image: tf.cast(250 * means(image) + 5, tf.uint8), "3 logits", 1),
    "int8": (lambda image: tf.cast(250 * means(image) - 125, tf.int8), "3 logits", 1),
    "int32": (lambda image: tf.cast(2 * LOGIT * means(image), tf.int32), "3 logits", HIGH),
    "softmax in int32": (
        lambda image: tf.cast(tf.round(1e6 * tf.nn.softmax(logits(image))), tf.int32),
        "3 softmax",
        PROBABILITY,
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", SCORES)
def test_each_kind_of_scores_becomes_a_probability_once(
    case: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    function, told, probability = SCORES[case]
    save(tmp_path, lambda image: {"scores": function(image)})
    script = start(name, tmp_path, monkeypatch, caplog)
    assert f"gives {told}" in caplog.text
    check_colours(script, tmp_path, probability)


def red_or_blue(image: tf.Tensor) -> tf.Tensor:
    """A column: 4 for red, 0 for green, -4 for blue."""
    return means(image) @ [[4.0], [0.0], [-4.0]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("function", "told"),
    [
        (red_or_blue, "1 logits"),
        (lambda image: tf.sigmoid(red_or_blue(image)), "1 sigmoid"),
        (lambda image: tf.sigmoid(tf.cast(red_or_blue(image), tf.float16)), "1 sigmoid"),
        (lambda image: tf.cast(red_or_blue(image), tf.bfloat16), "1 logits"),
    ],
    ids=["logit", "sigmoid", "sigmoid in float16", "logit in bfloat16"],
)
def test_one_column_is_the_score_of_class_1(
    function: Callable, told: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    save(tmp_path, lambda image: {"scores": function(image)})
    script = start(name, tmp_path, monkeypatch, caplog)
    assert f"gives {told}" in caplog.text
    frame = script.run(write_colours(tmp_path / "pictures"))
    assert frame["class"].tolist() == [1, 0, 0]
    assert frame["probability"].tolist() == pytest.approx([sigmoid(4), 0.5, sigmoid(4)], abs=2e-3)


# --- what cannot be known

REFUSED: dict[str, tuple[Callable, str]] = {
    "softmax of one": (
        lambda image: tf.nn.softmax(red_or_blue(image)),
        "a softmax over one column, which is 1",
    ),
    "a class": (
        lambda image: tf.argmax(logits(image), 1)[:, None],
        "it gives int64 (images, 1), expected scores",
    ),
    "a class in float": (
        lambda image: tf.cast(tf.argmax(logits(image), 1)[:, None], tf.float32),
        "it gives float32 (images, 1), expected scores",
    ),
    "a column of bytes": (
        lambda image: tf.cast(255 * tf.sigmoid(red_or_blue(image)), tf.uint8),
        "this may be a class",
    ),
    "truth values": (lambda image: logits(image) > 1, "the model returns bool"),
    "complex numbers": (lambda image: tf.cast(logits(image), tf.complex64), "the model returns complex64"),
    "a part of a softmax": (
        lambda image: tf.nn.softmax(logits(image))[:, 1:],
        "do not tell what they are: set SCORES to sigmoid (each a probability), softmax or logits",
    ),
    "not finite": (lambda image: scaled(image) * np.nan, "its graph and its scores (nan to nan) do not tell"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scores_that_tell_no_class_or_kind_are_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, message = REFUSED[case]
    save(tmp_path, lambda image: {"scores": function(image)})
    for name in NAMES:
        assert message in refusal(name, tmp_path, monkeypatch)


def hard_sigmoids(image: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(LOGIT * means(image) / 6 + 0.4, 0.0, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_the_setting_says_what_the_scores_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, lambda image: {"scores": hard_sigmoids(image)})
    assert "set SCORES to sigmoid" in refusal(name, tmp_path, monkeypatch)
    for kind, probability in (
        ("sigmoid", 0.9),
        ("softmax", 0.9 / 1.7),
        ("logits", math.exp(0.5) / (math.exp(0.5) + 2)),
    ):
        check_colours(start(name, tmp_path, monkeypatch, SCORES=kind), tmp_path, probability)
    message = refusal(name, tmp_path, monkeypatch, SCORES="probabilities")
    assert "SCORES='probabilities', expected one of logits, softmax, sigmoid" in message


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_logits_are_no_probabilities_whatever_the_setting_says(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, lambda image: {"scores": scaled(image)})
    assert f"SCORES='{kind}', but its scores are -" in refusal(NAMES[0], tmp_path, monkeypatch, SCORES=kind)


# --- several outputs


def two_outputs(image: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"embedding": tf.tile(means(image)[:, ::-1], (1, 4)), "scores": logits(image)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["folder", "keras"])
def test_one_of_several_outputs_is_named_by_the_setting(
    form: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "folder":
        save(tmp_path, two_outputs)
    else:
        write_keras_with_two_outputs(tmp_path / "model.keras")
    number = 1 if name == "score-by-file" else None
    message = refusal(name, tmp_path, monkeypatch)
    assert "MODEL_OUTPUT='', expected the name of the scores among its outputs: " in message
    assert f"scores (float32 ({number}, 3))" in message and f"embedding (float32 ({number}, 12))" in message
    assert "MODEL_OUTPUT='logits', expected" in refusal(name, tmp_path, monkeypatch, MODEL_OUTPUT="logits")
    check_colours(start(name, tmp_path, monkeypatch, MODEL_OUTPUT="scores"), tmp_path)


def write_keras_with_two_outputs(file: Path) -> None:
    import keras

    inputs = keras.Input((SIDE, SIDE, 3))
    mean = keras.layers.GlobalAveragePooling2D()(inputs)
    embedding = keras.layers.Concatenate(name="embedding")([mean] * 4)
    scores = keras.layers.Dense(3, name="scores")
    model = keras.Model(inputs, [embedding, scores(mean)])
    scores.set_weights([np.eye(3) * LOGIT, np.zeros(3)])
    model.save(file)


def test_an_output_that_the_only_one_is_not_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, lambda image: {"scores": logits(image)})
    message = refusal(NAMES[0], tmp_path, monkeypatch, MODEL_OUTPUT="probabilities")
    assert "MODEL_OUTPUT='probabilities', expected" in message and "scores (float32 (1, 3))" in message


# --- labels


def save_classes(folder: Path, classes: int, shift: int = 0) -> None:
    """A model of so many classes, the colours being those from `shift`."""
    padding = [[0, 0], [shift, classes - 3 - shift]]
    save(folder, lambda image: {"scores": tf.pad(10 * means(image), padding)})


def names(count: int, background: bool = False) -> str:
    return "".join(f"{label}\n" for label in [*["background"] * background, *map(str, range(count))])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("classes", "shift", "text", "expected", "said"),
    [
        (1000, 0, names(1000), [0, 1, 2], ""),
        (1001, 1, names(1000, background=True), [1, 2, 3], ""),
        (1000, 0, names(1000, background=True), [1, 2, 3], "begins with background, which the model lacks"),
        (1001, 1, names(1000), [0, 1, 2], "lacks the background, which the model begins with"),
    ],
    ids=["1,000 of each", "1,001 of each", "1,000 beside 1,001 labels", "1,001 beside 1,000 labels"],
)
def test_the_background_shifts_the_classes_to_their_labels(
    classes: int,
    shift: int,
    text: str,
    expected: list[int],
    said: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
) -> None:
    save_classes(tmp_path, classes, shift)
    (tmp_path / "model" / "ImageNetLabels.txt").write_text(text)
    script = start(name, tmp_path, monkeypatch, caplog)
    frame = script.run(write_colours(tmp_path / "pictures"))
    assert frame["class"].tolist() == expected
    assert [script.classifier.labels[number] for number in frame["class"]] == ["0", "1", "2"]
    assert frame["probability"].min() > 0.9
    assert said in caplog.text


LABELS: dict[str, tuple[dict[str, bytes], str]] = {
    "too few": ({"labels.txt": b"a\nb\n"}, "labels.txt has 2 lines, expected one for each of 3 classes"),
    "too many": ({"labels.txt": b"a\nb\nc\nd\n"}, "labels.txt has 4 lines"),
    "without its background": ({"labels.txt": b"background\na\n"}, "labels.txt has 2 lines"),
    "empty": ({"labels.txt": b""}, "labels.txt: expected a label a line"),
    "blank between": (
        {"labels.txt": b"a\n\nc\n"},
        "labels.txt: expected a label a line, in UTF-8, and no blank",
    ),
    "Latin-1": ({"labels.txt": b"caf\xe9\nb\nc\n"}, "labels.txt: expected a label a line, in UTF-8"),
    "UTF-16": ({"labels.txt": "a\nb\nc\n".encode("utf-16")}, "labels.txt: expected a label a line, in UTF-8"),
    "two files": ({"labels.txt": b"a\nb\nc\n", "ImageNetLabels.txt": b"d\ne\nf\n"}, "two files of labels"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_do_not_fit_are_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, message = LABELS[case]
    save(tmp_path, lambda image: {"scores": logits(image)})
    for file, contents in files.items():
        (tmp_path / "model" / file).write_bytes(contents)
    assert message in refusal(NAMES[len(case) % 2], tmp_path, monkeypatch)


def test_labels_may_have_a_byte_order_mark_and_any_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, lambda image: {"scores": logits(image)})
    for contents in (b"\xef\xbb\xbfa\r\nb\r\nc\r\n", b"a\rb\rc", b"a\nb\nc\n\n\n"):
        (tmp_path / "labels.txt").write_bytes(contents)
        assert start(NAMES[0], tmp_path, monkeypatch).classifier.labels == ["a", "b", "c"]


# --- files of Keras 2


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_keras_2_file_with_operations_of_tensorflow_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Keras 3 does not read it; Keras 2 does, and it runs nothing but those operations."""
    import tf_keras

    inputs = tf_keras.Input((SIDE, SIDE, 3))
    x = tf_keras.layers.RandomRotation(0.1)(tf_keras.layers.RandomFlip()(inputs))
    dense = tf_keras.layers.Dense(3)
    model = tf_keras.Model(inputs, dense(tf.reduce_mean(tf.math.divide(x, 255.0), (1, 2))))
    dense.set_weights([np.eye(3) * LOGIT, np.zeros(3)])
    model.save(tmp_path / "model.h5")
    for name in NAMES:
        script = start(name, tmp_path, monkeypatch, caplog)
        assert "in [0, 255] (its graph tells)" in caplog.text
        check_colours(script, tmp_path)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_code_under_an_escaped_name_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON may spell Lambda with escapes, and Keras 2 reads them."""
    import tf_keras

    trace, file = tmp_path / "trace", tmp_path / "model.h5"
    code = eval(f"lambda x: (__import__('pathlib').Path({str(trace)!r}).touch(), x[:, 0, 0, :])[1]")
    parts = [tf_keras.layers.Input((SIDE, SIDE, 3)), tf_keras.layers.Lambda(code, output_shape=(3,))]
    tf_keras.Sequential(parts).save(file)
    with h5py.File(file, "r+") as model:
        config = json.dumps(json.loads(model.attrs["model_config"])).replace('"Lambda"', r'"\u004cambda"')
        model.attrs["model_config"] = config
    trace.unlink()
    tf_keras.models.load_model(file, compile=False)
    assert trace.exists(), "the code does not run, so its refusal proves nothing"
    trace.unlink()
    for name in NAMES:
        assert "not a model to classify images with" in refusal(name, tmp_path, monkeypatch)
    assert not trace.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_weights_beside_the_model_is_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, lambda image: {"scores": logits(image)})
    (tmp_path / "model.weights.h5").write_bytes(b"as ModelCheckpoint leaves it")
    check_colours(start(name, tmp_path, monkeypatch), tmp_path)
