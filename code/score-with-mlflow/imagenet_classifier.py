"""Loader module of the MLflow model: what a scoring script would do, the model does itself.

The batch executor gives it the pixels of a file as they are. It crops, resizes, rescales and classifies
them, and names the classes. save_model.py puts this file into the MLflow model, which runs it wherever it
is loaded: it imports nothing else of this repository.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf

DEFAULT_SIZE = 224  # pixels a side, for a model that takes images of any size


def _load_pyfunc(data_path: str) -> "ImageNetClassifier":
    """The model in the folder `data_path`. MLflow looks for a function of this name."""
    return ImageNetClassifier(Path(data_path))


def prepare(images: np.ndarray, size: int) -> tf.Tensor:
    """`images` as the model takes them: the centre square of 7/8 of the short side, as ImageNet is evaluated,
    `size` pixels a side, in [0, 1]."""
    height, width = images.shape[1:3]
    side = max(1, min(height, width) * 7 // 8)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[:, top : top + side, left : left + side]
    return tf.image.resize(square, (size, size), antialias=True) / 255


def probabilities(scores: np.ndarray) -> np.ndarray:
    """The softmax of each row of `scores` (images, classes), unless the model has done that already."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    done = (scores >= 0).all(axis=1) & (abs(scores.sum(axis=1) - 1) < 0.01)
    return np.where(done[:, np.newaxis], scores, powers / powers.sum(axis=1, keepdims=True))


class ImageNetClassifier:
    """A SavedModel that takes images in [0, 1], and the labels of its classes in ImageNetLabels.txt."""

    def __init__(self, folder: Path) -> None:
        self.loaded = tf.saved_model.load(folder)  # holds the variables: they end with it
        self.serve = self.loaded.signatures["serving_default"]
        ((self.input_name, spec),) = self.serve.structured_input_signature[1].items()
        self.size = spec.shape[1] or DEFAULT_SIZE
        self.labels = np.array((folder / "ImageNetLabels.txt").read_text("utf-8").splitlines())

    def predict(self, model_input: np.ndarray, params: dict | None = None) -> pd.DataFrame:
        """Classifies the images `model_input`, uint8 (images, height, width, 3), of any height and width.

        Returns class (index of the highest score), probability and label: a row for each image.
        """
        (scores,) = self.serve(**{self.input_name: prepare(model_input, self.size)}).values()
        probability = probabilities(scores.numpy())
        classes = probability.argmax(axis=1)
        return pd.DataFrame(
            {"class": classes, "probability": probability.max(axis=1), "label": self.labels[classes]}
        )
