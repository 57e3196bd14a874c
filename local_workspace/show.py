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

from local_workspace.errors import UserError
from local_workspace.samples import read_labels

COLUMNS = ["file", "class", "probability", "label"]
# By the separator: the rows of the scoring scripts, read as the article reads them, and of the MLflow model.
LAYOUTS = {" ": ["file", "class", "probability"], ",": ["class", "probability", "label", "file"]}
PHOTO = (240, 180)  # pixels, width and height
CELL = (256, 216)  # of a photo with its caption
MARGIN = 8
FONT_SIZE = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the output folder of `score`")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that was scored")
    parser.add_argument("--model", type=Path, default=Path("model"), metavar="DIR", help="default: model")
    parser.add_argument("--most", type=int, default=24, metavar="N", help="rows and pictures (default: 24)")
    parser.add_argument("--no-table", action="store_true", help="draw the pictures only")


def show(arguments: argparse.Namespace) -> int:
    """Prints the first rows with their labels; draws their photos into predictions.png."""
    path = arguments.output / "score" / "predictions.csv"
    predictions = read_predictions(path, read_labels(arguments.model))
    some = predictions.head(arguments.most)
    if not arguments.no_table:
        print_table(some, len(predictions))
    sheet = arguments.output / "predictions.png"
    draw_sheet(some, arguments.data).save(sheet)
    print(f"pictures: {sheet}")
    return 0


def read_predictions(path: Path, labels: list[str]) -> pd.DataFrame:
    """file, class, probability and label of each row of `path`, in either of the two layouts."""
    if not path.is_file():
        raise UserError(f"{path}: no such file", "`python -m local_workspace score` writes it")
    for separator, columns in LAYOUTS.items():
        try:
            predictions = pd.read_csv(
                path, header=None, names=columns, sep=separator, encoding_errors="surrogateescape"
            )
            predictions["label"] = [labels[index] for index in predictions["class"]]
        except (TypeError, IndexError, pd.errors.ParserError):
            continue
        return predictions[COLUMNS]
    raise UserError(f"{path}: not rows of file, class (below {len(labels)}) and probability")


def print_table(predictions: pd.DataFrame, rows: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="ellipsis", no_wrap=True)
    table.add_column("class", justify="right")
    table.add_column("probability", justify="right")
    table.add_column("label", overflow="ellipsis", no_wrap=True)
    for file, number, probability, label in predictions.itertuples(index=False):
        table.add_row(repr(file)[1:-1], str(number), f"{probability:.6f}", label)
    Console(highlight=False, markup=False).print(table)
    if rows > len(predictions):
        print(f"... and {rows - len(predictions):,} more rows")


def draw_sheet(predictions: pd.DataFrame, data: Path) -> Image.Image:
    """The photos of `predictions` in a grid, each with its label and probability below it."""
    wanted = set(predictions["file"])
    paths = {path.name: path for path in data.rglob("*") if path.name in wanted}
    columns = max(1, math.ceil(len(predictions) ** 0.5))
    lines = max(1, math.ceil(len(predictions) / columns))
    sheet = Image.new("RGB", (columns * CELL[0] + MARGIN, lines * CELL[1] + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, (file, _, probability, label) in enumerate(predictions.itertuples(index=False)):
        left, top = MARGIN + number % columns * CELL[0], MARGIN + number // columns * CELL[1]
        if file in paths:
            sheet.paste(thumbnail(paths[file]), (left, top))
        caption = f"{label} {probability:.2f}"
        while draw.textlength(caption, font) > PHOTO[0]:
            label = label[:-1]
            caption = f"{label}… {probability:.2f}"
        draw.text((left, top + PHOTO[1] + 4), caption, "black", font)
    return sheet


def thumbnail(path: Path) -> Image.Image:
    """The whole photo on a gray field: what the model did not see of it is seen here."""
    with Image.open(path) as image:
        image.draft("RGB", PHOTO)
        return ImageOps.pad(ImageOps.exif_transpose(image).convert("RGB"), PHOTO, color="gainsboro")
