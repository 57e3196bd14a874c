"""The model of the by-batch scoring script over images that are in memory: no file is read."""

import importlib.util
from pathlib import Path

import tensorflow as tf

SCRIPT = Path(__file__).parents[2] / "code" / "score-by-batch" / "batch_driver.py"
spec = importlib.util.spec_from_file_location("by_batch", SCRIPT)
by_batch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(by_batch)


def init() -> None:
    global images
    by_batch.init()
    images = tf.random.uniform((by_batch.device_batch_size, by_batch.image_size, by_batch.image_size, 3))


def run(mini_batch: list[str]) -> list[str]:
    for start in range(0, len(mini_batch), len(images)):
        by_batch.classify(images[: len(mini_batch) - start]).numpy()
    return mini_batch
