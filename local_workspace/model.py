"""The model of a deployment: where it is, and as its workers see it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from local_workspace.deployment import MLFLOW_MODEL, MODEL, Deployment
from local_workspace.errors import UserError
from local_workspace.listing import Identity, identity, results_in

SAVE_MODEL = "`python code/score-with-mlflow/save_model.py model mlflow-model`"


def model_of(deployment: Deployment, named: Path | None, path: Path) -> Path:
    """The model `named` on the command line, or that of the deployment, whose YAML is `path`."""
    folder = MLFLOW_MODEL if deployment.is_mlflow else MODEL
    model = named or deployment.model or path.parent / folder
    if not os.path.exists(model):
        raise UserError(
            f"{model}: no such model, expected a folder or a file",
            "`python -m local_workspace samples` prepares one in model/"
            + (f", which {SAVE_MODEL} saves in {MLFLOW_MODEL}/" if deployment.is_mlflow else "")
            + "; or name yours with --model",
        )
    return Path(os.path.abspath(model))


def lay_out_model(model: Path, model_dir: Path, output: Path) -> None:
    """A registered folder keeps its name below AZUREML_MODEL_DIR, and a registered file lies in it.

    The folders are real and the files are links: rglob(), as scripts search a model, follows no links to
    folders. MLflow follows no links at all, so its models are copied. The `output` is no part of a model.
    """
    model_dir.mkdir()
    if not model.is_dir():
        (model_dir / model.name).symlink_to(model)
        return

    put = shutil.copy2 if (model / "MLmodel").exists() else os.symlink
    for folder, folders, files in list(walk_without(results_in(output), model)):  # model_dir may be below it
        copy = model_dir / model.name / os.path.relpath(folder, model)
        copy.mkdir()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in files + links:
            try:
                put(os.path.join(folder, name), copy / name)
            except OSError as error:
                refuse(error)


def walk_without(results: set[Identity], model: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for folder, folders, files in os.walk(model, onerror=refuse):
        for names in (folders, files):
            names[:] = [name for name in names if identity(os.path.join(folder, name)) not in results]
        yield folder, folders, files


def refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
