"""The variables that send an unmodified SDK to the local workspace: nothing in the client is patched.

Each run has a private folder with its own certificate authority; the folder goes when the run ends.
"""

import fcntl
import json
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from local_workspace import workspace
from local_workspace.tokens import TENANT_ID

PACKAGE = Path(__file__).parent
# What a command finds before all else: our `az`, and `python`, `jupyter`, ... of this environment.
FIRST_IN_PATH = (str(PACKAGE / "bin"), str(Path(sys.executable).parent))
BUNDLE, VARIABLES, SUMMARY = "ca.pem", "environment.json", "summary.json"
CONFIG = Path("config.json")  # MLClient.from_config() looks for it from the working folder upwards

# What of the caller's environment no command gets: real accounts, other proxies, other authorities.
DROPPED_PREFIXES = (
    *("AZURE_", "AZUREML_", "ARM_", "IDENTITY_", "MSI_", "IMDS_"),
    *("MLFLOW_", "DATABRICKS_", "AWS_", "GOOGLE_", "CLOUDSDK_"),  # MLflow can write to all of these
)
DROPPED = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "WGETRC")
# What of it the server and the batch executor get: enough to find Python, its libraries and the processors.
KEPT = (
    *("PATH", "PYTHONPATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"),
    *("VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"),
)
HOSTS = (
    "localhost",
    "127.0.0.1",
    f"*.{workspace.DOMAIN}",
    f"*.blob.{workspace.DOMAIN}",
    workspace.SAMPLES_HOST,
)


def write_private(path: Path, text: str) -> None:
    """A file that only its owner can read, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def make_certificates(folder: Path) -> ssl.SSLContext:
    """A fresh authority and a certificate for the hosts of the workspace. The authority's key is not kept."""
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert(*HOSTS, common_name="local workspace")
    write_private(folder / BUNDLE, authority.cert_pem.bytes().decode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


def dropped_names() -> list[str]:
    """Variables of the caller's environment that could lead to Azure or past the proxy."""

    def is_dropped(name: str) -> bool:
        upper = name.upper()
        return upper.startswith(DROPPED_PREFIXES) or upper.endswith("_PROXY") or upper in DROPPED

    return [name for name in os.environ if is_dropped(name)]


def without_azure() -> dict[str, str]:
    dropped = dropped_names()
    return {name: value for name, value in os.environ.items() if name not in dropped}


def network_variables(folder: Path, proxy_port: int) -> dict[str, str]:
    """Everything through the proxy, and only the run's own authority is trusted."""
    proxy, nowhere = f"http://127.0.0.1:{proxy_port}", "127.0.0.1,localhost,::1"
    bundle = str(folder / BUNDLE)
    variables = {"REQUESTS_CA_BUNDLE": bundle, "CURL_CA_BUNDLE": bundle, "SSL_CERT_FILE": bundle}
    variables |= {"NODE_EXTRA_CA_CERTS": bundle, "GIT_SSL_CAINFO": bundle, "WGETRC": str(folder / "wgetrc")}
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        variables |= {name: proxy, name.upper(): proxy}
    # requests would send what the user's ~/.netrc has for any host
    return variables | {"no_proxy": nowhere, "NO_PROXY": nowhere, "NETRC": os.devnull}


def azure_variables(folder: Path, token_port: int, identity_header: str) -> dict[str, str]:
    """Where the SDK finds its cloud, its token and its workspace.

    Sources: azure/ai/ml/_azure_environments.py (ARM_CLOUD_METADATA_URL, AZUREML_CURRENT_CLOUD) and
    https://learn.microsoft.com/python/api/overview/azure/identity-readme#environment-variables
    """
    metadata = f"https://{workspace.MANAGEMENT_HOST}/metadata/endpoints?api-version=2019-05-01"
    return {
        "ARM_CLOUD_METADATA_URL": metadata,
        "AZUREML_CURRENT_CLOUD": workspace.CLOUD,
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        "IDENTITY_ENDPOINT": f"https://127.0.0.1:{token_port}/msi/token",
        "IDENTITY_HEADER": identity_header,
        "AZURE_CONFIG_DIR": str(folder / "azure"),
        "LOCAL_WORKSPACE_PYTHON": sys.executable,  # the Python that has the SDK: bin/az starts it
        "AZUREML_ARM_SUBSCRIPTION": workspace.SUBSCRIPTION_ID,
        "AZUREML_ARM_RESOURCEGROUP": workspace.RESOURCE_GROUP,
        "AZUREML_ARM_WORKSPACE_NAME": workspace.WORKSPACE_NAME,
        "AZUREML_RUN_POLLING_INTERVAL_MIN": "1",  # seconds between two looks at a job that is streamed
    }


def write_files(folder: Path) -> None:
    """What the variables point at: settings of wget, and the account and the defaults of `az`."""
    write_private(folder / "wgetrc", f"ca_certificate = {folder / BUNDLE}\n")
    (folder / "azure").mkdir(mode=0o700)
    defaults = f"[defaults]\ngroup = {workspace.RESOURCE_GROUP}\nworkspace = {workspace.WORKSPACE_NAME}\n"
    write_private(folder / "azure" / "config", defaults)
    account = {
        "id": workspace.SUBSCRIPTION_ID,
        "name": "local workspace",
        "state": "Enabled",
        "isDefault": True,
        "tenantId": TENANT_ID,
        "homeTenantId": TENANT_ID,
        "managedByTenants": [],
        "environmentName": workspace.CLOUD,
        "user": {"name": "local workspace", "type": "servicePrincipal"},
    }
    write_private(folder / "azure" / "azureProfile.json", json.dumps({"subscriptions": [account]}))


@contextmanager
def workspace_config() -> Iterator[None]:
    """A config.json for MLClient.from_config() while a command runs. One that is there stays as it is:
    the local workspace answers to every name. No variable of the SDK can say where it is.

    Runs in one folder share the file, each with a lock on it: the last one removes it.
    """
    try:
        file = _open_config()
    except OSError as error:
        print(f"local workspace: no {CONFIG} for from_config(): {error.strerror}", file=sys.stderr)
        yield
        return
    try:
        yield
    finally:
        file.close()
        remove_config()


def _open_config() -> TextIO:
    """The config.json that is there or a new one, locked; again where another run removes it meanwhile."""
    while True:
        with suppress(FileExistsError), CONFIG.open("x", encoding="utf-8") as file:
            file.write(config_text())
        with suppress(FileNotFoundError):
            file = CONFIG.open(encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.path.samestat(CONFIG.stat(), os.fstat(file.fileno())):
                return file


def config_text() -> str:
    names = {
        "subscription_id": workspace.SUBSCRIPTION_ID,
        "resource_group": workspace.RESOURCE_GROUP,
        "workspace_name": workspace.WORKSPACE_NAME,
        "written_by": "python -m local_workspace run, which removes it when it ends",
    }
    return json.dumps(names, indent=4) + "\n"


def remove_config() -> None:
    """Remove a config.json of ours that no run uses: it may have been replaced by one for Azure."""
    with suppress(OSError), CONFIG.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if file.read() == config_text().encode():
            CONFIG.unlink()


def announce(folder: Path, variables: Mapping[str, str]) -> None:
    """Tell that the server is ready: the file is there whole, or not at all."""
    unfinished = folder / (VARIABLES + ".part")
    write_private(unfinished, json.dumps(variables, indent=1))
    unfinished.replace(folder / VARIABLES)


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What a command of the user gets: his own environment, our variables, our programs first."""
    environment = without_azure() | dict(variables)
    environment["PATH"] = os.pathsep.join([*FIRST_IN_PATH, environment.get("PATH", os.defpath)])
    return environment


def package_environment() -> dict[str, str]:
    """For our own processes: this package can be imported wherever they run."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    path = filter(None, [str(PACKAGE.parent), environment.get("PYTHONPATH")])
    return environment | {"PYTHONPATH": os.pathsep.join(path)}


def executor_environment(network: Mapping[str, str]) -> dict[str, str]:
    """For the batch executor: no token, and no way out of this machine either."""
    return package_environment() | dict(network)
