"""Makes a ResNet101V2 with 1001 outputs and random weights: the article's architecture, at its true cost.

With Keras's own initial weights every photo gets the same class, and nothing could be compared. So the
features are normalised and the scores centred over the photos in a folder, as training would do.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

SEED = 1001
SPREAD = 3.0  # standard deviation of the scores of a photo


def main() -> None:
    photos, target = map(Path, sys.argv[1:])
    keras.utils.set_random_seed(SEED)
    backbone = keras.applications.ResNet101V2(
        weights=None, include_top=False, pooling="avg", input_shape=(224, 224, 3)
    )
    normalise(backbone, read(photos))
    features = backbone.predict(read(photos), verbose=0)
    scores = keras.layers.Dense(1001, name="scores")
    model = keras.Sequential([backbone, scores])
    kernel = np.random.default_rng(SEED).normal(size=(features.shape[1], 1001)).astype("f4")
    kernel *= SPREAD / ((features - features.mean(axis=0)) @ kernel).std()
    scores.set_weights([kernel, -features.mean(axis=0) @ kernel])
    save(model, target)


def save(model: keras.Model, target: Path) -> None:
    """As a SavedModel with each variable once: model.export() of Keras 3.15 stores them twice."""
    image = tf.TensorSpec((None, 224, 224, 3), tf.float32, name="image")
    served = tf.Module()
    served.weights = [variable.value for variable in model.weights]
    served.serve = tf.function(lambda image: {"logits": model(image)}, input_signature=[image])
    tf.saved_model.save(served, str(target), signatures={"serving_default": served.serve})


def read(folder: Path) -> np.ndarray:
    paths = sorted(folder.iterdir())
    images = [Image.open(path).convert("RGB").resize((224, 224)) for path in paths]
    return np.stack([np.asarray(image, "f4") / 255 for image in images])


def normalise(backbone: keras.Model, images: np.ndarray) -> None:
    """Lets the last batch normalisation normalise what it gets for `images`."""
    last = backbone.get_layer("post_bn")
    values = keras.Model(backbone.input, last.input).predict(images, verbose=0)
    scale, shift, _, _ = last.get_weights()
    last.set_weights([scale, shift, values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))])


if __name__ == "__main__":
    main()
