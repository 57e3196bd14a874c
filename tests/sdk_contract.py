"""Do the answers that were recorded fit the SDK's own models of the REST API? Run by test_local_workspace.py.

Reported are keys that a model does not have, required ones that are missing, and answers for which no model
is named here. RECORD names the file that `serve --record` wrote.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from azure.ai.ml._restclient.arm_ml_service import models as arm
from azure.ai.ml._restclient.dataset_dataplane import models as dataset
from azure.ai.ml._restclient.runhistory import models as history

# Answers that no generated model describes: the SDK reads these dicts itself.
PLAIN = r"/metadata/endpoints|/msi/token|/discovery|.*/mfeOperationsStatus/.*|.*/batchEndpoints/.+/jobs"
W = r"/subscriptions/.+/workspaces/[^/]+"
MODELS: dict[str, Any] = {
    W: arm.Workspace,
    W + "/datastores/[^/]+": arm.Datastore,
    W + "/datastores/[^/]+/listSecrets": arm.DatastoreSecrets,
    W + "/computes/[^/]+": arm.ComputeResource,
    W + "/models/[^/]+": arm.ModelContainer,
    W + "/models/[^/]+/versions/[^/]+": arm.ModelVersion,
    W + "/codes/[^/]+/versions/[^/]+": arm.CodeVersion,
    W + "/codes/[^/]+/versions/[^/]+/startPendingUpload": arm.PendingUploadResponseDto,
    W + "/environments/[^/]+": arm.EnvironmentContainer,
    W + "/environments/[^/]+/versions/[^/]+": arm.EnvironmentVersion,
    W + "/data/[^/]+": arm.DataContainer,
    W + "/data/[^/]+/versions/[^/]+": arm.DataVersionBase,
    W + "/batchEndpoints/[^/]+": arm.BatchEndpoint,
    W + "/batchEndpoints/[^/]+/deployments/[^/]+": arm.BatchDeployment,
    W + "/jobs/[^/]+": arm.JobBase,
    "/history/v1.0" + W + "/runs/[^/]+": history.Run,
    "/history/v1.0" + W + "/runs/[^/]+/details": history.RunDetails,
    "/history/v1.0" + W + "/rundata": history.GetRunDataResult,
    "/data/v1.0" + W + "/dataversion/batchGetResolvedUris": dataset.BatchDataUriResponse,
}
LISTS = {  # the path of a list, by the path of what is in it
    W + "/models/[^/]+/versions": arm.ModelVersion,
    W + "/codes/[^/]+/versions": arm.CodeVersion,
    W + "/datastores": arm.Datastore,
    W + "/computes": arm.ComputeResource,
    W + "/batchEndpoints": arm.BatchEndpoint,
    W + "/batchEndpoints/[^/]+/deployments": arm.BatchDeployment,
    W + "/jobs": arm.JobBase,
    "/history/v1.0" + W + "/runs/[^/]+/children": history.Run,
}
KNOWN = {
    "JobBase: properties is missing",  # of a scoring job: the SDK then asks run history
    "AccountKeyDatastoreCredentials: secrets is missing",  # of a datastore: only listSecrets tells them
}


def deviations(value: Any, sent: Any) -> Iterator[str]:
    """What of `sent` the model `value`, which was read from it, does not have, and the other way round."""
    if isinstance(value, dict) or (isinstance(value, list) and isinstance(sent, list)):
        pairs = ((value[key], sent[key]) for key in value) if isinstance(value, dict) else zip(value, sent)
        for one, other in pairs:
            yield from deviations(one, other)
    if not hasattr(value, "_attr_to_rest_field"):
        return
    name, fields = type(value).__name__, type(value)._attr_to_rest_field
    known = {field._rest_name for field in fields.values()}
    yield from (f"{name}: {key} is not known" for key in sent.keys() - known)
    for attribute, field in fields.items():
        if sent.get(field._rest_name) is None:
            annotation = _annotation(type(value), attribute)
            if "Optional" not in annotation and "None" not in annotation and field._visibility != ["read"]:
                yield f"{name}: {field._rest_name} is missing"
        else:
            yield from deviations(getattr(value, attribute), sent[field._rest_name])


def _annotation(model: type, attribute: str) -> str:
    annotations = (
        base.__annotations__.get(attribute) for base in model.__mro__ if "__annotations__" in vars(base)
    )
    return str(next(one for one in annotations if one is not None))


def check(model: Any, sent: Any) -> set[str]:
    return set(deviations(model._deserialize(sent, []), sent)) - KNOWN


def find(table: dict[str, Any], path: str) -> Any:
    return next(
        (model for pattern, model in table.items() if re.fullmatch(pattern, path, re.IGNORECASE)), None
    )


ANSWERS = [json.loads(line) for line in Path(os.environ["RECORD"]).read_text().splitlines()]


def test_every_answer_fits_its_model() -> None:
    found: dict[str, set[str]] = {}
    for answer in ANSWERS:
        path, body = answer["path"], answer["body"]
        if answer["status"] >= 400:
            problems = check(arm.ErrorResponse, body)
        elif one := find(MODELS, path):
            problems = check(one, body)
        elif many := find(LISTS, path):
            problems = {problem for item in body["value"] for problem in check(many, item)}
        else:
            problems = set() if re.fullmatch(PLAIN, path, re.IGNORECASE) else {f"no model for {path}"}
        found.setdefault(path.rpartition("/workspaces/")[2], set()).update(problems)
    assert {path: problems for path, problems in found.items() if problems} == {}
    assert len(ANSWERS) > 100


def test_a_deviation_is_found() -> None:
    body = {"location": "local", "properties": {"authMode": "AADToken", "scoringURL": "x"}}
    assert check(arm.BatchEndpoint, body) == {"BatchEndpointProperties: scoringURL is not known"}
    assert check(arm.BatchEndpoint, {"location": "x"}) == {"BatchEndpoint: properties is missing"}
