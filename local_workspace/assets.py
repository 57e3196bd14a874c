"""Versioned assets: models, code, environments, data. `kind` is the word in the path.

A version is stored as the client sent it and does not change afterwards. For code the client asks for a place
to upload to, and looks first whether the same files are there.
"""

import re
import uuid

from starlette.responses import JSONResponse, Response

from local_workspace import bodies
from local_workspace.arm import Body, check_name, page, resource, system_data
from local_workspace.errors import ServiceError
from local_workspace.workspace import ACCOUNT, BLOB_HOST, Call, not_found, whole_number

# What may change in a version that exists; everything else makes the answer 409.
MUTABLE = ("description", "tags", "properties", "isArchived", "isAnonymous", "stage")

BODIES = {
    "models": bodies.ModelVersion,
    "codes": bodies.CodeVersion,
    "data": bodies.DataVersion,
    "environments": bodies.EnvironmentVersion,
}

# https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules
ASSET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def _versions(call: Call) -> list[Body]:
    return call.store.resources(call.names["kind"].lower(), call.names["name"] + "/")


def _container(call: Call, kind: str, versions: list[Body]) -> Body:
    name = versions[0]["assetName"]
    numbers = [int(one["assetVersion"]) for one in versions if one["assetVersion"].isdecimal()]
    properties = {
        "latestVersion": versions[-1]["assetVersion"],
        "nextVersion": str(max(numbers, default=0) + 1),
        "isArchived": False,
        "tags": {},
        "properties": {},
    }
    if kind == "data":
        properties["dataType"] = versions[-1]["properties"]["dataType"]
    stored = {"properties": properties, "systemData": versions[0]["systemData"]}
    return resource(call, f"{kind}/{name}", stored)


def _shown(call: Call, stored: Body) -> Body:
    kind = call.names["kind"].lower()
    path = f"{kind}/{stored['assetName']}/versions/{stored['assetVersion']}"
    return resource(call, path, {key: stored[key] for key in ("properties", "systemData")})


def list_assets(call: Call) -> Body:
    by_name: dict[str, list[Body]] = {}
    for version in call.store.resources(call.names["kind"].lower()):
        by_name.setdefault(version["assetName"].lower(), []).append(version)
    return page([_container(call, call.names["kind"].lower(), versions) for versions in by_name.values()])


def get_asset(call: Call) -> Body:
    versions = _versions(call)
    if not versions:
        raise not_found(f"{call.names['kind']} {call.names['name']}")
    return _container(call, call.names["kind"].lower(), versions)


def list_asset_versions(call: Call) -> Body:
    """Latest first. Code is looked for by the hash of its files, under whatever name it was stored."""
    query = call.request.query_params
    versions = list(reversed(_versions(call)))
    if "hash" in query:
        codes = call.store.resources("codes")
        hashes = [(code["properties"].get("properties", {}).get("hash_sha256"), code) for code in codes]
        versions = [code for hash_sha256, code in hashes if hash_sha256 == query["hash"]]
    top = whole_number(query.get("$top", ""), len(versions))
    return page([_shown(call, version) for version in versions[:top]])


def get_asset_version(call: Call) -> Body:
    kind, name, version = (call.names[key] for key in ("kind", "name", "version"))
    stored = call.store.get(kind.lower(), f"{name}/{version}")
    if stored is None:
        raise not_found(f"{kind} {name}:{version}")
    return _shown(call, stored)


def put_asset_version(call: Call) -> Response:
    """Create a version. One that exists keeps its content: only its description and the like may change."""
    kind, name, version = (call.names[key] for key in ("kind", "name", "version"))
    check_name(name, ASSET_NAME, kind)
    check_name(version, ASSET_NAME, "version")
    bodies.check(call.body, BODIES[kind.lower()])
    existing = call.store.get(kind.lower(), f"{name}/{version}")
    properties = _without_nulls(call.body.get("properties") or {}) | (
        {"flavors": {}} if kind == "models" else {}
    )
    if existing is not None and _content(existing["properties"]) != _content(properties):
        message = f"{kind} {name}:{version} exists already with other content, which cannot be changed."
        raise ServiceError(409, "UserError", message + " Use another version.")
    properties = {"tags": {}, "properties": {}, "isArchived": False, "isAnonymous": False} | properties
    system = system_data(existing)
    stored = {"assetName": name, "assetVersion": version, "properties": properties, "systemData": system}
    call.store.put(kind.lower(), f"{name}/{version}", stored)
    return JSONResponse(_shown(call, stored), 200 if existing else 201)


def _content(properties: Body) -> Body:
    return {key: value for key, value in properties.items() if key not in MUTABLE}


def _without_nulls(properties: Body) -> Body:
    return {key: value for key, value in properties.items() if value is not None}


def start_pending_upload(call: Call) -> Body:
    """A fresh container: the client uploads code to the root of what it gets."""
    container = f"code-{uuid.uuid4()}"
    call.store.create_container(container)
    uri = f"https://{BLOB_HOST}/{container}"
    signature = call.workspace.keys.sas("rwlac", container)
    reference = {
        "blobUri": uri,
        "storageAccountArmId": f"{call.scope}/{ACCOUNT}",
        "credential": {"credentialType": "SAS", "sasUri": f"{uri}?{signature}"},
    }
    upload = {"pendingUploadId": container, "pendingUploadType": "TemporaryBlobReference"}
    return upload | {"blobReferenceForConsumption": reference}
