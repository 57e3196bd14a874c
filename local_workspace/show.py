"""`show OUTPUT --data DIR`: the predictions of a run with their labels, as a table and as pictures."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_workspace.errors import UserError
from local_workspace.predictions import COLUMNS, find_predictions, read_predictions
from local_workspace.samples import read_labels
from local_workspace.truth import MISSES

PHOTO = (240, 180)  # pixels, width and height
CELL = (256, 216)  # of a photo with its caption
MARGIN = 8
FONT_SIZE = 16
LINE = 20  # of a caption's second line, which tells the truth
MISSED = "firebrick"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the output folder of `score`")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that was scored")
    parser.add_argument("--model", type=Path, default=Path("model"), metavar="DIR", help="default: model")
    parser.add_argument("--most", type=int, default=24, metavar="N", help="rows and pictures (default: 24)")
    parser.add_argument(
        "--misses", action="store_true", help="only the rows that `score --truth` found wrong"
    )
    parser.add_argument("--no-table", action="store_true", help="draw the pictures only")


def show(arguments: argparse.Namespace) -> int:
    """Prints the first rows with their labels; draws their photos into predictions.png.

    Where `score` was told the truth, the true labels of the rows that it found wrong are there too, in red.
    """
    path = find_predictions(arguments.output / "score")
    predictions = read_predictions(path, read_labels(arguments.model))[COLUMNS]
    misses = read_misses(arguments.output / MISSES, arguments.misses)
    if arguments.misses:
        predictions = predictions[predictions["file"].isin(misses)]
    some = predictions.head(arguments.most)
    if not arguments.no_table:
        print_table(some, len(predictions), misses)
    sheet = arguments.output / "predictions.png"
    draw_sheet(some, arguments.data, misses).save(sheet)
    print(f"pictures: {sheet}")
    return 0


def read_misses(path: Path, wanted: bool) -> dict[str, str]:
    """The true label of each file whose row is wrong; {} where `score` was not told the truth."""
    if not path.is_file():
        if wanted:
            raise UserError(f"{path}: no such file", "`score --truth` writes it")
        return {}
    misses = pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
    return dict(zip(misses["file"], misses["truth_label"]))


def print_table(predictions: pd.DataFrame, rows: int, misses: dict[str, str]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="ellipsis", no_wrap=True, max_width=36)
    table.add_column("class", justify="right", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("label", overflow="fold")
    for file, number, probability, label in predictions.itertuples(index=False):
        label = Text(f"{label} (truth: {misses[file]})", "red") if file in misses else label
        table.add_row(repr(file)[1:-1], str(number), f"{probability:.6f}", label)
    Console(highlight=False, markup=False).print(table)
    if rows > len(predictions):
        print(f"... and {rows - len(predictions):,} more rows")


def draw_sheet(predictions: pd.DataFrame, data: Path, misses: dict[str, str]) -> Image.Image:
    """The photos of `predictions` in a grid, each with its label and probability below it.

    Those of `misses` have a red frame, a red label, and the true one below it.
    """
    height = CELL[1] + LINE * bool(misses)
    wanted = set(predictions["file"])
    paths = {path.name: path for path in data.rglob("*") if path.name in wanted}
    columns = max(1, math.ceil(len(predictions) ** 0.5))
    lines = max(1, math.ceil(len(predictions) / columns))
    sheet = Image.new("RGB", (columns * CELL[0] + MARGIN, lines * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (file, _, probability, label) in enumerate(predictions.itertuples(index=False)):
        left, top = MARGIN + number % columns * CELL[0], MARGIN + number // columns * height
        if file in paths:
            sheet.paste(thumbnail(paths[file]), (left, top))
        caption(draw, font, (left, top + PHOTO[1] + 4), label, f" {probability:.2f}", misses.get(file, ""))
    return sheet


def caption(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    place: tuple[int, int],
    label: str,
    probability: str,
    truth: str,
) -> None:
    left, top = place
    draw.text(place, shortened(label, probability, draw, font), MISSED if truth else "black", font)
    if truth:
        draw.rectangle((left - 3, top - 7 - PHOTO[1], left + PHOTO[0] + 2, top - 2), outline=MISSED, width=3)
        draw.text((left, top + LINE), shortened(f"truth: {truth}", "", draw, font), "black", font)


def shortened(text: str, end: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> str:
    """`text` and then `end`, as wide as a photo at most."""
    whole = text + end
    while draw.textlength(whole, font) > PHOTO[0]:
        text = text[:-1]
        whole = f"{text}…{end}"
    return whole


def thumbnail(path: Path) -> Image.Image:
    """The whole photo on a gray field: what the model did not see of it is seen here."""
    with Image.open(path) as image:
        image.draft("RGB", PHOTO)
        return ImageOps.pad(ImageOps.exif_transpose(image).convert("RGB"), PHOTO, color="gainsboro")
