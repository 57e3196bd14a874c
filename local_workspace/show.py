"""`show OUTPUT --data DIR`: the predictions of a run with their labels, as a table and as pictures."""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from local_workspace.errors import UserError
from local_workspace.labels import KEPT, LABELS_HELP, Labels, kept_labels, labels_of
from local_workspace.pictures import find_photos, small_picture
from local_workspace.predictions import Row, find_predictions, mini_batches, output_file_name, read_rows
from local_workspace.truth import read_misses

PHOTO = (240, 180)  # pixels, width and height
CELL = (256, 216)  # of a photo with its caption
MARGIN = 8
FONT_SIZE = 16
LINE = 20  # of a caption's second line, which tells the truth
MISSED = "firebrick"
MOST = 1000  # rows and pictures
NAMED = 5  # rows without a picture


@dataclass(frozen=True)
class Shown:
    """A row as it is shown. `missing` says why it has no photo; `truth` is the true label of a wrong row."""

    file: str
    number: int
    probability: float
    label: str
    truth: str
    photo: Image.Image | None
    missing: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the output folder of `score`")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that was scored")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model", type=Path, metavar="DIR", help=f"whose labels to show (default: those in OUTPUT/{KEPT})"
    )
    which.add_argument("--labels", type=Path, metavar="FILE", help=LABELS_HELP)
    parser.add_argument("--most", type=int, default=24, metavar="N", help="rows and pictures (default: 24)")
    parser.add_argument(
        "--misses", action="store_true", help="only the rows that `score --truth` found wrong"
    )
    parser.add_argument("--no-table", action="store_true", help="draw the pictures only")


def show(arguments: argparse.Namespace) -> int:
    """Prints the first rows with their labels; draws their photos into predictions.png.

    Where `score` was told the truth, the true labels of the rows that it found wrong are there too, in red.
    """
    if not 1 <= arguments.most <= MOST:
        raise UserError(f"--most {arguments.most}: expected a whole number from 1 to {MOST}")
    if not os.path.exists(arguments.data):
        raise UserError(f"{arguments.data}: no such folder, expected the photos that were scored")
    path = find_predictions(arguments.output / "score", output_file_name(arguments.output))
    rows = read_rows(path)
    misses = read_misses(arguments.output, arguments.misses)
    labels = fitting_labels(arguments, rows)
    wanted = [place for place, row in enumerate(rows) if row.file in misses or not arguments.misses]
    places = wanted[: arguments.most]
    batches = () if path.is_dir() else mini_batches(arguments.output)  # Parquet's rows are in no order
    photos = photos_of(arguments.data, rows[: places[-1] + 1] if places else [], batches)
    shown = [shown_row(rows[place], labels, misses, photos[place]) for place in places]
    if not arguments.no_table:
        print_table(shown, len(wanted))
    sheet = arguments.output / "predictions.png"
    try:
        draw_sheet(shown).save(sheet)
    except OSError as error:
        raise UserError(f"{sheet}: cannot be written: {error.strerror}") from None
    warn_of_missing(shown)
    print(f"pictures: {sheet}")
    return 0


def fitting_labels(arguments: argparse.Namespace, rows: list[Row]) -> Labels:
    """The labels of the model that gave `rows`; none, which is said, where none are known or fit."""
    if arguments.model and not os.path.exists(arguments.model):
        raise UserError(f"{arguments.model}: no such model, expected a folder or a file")
    if arguments.model or arguments.labels:
        labels = labels_of(arguments.model, arguments.labels)
    else:
        labels = kept_labels(arguments.output)
    if misfit := labels.misfit(row.classes[0] for row in rows):
        say(f"warning: {misfit}")
        return Labels()
    if not labels and not all(row.label for row in rows):
        say("no labels of the model: name its folder with --model, or a file of labels with --labels")
    return labels


def photos_of(data: Path, rows: list[Row], batches: tuple[tuple[int, int], ...]) -> list[list[str]]:
    """The files in `data` that each of `rows`, the first ones, can mean."""
    try:
        return find_photos(data.absolute(), tuple(row.file for row in rows), batches)
    except UserError as error:
        say(f"warning: no photos are drawn: {error.message}")
        return [[]] * len(rows)


def shown_row(row: Row, labels: Labels, misses: dict[str, tuple[int, str]], paths: list[str]) -> Shown:
    truth = ""
    if row.file in misses:
        number, told = misses[row.file]
        truth = printable(labels.of(number) if labels else told)
    photo = small_picture(Path(paths[0]), PHOTO) if len(paths) == 1 else None
    missing = "" if photo else "no photo that can be read"
    if len(paths) != 1:
        missing = f"ambiguous: {len(paths)} such files" if paths else "no such file"
    label = printable(labels.of_row(row))
    return Shown(printable(row.file), row.classes[0], row.probability, label, truth, photo, missing)


def print_table(shown: list[Shown], rows: int) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="ellipsis", no_wrap=True, max_width=36)
    table.add_column("class", justify="right", no_wrap=True)
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("label", overflow="fold")
    for row in shown:
        label = Text(f"{row.label} (truth: {row.truth})", "red") if row.truth else row.label
        table.add_row(row.file, str(row.number), with_digits(row.probability, 6), label)
    Console(highlight=False, markup=False).print(table)
    if rows > len(shown):
        print(f"... and {rows - len(shown):,} more rows")


def draw_sheet(shown: list[Shown]) -> Image.Image:
    """The photos of the rows in a grid, each with its label and probability below it.

    Wrong rows have a red frame, a red label, and the true one below it.
    """
    height = CELL[1] + LINE * any(row.truth for row in shown)
    columns = max(1, math.ceil(len(shown) ** 0.5))
    lines = max(1, math.ceil(len(shown) / columns))
    sheet = Image.new("RGB", (columns * CELL[0] + MARGIN, lines * height + MARGIN), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, row in enumerate(shown):
        left, top = MARGIN + number % columns * CELL[0], MARGIN + number // columns * height
        if row.photo:
            # The whole photo on a gray field: what the model did not see of it is seen here.
            sheet.paste(ImageOps.pad(row.photo, PHOTO, color="gainsboro"), (left, top))
        else:
            draw.text((left, top + PHOTO[1] // 2), shortened(row.missing, "", draw, font), "gray", font)
        caption(draw, font, (left, top + PHOTO[1] + 4), row)
    return sheet


def caption(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, place: tuple[int, int], row: Shown
) -> None:
    left, top = place
    text = shortened(row.label, f" {with_digits(row.probability, 2)}", draw, font)
    draw.text(place, text, MISSED if row.truth else "black", font)
    if row.truth:
        draw.rectangle((left - 3, top - 7 - PHOTO[1], left + PHOTO[0] + 2, top - 2), outline=MISSED, width=3)
        draw.text((left, top + LINE), shortened(f"truth: {row.truth}", "", draw, font), "black", font)


def shortened(text: str, end: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont) -> str:
    """`text` and then `end`, as wide as a photo at most."""
    text = text[: PHOTO[0]]  # no character is narrower than a pixel
    whole = text + end
    while text and draw.textlength(whole, font) > PHOTO[0]:
        text = text[:-1]
        whole = f"{text}…{end}"
    return whole


def warn_of_missing(shown: list[Shown]) -> None:
    missing = [row for row in shown if not row.photo]
    for row in missing[:NAMED]:
        say(f"warning: no picture of {row.file}: {row.missing}")
    if len(missing) > NAMED:
        say(f"warning: no pictures of {len(missing) - NAMED:,} more rows")


def with_digits(number: float, digits: int) -> str:
    """`number` with so many digits behind the point; what is no probability may be very large."""
    return f"{number:.{digits}f}" if abs(number) < 1e6 else f"{number:.{digits}g}"


def printable(text: str) -> str:
    """`text` on one line, with escapes for what a terminal would obey or cannot show."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
