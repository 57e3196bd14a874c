"""The operations that this workspace answers, one line each: method, host, path, handler.

A path may demand query parameters. The host decides who may call (`server.authorise`) and how errors look.
Paths are matched without regard to case, as ARM's are. What is not here is answered 501.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from local_workspace import (
    arm,
    assets,
    blobs,
    containers,
    downloads,
    endpoints,
    invoke,
    page,
    run_history,
)
from local_workspace.workspace import API_HOST, BLOB_HOST, MANAGEMENT_HOST, SAMPLES_HOST, Call

Handler = Callable[[Call], Any]  # gives a Response, or what becomes JSON; may be `async`

LOOPBACK = "localhost"
PAGE = "page"  # plain http on loopback, for a browser
PUBLIC = (arm.get_metadata, arm.get_discovery, page.get_icon)  # read before there is a token, or a key

SUBSCRIPTION = "/subscriptions/{subscription}"
AT = SUBSCRIPTION + "/providers/Microsoft.MachineLearningServices/locations/{location}"
W = (
    SUBSCRIPTION
    + "/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/{workspace}"
)
ENDPOINT = W + "/batchEndpoints/{endpoint}"
DEPLOYMENT = ENDPOINT + "/deployments/{deployment}"
RUN = "/history/v1.0" + W + "/runs/{run}"
JOBS_OF = "/mferp/managementfrontend" + ENDPOINT
ARM, API, BLOB, SAMPLES = MANAGEMENT_HOST, API_HOST, BLOB_HOST, SAMPLES_HOST

TABLE: list[tuple[str, str, str, Handler]] = [
    ("GET", LOOPBACK, "/msi/token", arm.get_token),
    ("GET", ARM, "/metadata/endpoints", arm.get_metadata),
    ("GET", API, "/discovery", arm.get_discovery),
    ("GET", ARM, AT + "/mfeOperationsStatus/{operation}", arm.get_operation_status),
    ("GET", ARM, AT + "/mfeOperationResults/{operation}", arm.get_operation_result),
    ("GET", ARM, W, arm.get_workspace),
    ("GET", ARM, W + "/datastores", arm.list_datastores),
    ("GET", ARM, W + "/datastores/{name}", arm.get_datastore),
    ("POST", ARM, W + "/datastores/{name}/listSecrets", arm.list_datastore_secrets),
    ("GET", ARM, W + "/computes", arm.list_computes),
    ("GET", ARM, W + "/computes/{name}", arm.get_compute),
    ("PUT", ARM, W + "/computes/{name}", arm.put_compute),
    ("DELETE", ARM, W + "/computes/{name}", arm.delete_compute),
    ("GET", ARM, W + "/jobs", invoke.list_jobs),
    ("GET", ARM, W + "/jobs/{job}", invoke.get_job),
    ("POST", ARM, W + "/jobs/{job}/cancel", invoke.cancel_job),
    ("GET", ARM, W + "/batchEndpoints", endpoints.list_endpoints),
    ("GET", ARM, ENDPOINT, endpoints.get_endpoint),
    ("PUT", ARM, ENDPOINT, endpoints.put_endpoint),
    ("DELETE", ARM, ENDPOINT, endpoints.delete_endpoint),
    ("GET", ARM, ENDPOINT + "/deployments", endpoints.list_deployments),
    ("GET", ARM, DEPLOYMENT, endpoints.get_deployment),
    ("PUT", ARM, DEPLOYMENT, endpoints.put_deployment),
    ("DELETE", ARM, DEPLOYMENT, endpoints.delete_deployment),
    ("GET", ARM, W + "/{kind:asset}", assets.list_assets),
    ("GET", ARM, W + "/{kind:asset}/{name}", assets.get_asset),
    ("GET", ARM, W + "/{kind:asset}/{name}/versions", assets.list_asset_versions),
    ("GET", ARM, W + "/{kind:asset}/{name}/versions/{version}", assets.get_asset_version),
    ("PUT", ARM, W + "/{kind:asset}/{name}/versions/{version}", assets.put_asset_version),
    ("POST", ARM, W + "/codes/{name}/versions/{version}/startPendingUpload", assets.start_pending_upload),
    ("POST", API, ENDPOINT + "/jobs", invoke.invoke),
    ("GET", API, JOBS_OF + "/jobs", invoke.list_endpoint_jobs),
    ("GET", API, JOBS_OF + "/deployments/{deployment}/jobs", invoke.list_endpoint_jobs),
    ("GET", API, RUN, run_history.get_run),
    ("GET", API, RUN + "/children", run_history.get_run_children),
    ("GET", API, RUN + "/details", run_history.get_run_details),
    ("POST", API, "/history/v1.0" + W + "/rundata", run_history.get_run_data),
    ("POST", API, "/data/v1.0" + W + "/dataversion/batchGetResolvedUris", run_history.resolve_data_uris),
    ("PUT", BLOB, "/{container}?restype=container", containers.create_container),
    ("GET", BLOB, "/{container}?restype=container&comp=list", containers.list_blobs),
    ("GET", BLOB, "/{container}?restype=container", containers.get_container),
    ("HEAD", BLOB, "/{container}?restype=container", containers.get_container),
    ("PUT", BLOB, "/{container}/{blob:path}?comp=block", blobs.put_block),
    ("PUT", BLOB, "/{container}/{blob:path}?comp=blocklist", blobs.put_block_list),
    ("PUT", BLOB, "/{container}/{blob:path}?comp=metadata", blobs.set_metadata),
    ("PUT", BLOB, "/{container}/{blob:path}", blobs.put_blob),
    ("GET", BLOB, "/{container}/{blob:path}", blobs.get_blob),
    ("HEAD", BLOB, "/{container}/{blob:path}", blobs.get_blob),
    ("DELETE", BLOB, "/{container}/{blob:path}", blobs.delete_blob),
    ("GET", SAMPLES, "/data/imagenet/model.zip", downloads.get_model),
    ("GET", SAMPLES, "/data/imagenet/imagenet-1000.zip", downloads.get_images),  # the article's CLI script
    ("GET", SAMPLES, "/data/imagenet-1000.zip", downloads.get_images),  # its text
    ("GET", PAGE, "/", page.show_jobs),
    ("GET", PAGE, "/jobs/{job}", page.show_job),
    ("GET", PAGE, "/jobs/{job}/pictures/{row}", page.get_picture),
    ("GET", PAGE, "/favicon.ico", page.get_icon),
]

SELECTORS = ("restype", "comp")  # query parameters that choose an operation of storage
PARTS = {"": "[^/]+", "path": ".+", "asset": "models|codes|environments|data"}


class Route(NamedTuple):
    method: str
    host: str
    path: re.Pattern[str]
    query: dict[str, str]
    handler: Handler


def _route(method: str, host: str, path: str, handler: Handler) -> Route:
    path, _, query = path.partition("?")
    path = path.replace(".", r"\.")
    pattern = re.sub(r"{(\w+):?(\w*)}", lambda part: f"(?P<{part[1]}>{PARTS[part[2]]})", path)
    return Route(
        method, host, re.compile(pattern, re.IGNORECASE | re.DOTALL), dict(parse_qsl(query)), handler
    )


ROUTES = [_route(*line) for line in TABLE]


def find(
    method: str, host: str, path: str, query: Mapping[str, str]
) -> tuple[Handler, dict[str, str]] | None:
    """The handler of the first line that fits, and the names in the path."""
    selecting = {name: query[name] for name in SELECTORS if name in query}
    for route in ROUTES:
        fits = route.method == method and route.host == host and route.query == selecting
        if fits and (match := route.path.fullmatch(path)):
            return route.handler, match.groupdict()
    return None
