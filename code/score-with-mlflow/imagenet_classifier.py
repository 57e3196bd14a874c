"""Loader module of the MLflow model: what a scoring script would do, the model does itself.

The batch executor gives it the pixels of a file as they are. It crops, resizes, rescales and classifies them,
and names the classes. save_model.py puts this file into the MLflow model, with the modules of the scoring
scripts that it imports.
"""

import numpy as np
import pandas as pd
import tensorflow as tf
from classifier import load_classifier
from photo import crop_centre
from PIL import Image


def _load_pyfunc(data_path: str) -> "ImageClassifier":
    """The model in the folder `data_path`. MLflow looks for a function of this name."""
    return ImageClassifier(data_path)


class ImageClassifier:
    """The model of a folder, and the labels of its classes if the folder has them."""

    def __init__(self, folder: str) -> None:
        self.classifier = load_classifier(folder, rescale, device_batch=1)

    def predict(self, model_input: np.ndarray, params: dict | None = None) -> pd.DataFrame:
        """Classifies the images `model_input`, uint8 (images, height, width, 3), of any height and width.

        Returns class, probability and label: a row for each image. Without labels a label is the class.
        """
        rows = []
        for image in model_input:
            (number,), (probability,) = self.classifier.classify(self.resize(image)[np.newaxis])
            label = self.classifier.labels[number] if self.classifier.labels else str(number)
            rows.append((number, probability, label))
        return pd.DataFrame(rows, columns=["class", "probability", "label"])

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The centre of one image, as the scoring scripts read it: uint8 (height, width, channels)."""
        height, width, _ = shape = self.classifier.images.shape
        photo = crop_centre(Image.fromarray(image), width, height)
        photo = photo.convert(self.classifier.images.mode)
        return np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)


def rescale(pixels: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Brings pixels of 0 to 255 into [low, high]: [0, 1], unless the model takes another range."""
    return tf.cast(pixels, tf.float32) * ((high - low) / 255) + low
