"""What all operations of storage share, on the host `<account>.blob.azureml.test`.

As https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api has them; every call needs a
shared access signature. Containers are in containers.py, blobs in blobs.py.
"""

import hashlib
import json
import os
import re
from email.utils import formatdate

from starlette.responses import Response

from local_workspace.errors import ServiceError
from local_workspace.store import Blob
from local_workspace.workspace import Call

API_VERSION = "2025-01-05"
CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # what no header should hold, and XML cannot


def allow(call: Call, permission: str) -> None:
    """Refuse a call whose signature does not cover this container and this kind of work."""
    query, container = call.request.query_params, call.names["container"]
    if "sig" not in query:
        raise ServiceError(401, "NoAuthenticationInformation", "The request has no shared access signature.")
    if not any(call.workspace.keys.accepts_sas(query, container, one) for one in permission):
        message = "The shared access signature is wrong, has expired or does not allow this."
        raise ServiceError(403, "AuthenticationFailed", message)


def answer(status: int, **headers: str) -> Response:
    """An answer without a body; header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status_code=status, headers={"x-ms-version": API_VERSION, **named})


def etag(blob: Blob, state: os.stat_result) -> str:
    """Another one for each content and each change of the properties, also of one size in one moment."""
    properties = json.dumps(blob.properties, sort_keys=True)
    version = f"{blob.path.name} {state.st_ino} {state.st_mtime_ns} {state.st_size} {properties}"
    return f'"0x{hashlib.sha256(version.encode()).hexdigest()[:15].upper()}"'


def date(state: os.stat_result) -> str:
    return formatdate(int(state.st_mtime), usegmt=True)


def header(call: Call, name: str, default: str = "") -> str:
    """A header that is kept and told again: in a listing, for example, which is XML."""
    value = call.request.headers.get(name, default)
    if CONTROL.search(value):
        message = f"The value for one of the HTTP headers is not in the correct format: {name}."
        raise ServiceError(400, "InvalidHeaderValue", message)
    return value


def check_container(call: Call) -> None:
    if not call.store.has_container(call.names["container"]):
        raise ServiceError(404, "ContainerNotFound", "The specified container does not exist.")
