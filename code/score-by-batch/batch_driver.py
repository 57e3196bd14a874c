"""Scoring script: classifies the images of a mini-batch many at a time, for high throughput.

TensorFlow reads, crops and resizes the images (tf.data) and the model scores DEVICE_BATCH_SIZE of them
at once. Images that TensorFlow would not read, or not rightly, are read by Pillow afterwards.

Settings (environment variables of the deployment):
    DEVICE_BATCH_SIZE  images the model gets at once (default 16), whatever the size of the mini-batch.
    IMAGE_FIT          crop (default): the centre square, 7/8 of the short side, as ImageNet is evaluated;
                       stretch: the whole image, squeezed into a square.
    MIXED_PRECISION    1: bfloat16 on a CPU, float16 on a GPU; 0 (default): float32.
"""

import importlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image, ImageOps

DEFAULT_SIZE = 224  # pixels a side, for a model that takes any size
DECODE_SIZE = 256  # pixels a side; a large JPEG is decoded at 1/2, 1/4 or 1/8, but not below this
MAX_PIXELS = 150_000_000  # of one image; a larger one is refused as a decompression bomb
# A JPEG's orientation other than upright: the EXIF tag 0x0112 in either byte order, or XMP's.
ROTATED = (
    r"\C*(\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]|\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08]"
    r"|tiff:Orientation(=\"|>)[2-8])\C*"
)

Image.MAX_IMAGE_PIXELS = None  # Pillow's own two limits give way to the one in read_image
logger = logging.getLogger(__name__)


def init() -> None:
    """Loads the model that Azure ML has placed under AZUREML_MODEL_DIR, and warms it up."""
    global classify, device_batch_size, image_fit, image_size, paths, images
    device_batch_size = int(os.environ.get("DEVICE_BATCH_SIZE", "16"))
    image_fit = setting("IMAGE_FIT", ["crop", "stretch"])
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if setting("MIXED_PRECISION", ["0", "1"]) == "1":
        precision = "auto_mixed_precision" if gpus else "auto_mixed_precision_onednn_bfloat16"
        tf.config.optimizer.set_experimental_options({precision: True})

    path = find_model(Path(os.environ["AZUREML_MODEL_DIR"]))
    model, image_size = load_model(path)
    # Traced once: model.predict() would set up a pipeline for every mini-batch.
    classify = tf.function(
        model, autograph=False, input_signature=[tf.TensorSpec((None, image_size, image_size, 3))]
    )
    scores = classify(tf.zeros((device_batch_size, image_size, image_size, 3)))
    if scores.ndim != 2:
        raise ValueError(f"{path}: the model returns {scores.shape}, expected (images, classes)")

    # One pipeline for all mini-batches: run() puts their paths into a variable. To build a pipeline for
    # each costs as much as to score several images.
    with tf.device("CPU"):
        paths = tf.Variable([], shape=(None,), dtype=tf.string, trainable=False)
    images = tf.data.Dataset.from_tensors(0).flat_map(list_paths).enumerate()
    images = images.map(decode_img, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    images = images.batch(device_batch_size).prefetch(1)
    logger.info("%s: %d pixels a side, %d classes, %d GPUs", path, image_size, scores.shape[1], len(gpus))


def run(mini_batch: list[str]) -> pd.DataFrame:
    """Classifies the images at the paths `mini_batch`.

    Returns file (its name), class (index of the highest score) and probability: one row for each image
    that could be scored, in the order given. Any other image is logged and left out, which makes it a
    failed file.
    """
    paths.assign(tf.constant(mini_batch, tf.string, shape=(len(mini_batch),)))
    found = {}
    for positions, batch in images:
        found.update(zip(positions.numpy(), score(batch)))

    left = [position for position in range(len(mini_batch)) if position not in found]
    with ThreadPoolExecutor(max_workers=4) as threads:
        for start in range(0, len(left), device_batch_size):
            positions = left[start : start + device_batch_size]
            read = zip(positions, threads.map(read_image, [mini_batch[position] for position in positions]))
            batch = {position: image for position, image in read if image is not None}
            if batch:
                found.update(zip(batch, score(np.stack(list(batch.values())))))

    for position in [position for position, (_, probability) in found.items() if np.isnan(probability)]:
        logger.warning("%s: left out: the model's scores are not finite", mini_batch[position])
        del found[position]
    rows = [(os.path.basename(mini_batch[position]), *found[position]) for position in sorted(found)]
    return pd.DataFrame(rows, columns=["file", "class", "probability"])


def score(batch: tf.Tensor) -> list[tuple[int, np.float32]]:
    """Class and probability of each of the images `batch` (n, size, size, 3) in [0, 1]."""
    probability = probabilities(classify(batch).numpy())
    return list(zip(probability.argmax(axis=1), probability.max(axis=1)))


@tf.autograph.experimental.do_not_convert
def list_paths(_: tf.Tensor) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(paths)


@tf.autograph.experimental.do_not_convert
def decode_img(position: tf.Tensor, path: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The JPEG at `path` as read_image reads it, by TensorFlow ops; raises for what Pillow has to read."""
    contents = tf.io.read_file(path)
    height, width, channels = tf.unstack(tf.cast(tf.image.extract_jpeg_shape(contents), tf.int64))
    rotated = tf.strings.regex_full_match(tf.strings.substr(contents, 0, 65536), ROTATED)
    tf.debugging.Assert(~rotated & (channels < 4) & (height * width <= MAX_PIXELS), [path])

    scale = tf.minimum(height, width) // DECODE_SIZE
    decoders = [
        partial(tf.io.decode_jpeg, contents, 3, n, dct_method="INTEGER_ACCURATE") for n in (1, 2, 4, 8)
    ]
    image = tf.switch_case(sum(tf.cast(scale >= n, tf.int32) for n in (2, 4, 8)), decoders)
    if image_fit == "crop":
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        side = tf.maximum(1, tf.minimum(height, width) * 7 // 8)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    image = tf.transpose(resize_rows(image), (1, 0, 2))
    return position, tf.transpose(resize_rows(image), (1, 0, 2)) / 255


def resize_rows(image: tf.Tensor) -> tf.Tensor:
    """`image` (rows, columns, 3) with image_size rows.

    A row's pixels are passed as the channels of a single pixel: the same values as tf.image.resize on both
    axes, in less than half the time.
    """
    rows, columns = tf.shape(image)[0], tf.shape(image)[1]
    flat = tf.reshape(image, (rows, 1, columns * 3))
    return tf.reshape(tf.image.resize(flat, (image_size, 1), antialias=True), (image_size, columns, 3))


def setting(name: str, allowed: list[str]) -> str:
    """The environment variable `name`; unset, the first of the values `allowed`."""
    value = os.environ.get(name, allowed[0])
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, expected one of: {', '.join(allowed)}")
    return value


def find_model(folder: Path) -> Path:
    """The one model in `folder` or one level below: a SavedModel's folder, a .keras or an .h5 file."""
    found = [p for p in sorted([folder, *folder.glob("*"), *folder.glob("*/*")]) if p.name[:1] != "."]
    models = [p for p in found if (p / "saved_model.pb").is_file() or p.suffix in (".keras", ".h5")]
    if len(models) != 1:
        names = ", ".join(str(p.relative_to(folder)) for p in models or found[1:]) or "nothing"
        raise FileNotFoundError(
            f"{folder}: {len(models)} models, expected 1 (saved_model.pb, .keras or .h5); found: {names}"
        )
    return models[0]


def load_model(path: Path) -> tuple[Callable, int]:
    """A function from images (n, size, size, 3) in [0, 1] to scores (n, classes), and that size."""
    try:
        if path.is_dir():  # Keras 3 reads no SavedModel; TensorFlow reads those of Keras 2 and 3
            loaded = tf.saved_model.load(path)
            ((name, spec),) = loaded.signatures["serving_default"].structured_input_signature[1].items()
            model, shape = lambda images: loaded.signatures["serving_default"](**{name: images}), spec.shape
        else:
            model = load_keras_model(path)
            shape = tf.TensorShape(model.input_shape)
        side = (shape.rank == 4 and shape[1]) or DEFAULT_SIZE
        if not shape.is_compatible_with((1, side, side, 3)):
            raise ValueError(f"it takes {shape}, expected (images, {side}, {side}, 3)")
    except Exception as error:
        files = ", ".join(sorted(p.name for p in path.glob("*"))) or f"{path.stat().st_size} bytes"
        raise ValueError(f"{path}: not a model that can be used: {error}; found: {files}") from error
    return lambda images: tf.nest.flatten(model(images))[0], side


def load_keras_model(path: Path) -> Callable:
    """The model of a .keras or .h5 file, whichever Keras wrote it and whichever TensorFlow prefers."""
    reasons = []
    for keras in ("keras", "tf_keras"):
        try:
            return importlib.import_module(keras).models.load_model(path, compile=False)
        except Exception as error:
            reasons.append(f"{keras}: {error}")
    raise ValueError("; ".join(reasons))


def probabilities(scores: np.ndarray) -> np.ndarray:
    """The softmax of the rows of `scores` (n, classes); rows that already are probabilities stay."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    done = (scores >= 0).all(axis=1) & (abs(scores.sum(axis=1) - 1) < 0.01)
    return np.where(done[:, np.newaxis], scores, powers / powers.sum(axis=1, keepdims=True))


def read_image(path: str) -> np.ndarray:
    """The image at `path` as the model takes it: float32 (size, size, 3) in [0, 1]."""
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read")
        image.draft(image.mode, (DECODE_SIZE, DECODE_SIZE))
        ImageOps.exif_transpose(image, in_place=True)
        if image_fit == "crop":
            image = image.crop(centre_square(*image.size))
        pixels = to_rgb(image).resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(pixels, np.float32) / 255


def centre_square(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the centre square, 7/8 of the short side, at whole pixels."""
    side = max(1, min(width, height) * 7 // 8)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` with three channels of 8 bits; what is transparent becomes white."""
    if image.mode.startswith("I;16"):  # convert() would clip 16 bits to white instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no agreed range")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")
