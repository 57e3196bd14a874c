"""`az ml model`, `az ml data` and `az ml compute` as calls of azure.ai.ml.

One function a command, which returns what is printed; az.py reads the flags from the
signatures and the help from the docstrings. With other variables in the environment they call Azure.
"""

from azure.ai.ml import MLClient
from azure.ai.ml.entities import _load_functions as load

from local_workspace.az_ml import Printed, overrides, printed, source, without_progress


def latest_unless(version: str | None, label: str | None) -> str | None:
    return label or (None if version else "latest")


def model_create(
    client: MLClient,
    name: str | None = None,
    version: str | None = None,
    path: str | None = None,
    type: str | None = None,
    description: str | None = None,
    file: str | None = None,
    changes: list[str] | None = None,
) -> Printed:
    """Register a model: a file or a folder of this machine."""
    flags = {"name": name, "version": version, "path": path, "type": type, "description": description}
    model = load.load_model(source(file), params_override=overrides(changes, **flags))
    return printed(client.models.create_or_update(model))


def model_list(client: MLClient, name: str | None = None) -> list[Printed]:
    """List the models of the workspace, or the versions of one."""
    return [printed(model) for model in client.models.list(name=name)]


def model_show(client: MLClient, name: str, version: str | None = None, label: str | None = None) -> Printed:
    """Show a version of a model: the latest, when none is named."""
    return printed(client.models.get(name, version=version, label=latest_unless(version, label)))


def data_create(
    client: MLClient,
    name: str | None = None,
    version: str | None = None,
    path: str | None = None,
    type: str | None = None,
    description: str | None = None,
    file: str | None = None,
    changes: list[str] | None = None,
) -> Printed:
    """Create a data asset: a local file or folder is uploaded to the default datastore."""
    flags = {"name": name, "version": version, "path": path, "type": type, "description": description}
    data = load.load_data(source(file), params_override=overrides(changes, **flags))
    return printed(client.data.create_or_update(data))


def data_list(client: MLClient, name: str | None = None) -> list[Printed]:
    """List the data assets of the workspace, or the versions of one."""
    return [printed(data) for data in client.data.list(name=name)]


def data_show(client: MLClient, name: str, version: str | None = None, label: str | None = None) -> Printed:
    """Show a version of a data asset: the latest, when none is named."""
    return printed(client.data.get(name, version=version, label=latest_unless(version, label)))


def compute_create(
    client: MLClient,
    name: str | None = None,
    type: str | None = None,
    size: str | None = None,
    min_instances: int | None = None,
    max_instances: int | None = None,
    file: str | None = None,
    changes: list[str] | None = None,
) -> Printed:
    """Create a compute cluster, or change the one of that name."""
    flags = {"name": name, "type": type, "size": size}
    flags |= {"min_instances": min_instances, "max_instances": max_instances}
    compute = load.load_compute(source(file), params_override=overrides(changes, **flags))
    with without_progress():
        return printed(client.compute.begin_create_or_update(compute).result())


def compute_show(client: MLClient, name: str) -> Printed:
    """Show a compute cluster."""
    return printed(client.compute.get(name))
