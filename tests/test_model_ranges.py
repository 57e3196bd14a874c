"""Every kind of input: each model gets the pixels, and the range of them, that it was trained with.

The answers of the models of model_kinds.py tell which they got. The log says the range, and how it is known.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from model_kinds import LOGIT, SIDE, check_colours, image, means, refusal, save, save_keras, start
from PIL import Image, ImageDraw
from scoring import NAMES

BYTES, ONE, SIGNED = (f"in [{range_}] (its graph tells)" for range_ in ("0, 255", "0, 1", "-1, 1"))
NOTHING = "in [0, 1] (nothing tells another)"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet's
CAFFE = np.array([103.939, 116.779, 123.68])  # its means, blue first
FORMS = [(library, form) for library in ("keras", "tf_keras") for form in ("keras", "h5", "folder")]


# --- Keras models


def normalization(layers: Any, mean: Any, std: Any) -> Any:
    return layers.Normalization(mean=list(mean), variance=list(std**2))


def batch_normalization(layers: Any, mean: float, std: float) -> Any:
    layer = layers.BatchNormalization()
    layer.build((None, SIDE, SIDE, 3))
    layer.set_weights([np.full(3, value) for value in (1.0, 0.0, mean, std**2)])
    return layer


# The layers that a model begins with, what brings their output back to [0, 1], and what the log says.
FIRST: dict[str, tuple[Callable[[Any], list], Any, Any, str]] = {
    "nothing": (lambda layers: [], 1, 0, NOTHING),
    "fresh batch normalization": (lambda layers: [layers.BatchNormalization()], 1, 0, NOTHING),
    "x / 255": (lambda layers: [layers.Rescaling(1 / 255)], 1, 0, BYTES),
    "x / 127.5 - 1": (lambda layers: [layers.Rescaling(1 / 127.5, -1)], 0.5, 0.5, BYTES),
    "2 x - 1": (lambda layers: [layers.Rescaling(2.0, -1)], 0.5, 0.5, ONE),
    "x / 2 + 1 / 2": (lambda layers: [layers.Rescaling(0.5, 0.5)], 1, 0, SIGNED),
    "normalization": (lambda layers: [normalization(layers, MEAN * 255, STD * 255)], STD, MEAN, BYTES),
    "normalization of 0..1": (lambda layers: [normalization(layers, MEAN, STD)], STD, MEAN, ONE),
    "normalization of -1..1": (
        lambda layers: [layers.Rescaling(0.5, 0.5), normalization(layers, MEAN, STD)],
        STD,
        MEAN,
        SIGNED,
    ),
    "batch normalization": (
        lambda layers: [batch_normalization(layers, 117.0, 64.0)],
        64 / 255,
        117 / 255,
        BYTES,
    ),
    "batch normalization of 0..1": (
        lambda layers: [batch_normalization(layers, 0.45, 0.25)],
        0.25,
        0.45,
        ONE,
    ),
    "resizing": (lambda layers: [layers.Resizing(20, 24), layers.Rescaling(1 / 255)], 1, 0, BYTES),
}


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize(("library", "form"), FORMS)
@pytest.mark.parametrize("case", FIRST)
def test_the_range_is_found_in_keras_models(
    case: str, library: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    layers, scale, offset, told = FIRST[case]
    module = pytest.importorskip(library)
    save_keras(tmp_path, module, form, layers(module.layers), scale, offset)
    script = start(NAMES[(len(case) + len(form)) % 2], tmp_path, monkeypatch, caplog)
    assert told in caplog.text and "gives 3 logits" in caplog.text
    check_colours(script, tmp_path)


def augmentation(layers: Any) -> list:
    random = [layers.RandomFlip("horizontal"), layers.RandomRotation(0.2), layers.RandomZoom(0.2)]
    return [*random, layers.RandomContrast(0.2), layers.Rescaling(1 / 255)]


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize(("library", "form"), [form for form in FORMS if form != ("keras", "folder")])
def test_layers_of_augmentation_are_passed(
    library: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    module = pytest.importorskip(library)
    save_keras(tmp_path, module, form, augmentation(module.layers))
    script = start(NAMES[0], tmp_path, monkeypatch, caplog)
    assert BYTES in caplog.text
    check_colours(script, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_still_random_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keras 3 exports layers of augmentation as they train: a photo would get another answer each time."""
    import keras

    save_keras(tmp_path, keras, "folder", augmentation(keras.layers))
    assert "it is random (StatelessRandom" in refusal(name, tmp_path, monkeypatch, INPUT_RANGE="0..255")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize(("library", "form"), FORMS)
def test_a_model_of_bytes_gets_bytes(
    library: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    module = pytest.importorskip(library)
    layers = [module.layers.Rescaling(1 / 255)]
    save_keras(tmp_path, module, form, layers, dtype="uint8")
    for name in NAMES:
        script = start(name, tmp_path, monkeypatch, caplog)
        assert "takes uint8 32 x 32 x 3 in [0, 255] (its type tells)" in caplog.text
        check_colours(script, tmp_path)
    assert "expected 0..255 for a model of uint8" in refusal(name, tmp_path, monkeypatch, INPUT_RANGE="0..1")


# --- SavedModels of functions


def net(x: tf.Tensor, scale: Any = 1.0, offset: Any = 0.0) -> dict[str, tf.Tensor]:
    return {"scores": LOGIT * (means(x) * tf.cast(scale, tf.float32) + tf.cast(offset, tf.float32))}


def by_channel(image: tf.Tensor) -> dict[str, tf.Tensor]:
    channels = [(x - mean) / std for x, mean, std in zip(tf.unstack(image, axis=-1), MEAN * 255, STD * 255)]
    return net(tf.stack(channels, -1), STD, MEAN)


def split(image: tf.Tensor) -> dict[str, tf.Tensor]:
    parts = [(x - mean) / std for x, mean, std in zip(tf.split(image / 255, 3, -1), MEAN, STD)]
    return net(tf.concat(parts, -1), STD, MEAN)


def fake_quant(least: float, most: float) -> Callable:
    """As training for 8 bits leaves it at the input of a model."""
    quantize = tf.quantization.fake_quant_with_min_max_args
    middle, width = (least + most) / 2, most - least
    return lambda image: net(quantize(image, least, most), 1 / width, 0.5 - middle / width)


def checked(image: tf.Tensor) -> dict[str, tf.Tensor]:
    tf.debugging.assert_less(image, 300.0)
    return net(image / 255)


FUNCTIONS: dict[str, tuple[Callable, str]] = {
    "nothing": (lambda image: net(image), NOTHING),
    "x / 255": (lambda image: net(image / 255), BYTES),
    "in float16": (lambda image: net(tf.cast(image, tf.float16) / 255), BYTES),
    "in bfloat16": (lambda image: net(tf.cast(image, tf.bfloat16) * (1 / 255)), BYTES),
    "x - 128": (lambda image: net(image - 128, 1 / 255, 128 / 255), BYTES),
    "torch": (lambda image: net((image / 255 - MEAN) / STD, STD, MEAN), BYTES),
    "torch, 0..1": (lambda image: net((image - MEAN) / STD, STD, MEAN), ONE),
    "torch, -1..1": (lambda image: net(((image + 1) / 2 - MEAN) / STD, STD, MEAN), SIGNED),
    "caffe": (lambda image: net((image[..., ::-1] - CAFFE)[..., ::-1], 1 / 255, CAFFE[::-1] / 255), BYTES),
    "caffe, 0..1": (lambda image: net(image[..., ::-1] * 255 - CAFFE[::-1], 1 / 255, CAFFE[::-1] / 255), ONE),
    "caffe, -1..1": (lambda image: net((image + 1) * 127.5 - CAFFE, 1 / 255, CAFFE / 255), SIGNED),
    "split": (split, BYTES),
    "by channel": (by_channel, BYTES),
    "resized": (lambda image: net(tf.image.resize(image, (20, 24)) / 255), BYTES),
    "resized, antialiased": (lambda image: net(tf.image.resize(image, (9, 9), antialias=True) / 255), BYTES),
    "resized by area": (lambda image: net(tf.image.resize(image, (8, 8), method="area") / 255), BYTES),
    "padded": (lambda image: net(tf.pad(image, [[0, 0], [8, 8], [8, 8], [0, 0]]) / 255, 2.25), BYTES),
    "as bytes": (lambda image: net(tf.image.convert_image_dtype(tf.cast(image, "uint8"), "float32")), BYTES),
    "clipped to 255": (lambda image: net(tf.clip_by_value(image, 0, 255), 1 / 255), BYTES),
    "clipped to 1": (lambda image: net(tf.clip_by_value(image, 0, 1)), ONE),
    "clipped to -1": (lambda image: net(tf.clip_by_value(image, -1, 1), 0.5, 0.5), SIGNED),
    "quantized 0..255": (fake_quant(0, 255), BYTES),
    "quantized 0..1": (fake_quant(0, 1), ONE),
    "quantized -1..1": (fake_quant(-1, 1), SIGNED),
    "a raw branch beside": (lambda image: net(image / 255 + 0 * tf.nn.relu6(image)), BYTES),
    "checked": (checked, BYTES),
    "called": (lambda image: net(tf.function(lambda x: x / 255)(image)), BYTES),
}


@pytest.mark.parametrize("case", FUNCTIONS)
def test_the_range_is_found_in_the_graph(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    function, told = FUNCTIONS[case]
    if case == "caffe, 0..1":  # red is last in what the layers see
        save(tmp_path, lambda image: {"scores": function(image)["scores"][:, ::-1]})
    else:
        save(tmp_path, function)
    script = start(NAMES[len(case) % 2], tmp_path, monkeypatch, caplog)
    assert told in caplog.text
    check_colours(script, tmp_path)


def test_a_conversion_to_gray_hides_no_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    save(tmp_path, lambda image: net(tf.repeat(tf.image.rgb_to_grayscale(image) / 255, 3, -1)))
    start(NAMES[0], tmp_path, monkeypatch, caplog)
    assert BYTES in caplog.text


# --- what cannot be known

HIDDEN: dict[str, tuple[Callable, str]] = {
    "two branches": (
        lambda image: {"scores": means(image / 127.5 - 1) + means(image * 2 - 1)},
        "its graph rescales from 0..1 and from 0..255: set INPUT_RANGE to one",
    ),
    "a condition": (
        lambda image: net(tf.cond(tf.shape(image)[0] > 4, lambda: image / 255, lambda: image / 255)),
        "StatelessIf in its graph may rescale pixels unseen: set INPUT_RANGE",
    ),
    "a loop": (
        lambda image: net(tf.while_loop(lambda n, x: n < 1, lambda n, x: (n + 1, x / 255), (0, image))[1]),
        "StatelessWhile in its graph may rescale",
    ),
    "a map": (
        lambda image: net(tf.map_fn(lambda x: x / 255, image)),
        "TensorListFromTensor in its graph may",
    ),
    "compiled": (
        lambda image: net(tf.function(lambda x: x / 255, jit_compile=True)(image)),
        "PartitionedCall in its graph may",
    ),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_what_the_graph_hides_is_asked_for(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    function, message = HIDDEN[case]
    save(tmp_path, function)
    for name in NAMES:
        assert message in refusal(name, tmp_path, monkeypatch)
    script = start(name, tmp_path, monkeypatch, caplog, INPUT_RANGE="0..255")
    assert "in [0, 255] (INPUT_RANGE)" in caplog.text
    if case != "two branches":
        check_colours(script, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_setting_counts_before_the_graph(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    save(tmp_path, lambda image: net(image, 0.5, 0.5))
    script = start(name, tmp_path, monkeypatch, caplog, INPUT_RANGE="-1..1")
    assert "in [-1, 1] (INPUT_RANGE)" in caplog.text
    check_colours(script, tmp_path)
    message = refusal(name, tmp_path, monkeypatch, INPUT_RANGE="0-255")
    assert "INPUT_RANGE='0-255', expected 0..1 or 0..255 or -1..1" in message


# --- sizes and layouts


def where_is_blue(images: tf.Tensor) -> dict[str, tf.Tensor]:
    """Class 0, 1, 2, 3: the blue bar is at the top, bottom, left, right, a fifth of the picture."""
    blue = images[..., -1] - images[..., 0] if images.shape[-1] == 3 else -images[..., 0]
    high, wide = (side // 5 for side in images.shape[1:3])
    sides = [blue[:, :high], blue[:, -high:], blue[:, :, :wide], blue[:, :, -wide:]]
    return {"scores": 10 * tf.stack([tf.reduce_mean(side, (1, 2)) for side in sides], 1)}


def first_to_last(images: tf.Tensor) -> tf.Tensor:
    return tf.transpose(images, (0, 2, 3, 1))


def of_size(height: int, width: int) -> Callable:
    return lambda image: where_is_blue(tf.ensure_shape(image, (None, height, width, 3)))


# What the model takes, its function, the settings, and what the script gives it.
SHAPES: dict[str, tuple[tf.TensorSpec, Callable, dict[str, str], tuple[int, int, int]]] = {
    "large": (image(300, 300, 3), where_is_blue, {}, (300, 300, 3)),
    "high": (image(60, 40, 3), where_is_blue, {}, (60, 40, 3)),
    "wide": (image(40, 60, 3), where_is_blue, {}, (40, 60, 3)),
    "gray": (image(40, 60, 1), where_is_blue, {}, (40, 60, 1)),
    "channels first": (image(3, 40, 60), lambda image: where_is_blue(first_to_last(image)), {}, (40, 60, 3)),
    "gray first": (image(1, 40, 60), lambda image: where_is_blue(first_to_last(image)), {}, (40, 60, 1)),
    "free": (image(None, None, 3), of_size(224, 224), {}, (224, 224, 3)),
    "free, 80": (image(None, None, 3), of_size(80, 80), {"IMAGE_SIZE": "80"}, (80, 80, 3)),
    "free width": (image(50, None, 3), of_size(50, 80), {"IMAGE_SIZE": "80"}, (50, 80, 3)),
    "all free": (image(None, None, None), of_size(224, 224), {}, (224, 224, 3)),
    "float16": (image(dtype=tf.float16), lambda x: where_is_blue(tf.cast(x, tf.float32)), {}, (32, 32, 3)),
    "float64": (image(dtype=tf.float64), lambda x: where_is_blue(tf.cast(x, tf.float32)), {}, (32, 32, 3)),
    "int32": (image(dtype=tf.int32), lambda x: where_is_blue(tf.cast(x, tf.float32) / 255), {}, (32, 32, 3)),
}


def write_bars(folder: Path) -> list[str]:
    """Red pictures of 100 x 80 pixels with a blue bar at the top, bottom, left, right."""
    bars = [(0, 0, 99, 15), (0, 64, 99, 79), (0, 0, 19, 79), (80, 0, 99, 79)]
    for number, bar in enumerate(bars):
        picture = Image.new("RGB", (100, 80), "red")
        ImageDraw.Draw(picture).rectangle(bar, "blue")
        picture.save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(4)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", SHAPES)
def test_each_shape_gets_its_pixels(
    case: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, function, settings, shape = SHAPES[case]
    save(tmp_path, function, tf.TensorSpec(spec.shape, spec.dtype, name="image"))
    script = start(name, tmp_path, monkeypatch, IMAGE_FIT="stretch", **settings)
    assert script.classifier.images.shape == shape
    frame = script.run(write_bars(tmp_path))
    assert frame["class"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_an_image_size_that_is_none_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, net)
    message = refusal(name, tmp_path, monkeypatch, IMAGE_SIZE="224x224")
    assert "IMAGE_SIZE='224x224', expected a whole number of pixels from 1" in message


def test_a_model_of_one_image_tells_the_setting_that_gives_it_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, net, tf.TensorSpec((1, SIDE, SIDE, 3), tf.float32, name="image"))
    assert "with DEVICE_BATCH_SIZE=1 it gets one at a time" in refusal(NAMES[1], tmp_path, monkeypatch)
    check_colours(start(NAMES[1], tmp_path, monkeypatch, DEVICE_BATCH_SIZE="1"), tmp_path)
    check_colours(start(NAMES[0], tmp_path, monkeypatch), tmp_path)
