"""What every handler gets: the workspace, and one call to it."""

import re
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from local_workspace.errors import ServiceError
from local_workspace.jobs import Jobs
from local_workspace.store import Store
from local_workspace.tokens import Keys

# `.test` is reserved (RFC 2606): these names can never reach Azure, even where the proxy variable is lost.
DOMAIN = "azureml.test"
CLOUD = "LocalWorkspace"
MANAGEMENT_HOST = f"management.{DOMAIN}"
API_HOST = f"api.{DOMAIN}"
ACCOUNT = "localworkspace"
BLOB_HOST = f"{ACCOUNT}.blob.{DOMAIN}"
SAMPLES_HOST = "azuremlexampledata.blob.core.windows.net"

LOCATION = "local"
# Every subscription, group and workspace name is answered; these are what the environment proposes.
# The SDK's own list of test subscriptions has this id (one digit short): it sends no telemetry for it.
SUBSCRIPTION_ID = "00000000-0000-0000-0000-000000000"
RESOURCE_GROUP = "local"
WORKSPACE_NAME = "local"

# Datastores that every workspace has, and their containers.
DATASTORES = {"workspaceblobstore": "workspaceblobstore", "workspaceartifactstore": "azureml"}

# Azure says 10 s or more; the SDK waits 30 s without these. It takes whole seconds in the first answer only.
RETRY_AFTER = {"Retry-After": "1"}
RETRY_SOON = {"x-ms-retry-after-ms": "100"}


@dataclass
class Workspace:
    store: Store
    keys: Keys
    jobs: Jobs
    page_url: str  # where a person looks at a job; no client of Azure goes there
    operations: dict[str, int] = field(default_factory=dict)  # long-running ones: polls that are left

    def page_address(self, path: str = "/") -> str:
        """An address that lets its holder see the pages of this run (page.py)."""
        return f"{self.page_url}{path}?key={self.keys.page_key}"


@dataclass
class Call:
    """One request: the names in its path, its JSON body."""

    workspace: Workspace
    request: Request
    names: dict[str, str]
    body: dict[str, Any]

    @property
    def store(self) -> Store:
        return self.workspace.store

    @property
    def scope(self) -> str:
        """`/subscriptions/.../workspaces/NAME` as the client wrote it: the start of every id it gets back."""
        path = re.search(r"/subscriptions/.+?/workspaces/[^/]+", self.request.scope["path"], re.IGNORECASE)
        return path.group() if path else ""


def whole_number(text: str, otherwise: int) -> int:
    """A number in a query, such as `$top=5`; `otherwise` where it is none, or one of too many digits."""
    return int(text) if re.fullmatch("[1-9][0-9]{0,8}", text) else otherwise


def not_found(what: str) -> ServiceError:
    return ServiceError(404, "ResourceNotFound", f"{what} was not found.")


def bad_request(message: str) -> ServiceError:
    return ServiceError(400, "BadRequest", message)


def last_name(resource_id: str) -> str:
    """The name at the end of an ARM id, or the name itself."""
    return resource_id.rstrip("/").rpartition("/")[2]
