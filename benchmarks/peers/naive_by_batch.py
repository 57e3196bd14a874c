"""As the article does it: for each mini-batch a `tf.data` pipeline, and `model.predict` over it."""

import sys
import time

import keras
import numpy as np
import tensorflow as tf
from protocol import answer, requests

MINI_BATCH_SIZE = int(sys.argv[2])
model = keras.Sequential([keras.layers.TFSMLayer(sys.argv[1], call_endpoint="serving_default")])


def decode(path: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = tf.minimum(height, width) * 7 // 8
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    return tf.image.resize(square, (224, 224), antialias=True) / 255


def run(mini_batch: list[str]) -> np.ndarray:
    images = tf.data.Dataset.from_tensor_slices(mini_batch).map(decode).batch(64)
    return model.predict(images, verbose=0)["logits"]


for paths in requests():
    begin = time.perf_counter()
    scores = [run(paths[i : i + MINI_BATCH_SIZE]) for i in range(0, len(paths), MINI_BATCH_SIZE)]
    answer(np.concatenate(scores), time.perf_counter() - begin)
