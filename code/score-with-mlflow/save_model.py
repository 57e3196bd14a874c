"""Saves an image classifier as an MLflow model, with its signature and what it needs to run.

    python code/score-with-mlflow/save_model.py model mlflow-model

makes the folder mlflow-model/ of the model and the labels in model/.
"""

import shutil
import sys
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

sys.path.append(str(Path(__file__).parents[1] / "score-by-file"))
import classifier  # what the scoring scripts share, the model has too
import photo
import signature

LOADER = Path(__file__).with_name("imagenet_classifier.py")
# The versions of environment/conda.yml, and the MLflow that saves the model.
REQUIREMENTS = [
    f"mlflow-skinny=={mlflow.__version__}",
    "tensorflow[and-cuda]==2.21.0",
    "tf-keras==2.21.0",
    "pillow==12.3.0",
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
    """Saves the image classifier in the folder `model`, with its labels, as the MLflow model `target`.

    One that was saved here before is replaced. Raises FileNotFoundError for a folder without one model, and
    MlflowException for a `target` that holds something else.
    """
    model, target = Path(model), Path(target)
    classifier.find_model(model)
    description = target / "MLmodel"
    if description.is_file() and f"loader_module: {LOADER.stem}" in description.read_text("utf-8"):
        shutil.rmtree(target)
    mlflow.pyfunc.save_model(
        target,
        loader_module=LOADER.stem,
        code_paths=[str(LOADER), classifier.__file__, signature.__file__, photo.__file__],
        data_path=str(model),
        signature=SIGNATURE,
        input_example=np.zeros((1, 2, 2, 3), np.uint8),
        pip_requirements=REQUIREMENTS,
    )
    return target


if __name__ == "__main__":
    print(save_model(*sys.argv[1:]))
