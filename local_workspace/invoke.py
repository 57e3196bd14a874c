"""Invoke a batch endpoint: from the request and its deployment to a job; and the jobs as ARM shows them."""

import re
import uuid
from typing import Any
from urllib.parse import unquote, urlencode

from starlette.responses import JSONResponse, Response

from local_workspace import bodies
from local_workspace.arm import Body, begin, check_name, page, resource
from local_workspace.deployment import shown
from local_workspace.endpoints import stored_asset, stored_endpoint, user_error, without_nulls
from local_workspace.job_files import Location
from local_workspace.jobs import Job, new_job
from local_workspace.store import name_problem
from local_workspace.workspace import BLOB_HOST, DATASTORES, Call, last_name, not_found

JOB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}")
DATASTORE_URI = re.compile(r"azureml:/+(?:.*/)?datastores/([^/]+)/paths/(.*)")
BLOB_URI = re.compile(rf"https://{re.escape(BLOB_HOST)}/([^/?#]+)(?:/([^?#]*))?(?:[?#].*)?", re.IGNORECASE)
OVERRIDES = ("miniBatchSize", "errorThreshold", "outputFileName", "retrySettings")


def invoke(call: Call) -> Response:
    """POST to the scoring URI. Without the header the endpoint's default deployment is used."""
    bodies.check(call.body, bodies.Invocation)
    endpoint = stored_endpoint(call)
    deployment = _route(call, endpoint)
    sent = call.body.get("properties") or {}
    name = sent.get("name") or f"batchjob-{uuid.uuid4()}"
    check_name(name, JOB_NAME, "job")
    if call.workspace.jobs.get(name) is not None:
        raise user_error(409, f"A job with the name {name!r} exists already.")
    job = _job(call, name, endpoint, deployment, sent)
    call.workspace.jobs.start(job)
    return JSONResponse(_batch_job(call, job), 201)


def _route(call: Call, endpoint: Body) -> Body:
    """The deployment that the header names, or the endpoint's default one."""
    name = call.request.headers.get("azureml-model-deployment")
    default = endpoint["properties"]["defaults"].get("deploymentName")
    stored = call.store.get("deployments", f"{endpoint['endpointName']}/{name or default}")
    if name and stored is None:
        raise user_error(
            404, f"Deployment {name!r} does not exist under endpoint {endpoint['endpointName']!r}."
        )
    if stored is None:
        message = (
            f"No valid deployments to route to: endpoint {endpoint['endpointName']!r} has no default one."
        )
        raise user_error(400, message + " Set defaults.deployment_name or name a deployment.")
    return stored


def _job(call: Call, name: str, endpoint: Body, deployment: Body, sent: Body) -> Job:
    properties = deployment["properties"] | {key: sent[key] for key in OVERRIDES if sent.get(key) is not None}
    retry = deployment["properties"]["retrySettings"] | without_nulls(properties["retrySettings"])
    properties["retrySettings"] = retry
    if count := (sent.get("compute") or {}).get("instanceCount"):
        properties["resources"] = {"instanceCount": count}
    input_data = _only_input(sent)
    places = {
        "model": _asset_place(call, properties["model"]["assetId"]),
        "data": _data_place(call, input_data),
    }
    if code := properties.get("codeConfiguration"):
        places["code"] = _asset_place(call, code["codeId"])
    job = new_job(
        name,
        deployment=deployment_yaml(deployment, properties),
        places=places,
        scope=call.scope,
        endpoint=endpoint["endpointName"],
        input=input_data,
        model=properties["model"]["assetId"],
        environment=properties.get("environmentId"),
        compute=last_name(properties["compute"]),
        experiment=(sent.get("properties") or {}).get("experimentName") or endpoint["endpointName"],
    )
    default = {"container": "workspaceblobstore", "path": f"azureml/{job['child']}/score"}
    places["output"] = _output_place(sent, job["deployment"]["settings"]) or default
    return job


def deployment_yaml(deployment: Body, properties: Body) -> dict[str, Any]:
    """The deployment as its YAML schema has it, which is what the batch executor reads."""
    retry = properties["retrySettings"]
    settings = {
        "mini_batch_size": properties["miniBatchSize"],
        "max_concurrency_per_instance": properties["maxConcurrencyPerInstance"],
        "output_action": bodies.output_action(properties["outputAction"]),
        "output_file_name": properties["outputFileName"],
        "retry_settings": {"max_retries": retry["maxRetries"], "timeout": bodies.seconds(retry["timeout"])},
        "error_threshold": properties["errorThreshold"],
        "logging_level": properties["loggingLevel"].lower(),
        "environment_variables": properties["environmentVariables"],
    }
    content = {
        "name": deployment["deploymentName"],
        "endpoint_name": deployment["endpointName"],
        "type": "model",
        "resources": {"instance_count": properties["resources"].get("instanceCount") or 1},
        "settings": settings,
    }
    code = properties.get("codeConfiguration")
    if code:
        content["code_configuration"] = {"code": "code", "scoring_script": code["scoringScript"]}
    return content


# Where things lie


def _only_input(sent: Body) -> dict[str, str]:
    inputs = list((sent.get("inputData") or {}).values())
    if len(inputs) != 1:
        raise user_error(400, f"A model deployment takes one data input; the request has {len(inputs)}.")
    kind, uri = inputs[0].get("jobInputType") or "", inputs[0].get("uri") or ""
    if kind.lower().replace("_", "") not in ("urifolder", "urifile"):
        raise user_error(400, f"Input type {kind!r}: a model deployment takes uri_folder or uri_file.")
    return {"type": kind, "uri": uri}


def _data_place(call: Call, input_data: dict[str, str]) -> Location:
    asset = stored_asset(call, input_data["uri"])
    if asset is None:
        return place_of(input_data["uri"])
    if asset["properties"]["dataType"].lower() not in ("uri_folder", "uri_file"):
        raise user_error(400, f"Data type {asset['properties']['dataType']!r}: only uri_folder and uri_file.")
    return place_of(asset["properties"]["dataUri"])


def _asset_place(call: Call, asset_id: str) -> Location:
    asset = stored_asset(call, asset_id)
    if asset is None:
        raise user_error(404, f"The deployment names an asset that does not exist: {asset_id}")
    return place_of(asset["properties"].get("modelUri") or asset["properties"]["codeUri"])


def place_of(uri: str) -> Location:
    """Container and path of a datastore URI (short or long form) or of a blob of this workspace."""
    if match := DATASTORE_URI.fullmatch(uri):
        if match[1] not in DATASTORES:
            raise user_error(400, f"The datastore {match[1]!r} does not exist.")
        return _place(DATASTORES[match[1]], match[2])
    if match := BLOB_URI.fullmatch(uri):
        container, path = (unquote(part or "", errors="surrogateescape") for part in match.groups())
        return _place(container, path)
    raise user_error(
        400, f"{uri or 'an empty URI'} is not in this workspace: only its data assets and datastores."
    )


def _place(container: str, path: str) -> Location:
    if problem := name_problem(path):
        raise user_error(400, f"The path {shown(path)} names no blob: {problem}.")
    return {"container": container, "path": path.strip("/")}


def _output_place(sent: Body, settings: Body) -> Location | None:
    """Where the caller wants the predictions. A `uri_file` names the file itself."""
    output = next(iter((sent.get("outputData") or {}).values()), None)
    if output is None or not output.get("uri"):
        return None
    place = place_of(output["uri"])
    if place["container"] not in DATASTORES.values():
        raise user_error(400, f"The output {output['uri']!r} is not in a datastore of this workspace.")
    if "file" in (output.get("jobOutputType") or "").lower():
        folder, _, name = place["path"].rpartition("/")
        if not bodies.is_file_name(name):
            raise user_error(400, f"outputData.uri is {shown(output['uri'])}, expected: the place of a file.")
        settings["output_file_name"] = name
        return place | {"path": folder}
    return place


# Jobs as ARM shows them


def _batch_job(call: Call, job: Job) -> Body:
    """A job as invoke and an endpoint's list of jobs show it (api-version 2020-09-01-dataplanepreview)."""
    properties = {"status": job["status"], "tags": job_tags(job), "name": job["name"]}
    return resource(call, f"jobs/{job['name']}", {"properties": properties})


def list_endpoint_jobs(call: Call) -> Body:
    endpoint, deployment = stored_endpoint(call)["endpointName"], call.names.get("deployment")
    jobs = [job for job in call.workspace.jobs.all() if job["endpoint"].lower() == endpoint.lower()]
    if deployment is not None:
        jobs = [job for job in jobs if job["deployment"]["name"].lower() == deployment.lower()]
    return page([_batch_job(call, job) for job in reversed(jobs)])


def job_tags(job: Job) -> dict[str, str]:
    """Without the tag `azureml.batchrun`, which would make the SDK put predictions.csv straight into the
    download path: Microsoft's articles read named-outputs/score/predictions.csv."""
    return {"azureml.deploymentname": job["deployment"]["name"]}


def studio_url(call: Call, name: str) -> str:
    """What the SDK and `az` print, with `&tid=...` behind it: no secret of the run."""
    query = urlencode({"ticket": call.workspace.keys.ticket()})
    return f"{call.workspace.page_url}/jobs/{name}?{query}&wsid={call.scope}"


def _arm_job(call: Call, job: Job) -> Body:
    properties = {
        "jobType": "Pipeline",
        "displayName": job["name"],
        "experimentName": job["experiment"],
        "status": job["status"],
        "services": {"Studio": {"jobServiceType": "Studio", "endpoint": studio_url(call, job["name"])}},
        "tags": job_tags(job),
        "properties": {},
        "isArchived": False,
        "inputs": {},
        "outputs": {},
        "jobs": {},
        "settings": {},
    }
    person = {"createdBy": "local workspace", "createdByType": "User", "createdAt": job["created"]}
    return resource(call, f"jobs/{job['name']}", {"properties": properties, "systemData": person})


def list_jobs(call: Call) -> Body:
    return page([_arm_job(call, job) for job in reversed(call.workspace.jobs.all())])


def get_job(call: Call) -> Body:
    """A scoring job has no properties here: the SDK then goes to run history for it, as with Azure."""
    name = call.names["job"]
    job = call.workspace.jobs.get(name)
    if job is not None:
        return _arm_job(call, job)
    if call.workspace.jobs.find_child(name) is not None:
        return resource(call, f"jobs/{name}", {"properties": None})
    raise not_found(f"Job {name}")


def cancel_job(call: Call) -> Response:
    name = call.names["job"]
    job = call.workspace.jobs.get(name) or call.workspace.jobs.find_child(name)
    if job is None:
        raise not_found(f"Job {name}")
    call.workspace.jobs.cancel(job["name"])
    return begin(call, 202)
