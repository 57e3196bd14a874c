"""The predictions that a run has left, in any of the layouts that the scoring scripts here write."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from local_workspace.errors import UserError

COLUMNS = ["file", "class", "probability", "label"]
# By the separator: the rows of the scoring scripts, read as the article reads them, and of the MLflow model.
LAYOUTS = {" ": ["file", "class", "probability"], ",": ["class", "probability", "label", "file"]}


def find_predictions(score: Path, name: str = "predictions.csv") -> Path:
    """The file `name` in the folder `score`, or the folder itself where it holds Parquet files."""
    return score if any(score.glob("*.parquet")) else score / name


def read_predictions(path: Path, labels: list[str]) -> pd.DataFrame:
    """file, class, probability and label of each row of a CSV in either layout, or of a folder of Parquet.

    Without `labels` those of the MLflow model's rows are kept, and others are "class 7".
    A row of the first layout may go on with more pairs of class and probability, the next best ones: their
    classes are in the columns class_2, class_3 and so on.
    """
    if path.is_dir():
        rows = pd.concat(map(pd.read_parquet, sorted(path.glob("*.parquet"))))
        return labelled(rows.sort_values("file", ignore_index=True), labels)
    if not path.is_file():
        raise UserError(f"{path}: no such file", "`python -m local_workspace score` writes it")
    for separator, columns in LAYOUTS.items():
        try:
            predictions = pd.read_csv(
                path,
                header=None,
                sep=separator,
                dtype={columns.index("file"): str},  # a name is a text, also 007 and null
                keep_default_na=False,
                encoding_errors="surrogateescape",
            )
            more = (len(predictions.columns) - len(columns)) // 2 if separator == " " else 0
            pairs = [f"{name}_{place + 2}" for place in range(more) for name in ("class", "probability")]
            predictions.columns = columns + pairs
            return labelled(predictions, labels)
        except pd.errors.EmptyDataError:
            return pd.DataFrame(columns=COLUMNS)
        except (TypeError, IndexError, ValueError):  # ParserError is a ValueError
            continue
    raise UserError(
        f"{path}: not rows of file, class{f' (below {len(labels)})' if labels else ''} and probability"
    )


def labelled(predictions: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """`predictions` with the label of each class; raises TypeError or IndexError for what is no class."""
    others = [name for name in predictions.columns if name.startswith("class_")]
    for name in ["class", *others]:
        if not is_integer_dtype(predictions[name]) or (predictions[name] < 0).any():
            raise TypeError(f"{name}: not a class")
    if not is_numeric_dtype(predictions["probability"]):
        raise TypeError("not a probability")
    if labels:
        predictions["label"] = [labels[index] for index in predictions["class"]]
    elif "label" not in predictions:
        predictions["label"] = [f"class {index}" for index in predictions["class"]]
    return predictions[COLUMNS + others]
