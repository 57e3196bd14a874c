"""Scoring script: classifies the images of a mini-batch many at a time, for high throughput.

A tf.data pipeline reads images while the model works. Settings (environment variables of the deployment):
    DEVICE_BATCH_SIZE  images that the model gets at once (default 16), whatever the mini-batch size.
    IMAGE_FIT          crop (default): the centre square, as ImageNet is evaluated; stretch: the whole image.
    OUTPUT_FORMAT      rows (default), or parquet: run() writes a file for each mini-batch, too.
classifier.py and signature.py have those of the model.
"""

import logging
import os

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
    if not mini_batch:
        return pd.DataFrame(columns=["file", "class", "probability"])
    encoded = [os.fsencode(path) for path in mini_batch]  # a name need not be UTF-8
    batches = tf.data.experimental.from_variant(pipeline(tf.constant(encoded, tf.string)), structure())
    scored = [(*classifier.classify(images), readable) for images, readable in batches]
    classes, probabilities, readable = (np.concatenate(column) for column in zip(*scored))
    for number in np.flatnonzero(readable & np.isnan(probabilities)):
        logger.warning("%s: left out: the model's scores are not finite", mini_batch[number])
    files = [os.path.basename(path) for path in mini_batch]
    rows = pd.DataFrame({"file": files, "class": classes, "probability": probabilities})
    rows = rows[readable & ~np.isnan(probabilities)]
    if OUTPUT_FORMAT == "parquet" and len(rows):
        write_parquet(rows, encoded)
    return rows


def structure() -> tuple[tf.TensorSpec, tf.TensorSpec]:
    """What the pipeline gives: the pixels of a device batch, and which of its images could be read."""
    return tf.TensorSpec((None, *classifier.images.shape), tf.uint8), tf.TensorSpec((None,), tf.bool)


@tf.function(input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
def pipeline(paths: tf.Tensor) -> tf.Tensor:
    """The dataset of the images at `paths`. Traced once: to set it up anew in every run() costs 15 ms."""
    images = tf.data.Dataset.from_tensor_slices(paths)
    images = images.map(decode_img, num_parallel_calls=2).batch(int(DEVICE_BATCH_SIZE)).prefetch(1)
    options = tf.data.Options()
    options.autotune.enabled = False  # it can hold up the end of the process for five seconds
    options.experimental_optimization.apply_default_optimizations = False
    return tf.data.experimental.to_variant(images.with_options(options))


def decode_img(path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The pixels of the image at `path`, and whether it could be read."""
    pixels, readable = tf.numpy_function(read_or_log, [path], [tf.uint8, tf.bool], stateful=False)
    return tf.ensure_shape(pixels, classifier.images.shape), tf.ensure_shape(readable, ())


def read_or_log(path: bytes) -> tuple[np.ndarray, np.bool_]:
    try:
        return read_image(os.fsdecode(path)), np.True_
    except Exception as error:  # whatever is wrong with one image must not cost the others
        logger.warning("%s: left out: %s", os.fsdecode(path), error or type(error).__name__)
        return np.zeros(classifier.images.shape, np.uint8), np.False_


def read_image(path: str) -> np.ndarray:
    """Reads one image and resizes it to what the model takes: uint8 (height, width, channels)."""
    height, width, _ = shape = classifier.images.shape
    with open_photo(path, classifier.images.mode, least=max(height, width) * 8 // 7) as photo:
        photo = crop_centre(photo, width, height) if IMAGE_FIT == "crop" else photo
        return np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR)).reshape(shape)


def rescale(pixels: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Brings pixels of 0 to 255 into [low, high]: [0, 1], unless the model takes another range."""
    return tf.cast(pixels, tf.float32) * ((high - low) / 255) + low
