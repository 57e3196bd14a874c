"""Small image classifiers of every kind, whose answers for three colours are known and tell what they got.

A red picture is class 0, a green one 1, a blue one 2. The logit of the picture's colour is LOGIT in the range
that the model takes; in another range the probability is a third, or one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from scoring import load

LOGIT = 3.0
PROBABILITY = math.exp(LOGIT) / (math.exp(LOGIT) + 2)
SIDE = 32  # pixels
COLOURS = ("red", "lime", "blue")


def write_colours(folder: Path) -> list[str]:
    """A picture of each colour, in the order of their classes."""
    folder.mkdir(exist_ok=True)
    for colour in COLOURS:
        Image.new("RGB", (50, 40), colour).save(folder / f"{colour}.png")
    return [str(folder / f"{colour}.png") for colour in COLOURS]


def colours(keras: Any, side: int | None = SIDE, activation: str | None = None) -> Any:
    """A Sequential around a layer, as the article's model is one around a layer of TF-Hub."""
    inner = keras.Sequential([keras.layers.Input((side, side, 3)), keras.layers.GlobalAveragePooling2D()])
    dense = keras.layers.Dense(3, activation=activation)
    model = keras.Sequential([keras.layers.Input((side, side, 3)), inner, dense])
    dense.set_weights([np.eye(3, dtype="float32") * LOGIT, np.zeros(3, "float32")])
    return model


def image(*shape: int | None, dtype: tf.DType = tf.float32) -> tf.TensorSpec:
    return tf.TensorSpec((None, *(shape or (SIDE, SIDE, 3))), dtype, name="image")


def save(folder: Path, function: Callable, spec: tf.TensorSpec | None = None) -> None:
    """`function`, from images to a dictionary of outputs, as a SavedModel in `folder`."""
    module = tf.Module()
    module.serve = tf.function(function, input_signature=[spec or image()])
    tf.saved_model.save(module, str(folder / "model"), signatures={"serving_default": module.serve})


def means(images: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(tf.cast(images, tf.float32), (1, 2))


def save_keras(
    folder: Path, library: Any, form: str, layers: list, scale: Any = 1, offset: Any = 0, **options: Any
) -> None:
    """A Keras model that begins with `layers`; what they give times `scale` plus `offset` is in [0, 1].

    `library` is keras or tf_keras; `form` is keras, h5, or folder: a SavedModel. `options` are Input's.
    """
    inputs = library.Input((SIDE, SIDE, 3), **options)
    x = inputs
    for layer in layers:
        x = layer(x)
    dense = library.layers.Dense(3)
    model = library.Model(inputs, dense(library.layers.GlobalAveragePooling2D()(x)))
    dense.set_weights([np.diag(LOGIT * np.ones(3) * scale), LOGIT * np.ones(3) * offset])
    if form != "folder":
        model.save(folder / f"model.{form}")
    elif library.__name__ == "keras":
        model.export(folder / "model", verbose=False)
    else:
        model.save(folder / "model", save_format="tf")


def start(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any = None, **settings: str
) -> ModuleType:
    """The scoring script `name` after init() with the model in `folder`."""
    if caplog:
        caplog.set_level("INFO")
    return load(name, {"AZUREML_MODEL_DIR": str(folder), **settings}, monkeypatch)


def check_colours(script: ModuleType, folder: Path, probability: float = PROBABILITY) -> None:
    frame = script.run(write_colours(folder / "pictures"))
    assert frame["class"].tolist() == [0, 1, 2]
    assert frame["probability"].tolist() == pytest.approx([probability] * 3, abs=5e-3)


def refusal(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    """The message with which init() refuses the model in `folder`."""
    with pytest.raises(ValueError) as refused:
        start(name, folder, monkeypatch, **settings)
    return str(refused.value)
