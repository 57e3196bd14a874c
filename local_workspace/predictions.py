"""The predictions that a run has left, in any of the layouts that the scoring scripts here write.

A row of a scoring script is file, class, probability, and then more pairs of class and probability, if it
gives the next best ones, too. A row of an MLflow model is class, probability, label, file. A name of a file
is a text, also `0001`, `null` and one that begins with a byte order mark.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from local_workspace.errors import UserError
from local_workspace.files import open_regular

CLASS = re.compile("[0-9]{1,9}")
HEAD = 256 << 10  # bytes that are read where not all rows are wanted
MAX_PARQUET = 1000  # Parquet files that are looked at then
MAX_JOURNAL = 16 << 20  # bytes


class Row(NamedTuple):
    file: str
    classes: tuple[int, ...]  # the best first
    probability: float  # of the best
    label: str  # which a row of an MLflow model brings; else ""


def find_predictions(score: Path, name: str | None = None) -> Path:
    """The predictions in the folder `score`: the file `name`, or the folder where it has Parquet files only.

    Without a `name` it is predictions.csv, or the only file. Raises UserError where there is neither.
    """
    wanted = score / (name or "predictions.csv")
    if os.path.isfile(wanted):  # False, too, for a name that no file can have
        return wanted
    if any(score.glob("*.parquet")):
        return score
    files = sorted(path for path in score.glob("*") if path.is_file())
    if name or not files:
        raise UserError(f"{wanted}: no such file", "`python -m local_workspace score` writes it")
    if len(files) > 1:
        names = ", ".join(ascii(path.name) for path in files[:5])
        raise UserError(f"{score}: {len(files)} files, expected predictions.csv or one file: {names}")
    return files[0]


def output_file_name(output: Path) -> str | None:
    """What the file with the rows of the run in `output` is called; None where `score` did not write it."""
    try:
        with open_regular(output / ".job" / "run.json") as file:
            return str(json.load(file)["settings"]["settings.output_file_name"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def read_rows(path: Path, most: int | None = None) -> list[Row]:
    """The rows in a file, or in a folder of Parquet files; with `most` so many at most, the first ones.

    The rows of Parquet files are in no order: all of them are sorted. Raises UserError for what are no rows.
    """
    if path.is_dir():
        rows = list(islice(parquet_rows(path, most), most))
        return rows if most else sorted(rows)
    for separator, parse in LAYOUTS.items():
        try:
            rows = [parse(cells) for cells in read_cells(path, separator, most)]
        except (ValueError, csv.Error):
            continue
        if len({len(row.classes) for row in rows}) < 2:
            return rows
    raise UserError(f"{path}: not rows of file, class and probability")


def read_cells(path: Path, separator: str, most: int | None = None) -> Iterator[list[str]]:
    """The cells of each line; with `most` not more than so many lines, up to the last whole one.

    Raises UserError for a file that cannot be read, and csv.Error for what is no CSV; with `most` it ends
    there: the last row of a file that is being written may be cut within its quotes.
    """
    try:
        with open_regular(path) as file:
            text = file if most is None else io.BytesIO(whole_lines(file.read(HEAD)))
            # Not "utf-8-sig": the first name may begin with a byte order mark.
            with io.TextIOWrapper(text, "utf-8", "surrogateescape", newline="") as lines:
                cells = csv.reader(lines, delimiter=separator, strict=True)
                yield from islice(filter(None, cells), most)
    except csv.Error:
        if most is None:
            raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def parse_scored(cells: list[str]) -> Row:
    file, *pairs = cells
    if len(pairs) < 2 or len(pairs) % 2:
        raise ValueError(f"{len(cells)} cells")
    probabilities = [parse_probability(text) for text in pairs[1::2]]
    return Row(file, tuple(map(parse_class, pairs[::2])), probabilities[0], "")


def parse_mlflow(cells: list[str]) -> Row:
    number, probability, label, file = cells
    return Row(file, (parse_class(number),), parse_probability(probability), label)


def parse_class(text: str) -> int:
    if not CLASS.fullmatch(text):
        raise ValueError(f"class {text!r}")
    return int(text)


def parse_probability(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"probability {text!r}")
    return number


# By the separator of the cells. No row fits both.
LAYOUTS: dict[str, Callable[[list[str]], Row]] = {" ": parse_scored, ",": parse_mlflow}


def parquet_rows(folder: Path, most: int | None) -> Iterator[Row]:
    """The rows of the Parquet files in `folder`, file by file, in the order of their names."""
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    for path in sorted(islice(folder.glob("*.parquet"), most and MAX_PARQUET)):
        try:
            with open_regular(path) as file, ParquetFile(file) as table:
                others = sorted(filter(re.compile(r"class_\d+").fullmatch, table.schema_arrow.names))
                for batch in table.iter_batches(
                    most or 65536, columns=["file", "class", "probability", *others]
                ):
                    for row in batch.to_pylist():
                        classes = tuple(parse_class(str(row[name])) for name in ("class", *others))
                        yield Row(str(row["file"]), classes, parse_probability(row["probability"]), "")
        except (ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not rows of file, class and probability: {error}") from None


def mini_batches(output: Path) -> tuple[tuple[int, int], ...]:
    """How many files and rows each mini-batch has, in the order of the rows, where `score` wrote `output`.

    () where it did not, where they are too many to read, and where they are not in the order of the input.
    """
    try:
        with open_regular(output / "logs" / "sys" / "job_report" / "processed_mini-batches.csv") as file:
            content = file.read(MAX_JOURNAL + 1)
        lines = list(csv.DictReader(io.StringIO(whole_lines(content).decode(), newline="")))
        in_order = all(int(line["mini_batch"]) == number for number, line in enumerate(lines))
        if not in_order or len(content) > MAX_JOURNAL:
            return ()
        return tuple((int(line["files"]), int(line["rows"])) for line in lines)
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return ()
