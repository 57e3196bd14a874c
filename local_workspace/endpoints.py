"""Batch endpoints and their deployments."""

import re

from starlette.responses import Response

from local_workspace import bodies
from local_workspace.arm import ENDPOINT_NAME, Body, begin, check_name, page, resource, system_data
from local_workspace.errors import ServiceError
from local_workspace.workspace import API_HOST, LOCATION, Call, last_name, not_found

# https://learn.microsoft.com/azure/machine-learning/reference-yaml-deployment-batch
DEFAULTS: Body = {
    "miniBatchSize": 10,
    "maxConcurrencyPerInstance": 1,
    "outputAction": "AppendRow",
    "outputFileName": "predictions.csv",
    "errorThreshold": -1,
    "loggingLevel": "Info",
    "retrySettings": {"maxRetries": 3, "timeout": "PT30S"},
    "resources": {"instanceCount": 1},
}


def user_error(status: int, message: str) -> ServiceError:
    return ServiceError(status, "UserError", message)


# Endpoints


def _endpoint(call: Call, stored: Body) -> Body:
    name = stored["endpointName"]
    return resource(call, f"batchEndpoints/{name}", {k: stored[k] for k in stored if k != "endpointName"})


def stored_endpoint(call: Call) -> Body:
    stored = call.store.get("batchEndpoints", call.names["endpoint"])
    if stored is None:
        raise not_found(f"Batch endpoint {call.names['endpoint']}")
    return stored


def get_endpoint(call: Call) -> Body:
    return _endpoint(call, stored_endpoint(call))


def list_endpoints(call: Call) -> Body:
    return page([_endpoint(call, stored) for stored in call.store.resources("batchEndpoints")])


def put_endpoint(call: Call) -> Response:
    name = call.names["endpoint"]
    check_name(name, ENDPOINT_NAME, "endpoint")
    bodies.check(call.body, bodies.Endpoint)
    sent = call.body.get("properties") or {}
    default = (sent.get("defaults") or {}).get("deploymentName")
    if default and call.store.get("deployments", f"{name}/{default}") is None:
        raise user_error(400, f"The default deployment {default!r} does not exist under endpoint {name!r}.")
    existing = call.store.get("batchEndpoints", name)
    properties = {
        "authMode": sent.get("authMode") or "AADToken",
        "description": sent.get("description") or "",
        "properties": sent.get("properties") or {},
        "defaults": {"deploymentName": default} if default else {},
        "scoringUri": f"https://{API_HOST}{call.scope}/batchEndpoints/{name}/jobs",
        "provisioningState": "Succeeded",
    }
    stored = {
        "endpointName": name,
        "location": call.body.get("location") or LOCATION,
        "tags": call.body.get("tags") or {},
        "properties": properties,
        "systemData": system_data(existing),
    }
    call.store.put("batchEndpoints", name, stored)
    return _begin_put(call, existing, _endpoint(call, stored))


def _begin_put(call: Call, existing: Body | None, shown: Body) -> Response:
    state = "Updating" if existing else "Creating"
    return begin(call, 201, shown | {"properties": shown["properties"] | {"provisioningState": state}})


def delete_endpoint(call: Call) -> Response:
    """Its deployments go with it; its jobs stay."""
    name = call.names["endpoint"]
    for deployment in call.store.resources("deployments", f"{name}/"):
        call.store.delete("deployments", f"{name}/{deployment['deploymentName']}")
    if not call.store.delete("batchEndpoints", name):
        return Response(status_code=204)
    return begin(call, 202)


# Deployments


def _deployment(call: Call, stored: Body) -> Body:
    path = f"batchEndpoints/{stored['endpointName']}/deployments/{stored['deploymentName']}"
    hidden = ("endpointName", "deploymentName")
    return resource(call, path, {key: stored[key] for key in stored if key not in hidden})


def get_deployment(call: Call) -> Body:
    stored_endpoint(call)
    stored = call.store.get("deployments", f"{call.names['endpoint']}/{call.names['deployment']}")
    if stored is None:
        raise not_found(f"Deployment {call.names['deployment']} of endpoint {call.names['endpoint']}")
    return _deployment(call, stored)


def list_deployments(call: Call) -> Body:
    stored_endpoint(call)
    stored = call.store.resources("deployments", f"{call.names['endpoint']}/")
    return page([_deployment(call, one) for one in stored])


def put_deployment(call: Call) -> Response:
    endpoint, name = stored_endpoint(call)["endpointName"], call.names["deployment"]
    check_name(name, ENDPOINT_NAME, "deployment")
    bodies.check(call.body, bodies.Deployment)
    sent = without_nulls(call.body.get("properties") or {})
    properties = DEFAULTS | {"description": "", "properties": {}, "environmentVariables": {}} | sent
    properties["retrySettings"] = DEFAULTS["retrySettings"] | without_nulls(properties["retrySettings"])
    _check_deployment(call, properties)
    existing = call.store.get("deployments", f"{endpoint}/{name}")
    stored = {
        "endpointName": endpoint,
        "deploymentName": name,
        "location": call.body.get("location") or LOCATION,
        "tags": call.body.get("tags") or {},
        "properties": properties | {"provisioningState": "Succeeded"},
        "systemData": system_data(existing),
    }
    call.store.put("deployments", f"{endpoint}/{name}", stored)
    return _begin_put(call, existing, _deployment(call, stored))


def without_nulls(values: Body) -> Body:
    """`null` is as good as a field that is not there."""
    return {key: value for key, value in values.items() if value is not None}


def _check_deployment(call: Call, properties: Body) -> None:
    """Everything that the deployment names has to be there."""
    model = (properties.get("model") or {}).get("assetId") or ""
    stored_model = stored_asset(call, model)
    if stored_model is None:
        raise user_error(400, f"The deployment names a model that does not exist: {model or '(none)'}")
    code = properties.get("codeConfiguration") or {}
    is_mlflow = str(stored_model["properties"].get("modelType", "")).lower() == "mlflow_model"
    if not is_mlflow or code:
        _check_asset(call, "code", code.get("codeId") or "")
    if not is_mlflow or properties.get("environmentId"):
        _check_asset(call, "environment", properties.get("environmentId", ""))
    compute = properties.get("compute", "")
    if not compute or call.store.get("computes", last_name(compute)) is None:
        raise user_error(400, f"The deployment names a compute that does not exist: {compute or '(none)'}")


def _check_asset(call: Call, what: str, asset_id: str) -> None:
    if stored_asset(call, asset_id) is None:
        raise user_error(400, f"The deployment names a {what} that does not exist: {asset_id or '(none)'}")


def stored_asset(call: Call, asset_id: str) -> Body | None:
    """The stored version that an ARM id, `.../models/NAME/versions/VERSION`, names."""
    match = re.search(r"/(models|codes|environments|data)/([^/]+)/versions/([^/]+)$", asset_id, re.IGNORECASE)
    return call.store.get(match[1].lower(), f"{match[2]}/{match[3]}") if match else None


def delete_deployment(call: Call) -> Response:
    if not call.store.delete("deployments", f"{call.names['endpoint']}/{call.names['deployment']}"):
        return Response(status_code=204)
    return begin(call, 202)
