"""What an image classifier takes and gives: asked of the model once, when it is loaded.

Its graph tells: before its first layer whether it rescales images by itself, at its end what its scores are.
Where it does not tell, settings do. Both scoring scripts have this same file.
"""

import os
import re
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
COPIES = ("Identity", "IdentityN", "Cast", "Reshape", "Squeeze", "EnsureShape", "StopGradient", "ExpandDims")
MERGES = ("ConcatV2", "Pack", "Select", "SelectV2")
BEFORE_LAYERS = re.compile(  # operations that work on each pixel by itself, or move pixels
    "Mul|(Real)?Div|Sub|Add(V2)?|BiasAdd|Neg|Maximum|Minimum|ClipByValue|Relu|Round|Floor|FusedBatchNorm(V3)?|"
    "FakeQuantWithMinMax.*|AdjustContrastv2|RGBToHSV|HSVToRGB|(Mirror)?Pad(V2)?|Tile|GatherV2|ReverseV2|Roll|"
    "Slice|SplitV?|StridedSlice|Transpose|Unpack|AvgPool|ScaleAndTranslate|CropAndResize|"
    f"ImageProjectiveTransform.*|Resize(Area|Bicubic|Bilinear|NearestNeighbor)|{'|'.join(COPIES + MERGES)}"
)
HIDING = "(Stateless)?(If|Case|While)|Switch|TensorListFrom.*|.*PartitionedCall|Xla.*|.*PyFunc|Quantize.*"


@dataclass(frozen=True)
class Images:
    """The images that a model takes."""

    shape: tuple[int, int, int]  # height and width in pixels, and 1 or 3 channels
    mode: str  # Pillow's name for such pixels: L or RGB
    channels_first: bool  # in what the model is given
    dtype: tf.DType

    def spec(self, number: int | None) -> tf.TensorSpec:
        """What the model is given for so many images."""
        shape = (self.shape[2], *self.shape[:2]) if self.channels_first else self.shape
        return tf.TensorSpec((number, *shape), self.dtype)


def ask_images(spec: tf.TensorSpec, number: int | None) -> Images:
    """The images that a model takes whose only input is `spec`: one at a time, or any `number` (None)."""
    if not IMAGE_SIZE.isdecimal() or int(IMAGE_SIZE) < 1:
        raise ValueError(f"{IMAGE_SIZE=}, expected a whole number of pixels from 1")
    shape = [None, None, None, 3] if spec.shape.rank is None else list(spec.shape)
    numbers = spec.dtype.is_floating or spec.dtype in (tf.uint8, tf.int32, tf.int64)
    if len(shape) == 4 and shape[0] in (None, number) and numbers:
        first = shape[1] in (1, 3) and shape[3] not in (1, 3)
        channels, *sides = (shape[1], shape[2], shape[3]) if first else (shape[3], shape[1], shape[2])
        if channels in (1, 3, None):
            sides = (int(side or IMAGE_SIZE) for side in sides)
            return Images((*sides, channels or 3), "L" if channels == 1 else "RGB", first, spec.dtype)
    one = "; with DEVICE_BATCH_SIZE=1 it gets one at a time" if shape[:1] == [1] and number is None else ""
    expected = f"one tensor of numbers up to 255: {number or 'images'} x height x width x 1 or 3 channels"
    raise ValueError(f"it takes {spec.dtype.name} {spec.shape}, expected {expected}{one}")


def choose_scores(outputs: dict[str, tf.Tensor]) -> tf.Tensor:
    """The one of the model's `outputs` that is the scores."""
    name = next(iter(outputs)) if len(outputs) == 1 and not MODEL_OUTPUT else MODEL_OUTPUT
    if name in outputs:
        return outputs[name]
    found = ", ".join(f"{name} ({output.dtype.name} {output.shape})" for name, output in outputs.items())
    raise ValueError(f"{MODEL_OUTPUT=}, expected the name of the scores among its outputs: {found}")


def inlined(model: Callable) -> Callable:
    """`model`, a ConcreteFunction, with the functions in place of their calls, to be looked through."""
    graph = _run_inline_graph_optimization(model, lower_control_flow=False, aggressive_inlining=True)
    random = {node.op for node in graph.node if re.search("Random|TruncatedNormal|Multinomial", node.op)}
    if random:  # Keras 3 exports layers of augmentation so
        raise ValueError(f"it is random ({min(random)}): save it as a .keras file, or with training=False")
    return tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])


def ask_range(model: Callable, graph: Callable, images: Images) -> tuple[tuple[int, int], str]:
    """The range of pixels that `model` takes, and how that is known; `graph` is inlined(model)."""
    ranges = ["0..255"] if images.dtype.is_integer else [*RANGES]
    if INPUT_RANGE not in ("", *ranges):
        raise ValueError(f"{INPUT_RANGE=}, expected {' or '.join(ranges)} for a model of {images.dtype.name}")
    if images.dtype.is_integer:
        return RANGES["0..255"], "its type tells"
    if INPUT_RANGE:
        return RANGES[INPUT_RANGE], "INPUT_RANGE"
    feeds = [graph.graph.get_tensor_by_name(tensor.name) for tensor in model.inputs]
    layers = first_layers(feeds[0])
    told = {told_range(graph.prune(feeds, seen.deref()), model, images) for seen in layers} - {""}
    if len(told) > 1:
        raise ValueError(f"its graph rescales from {' and from '.join(sorted(told))}: set INPUT_RANGE to one")
    if told:
        return RANGES[told.pop()], "its graph tells"
    if hidden := {operation.type for layer in layers.values() for operation in layer if hides(operation)}:
        raise ValueError(f"{' and '.join(hidden)} in its graph may rescale pixels unseen: set INPUT_RANGE")
    return RANGES["0..1"], "nothing tells another"


def hides(operation: tf.Operation) -> bool:
    """Whether it may rescale its input unseen. Mere checks give a truth value."""
    return bool(re.fullmatch(HIDING, operation.type)) and tf.bool not in [o.dtype for o in operation.outputs]


def first_layers(images: tf.Tensor) -> dict:
    """The first layers, by what they work on: tensors that are made of `images` by BEFORE_LAYERS."""
    waiting, made, found = [images], {images.ref()}, {}
    while waiting:
        tensor = waiting.pop()
        for operation in tensor.consumers():
            others = {other.ref() for other in operation.inputs} - {tensor.ref()}
            alone = operation.type in MERGES or made.isdisjoint(others)
            gray = operation.type == "MatMul" and operation.inputs[1].shape == (3, 1)
            if alone and (gray or BEFORE_LAYERS.fullmatch(operation.type)):
                waiting += [output for output in operation.outputs if output.ref() not in made]
                made |= {output.ref() for output in operation.outputs}
            elif operation.type not in ("Shape", "ShapeN", "Size", "Rank") and tensor.dtype.is_floating:
                found.setdefault(tensor.ref(), []).append(operation)
    return found


def told_range(layer: Callable, model: Callable, images: Images) -> str:
    """The range that suits a layer: `layer` computes what it sees of images of one colour. "" for any."""
    pixels = (tf.fill(images.spec(1).shape, tf.cast(pixel, images.dtype)) for pixel in (0, 1, -1100, 1100))
    seen = (layer(pixel, *model.captured_inputs) for pixel in pixels)
    at_0, at_1, *far = (np.asarray(values, np.float64).ravel() for values in seen)
    moved = at_0 != at_1  # a margin does not
    if not moved.any():
        return ""
    scales = (at_1 - at_0)[moved]
    # the pixel that becomes 0, and those to which all lower and all higher ones are clipped
    middle, least, most = (np.median((values - at_0)[moved] / scales) for values in (0, *far))
    if 0.5 < most < 1.5:
        return "-1..1" if -1.5 < least < -0.5 else "0..1"
    scale = np.median(np.abs(scales))
    if middle > 1.5 or scale < 1 / 32 or 250 < most < 260:
        return "0..255"
    if middle < -0.01:
        return "-1..1"
    return "0..1" if middle > 0.01 or scale > 32 else ""


def told_kind(model: Callable, graph: Callable) -> str:
    """What `model` gives, by the operation that it comes from: one of KINDS, class, or "" for any."""
    source = source_of(graph.graph.get_tensor_by_name(model.outputs[0].name))
    bias = source.type in ("Add", "AddV2") and any(source_of(term).type in PRODUCTS for term in source.inputs)
    told = {"Softmax": "softmax", "Sigmoid": "sigmoid", "ArgMax": "class"}
    return "logits" if bias or source.type in PRODUCTS else told.get(source.type, "")


def ask_kind(told: str, scores: np.ndarray) -> str:
    """The kind of `scores` (images, columns), of test images; told_kind() has `told` the operation."""
    if SCORES not in ("", *KINDS):
        raise ValueError(f"{SCORES=}, expected one of {', '.join(KINDS)}")
    columns, certain = scores.shape[1], told in ("softmax", "sigmoid")
    numbers = columns == 1 and not certain and (scores == np.rint(scores)).all()
    if told == "class" or (numbers and not SCORES):
        raise ValueError(f"it gives {scores.dtype} (images, {columns}), expected scores: this may be a class")
    kind = SCORES or (told if certain else kind_of(scores, told))
    if not kind:
        found = f"its graph and its scores ({scores.min()} to {scores.max()}) do not tell what they are"
        raise ValueError(f"{found}: set SCORES to sigmoid (each a probability), softmax or logits")
    if kind == "softmax" and columns == 1:
        raise ValueError("it ends in a softmax over one column, which is 1 for every image")
    highest = np.inf if scores.dtype.kind in "iu" and kind == "softmax" else 1.001
    if kind != "logits" and ((scores < 0) | (scores > highest)).any():
        raise ValueError(f"{SCORES=}, but its scores are {scores.min()} to {scores.max()}")
    return kind


def source_of(tensor: tf.Tensor) -> tf.Operation:
    """The operation that computes `tensor`, not one that copies it."""
    while tensor.op.type in COPIES:
        tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
    return tensor.op


def kind_of(scores: np.ndarray, told: str) -> str:
    """The kind of `scores`: a distribution, whatever was `told`, or logits; "" if they do not tell."""
    sums = scores.sum(axis=1, dtype=np.float64)
    one = np.median(sums) if scores.dtype.kind in "iu" else 1  # whole numbers are of any scale
    if scores.shape[1] > 1 and one and (scores >= 0).all() and (abs(sums - one) <= 0.02 * one).all():
        return "softmax"
    return "logits" if told == "logits" or ((scores < 0) | (scores > 1)).any() else ""


def probabilities(scores: np.ndarray, kind: str) -> np.ndarray:
    """The probability of each class (images, classes), in float32 or better."""
    scores = scores.astype(np.float64 if scores.dtype.kind in "iu" else np.float32)
    if scores.shape[1] == 1:  # that of class 1
        scores = np.hstack([1 - scores if kind == "sigmoid" else np.zeros_like(scores), scores])
    with np.errstate(invalid="ignore"):  # classify() looks for scores that are not finite
        if kind == "logits":
            scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores if kind == "sigmoid" else scores / scores.sum(axis=1, keepdims=True)
