"""The scoring script of a deployment that has none: that of an MLflow model, as Azure ML makes one for it.

(Microsoft's how-to-mlflow-batch and how-to-image-processing-batch.) predict() is called once for each file.
A table is a DataFrame; an image is an array that fits the TensorSpec of the model's signature, or uint8
(1, height, width, 3) for a model without a signature. Rows are separated by commas: an image's are the
prediction and the file, a table's the number of the row, the prediction and the file.

Like any scoring script it imports nothing of local_workspace.
"""

import csv
import io
import logging
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing of a local run leaves this machine

import mlflow.pyfunc
import numpy as np
import pandas as pd
from driver_photo import open_photo  # beside this script
from mlflow.exceptions import MlflowException
from mlflow.types import DataType, TensorSpec

IMAGES = ("png", "jpg", "jpeg", "tiff", "bmp", "gif")
TABLES = ("csv", "parquet", "pqt")
MODES = {1: "L", 3: "RGB", 4: "RGBA", -1: "RGB"}  # of Pillow, by the channels that a signature asks for
NO_SIGNATURE = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
logger = logging.getLogger(__name__)


class InputError(ValueError):
    """A file that the model cannot take. Azure ML fails the whole job for it, whatever its threshold."""

    fails_job = True


class Row(tuple):
    """The values of a row, among them the name of its file. Its text is a line of the output."""

    def __str__(self) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(self)
        return line.getvalue()


def init() -> None:
    """Loads the MLflow model that lies under AZUREML_MODEL_DIR."""
    global model, schema
    path = find_model(Path(os.environ["AZUREML_MODEL_DIR"]))
    model = mlflow.pyfunc.load_model(str(path))
    schema = model.metadata.get_input_schema()
    logger.info("%s: input: %s", path, schema or "no signature")


def run(mini_batch: list[str]) -> list[Row]:
    """Scores the files at the paths `mini_batch`.

    An image that cannot be read is logged and left out. Raises InputError for a file of another type, and
    for one that does not fit the model's signature.
    """
    rows: list[Row] = []
    for path in mini_batch:
        file, kind = os.path.basename(path), os.path.splitext(path)[1].lower().removeprefix(".")
        if kind in TABLES:
            predictions = predict_table(path, kind)
            rows += [Row((number, *values, file)) for number, values in enumerate(predictions)]
        elif kind in IMAGES:
            rows += [Row((*values, file)) for values in predict_image(path)]
        else:
            known = ", ".join((*IMAGES, *TABLES))
            raise InputError(f"{path}: file type {kind!r} is not supported, expected one of: {known}")
    return rows


def predict_image(path: str) -> list[tuple]:
    """The prediction for the image at `path`; nothing, and a line in the log, if it cannot be read."""
    spec = image_spec(path)
    try:
        with open_photo(path, MODES[spec.shape[-1] if len(spec.shape) > 2 else 1]) as photo:
            image = np.asarray(photo)  # (height, width) or (height, width, channels)
    except Exception as error:  # whatever is wrong with one image must not cost the others
        logger.warning("%s: left out: %s", path, error or type(error).__name__)
        return []
    return to_rows(model.predict(fit(image, spec, path)))


def image_spec(path: str) -> TensorSpec:
    """What the model takes an image as. Raises InputError if its signature has no place for one."""
    if schema is None:
        return NO_SIGNATURE
    spec = schema.inputs[0]
    if len(schema.inputs) > 1 or not isinstance(spec, TensorSpec):
        raise InputError(f"{path}: the model takes {schema}, expected one TensorSpec for an image")
    rank, numbers = len(spec.shape), spec.type.kind in "uif" and np.can_cast(np.uint8, spec.type)
    if not numbers or rank not in (2, 3, 4) or (rank > 2 and spec.shape[-1] not in MODES):
        raise InputError(
            f"{path}: the model takes {spec}, expected numbers up to 255 as (height, width), "
            "(height, width, channels) or (images, height, width, channels), with 1, 3 or 4 channels"
        )
    return spec


def fit(image: np.ndarray, spec: TensorSpec, path: str) -> np.ndarray:
    """`image` (height, width) or (height, width, channels) in the shape and type of `spec`."""
    height, width = image.shape[:2]
    full = (1, height, width, image.size // (height * width))
    shape = {4: full, 3: full[1:], 2: full[1:3]}[len(spec.shape)]
    if any(wanted not in (-1, found) for wanted, found in zip(spec.shape, shape)):
        raise InputError(
            f"{path}: {width} x {height} pixels are an array {shape}, which does not fit {spec.shape} of the "
            "model's signature: sizes that vary are -1 in it, and the model resizes them itself"
        )
    return image.reshape(shape).astype(spec.type)


def predict_table(path: str, kind: str) -> list[tuple]:
    """The predictions for the rows of the table at `path`, which all go to the model at once."""
    try:
        return to_rows(model.predict(read_table(path, kind)))
    except (MlflowException, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


def read_table(path: str, kind: str) -> pd.DataFrame:
    """The table at `path`; a CSV file is read in the types of the signature's columns, as a text has none."""
    if kind != "csv":
        return pd.read_parquet(path)
    columns = schema.inputs if schema else []
    types = {column.name: column.type for column in columns if isinstance(column.type, DataType)}
    dates = [name for name, type_ in types.items() if name and type_ == DataType.datetime]
    others = {name: type_.to_pandas() for name, type_ in types.items() if name and name not in dates}
    return pd.read_csv(path, dtype=others, parse_dates=dates)


def to_rows(predictions: Any) -> list[tuple]:
    """The rows of what predict() returned, with the values as they are."""
    if isinstance(predictions, dict):
        predictions = {name: list(np.atleast_1d(values)) for name, values in predictions.items()}
    elif np.isscalar(predictions):
        predictions = [predictions]
    frame = pd.DataFrame(predictions)
    return list(zip(*(frame.iloc[:, column].to_numpy() for column in range(frame.shape[1]))))


def find_model(folder: Path) -> Path:
    """The one MLflow model, a folder with the file MLmodel, that `folder` is or holds."""
    models = [path for path in sorted([folder, *folder.glob("*")]) if (path / "MLmodel").is_file()]
    if len(models) != 1:
        inside = models or [*folder.glob("*"), *folder.glob("*/*")]
        found = ", ".join(sorted(str(path.relative_to(folder)) for path in inside)) or "nothing"
        raise FileNotFoundError(
            f"{folder}: {len(models)} MLflow models, expected one folder with MLmodel; found: {found}"
        )
    return models[0]
