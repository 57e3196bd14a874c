"""Saves the ImageNet model as an MLflow model, with its signature and what it needs to run.

    python code/score-with-mlflow/save_model.py model mlflow-model

makes the folder mlflow-model/ of the SavedModel and the labels in model/.
"""

import shutil
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

LOADER = Path(__file__).with_name("imagenet_classifier.py")
# The versions of environment/conda.yml, and the MLflow that saves the model.
REQUIREMENTS = [
    f"mlflow-skinny=={mlflow.__version__}",
    "tensorflow[and-cuda]==2.21.0",
    "numpy==2.2.6",
    "pandas==2.3.3",
    "setuptools<81",  # later versions lack pkg_resources, which the batch driver of Azure imports
]
# Images of any number, height and width, with three channels; a row for each of them.
SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
    outputs=Schema([ColSpec("long", "class"), ColSpec("float", "probability"), ColSpec("string", "label")]),
)


def save_model(model: Path | str, target: Path | str) -> Path:
    """Saves the SavedModel and ImageNetLabels.txt in the folder `model` as the MLflow model `target`.

    An MLflow model that is there already is replaced. Raises FileNotFoundError for a folder that lacks
    one of the two files, and MlflowException for a `target` that holds something else.
    """
    model, target = Path(model), Path(target)
    for name in ("saved_model.pb", "ImageNetLabels.txt"):
        if not (model / name).is_file():
            found = ", ".join(sorted(path.name for path in model.glob("*"))) or "nothing"
            raise FileNotFoundError(f"{model / name} is missing; found: {found}")
    if (target / "MLmodel").is_file():
        shutil.rmtree(target)
    mlflow.pyfunc.save_model(
        target,
        loader_module=LOADER.stem,
        code_paths=[str(LOADER)],
        data_path=str(model),
        signature=SIGNATURE,
        input_example=np.zeros((1, 2, 2, 3), np.uint8),
        pip_requirements=REQUIREMENTS,
    )
    return target


if __name__ == "__main__":
    print(save_model(*sys.argv[1:]))
