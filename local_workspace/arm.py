"""Azure Resource Manager for one workspace: what all handlers share; cloud, token, datastores, compute.

Bodies go into the store as the client sent them and come back with what the service adds. Shapes are those
of the REST API Microsoft.MachineLearningServices, api-version 2024-01-01-preview and others, as the models
in `azure.ai.ml._restclient` read them. Every subscription, resource group and workspace name is answered.
"""

import re
import uuid
from typing import Any
from urllib.parse import quote

from starlette.responses import JSONResponse, Response

from local_workspace import bodies, tokens
from local_workspace.errors import ServiceError
from local_workspace.jobs import now
from local_workspace.workspace import (
    ACCOUNT,
    API_HOST,
    CLOUD,
    DATASTORES,
    DOMAIN,
    LOCATION,
    MANAGEMENT_HOST,
    RETRY_AFTER,
    RETRY_SOON,
    Call,
    bad_request,
    last_name,
    not_found,
)

Body = dict[str, Any]

# https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
COMPUTE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,22}[A-Za-z0-9]")
ENDPOINT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{1,30}[A-Za-z0-9]")


def check_name(name: str, rule: re.Pattern[str], what: str) -> None:
    if not rule.fullmatch(name):
        raise bad_request(f"The {what} name {name!r} is not valid: it has to match {rule.pattern}.")


def resource(call: Call, path: str, stored: Body) -> Body:
    """A resource as ARM shows it: id, name, type around what is stored."""
    kinds = path.split("/")[::2]
    return {
        "id": f"{call.scope}/{path}",
        "name": last_name(path),
        "type": "/".join(["Microsoft.MachineLearningServices/workspaces", *kinds]),
        **stored,
    }


def system_data(existing: Body | None) -> Body:
    """Who and when: the first writer stays, the time of the last change moves."""
    person = {"createdBy": "local workspace", "createdByType": "User", "createdAt": now()}
    created = existing["systemData"] if existing else person
    changed = {"lastModifiedBy": "local workspace", "lastModifiedByType": "User", "lastModifiedAt": now()}
    return {**created, **changed}


def page(values: list[Body]) -> Body:
    return {"value": values}


# Long-running operations: 201 or 202, then the operation is asked until it has ended.


def begin(call: Call, status: int, body: Body | None = None) -> Response:
    """The first answer. The operation is in progress for one poll, so that polling is exercised."""
    operation = uuid.uuid4().hex
    call.workspace.operations[operation] = 1
    subscription = call.scope.split("/providers/")[0].split("/resourceGroups/")[0]
    where = f"{subscription}/providers/Microsoft.MachineLearningServices/locations/{LOCATION}"
    base = f"https://{MANAGEMENT_HOST}{quote(where)}"
    headers = {
        "Azure-AsyncOperation": f"{base}/mfeOperationsStatus/{operation}",
        "Location": f"{base}/mfeOperationResults/{operation}",
        **RETRY_AFTER,
    }
    return (
        Response(status_code=status, headers=headers) if body is None else JSONResponse(body, status, headers)
    )


def _poll(call: Call) -> bool:
    """True when the operation has ended."""
    left = call.workspace.operations.get(call.names["operation"])
    if left is None:
        raise not_found(f"Operation {call.names['operation']}")
    call.workspace.operations[call.names["operation"]] = max(left - 1, 0)
    return left == 0


def get_operation_status(call: Call) -> Response:
    status = "Succeeded" if _poll(call) else "InProgress"
    return JSONResponse({"status": status}, headers=RETRY_SOON)


def get_operation_result(call: Call) -> Response:
    if _poll(call):
        return Response(status_code=200)
    path = call.request.scope["path"]
    return Response(
        status_code=202, headers={"Location": f"https://{MANAGEMENT_HOST}{quote(path)}"} | RETRY_SOON
    )


# Cloud metadata, token, discovery


def get_metadata(call: Call) -> list[Body]:
    """Which clouds there are: ARM's /metadata/endpoints, api-version 2019-05-01."""
    return [
        {
            "name": CLOUD,
            "portal": f"https://portal.{DOMAIN}",
            "resourceManager": f"https://{MANAGEMENT_HOST}",
            "authentication": {
                "loginEndpoint": f"https://login.{DOMAIN}/",
                "audiences": [f"https://{MANAGEMENT_HOST}"],
                "tenant": tokens.TENANT_ID,
            },
            "suffixes": {"storage": DOMAIN},
        }
    ]


def get_token(call: Call) -> Body:
    """A managed identity's token endpoint: https://learn.microsoft.com/azure/app-service/overview-managed-identity"""
    keys = call.workspace.keys
    if call.request.headers.get("x-identity-header") != keys.identity_header:
        raise ServiceError(401, "unauthorized_client", "The header X-IDENTITY-HEADER is missing or wrong.")
    return keys.access_token(call.request.query_params.get("resource", ""))


def get_discovery(call: Call) -> Body:
    services = ("api", "history", "experimentation", "modelmanagement", "executioncontext")
    return dict.fromkeys(services, f"https://{API_HOST}") | {"studio": call.workspace.page_url}


def get_workspace(call: Call) -> Body:
    name = last_name(call.scope)
    properties = {
        "workspaceId": str(uuid.uuid5(uuid.NAMESPACE_URL, call.scope.lower())),
        "discoveryUrl": f"https://{API_HOST}/discovery",
        "mlFlowTrackingUri": f"azureml://{API_HOST}/mlflow/v1.0{call.scope}",
        "friendlyName": name,
        "provisioningState": "Succeeded",
    }
    kind = "Microsoft.MachineLearningServices/workspaces"
    head = {"id": call.scope, "name": name, "type": kind, "location": LOCATION}
    return head | {"tags": {}, "properties": properties}


# Datastores


def _datastore(call: Call, name: str) -> Body:
    properties = {
        "datastoreType": "AzureBlob",
        "accountName": ACCOUNT,
        "containerName": DATASTORES[name],
        "endpoint": DOMAIN,
        "protocol": "https",
        "isDefault": name == "workspaceblobstore",
        "credentials": {"credentialsType": "AccountKey"},
        "tags": {},
        "properties": {},
    }
    return resource(call, f"datastores/{name}", {"properties": properties})


def list_datastores(call: Call) -> Body:
    only_default = call.request.query_params.get("isDefault", "").lower() == "true"
    datastores = [_datastore(call, name) for name in DATASTORES]
    return page([one for one in datastores if one["properties"]["isDefault"] or not only_default])


def get_datastore(call: Call) -> Body:
    if call.names["name"] not in DATASTORES:
        raise not_found(f"Datastore {call.names['name']}")
    return _datastore(call, call.names["name"])


def list_datastore_secrets(call: Call) -> Body:
    get_datastore(call)
    return {"secretsType": "Sas", "sasToken": call.workspace.keys.sas("rwdlac")}


# Compute clusters


def _compute(call: Call, stored: Body) -> Body:
    return resource(
        call, f"computes/{stored['computeName']}", {k: stored[k] for k in stored if k != "computeName"}
    )


def put_compute(call: Call) -> Response:
    name = call.names["name"]
    check_name(name, COMPUTE_NAME, "compute")
    bodies.check(call.body, bodies.Compute)
    properties = call.body["properties"]
    if properties["computeType"] != "AmlCompute":
        raise bad_request(f"computeType {properties['computeType']!r}: only AmlCompute, a cluster, is here.")
    existing = call.store.get("computes", name)
    stored = {
        "computeName": name,
        "location": call.body.get("location") or LOCATION,
        "tags": call.body.get("tags") or {},
        "properties": properties | {"provisioningState": "Succeeded", "isAttachedCompute": False},
        "systemData": system_data(existing),
    }
    call.store.put("computes", name, stored)
    return begin(call, 200 if existing else 201, _compute(call, stored))


def get_compute(call: Call) -> Body:
    stored = call.store.get("computes", call.names["name"])
    if stored is None:
        raise not_found(f"Compute {call.names['name']}")
    return _compute(call, stored)


def list_computes(call: Call) -> Body:
    return page([_compute(call, stored) for stored in call.store.resources("computes")])


def delete_compute(call: Call) -> Response:
    if not call.store.delete("computes", call.names["name"]):
        return Response(status_code=204)
    return begin(call, 202)
