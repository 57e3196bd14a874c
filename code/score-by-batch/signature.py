"""What an image classifier takes and gives: asked of the model once, when it is loaded.

A SavedModel does not say in words that it rescales its images by itself, or that it ends in a softmax. Its
graph does: between its input and its first layer, and at its output. Where it does not tell, settings do.

The folder of each scoring script is a code asset of its own: this file stands in both, the same.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import _run_inline_graph_optimization

IMAGE_SIZE = os.environ.get("IMAGE_SIZE", "224")  # pixels a side, for a model that takes images of any size
INPUT_RANGE = os.environ.get("INPUT_RANGE", "")  # of RANGES; "" asks the model
MODEL_OUTPUT = os.environ.get("MODEL_OUTPUT", "")  # the name of the scores, for a model that gives more
SCORES = os.environ.get("SCORES", "")  # of KINDS; "" asks the model
RANGES = {"0..1": (0, 1), "0..255": (0, 255), "-1..1": (-1, 1)}
KINDS = ("logits", "softmax", "sigmoid")
PRODUCTS = ("MatMul", "BatchMatMulV2", "Einsum", "Conv2D", "BiasAdd", "LogSoftmax")  # that end in logits
COPIES = ("Identity", "IdentityN", "Cast", "Reshape", "Squeeze", "EnsureShape", "StopGradient")
MERGES = ("ConcatV2", "Pack", "Select", "SelectV2")
# Operations before the first layer of a model: they work on each pixel by itself, or move pixels.
BEFORE_LAYERS = (
    *(*COPIES, *MERGES, "Mul", "RealDiv", "Sub", "Add", "AddV2", "BiasAdd", "Neg", "Maximum", "Minimum"),
    *(
        "ClipByValue",
        "FusedBatchNorm",
        "FusedBatchNormV3",
        "Pad",
        "PadV2",
        "MirrorPad",
        "ExpandDims",
        "GatherV2",
    ),
    *("ReverseV2", "Slice", "Split", "SplitV", "StridedSlice", "Transpose", "Unpack", "ResizeBicubic"),
    *("ResizeBilinear", "ResizeNearestNeighbor", "ImageProjectiveTransformV2", "ImageProjectiveTransformV3"),
)


@dataclass(frozen=True)
class Images:
    """The images that a model takes."""

    shape: tuple[int, int, int]  # height and width in pixels, and 1 or 3 channels
    channels_first: bool  # in what the model is given
    dtype: tf.DType

    @property
    def mode(self) -> str:
        """Pillow's name for such pixels."""
        return "L" if self.shape[2] == 1 else "RGB"

    def spec(self, number: int | None) -> tf.TensorSpec:
        """What the model is given for so many images."""
        shape = (self.shape[2], *self.shape[:2]) if self.channels_first else self.shape
        return tf.TensorSpec((number, *shape), self.dtype)


def ask_images(spec: tf.TensorSpec, number: int | None) -> Images:
    """The images that a model takes whose only input is `spec`: one at a time, or any `number` (None)."""
    if not IMAGE_SIZE.isdecimal() or int(IMAGE_SIZE) < 1:
        raise ValueError(f"{IMAGE_SIZE=}, expected a whole number of pixels from 1")
    shape = [None, None, None, 3] if spec.shape.rank is None else list(spec.shape)
    numbers = spec.dtype.is_floating or (spec.dtype.is_integer and spec.dtype != tf.int8)  # up to 255
    if len(shape) == 4 and shape[0] in (None, number) and numbers:
        first = shape[1] in (1, 3) and shape[3] not in (1, 3)
        channels, *sides = (shape[1], shape[2], shape[3]) if first else (shape[3], shape[1], shape[2])
        if channels in (1, 3, None):
            sides = (int(side or IMAGE_SIZE) for side in sides)
            return Images((*sides, channels or 3), first, spec.dtype)
    raise ValueError(
        f"it takes {spec.dtype.name} {spec.shape}, expected one tensor of numbers up to 255: "
        f"{number or 'images'} x height x width x 1 or 3 channels"
    )


def choose_scores(outputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """The one of the model's `outputs` that is the scores."""
    if len(outputs) == 1 and not MODEL_OUTPUT:
        return next(iter(outputs.values()))
    if MODEL_OUTPUT in outputs:
        return outputs[MODEL_OUTPUT]
    found = ", ".join(f"{name} ({output.dtype.name} {output.shape})" for name, output in outputs.items())
    raise ValueError(f"{MODEL_OUTPUT=}, expected the name of the scores among its outputs: {found}")


def inlined(model: Callable) -> Callable:
    """`model`, a ConcreteFunction, with the functions in place of their calls, to be looked through."""
    graph = _run_inline_graph_optimization(model, lower_control_flow=False, aggressive_inlining=True)
    return tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])


def ask_range(model: Callable, graph: Callable, images: Images) -> tuple[tuple[int, int], str]:
    """The range of pixels that `model` takes, and how that is known; `graph` is inlined(model)."""
    if INPUT_RANGE not in ("", *RANGES):
        raise ValueError(f"{INPUT_RANGE=}, expected one of {', '.join(RANGES)}")
    if images.dtype.is_integer:
        if INPUT_RANGE not in ("", "0..255"):
            raise ValueError(f"{INPUT_RANGE=}, expected 0..255: the model takes {images.dtype.name}")
        return RANGES["0..255"], "its type tells"
    if INPUT_RANGE:
        return RANGES[INPUT_RANGE], "INPUT_RANGE"
    feeds = [graph.graph.get_tensor_by_name(tensor.name) for tensor in model.inputs]
    black, white = (tf.fill(images.spec(1).shape, tf.cast(pixel, images.dtype)) for pixel in (0, 1))
    told = set()
    for tensor in first_layers(feeds[0]):
        seen = graph.prune(feeds, tensor)
        at_0, at_1 = (seen(image, *model.captured_inputs) for image in (black, white))
        told.add(told_range(np.asarray(at_0, np.float64), np.asarray(at_1, np.float64)))
    told.discard("")
    if len(told) > 1:
        raise ValueError(f"its graph rescales from {' and from '.join(sorted(told))}: set INPUT_RANGE to one")
    return (RANGES[told.pop()], "its graph tells") if told else (RANGES["0..1"], "nothing tells another")


def first_layers(images: tf.Tensor) -> list[tf.Tensor]:
    """The tensors that the first layers work on, made of `images` by BEFORE_LAYERS."""
    waiting, made, found = [images], {images.ref()}, {}
    while waiting:
        tensor = waiting.pop()
        for operation in tensor.consumers():
            others = [other.ref() for other in operation.inputs if other is not tensor]
            alone = operation.type in MERGES or made.isdisjoint(others)
            if operation.type in BEFORE_LAYERS and alone:
                new = [output for output in operation.outputs if output.ref() not in made]
                waiting += new
                made |= {output.ref() for output in new}
            elif operation.type not in ("Shape", "ShapeN", "Size", "Rank") and tensor.dtype.is_floating:
                found[tensor.ref()] = tensor
    return list(found.values())


def told_range(at_0: np.ndarray, at_1: np.ndarray) -> str:
    """The range that suits a layer that sees `at_0` for pixels of 0 and `at_1` for 1; "" for any."""
    scale = (at_1 - at_0).ravel()
    scales = scale[scale != 0]  # that of a margin is 0
    if not scales.size:
        return ""
    middle = np.median(-at_0.ravel()[scale != 0] / scales)  # the pixel that becomes 0
    scale = np.median(np.abs(scales))
    if middle > 1.5 or scale < 1 / 32:
        return "0..255"
    if middle < -0.25:
        return "-1..1"
    return "0..1" if middle > 0.01 or scale > 32 else ""


def ask_kind(model: Callable, graph: Callable, test: Callable[[], np.ndarray]) -> str:
    """The kind of the scores of `model`: the operation that they come from tells, or what `test` returns.

    `graph` is inlined(model); `test` scores a few images (images, columns).
    """
    if SCORES not in ("", *KINDS):
        raise ValueError(f"{SCORES=}, expected one of {', '.join(KINDS)}")
    source = source_of(graph.graph.get_tensor_by_name(model.outputs[0].name))
    bias = source.type in ("Add", "AddV2") and any(source_of(term).type in PRODUCTS for term in source.inputs)
    told = {"Softmax": "softmax", "Sigmoid": "sigmoid"} | dict.fromkeys(PRODUCTS, "logits")
    kind = SCORES or told.get(source.type) or ("logits" if bias else kind_of(test()))
    if kind == "softmax" and model.outputs[0].shape[-1] == 1:
        raise ValueError("it ends in a softmax over one column, which is 1 for every image")
    return kind


def source_of(tensor: tf.Tensor) -> tf.Operation:
    """The operation that computes `tensor`, and does not only copy it."""
    while tensor.op.type in COPIES:
        tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
    return tensor.op


def kind_of(scores: np.ndarray) -> str:
    """The kind of the `scores` (images, columns) of a few images."""
    sums = scores.sum(axis=1, dtype=np.float64)
    one = 1 if scores.dtype.kind == "f" else np.median(sums)  # whole numbers are of any scale
    if scores.shape[1] > 1 and (scores >= 0).all() and one and (abs(sums - one) <= 0.02 * one).all():
        return "softmax"
    if (scores < 0).any() or (scores > 1).any():
        return "logits"
    raise ValueError(
        "its scores are between 0 and 1, their sum is not 1, and its graph does not tell what they are: set "
        "SCORES to logits, or to sigmoid for labels that are independent of each other"
    )


def probabilities(scores: np.ndarray, kind: str) -> np.ndarray:
    """The probability of each class (images, classes), which `scores` are already unless they are logits."""
    whole = scores.dtype.kind in "iu"
    scores = scores.astype(np.float64 if whole else np.float32)
    if scores.shape[1] == 1:  # that of class 1
        scores = np.hstack([1 - scores if kind == "sigmoid" else np.zeros_like(scores), scores])
    if kind == "logits":
        with np.errstate(invalid="ignore"):  # classify() looks for scores that are not finite
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)
    return scores / scores.sum(axis=1, keepdims=True) if kind == "softmax" and whole else scores
