"""Scoring script: classifies the images of a mini-batch many at a time, for high throughput.

Threads read the next images while the model works. Settings (environment variables of the deployment):
    DEVICE_BATCH_SIZE  images that the model gets at once (default 16), whatever the mini-batch size.
    IMAGE_FIT          crop (default): the centre square, as ImageNet is evaluated; stretch: the whole image.
    OUTPUT_FORMAT      rows (default), or parquet: run() writes a file for each mini-batch, too.
classifier.py and signature.py have those of the model.
"""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import tensorflow as tf
from classifier import load_classifier  # beside this script, as parquet.py and photo.py are
from parquet import write_parquet
from photo import crop_centre, open_photo
from PIL import Image

DEVICE_BATCH_SIZE = os.environ.get("DEVICE_BATCH_SIZE", "16")  # images
IMAGE_FIT = os.environ.get("IMAGE_FIT", "crop")
OUTPUT_FORMAT = os.environ.get("OUTPUT_FORMAT", "rows")
READERS = 4  # threads; a core reads some 600 photos a second
logger = logging.getLogger(__name__)


def init() -> None:
    """Loads the model, which Azure ML has placed in the folder AZUREML_MODEL_DIR."""
    global classifier
    if IMAGE_FIT not in ("crop", "stretch") or OUTPUT_FORMAT not in ("rows", "parquet"):
        raise ValueError(
            f"{IMAGE_FIT=}, expected crop or stretch; {OUTPUT_FORMAT=}, expected rows or parquet"
        )
    if not DEVICE_BATCH_SIZE.isdecimal() or int(DEVICE_BATCH_SIZE) < 1:
        raise ValueError(f"{DEVICE_BATCH_SIZE=}, expected a whole number from 1")
    classifier = load_classifier(os.environ["AZUREML_MODEL_DIR"], rescale, int(DEVICE_BATCH_SIZE))


def run(mini_batch: list[str]) -> pd.DataFrame:
    """Returns file, class and probability of each image of the mini-batch, in the order given.

    An image that cannot be scored is logged and left out: Azure ML counts it as a failed file.
    """
    scored = []
    for paths, pixels in decode_ahead(mini_batch):
        scored += zip(paths, *classifier.classify(pixels))
    rows = pd.DataFrame(scored, columns=["file", "class", "probability"])
    for path in rows["file"][rows["probability"].isna()]:
        logger.warning("%s: left out: the model's scores are not finite", path)
    rows = rows.dropna()
    rows["file"] = rows["file"].map(os.path.basename)
    if OUTPUT_FORMAT == "parquet" and len(rows):
        write_parquet(rows, mini_batch)
    return rows


def decode_ahead(paths: list[str]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Paths and pixels of each device batch; the next one is read while the caller works on this one."""
    size, ahead = int(DEVICE_BATCH_SIZE), iter(())
    with ThreadPoolExecutor(max_workers=READERS) as readers:
        for start in range(0, len(paths) + size, size):
            images = [image for image in ahead if image]
            ahead = readers.map(decode_img, paths[start : start + size])
            if images:
                yield [path for path, _ in images], np.stack([pixels for _, pixels in images])


def decode_img(path: str) -> tuple[str, np.ndarray] | None:
    """The path and the pixels of an image; None, and a line in the log, if it cannot be read."""
    try:
        return path, read_image(path)
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
