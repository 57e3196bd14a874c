"""The labels of a model: a text file in its folder with a label a line, that of class n in line n + 1.

`score` keeps a copy in its output folder: what it scored is then shown with the labels that its model had,
whatever has become of the model's folder, and never with those of another one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from local_workspace.errors import UserError
from local_workspace.files import open_regular
from local_workspace.predictions import Row

NAMES = ("ImageNetLabels.txt", "labels.txt")
KEPT = "model-labels.txt"  # in the output folder of a run
MAX_BYTES = 2**24  # of a labels file; ImageNet's has 10 kB
LABELS_HELP = "a text file with a label a line, that of class 0 first"


@dataclass(frozen=True)
class Labels:
    """`texts[n]` is the label of class n. There are none where the model has no labels file."""

    texts: tuple[str, ...] = ()
    path: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.texts)

    def of(self, number: int) -> str:
        """The label of the class `number`, or its number where it has none."""
        return self.texts[number] if number < len(self.texts) else f"class {number}"

    def of_row(self, row: Row) -> str:
        """The label of the row's class; without labels the one that the row brings, or the number."""
        return self.of(row.classes[0]) if self or not row.label else row.label

    def misfit(self, classes: Iterable[int]) -> str:
        """Why these cannot be the labels of the model that gave `classes`; "" if they can."""
        highest = max(classes, default=-1)
        if not self or highest < len(self.texts):
            return ""
        return (
            f"{self.path}: {len(self.texts)} lines, and a row has class {highest}, whose label would be in "
            f"line {highest + 1}: these are not the labels of this model, so its classes are shown by number"
        )


def labels_of(model: Path, file: Path | None) -> Labels:
    """Those in `file` where it is given, else those that `model` has. Raises UserError."""
    return read_labels(file) if file else find_labels(model)


def find_labels(model: Path) -> Labels:
    """The labels in the folder `model`, or beside the file `model`; none where there is no labels file.

    One in the folder itself counts before one that lies deeper, as an MLflow model has it. Raises UserError
    where two lie equally deep: which of them it is cannot be known.
    """
    folder = model if model.is_dir() else model.parent
    paths = [path for name in NAMES for path in (folder.rglob(name) if model.is_dir() else [folder / name])]
    found = sorted((path for path in paths if path.is_file()), key=lambda path: (len(path.parts), path))
    equally_deep = [path for path in found if len(path.parts) == len(found[0].parts)]
    if len(equally_deep) > 1:
        raise UserError(
            f"{equally_deep[0]} and {equally_deep[1]}: two labels files, expected one",
            "remove one, or name the right one with --labels",
        )
    return read_labels(found[0]) if found else Labels()


def read_labels(path: Path) -> Labels:
    """The labels in the file `path`: UTF-8, with or without a byte order mark, with any line ends.

    Blank lines at the end do not count. Raises UserError for one between labels, since it cannot be known
    whether it stands for a class; and for what is no text.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: the labels cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES or b"\0" in content:
        what = "a NUL in it" if b"\0" in content else f"more than {MAX_BYTES:,} bytes"
        raise UserError(f"{path}: {what}, expected a text with a label a line", "save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start:,}", "save it as UTF-8") from None
    # Not splitlines(): it also splits at characters that a label may hold.
    lines = text.rstrip().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    labels = tuple(line.strip() for line in lines)
    if "" in labels:
        line = labels.index("") + 1
        if len(labels) == 1:
            raise UserError(f"{path}: empty, expected a label a line")
        raise UserError(f"{path}, line {line}: blank, expected the label of class {line - 1}")
    return Labels(labels, path)


def keep_labels(labels: Labels, output: Path) -> None:
    """Writes `labels` into the output folder of a run; without any, those of an earlier run go."""
    path = output / KEPT
    if not labels:
        path.unlink(missing_ok=True)
        return
    part = path.with_name(path.name + ".part")
    part.write_bytes("".join(f"{label}\n" for label in labels.texts).encode())
    os.replace(part, path)


def kept_labels(output: Path) -> Labels:
    """The labels of the model that was scored into `output`; none where it had none, or is not known."""
    path = output / KEPT
    return read_labels(path) if os.path.lexists(path) else Labels()
