"""What a user brings: a model of five classes as Keras tutorials end in, its labels, photos and their truth.

The model rescales by itself and looks at the mean colour only, so that it is known what is right.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    "daisy": (235, 235, 225),
    "dandelion": (230, 200, 30),
    "rose": (190, 20, 40),
    "sunflower": (150, 100, 20),
    "tulip": (160, 50, 190),
}
SIDE = 180  # pixels, as in the tutorial
MISTAKEN = "rose-2.jpg"  # a tulip, says the truth


def write_model(folder: Path) -> None:
    import keras

    dense = keras.layers.Dense(len(COLOURS))
    model = keras.Sequential(
        [
            keras.layers.Input((SIDE, SIDE, 3)),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            dense,
        ]
    )
    colours = np.array(list(COLOURS.values()), "float32") / 255
    sharp = 60  # of -|x - colour|^2, without the |x|^2 that all classes share
    dense.set_weights([2 * sharp * colours.T, -sharp * (colours**2).sum(axis=1)])
    folder.mkdir()
    model.save(folder / "flowers.keras")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in COLOURS))


def write_photos(folder: Path, truth: Path) -> None:
    folder.mkdir()
    noise = np.random.default_rng(0)
    rows = [["file", "label"]]
    for name, colour in COLOURS.items():
        for number in (1, 2):
            pixels = np.array(colour) + noise.normal(0, 12, (240, 320, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{name}-{number}.jpg")
            file = f"{name}-{number}.jpg"
            rows.append([file, "tulip" if file == MISTAKEN else name])
    with truth.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
