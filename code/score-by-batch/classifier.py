"""Any image classifier of Keras or TensorFlow: found, loaded, asked, traced. Both scripts have this file."""

import gc
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says

import h5py
import keras
import numpy as np
import signature
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

MIXED_PRECISION = os.environ.get("MIXED_PRECISION", "0")
LABELS = ("ImageNetLabels.txt", "labels.txt")  # a label a line, the first is that of class 0
TEST_IMAGES = 8  # at least: their scores tell what the graph does not
# Bytes of weights that become constants. One image at a time in float32 would gain 5 % and take memory.
MAX_CONSTANTS = {("0", 1): 0, ("0", None): 2**25, ("1", 1): 2**29, ("1", None): 2**29}
logger = logging.getLogger(__name__)


@dataclass
class Classifier:
    """A model, and what it takes and gives."""

    images: signature.Images
    score: Callable  # from pixels, uint8 (images, height, width, channels), to scores (images, columns)
    kind: str  # of the scores: one of signature.KINDS
    labels: list[str] | None  # of the classes; None where the model's folder has none
    first_column: int  # 1 leaves out the background, which has no label
    first_class: int  # the class of that column; 1 where only the labels have a background
    variables: object  # what holds them: they end with it

    def classify(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class and probability (images,) of `pixels`; the probability is NaN where scores are not finite."""
        scores = signature.probabilities(self.score(tf.constant(pixels)).numpy(), self.kind)
        scores = scores[:, self.first_column :]
        finite = np.isfinite(scores).all(axis=1)
        return scores.argmax(axis=1) + self.first_class, np.where(finite, scores.max(axis=1), np.nan)


def load_classifier(folder: str, rescale: Callable, device_batch: int) -> Classifier:
    """The one model in `folder`; `rescale(pixels, low, high)` brings pixels of 0 to 255 into its range."""
    if MIXED_PRECISION not in ("0", "1"):
        raise ValueError(f"{MIXED_PRECISION=}, expected 0 or 1")
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if MIXED_PRECISION == "1":
        rewrite = "auto_mixed_precision" if gpus else "auto_mixed_precision_onednn_bfloat16"
        tf.config.optimizer.set_experimental_options({rewrite: True})
    path = find_model(Path(folder))
    try:
        loaded = load_model(path)
    except Exception as error:
        names = ", ".join(sorted(p.name for p in path.glob("*"))) or f"{path.stat().st_size:,} bytes"
        raise ValueError(f"{path}: not a model to classify images with: {error}; found: {names}") from error
    try:
        return ask(Path(folder), *loaded, rescale, device_batch)
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error


def find_model(folder: Path) -> Path:
    """The one model in `folder` or one level below: a SavedModel's folder, a .keras or an .h5 file."""
    found = [p for p in sorted([folder, *folder.glob("*"), *folder.glob("*/*")]) if p.name[:1] != "."]
    models = [p for p in found if p.is_file() and re.search(r"(?<!\.weights)\.(keras|h5)$", p.name)]
    models += [p for p in found if (p / "saved_model.pb").is_file()]
    if len(models) != 1:
        names = ", ".join(str(p.relative_to(folder)) for p in models or found[1:]) or "nothing"
        raise FileNotFoundError(
            f"{folder}: {len(models)} models, expected one (saved_model.pb, .keras or .h5); found: {names}"
        )
    return models[0]


def load_model(path: Path) -> tuple[object, Callable, tf.TensorSpec]:
    """What is loaded, a function from images to outputs by name, and what the images are."""
    if path.is_dir():  # Keras 3 reads no SavedModel; TensorFlow reads those of Keras 2 and of Keras 3
        loaded = tf.saved_model.load(path)
        if "serving_default" not in loaded.signatures:
            raise ValueError(f"its signatures are {list(loaded.signatures)}, expected serving_default")
        serve = loaded.signatures["serving_default"]
        inputs = serve.structured_input_signature[1]
        call = lambda images: serve(**dict.fromkeys(inputs, images))  # noqa: E731
    else:
        loaded = load_keras_model(path)
        inputs = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in loaded.inputs}
        call = lambda images: named_outputs(loaded, images)  # noqa: E731
    if len(inputs) != 1:
        raise ValueError(f"it takes {inputs or 'nothing'}, expected one tensor of images")
    return loaded, call, next(iter(inputs.values()))


def load_keras_model(path: Path) -> Callable:
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        import tf_keras  # Keras 3 does not read every file that Keras 2 wrote

        config = h5py.File(path).attrs.get("model_config", "null") if path.suffix == ".h5" else "null"
        if re.search('"_*lambda_*"', json.dumps(json.loads(config)), re.IGNORECASE):
            raise  # Keras 2 would run the code in such a file
        try:
            return tf_keras.models.load_model(path, compile=False)
        except Exception as older:
            raise ValueError(f"Keras 3: {error}; Keras 2: {older}") from older


def named_outputs(model: Callable, images: tf.Tensor) -> dict[str, tf.Tensor]:
    outputs = model(images, training=False)
    if isinstance(outputs, dict):
        return outputs
    outputs = tf.nest.flatten(outputs)
    return dict(zip(model.output_names if len(outputs) > 1 else ["scores"], outputs, strict=True))


def ask(folder: Path, loaded: object, call: Callable, spec: tf.TensorSpec, rescale: Callable, batch: int):
    """The Classifier of what load_model() has loaded from `folder`."""
    number = None if batch > 1 else 1
    images = signature.ask_images(spec, number)
    model = concrete(lambda images: signature.choose_scores(call(images)), images.spec(number))
    graph = signature.inlined(model)
    (low, high), why = signature.ask_range(model, graph, images)
    told = signature.told_kind(model, graph)

    def prepared(pixels: tf.Tensor) -> tf.Tensor:
        pixels = tf.cast(rescale(pixels, low, high), images.dtype)
        return model(tf.transpose(pixels, (0, 3, 1, 2)) if images.channels_first else pixels)

    score = trace(prepared, tf.TensorSpec((number, *images.shape), tf.uint8))
    del graph
    gc.collect()  # copies of the graph and of the weights
    random, shape = np.random.default_rng(0), (-(-TEST_IMAGES // batch), batch, *images.shape)
    noise = random.integers(0, random.integers(1, 257, (*shape[:2], 1, 1, shape[4])), shape, np.uint8)
    one, *others = (score(tf.constant(pixels)).numpy() for pixels in noise)
    if one.ndim != 2 or len(one) != batch or not one.size or one.dtype.kind not in "fiuV":  # V: bfloat16
        found = f"{model.outputs[0].dtype.name} {one.shape}, expected (images, classes) of numbers"
        raise ValueError(f"the model returns {found} for {batch} images")
    kind = signature.ask_kind(told, np.vstack([one, *others]))
    columns, size = one.shape[1], " x ".join(map(str, images.shape))
    takes = f"takes {images.dtype.name} {size} in [{low}, {high}] ({why})"
    logger.info("%s: %s; gives %s %s", folder, takes, f"{columns:,}", kind)
    variables = loaded if score.captured_inputs else None  # else they have become constants
    return Classifier(images, score, kind, *fit_labels(folder, max(columns, 2)), variables)


def fit_labels(folder: Path, classes: int) -> tuple[list[str] | None, int, int]:
    """The labels in the model's `folder`, the first column that has one, and the class of that column."""
    files = sorted((file for name in LABELS for file in folder.rglob(name)), key=lambda file: len(file.parts))
    if not files:
        return None, 0, 0
    if len(files) > 1 and len(files[0].parts) == len(files[1].parts):
        raise ValueError(f"two files of labels, expected one: {files[0]}, {files[1]}")
    labels = files[0].read_text("utf-8-sig", errors="replace").rstrip().split("\n")
    if "" in labels or "\ufffd" in "".join(labels):
        raise ValueError(f"{files[0]}: expected a label a line, in UTF-8, and no blank line")
    background = labels[:1] == ["background"]  # of ImageNet; class n has the label in line n + 1
    if len(labels) == classes:
        return labels, 0, 0
    if len(labels) == classes + 1 and background:
        logger.info("%s begins with background, which the model lacks: its classes begin with 1", files[0])
        return labels, 0, 1
    if (classes, len(labels)) == (1001, 1000) and not background:
        logger.info("%s lacks the background, which the model begins with: it is left out", files[0])
        return labels, 1, 0
    raise ValueError(f"{files[0]} has {len(labels):,} lines, expected one for each of {classes:,} classes")


def trace(model: Callable, pixels: tf.TensorSpec) -> Callable:
    """`model` traced once, for all `pixels`; on a CPU its weights become constants, unless they are large.

    What oneDNN makes of them is then kept from call to call: 16 to 18 times their size, as measured.
    """
    traced = concrete(model, pixels)
    weights = sum((v.shape.num_elements() or 0) * v.dtype.size for v in traced.variables)
    if weights > MAX_CONSTANTS[MIXED_PRECISION, pixels.shape[0]] or tf.config.list_physical_devices("GPU"):
        return traced
    try:
        constant = convert_variables_to_constants_v2(traced, lower_control_flow=False)
        if len(constant.inputs) > 1:
            raise ValueError("the model has tables")
    except Exception as error:  # the model changes its variables, say
        logger.info("the weights stay variables: %s", error)
        return traced
    graph, name, result = constant.graph.as_graph_def(), constant.inputs[0].name, constant.outputs[0].name
    return concrete(lambda one: tf.graph_util.import_graph_def(graph, {name: one}, [result])[0], pixels)


def concrete(function: Callable, images: tf.TensorSpec) -> Callable:
    return tf.function(function, input_signature=[images], autograph=False).get_concrete_function()
