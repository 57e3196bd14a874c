"""Run history and the data plane: for `jobs.stream`, `jobs.list(parent_job_name=...)` and `jobs.download`.

Shapes are those of `azure.ai.ml._restclient.runhistory` and `dataset_dataplane` in azure-ai-ml 1.35.2.
"""

from typing import Any
from urllib.parse import quote

from local_workspace import bodies
from local_workspace.arm import Body
from local_workspace.invoke import job_tags, studio_url
from local_workspace.jobs import LOG_CONTAINER, TERMINAL, Job
from local_workspace.workspace import BLOB_HOST, DATASTORES, Call, not_found


def _find(call: Call, run: str) -> Job:
    job = call.workspace.jobs.get(run) or call.workspace.jobs.find_child(run)
    if job is None:
        raise not_found(f"Run {run}")
    return job


def _run(call: Call, job: Job, run: str) -> Body:
    """A run: the parent job, or the scoring job that it contains. Both have the output."""
    is_child = run != job["name"]
    shown: dict[str, Any] = {
        "runId": run,
        "rootRunId": job["name"],
        "runUuid": job["child"],
        "runType": "azureml.StepRun" if is_child else "azureml.PipelineRun",
        "displayName": "batchscoring" if is_child else job["name"],
        "status": job["status"],
        "createdUtc": (is_child and job["started"]) or job["created"],
        "lastModifiedUtc": job["ended"] or job["started"] or job["created"],
        "startTimeUtc": job["started"],
        "endTimeUtc": job["ended"],
        "experimentId": job["experiment"],
        "tags": {} if is_child else job_tags(job),
        "properties": {},
        "services": {"Studio": {"type": "Studio", "endpoint": studio_url(call, run)}},
        "target": job["compute"],
        "inputs": {},
        "outputs": {},
    }
    if is_child:
        shown["parentRunId"] = job["name"]
        shown["compute"] = {"target": job["compute"], "targetType": "amlcompute"}
    if job["status"] == "Completed":
        shown["outputs"] = {"score": {"assetId": _output_id(job), "type": "uri_folder"}}
    return shown | _error(job)


def _error(job: Job) -> Body:
    error = job["error"]
    if error is None:
        return {}
    return {"error": {"error": {"code": error["code"], "message": error["message"]}}}


def _output_id(job: Job) -> str:
    return f"azureml://locations/local/workspaces/local/data/azureml_{job['child']}_output_score/versions/1"


def get_run(call: Call) -> Body:
    return _run(call, _find(call, call.names["run"]), call.names["run"])


def get_run_children(call: Call) -> Body:
    job = _find(call, call.names["run"])
    has_children = job["name"] == call.names["run"] and job["started"] is not None
    return {"value": [_run(call, job, job["child"])] if has_children else []}


def get_run_details(call: Call) -> Body:
    """Status, error and the logs so far, each with an address that can be read without a token."""
    run = call.names["run"]
    job = _find(call, run)  # the status before the logs: what is Completed has its whole log
    signature = call.workspace.keys.sas("r", LOG_CONTAINER)
    files = call.workspace.jobs.log_files(job, run)
    urls = {
        name: f"https://{BLOB_HOST}/{LOG_CONTAINER}/{quote(blob)}?{signature}" for name, blob in files.items()
    }
    shown = _run(call, job, run)
    wanted = ("runId", "parentRunId", "status", "startTimeUtc", "endTimeUtc", "target", "tags", "properties")
    wanted += ("error", "inputs", "outputs")
    return {key: shown[key] for key in wanted if key in shown} | {"logFiles": urls, "services": {}}


def get_run_data(call: Call) -> Body:
    bodies.check(call.body, bodies.RunQuery)
    run = call.body["runId"]
    return {"runMetadata": _run(call, _find(call, run), run)}


def resolve_data_uris(call: Call) -> Body:
    """From the id of an output to the place in the datastore where it lies."""
    bodies.check(call.body, bodies.AssetIds)
    by_id = {_output_id(job): job for job in call.workspace.jobs.all() if job["status"] in TERMINAL}
    wanted = [asset_id for asset_id in call.body.get("values") or [] if asset_id in by_id]
    return {"values": {one: {"uri": _uri(call, by_id[one]), "type": "uri_folder"} for one in wanted}}


def _uri(call: Call, job: Job) -> str:
    place = job["places"]["output"]
    datastore = next(name for name, container in DATASTORES.items() if container == place["container"])
    scope = call.scope.replace("providers/Microsoft.MachineLearningServices/", "").lstrip("/")
    return f"azureml://{scope}/datastores/{datastore}/paths/{place['path']}/"
