"""`az ml batch-endpoint` and `az ml batch-deployment` as calls of azure.ai.ml.

One function a command, which returns what is printed; az.py reads the flags from the
signatures and the help from the docstrings. With other variables in the environment they call Azure.
"""

import re
from pathlib import Path

import yaml
from azure.ai.ml import Input, MLClient
from azure.ai.ml.constants._endpoint import EndpointYamlFields
from azure.ai.ml.entities import _load_functions as load

from local_workspace.az_ml import (
    Printed,
    overrides,
    printed,
    set_property,
    source,
    split_change,
    without_progress,
)

# `type:` of a deployment file -> its loader; load_batch_deployment refuses the `settings` of `type: model`
DEPLOYMENT_LOADERS = {
    "model": load.load_model_batch_deployment,
    "pipeline": load.load_pipeline_component_batch_deployment,
}
DATASTORE_PATH = re.compile(r"azureml://datastores/(?P<datastore>[^/]+)/paths/(?P<path>.+)")


def batch_endpoint_create(
    client: MLClient, name: str | None = None, file: str | None = None, changes: list[str] | None = None
) -> Printed:
    """Create a batch endpoint, or replace the one of that name."""
    endpoint = load.load_batch_endpoint(source(file), params_override=overrides(changes, name=name))
    with without_progress():
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
    with without_progress():
        return printed(client.batch_endpoints.begin_create_or_update(endpoint).result())


def batch_endpoint_show(client: MLClient, name: str) -> Printed:
    """Show a batch endpoint."""
    return printed(client.batch_endpoints.get(name))


def batch_endpoint_list(client: MLClient) -> list[Printed]:
    """List the batch endpoints of the workspace."""
    return [printed(endpoint) for endpoint in client.batch_endpoints.list()]


def batch_endpoint_delete(client: MLClient, name: str) -> None:
    """Delete a batch endpoint and its deployments; its jobs stay."""
    with without_progress():
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
    with without_progress():
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
    with without_progress():
        client.batch_deployments.begin_delete(name, endpoint_name).result()
