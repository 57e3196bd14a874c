"""Scoring script: classifies the images of a mini-batch one at a time, so that memory stays flat.

The next image is read while the model works on this one. Settings (environment variables of the deployment):
    IMAGE_FIT  crop (default): the centre square, as ImageNet is evaluated; stretch: the whole image.
classifier.py and signature.py have those of the model.
"""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import tensorflow as tf
from classifier import load_classifier  # beside this script, as photo.py is
from photo import crop_centre, open_photo
from PIL import Image

IMAGE_FIT = os.environ.get("IMAGE_FIT", "crop")
logger = logging.getLogger(__name__)


def init() -> None:
    """Loads the model, which Azure ML has placed in the folder AZUREML_MODEL_DIR."""
    global classifier
    if IMAGE_FIT not in ("crop", "stretch"):
        raise ValueError(f"{IMAGE_FIT=}, expected crop or stretch")
    classifier = load_classifier(os.environ["AZUREML_MODEL_DIR"], rescale, device_batch=1)


def run(mini_batch: list[str]) -> pd.DataFrame:
    """Returns file, class and probability of each image of the mini-batch, in the order given.

    An image that cannot be scored is logged and left out: Azure ML counts it as a failed file.
    """
    rows = []
    for path, pixels in zip(mini_batch, read_ahead(mini_batch)):
        if pixels is None:
            continue
        (label,), (probability,) = classifier.classify(pixels[np.newaxis])
        if np.isfinite(probability):
            rows.append((os.path.basename(path), label, probability))
        else:
            logger.warning("%s: left out: the model's scores are not finite", path)
    return pd.DataFrame(rows, columns=["file", "class", "probability"])


def read_ahead(paths: list[str]) -> Iterator[np.ndarray | None]:
    """The pixels of each image; the next one is read while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        current = None
        for path in paths:
            previous, current = current, thread.submit(read_or_log, path)
            if previous:
                yield previous.result()
        if current:
            yield current.result()


def read_or_log(path: str) -> np.ndarray | None:
    try:
        return read_image(path)
    except Exception as error:  # whatever is wrong with one image must not cost the others
        logger.warning("%s: left out: %s", path, error or type(error).__name__)
        return None


def read_image(path: str) -> np.ndarray:
    """Reads one image and resizes it to what the model takes: uint8 (height, width, channels)."""
    height, width, _ = shape = classifier.images.shape
    with open_photo(path, classifier.images.mode, least=max(height, width) * 8 // 7) as photo:
        photo = crop_centre(photo, width, height) if IMAGE_FIT == "crop" else photo
        return np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)


def rescale(pixels: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Brings pixels of 0 to 255 into [low, high]: [0, 1], unless the model takes another range."""
    return tf.cast(pixels, tf.float32) * ((high - low) / 255) + low
