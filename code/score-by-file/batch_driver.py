"""Scoring script: classifies the images of a mini-batch one at a time.

Pillow reads the images and each call of the model scores one of them, so memory stays flat whatever the
size of the mini-batch. The next image is read while the model works on this one.

Settings (environment variables of the deployment):
    IMAGE_FIT        crop (default): the centre square of 7/8 of the short side, as ImageNet is evaluated;
                     stretch: the whole image, squeezed into a square.
    MIXED_PRECISION  1: bfloat16 on a CPU, float16 on a GPU; 0 (default): float32.
"""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from PIL import Image, ImageOps
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

IMAGE_FIT = os.environ.get("IMAGE_FIT", "crop")
MIXED_PRECISION = os.environ.get("MIXED_PRECISION", "0")
DEFAULT_SIZE = 224  # pixels a side, for a model that takes images of any size
DECODE_SIZE = 256  # pixels a side: a large JPEG is decoded at 1/2, 1/4 or 1/8, but not below this
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # for others Pillow may start a program (EPS)
# Bytes of weights that become constants, by MIXED_PRECISION: float32 would gain 5 % and start a second later.
MAX_CONSTANTS = {"0": 0, "1": 2**29}
MAX_PIXELS = 150_000_000  # of an image; a larger one is refused as a decompression bomb
MAX_BYTES = 2**29  # of a file
MAX_SCANNED = 20_000_000_000  # pixels x scans of a JPEG, whose scans can be many and almost empty

Image.MAX_IMAGE_PIXELS = None  # Pillow's own two limits give way to the one in read_image()
logger = logging.getLogger(__name__)


def init() -> None:
    """Loads the model that Azure ML has placed under AZUREML_MODEL_DIR, and warms it up."""
    global classify, image_size
    if IMAGE_FIT not in ("crop", "stretch") or MIXED_PRECISION not in ("0", "1"):
        raise ValueError(f"{IMAGE_FIT=}, expected crop or stretch; {MIXED_PRECISION=}, expected 0 or 1")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if MIXED_PRECISION == "1":
        rewrite = "auto_mixed_precision" if gpus else "auto_mixed_precision_onednn_bfloat16"
        tf.config.optimizer.set_experimental_options({rewrite: True})

    path = find_model(Path(os.environ["AZUREML_MODEL_DIR"]))
    model, image_size = load_model(path)
    classify = trace(model, tf.TensorSpec((1, image_size, image_size, 3)))
    scores = classify(tf.zeros((1, image_size, image_size, 3)))
    numbers = scores.dtype.is_floating or scores.dtype.is_integer
    if scores.ndim != 2 or len(scores) != 1 or not scores.shape[1] or not numbers:
        raise ValueError(
            f"{path}: the model returns {scores.dtype.name} {scores.shape}, expected (images, classes) "
            "of numbers for 1 image"
        )
    logger.info("%s: %d pixels a side, %d classes, %d GPUs", path, image_size, scores.shape[1], len(gpus))


def run(mini_batch: list[str]) -> pd.DataFrame:
    """Classifies the images at the paths `mini_batch`.

    Returns file (its name), class (index of the highest score) and probability: a row for each image that
    could be scored, in the order given. Any other is logged and left out: Azure ML counts it as failed.
    """
    files, classes, winners = [], [], []
    for path, reading in read_ahead(mini_batch):
        try:
            image = reading.result()
        except Exception as error:  # whatever is wrong with one image must not cost the others
            logger.warning("%s: left out: %s", path, error or type(error).__name__)
            continue
        probability = probabilities(classify(image[np.newaxis]).numpy())[0]
        if not np.isfinite(probability).all():
            logger.warning("%s: left out: the model's scores are not finite", path)
            continue
        files.append(os.path.basename(path))
        classes.append(probability.argmax())
        winners.append(probability.max())
    return pd.DataFrame(
        {"file": files, "class": np.array(classes, int), "probability": np.array(winners, "f4")}
    )


def read_ahead(paths: list[str]) -> Iterator[tuple[str, Future]]:
    """Each path and its image to come; while the caller works on an image, the next one is being read."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        current = None
        for path in paths:
            previous, current = current, (path, thread.submit(read_image, path))
            if previous:
                yield previous
        if current:
            yield current


def read_image(path: str) -> np.ndarray:
    """The image at `path` as the model takes it: float32 (size, size, 3) in [0, 1]."""
    size = os.path.getsize(path)
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes, at most {MAX_BYTES:,} are read")
    with Image.open(path, formats=FORMATS) as image:
        refuse_bomb(image)
        image.draft(image.mode, (DECODE_SIZE, DECODE_SIZE))
        ImageOps.exif_transpose(image, in_place=True)
        if IMAGE_FIT == "crop":
            side = max(1, min(image.size) * 7 // 8)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        pixels = on_white(in_8_bits(image).resize((image_size, image_size), Image.Resampling.BILINEAR))
    return np.asarray(pixels, np.float32) / 255


def refuse_bomb(image: Image.Image) -> None:
    """Raises ValueError if the image would take too much memory or time."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MAX_PIXELS:,} are read")
    if image.format in ("JPEG", "MPO"):
        image.fp.seek(0)
        scans = image.fp.read().count(b"\xff\xda")
        if pixels * scans > MAX_SCANNED:
            raise ValueError(f"{scans:,} scans of {pixels:,} pixels, at most {MAX_SCANNED:,} in all are read")


def in_8_bits(image: Image.Image) -> Image.Image:
    """`image` with three channels of 8 bits, and a fourth if something in it is transparent."""
    if image.mode.startswith("I;16"):  # convert() would clip 16 bits to white instead of scaling them
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no agreed range")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def on_white(image: Image.Image) -> Image.Image:
    """`image` in RGB; what is transparent becomes white."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def find_model(folder: Path) -> Path:
    """The one model in `folder` or one level below: a SavedModel's folder, a .keras or an .h5 file."""
    found = [p for p in sorted([folder, *folder.glob("*"), *folder.glob("*/*")]) if p.name[:1] != "."]
    models = [p for p in found if p.is_file() and p.suffix in (".keras", ".h5")]
    models += [p for p in found if (p / "saved_model.pb").is_file()]
    if len(models) != 1:
        names = ", ".join(str(p.relative_to(folder)) for p in models or found[1:]) or "nothing"
        raise FileNotFoundError(
            f"{folder}: {len(models)} models, expected one (saved_model.pb, .keras or .h5); found: {names}"
        )
    return models[0]


def load_model(path: Path) -> tuple[Callable, int]:
    """A function from images (n, size, size, 3) in [0, 1] to scores (n, classes), and that size."""
    try:
        if path.is_dir():  # Keras 3 reads no SavedModel; TensorFlow reads those of Keras 2 and of Keras 3
            loaded = tf.saved_model.load(path)
            name, spec = one_input(loaded)
            model, shape = lambda images: loaded.signatures["serving_default"](**{name: images}), spec.shape
        else:
            model = load_keras_model(path)
            shape = tf.TensorShape(model.input_shape)
        size = (shape.rank == 4 and shape[1]) or DEFAULT_SIZE
        if not shape.is_compatible_with((1, size, size, 3)):
            raise ValueError(f"it takes {shape}, expected (images, {size}, {size}, 3)")
    except Exception as error:
        names = ", ".join(sorted(p.name for p in path.glob("*"))) or f"{path.stat().st_size} bytes"
        raise ValueError(f"{path}: not a model to classify images with: {error}; found: {names}") from error
    return lambda images: tf.nest.flatten(model(images))[0], size


def one_input(loaded: tf.Module) -> tuple[str, tf.TensorSpec]:
    """Name and shape of what the SavedModel takes."""
    if "serving_default" not in loaded.signatures:
        raise ValueError(f"its signatures are {list(loaded.signatures)}, expected serving_default")
    inputs = loaded.signatures["serving_default"].structured_input_signature[1]
    if [spec.dtype for spec in inputs.values()] != [tf.float32]:
        raise ValueError(f"it takes {list(inputs.values())}, expected one tensor of float32")
    return next(iter(inputs.items()))


def load_keras_model(path: Path) -> Callable:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        if path.suffix == ".h5":  # Keras 2 would run the code that such a file can carry
            raise
        import tf_keras  # Keras 3 does not read every .keras that Keras 2 wrote

        try:
            return tf_keras.models.load_model(path, compile=False)
        except Exception as older:
            raise ValueError(f"Keras 3: {error}; Keras 2: {older}") from older


def trace(model: Callable, images: tf.TensorSpec) -> Callable:
    """`model` traced once, for all `images`: model.predict() would set up a pipeline at every call.

    On a CPU its weights become constants, unless they are large: what oneDNN makes of them for its kernels
    is then kept from call to call. It takes memory: 16 to 18 times their size, as measured.
    """
    traced = tf.function(model, input_signature=[images], autograph=False).get_concrete_function()
    weights = sum((v.shape.num_elements() or 0) * v.dtype.size for v in traced.variables)
    if weights > MAX_CONSTANTS[MIXED_PRECISION] or tf.config.list_physical_devices("GPU"):
        return traced
    traced = with_constants(traced, images)
    gc.collect()  # copies of the weights
    return traced


def with_constants(traced: Callable, images: tf.TensorSpec) -> Callable:
    """`traced` with constants for variables, or as it is where that cannot be."""
    try:
        constant = convert_variables_to_constants_v2(traced, lower_control_flow=False)
    except Exception as error:  # the model changes its variables, say
        logger.info("the weights stay variables: %s", error)
        return traced
    if len(constant.inputs) > 1:
        logger.info("the weights stay variables: the model has tables")
        return traced
    graph, name, result = constant.graph.as_graph_def(), constant.inputs[0].name, constant.outputs[0].name
    imported = lambda images: tf.graph_util.import_graph_def(graph, {name: images}, [result])[0]  # noqa: E731
    return tf.function(imported, input_signature=[images], autograph=False).get_concrete_function()


def probabilities(scores: np.ndarray) -> np.ndarray:
    """The softmax of each row of `scores` (n, classes), unless the model has done that already."""
    with np.errstate(invalid="ignore"):  # run() looks for scores that are not finite
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    done = (scores >= 0).all(axis=1) & (abs(scores.sum(axis=1) - 1) < 0.01)
    return np.where(done[:, np.newaxis], scores, powers / powers.sum(axis=1, keepdims=True))
