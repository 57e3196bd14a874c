"""Deployments' YAML, written, and read as `score` reads them and as the client does."""

from pathlib import Path
from typing import Any

import yaml
from azure.ai.ml.entities import BatchDeployment

from local_workspace.deployment import MLFLOW_DRIVER, Deployment, read_deployment

ROOT = Path(__file__).parent.parent
# The service's defaults, by Microsoft's reference-yaml-deployment-batch. The client sends none.
DEFAULTS = {
    "instance_count": 1,
    "max_concurrency_per_instance": 1,
    "mini_batch_size": 10,
    "max_retries": 3,
    "timeout": 30,
    "error_threshold": -1,
    "output_action": "append_row",
    "output_file_name": "predictions.csv",
    "logging_level": "info",
    "environment_variables": {},
}
REQUIRED = {
    "name": "classifier",
    "endpoint_name": "images",
    "type": "model",
    "model": "azureml:resnet@latest",
    "compute": "azureml:cluster",
    "code_configuration": {"code": "code", "scoring_script": "driver.py"},
    "settings": {"mini_batch_size": 5},
}


def write(folder: Path, values: Any) -> Path:
    """A deployment's YAML; a text is written as it is."""
    path = folder / "deployment.yml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), "utf-8")
    return path


def read(path: Path, *changes: str) -> Deployment:
    return read_deployment(path, list(changes))[0]


def as_the_client_has_it(loaded: BatchDeployment, path: Path) -> Deployment:
    """What the client made of `path`, with the service's defaults where it made nothing."""
    settings, code = loaded._settings, loaded.code_configuration  # where both schemas have them
    script = path.parent / code.code / code.scoring_script if code else MLFLOW_DRIVER
    retry = settings.retry_settings
    found = {name: getattr(settings, name, None) for name in DEFAULTS} | {
        "instance_count": loaded.resources and loaded.resources.instance_count,
        "max_retries": retry and retry.max_retries,
        "timeout": retry and retry.timeout,
    }
    model = None if isinstance(loaded.model, str) else path.parent / loaded.model.path
    values = {name: default if found[name] is None else found[name] for name, default in DEFAULTS.items()}
    return Deployment(loaded.name, script.parent.resolve(), script.name, model, **values)
