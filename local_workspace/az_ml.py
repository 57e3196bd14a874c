"""The verbs of `az ml` as calls of azure.ai.ml: one function a command, which returns what is printed.

az.py reads the flags from the signatures and the help from the docstrings. Nothing here knows that the
workspace is local: with other variables in the environment the same calls go to Azure.
"""

import contextlib
import os
import re
import sys
import webbrowser
from collections.abc import Iterable, Iterator
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from azure.ai.ml import Input, MLClient
from azure.ai.ml._restclient.arm_ml_service import models as rest_models
from azure.ai.ml.constants._endpoint import EndpointYamlFields
from azure.ai.ml.entities import _load_functions as load
from azure.identity import DefaultAzureCredential

from local_workspace.az_account import account_show

Printed = dict[str, Any]

# `type:` of a deployment file -> its loader; load_batch_deployment refuses the `settings` of `type: model`
DEPLOYMENT_LOADERS = {
    "model": load.load_model_batch_deployment,
    "pipeline": load.load_pipeline_component_batch_deployment,
}
DATASTORE_PATH = re.compile(r"azureml://datastores/(?P<datastore>[^/]+)/paths/(?P<path>.+)")


def open_workspace(arguments: dict[str, Any]) -> MLClient:
    """Take the workspace's names out of a command's arguments, and return its client."""
    return MLClient(
        DefaultAzureCredential(),
        subscription_id=arguments.pop("subscription") or account_show()["id"],
        resource_group_name=arguments.pop("resource_group_name"),
        workspace_name=arguments.pop("workspace_name"),
    )


def source(file: str | None) -> str | StringIO:
    """What the SDK's loaders read: the file, or an empty one that the flags fill."""
    return file or StringIO("{}")


def overrides(changes: Iterable[str] | None = None, **flags: Any) -> list[dict[str, Any]]:
    """The flags that were given, then `--set a.b=c`, which wins: the form the SDK's loaders take."""
    given = [{name: value} for name, value in flags.items() if value is not None]
    return given + [{name: value} for name, value in map(split_change, changes or [])]


def split_change(change: str) -> tuple[str, str]:
    name, equals, value = change.partition("=")
    if not (name and equals):
        raise ValueError(f"'{change}' is not of the form property=value, which --set takes.")
    return name, value


def set_property(target: Any, path: str, value: Any) -> None:
    """`defaults.deployment_name=blue` on an entity: attributes and dictionaries, a dot a level."""
    name, _, rest = path.partition(".")
    fields = target if isinstance(target, dict) else vars(target)
    if not isinstance(target, dict) and not hasattr(target, name):
        raise ValueError(f"Couldn't find '{name}' in '{path}'. Available: {', '.join(sorted(fields))}")
    if rest:
        below = target.get(name) if isinstance(target, dict) else getattr(target, name)
        value, leaf = below if below is not None else {}, value
        set_property(value, rest, leaf)
    if isinstance(target, dict):
        target[name] = value
    else:
        setattr(target, name, value)


@contextlib.contextmanager
def progress_on_stderr() -> Iterator[None]:
    """The SDK prints a dot per poll to stdout, where only the answer belongs."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def wire_value(value: Any) -> Any:
    """The SDK dumps some enum members by their Python name; the service and the real CLI say `Completed`."""
    if isinstance(value, dict):
        return {str(key): wire_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [wire_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    enum_name, _, member = value.partition(".") if isinstance(value, str) else ("", "", "")
    member_of_enum = getattr(getattr(rest_models, enum_name, None), member, None) if member else None
    return getattr(member_of_enum, "value", value)


def printed(entity: Any) -> Printed:
    """An entity as the real CLI prints it: wire values, a plain id, and the resource group beside it."""
    fields = wire_value(entity._to_dict())
    fields["id"] = str(fields.get("id") or entity.id or "").removeprefix("azureml:") or None
    resource_group = re.search("/resourceGroups/([^/]+)", fields["id"] or "", re.IGNORECASE)
    if resource_group:
        fields["resourceGroup"] = resource_group[1]
    return fields


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
    with progress_on_stderr():
        return printed(client.compute.begin_create_or_update(compute).result())


def compute_show(client: MLClient, name: str) -> Printed:
    """Show a compute cluster."""
    return printed(client.compute.get(name))


def batch_endpoint_create(
    client: MLClient, name: str | None = None, file: str | None = None, changes: list[str] | None = None
) -> Printed:
    """Create a batch endpoint, or replace the one of that name."""
    endpoint = load.load_batch_endpoint(source(file), params_override=overrides(changes, name=name))
    with progress_on_stderr():
        return printed(client.batch_endpoints.begin_create_or_update(endpoint).result())


def batch_endpoint_update(
    client: MLClient, name: str | None = None, file: str | None = None, changes: list[str] | None = None
) -> Printed:
    """Change properties of a batch endpoint, such as its default deployment."""
    if not name:
        name = load.load_batch_endpoint(source(file)).name
    endpoint = client.batch_endpoints.get(name)
    in_file = yaml.safe_load(Path(file).read_text(encoding="utf-8")) if file else {}
    for path, value in [*in_file.items(), *map(split_change, changes or [])]:
        if path not in ("$schema", "name"):
            set_property(endpoint, path, value)
    with progress_on_stderr():
        return printed(client.batch_endpoints.begin_create_or_update(endpoint).result())


def batch_endpoint_show(client: MLClient, name: str) -> Printed:
    """Show a batch endpoint."""
    return printed(client.batch_endpoints.get(name))


def batch_endpoint_list(client: MLClient) -> list[Printed]:
    """List the batch endpoints of the workspace."""
    return [printed(endpoint) for endpoint in client.batch_endpoints.list()]


def batch_endpoint_delete(client: MLClient, name: str) -> None:
    """Delete a batch endpoint and its deployments; its jobs stay."""
    with progress_on_stderr():
        client.batch_endpoints.begin_delete(name).result()


def batch_endpoint_list_jobs(client: MLClient, name: str) -> list[Printed]:
    """List the jobs that a batch endpoint started."""
    return [printed(job) for job in client.batch_endpoints.list_jobs(name)]


def batch_endpoint_invoke(
    client: MLClient,
    name: str,
    input: str | None = None,
    input_type: str | None = None,
    deployment_name: str | None = None,
    mini_batch_size: int | None = None,
    instance_count: int | None = None,
    output_path: str | None = None,
    job_name: str | None = None,
    experiment_name: str | None = None,
    changes: list[str] | None = None,
) -> Printed:
    """Start a scoring job: by the default deployment, or by the one that is named."""
    flags = {EndpointYamlFields.MINI_BATCH_SIZE: mini_batch_size}
    flags[EndpointYamlFields.BATCH_JOB_INSTANCE_COUNT] = instance_count
    job = client.batch_endpoints.invoke(
        endpoint_name=name,
        deployment_name=deployment_name,
        input=invoke_input(input, input_type) if input else None,
        params_override=overrides(changes, **flags, **output_place(output_path)),
        job_name=job_name,
        experiment_name=experiment_name,
    )
    return printed(job)


def invoke_input(path: str, input_type: str | None) -> Input:
    return Input(path=path, type=input_type or ("uri_file" if Path(path).is_file() else "uri_folder"))


def output_place(output_path: str | None) -> dict[str, str]:
    if output_path is None:
        return {}
    place = DATASTORE_PATH.fullmatch(output_path)
    if not place:
        raise ValueError("--output-path takes azureml://datastores/<datastore>/paths/<folder>.")
    return {
        EndpointYamlFields.BATCH_JOB_OUTPUT_DATSTORE: f"azureml:{place['datastore']}",
        EndpointYamlFields.BATCH_JOB_OUTPUT_PATH: place["path"],
    }


def batch_deployment_create(
    client: MLClient,
    file: str,
    name: str | None = None,
    endpoint_name: str | None = None,
    set_default: bool = False,
    skip_script_validation: bool = False,
    changes: list[str] | None = None,
) -> Printed:
    """Create a deployment of a batch endpoint, or replace the one of that name."""
    kind = (yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}).get("type")
    load_deployment = DEPLOYMENT_LOADERS.get(kind, load.load_batch_deployment)
    flags = {"name": name, "endpoint_name": endpoint_name}
    deployment = load_deployment(file, params_override=overrides(changes, **flags))
    with progress_on_stderr():
        created = client.batch_deployments.begin_create_or_update(
            deployment, skip_script_validation=skip_script_validation
        ).result()
    if set_default:
        batch_endpoint_update(
            client, deployment.endpoint_name, changes=[f"defaults.deployment_name={created.name}"]
        )
    return printed(created)


def batch_deployment_show(client: MLClient, name: str, endpoint_name: str) -> Printed:
    """Show a deployment of a batch endpoint."""
    return printed(client.batch_deployments.get(name, endpoint_name))


def batch_deployment_list(client: MLClient, endpoint_name: str) -> list[Printed]:
    """List the deployments of a batch endpoint."""
    return [printed(deployment) for deployment in client.batch_deployments.list(endpoint_name)]


def batch_deployment_delete(client: MLClient, name: str, endpoint_name: str) -> None:
    """Delete a deployment of a batch endpoint."""
    with progress_on_stderr():
        client.batch_deployments.begin_delete(name, endpoint_name).result()


def job_show(client: MLClient, name: str, web: bool = False) -> Printed:
    """Show a job."""
    job = client.jobs.get(name)
    if web:
        open_page(job.services["Studio"].endpoint)
    return printed(job)


def open_page(url: str) -> None:
    """In the browser; where there is no display, the reader gets the address."""
    has_display = sys.platform == "darwin" or {"BROWSER", "DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if not (has_display and webbrowser.open(url)):
        print(f"The job's page: {url}", file=sys.stderr)


def job_list(
    client: MLClient, parent_job_name: str | None = None, max_results: int | None = None
) -> list[Printed]:
    """List the jobs of the workspace, or the children of one job."""
    return [
        printed(job) for job in islice(client.jobs.list(parent_job_name=parent_job_name), max_results) if job
    ]


def job_stream(client: MLClient, name: str) -> None:
    """Follow a job's log until the job ends; a failed job is an error."""
    client.jobs.stream(name)


def job_download(
    client: MLClient,
    name: str,
    download_path: str = ".",
    output_name: str | None = None,
    all: bool = False,
) -> None:
    """Download an output of a finished job; its logs, when no output is named; or everything."""
    with progress_on_stderr():
        client.jobs.download(name, download_path=download_path, output_name=output_name, all=all)


def job_cancel(client: MLClient, name: str) -> None:
    """Cancel a running job."""
    with progress_on_stderr():
        client.jobs.begin_cancel(name).result()
