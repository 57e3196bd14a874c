"""Who gets in, what gets out, and what is left: the promises of the README's section Security."""

import ctypes
import ctypes.util
import json
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
from conftest import SCOPE, Run, Served
from deployed import invoke, make_deployment, upload, wait_for
from pages import get, part, photo

from local_workspace import environment

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="sockets are listed in /proc")


# Loopback only


@NEEDS_PROC
def test_every_socket_listens_on_loopback_only(served: Served) -> None:
    listening = [
        line for line in tcp() if line["state"] == "0A" and line["inode"] in sockets(served.process.pid)
    ]
    assert len(listening) == 3  # the workspace, the pages, the proxy
    assert {line["address"] for line in listening} == {"0100007F"}  # 127.0.0.1, in the order of this machine


def tcp() -> Iterator[dict[str, str]]:
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            fields = line.split()
            yield {"address": fields[1].partition(":")[0], "state": fields[3], "inode": fields[9]}


def sockets(process: int) -> set[str]:
    links = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
    return {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}


# Fresh secrets, private files


def test_two_runs_have_no_secret_in_common(tmp_path: Path) -> None:
    told = []
    for name in ("one", "two"):
        run = Run(tmp_path / name)
        authority = Path(run.variables["REQUESTS_CA_BUNDLE"]).read_text()
        pages = urlsplit(run.variables["LOCAL_WORKSPACE_PAGE"]).query
        told.append([authority, pages, run.variables["IDENTITY_HEADER"], run.token(), str(run.folder)])
        assert run.end() == 0
    assert all(one != other for one, other in zip(*told, strict=True))


def test_all_that_a_run_writes_is_its_owners_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        run = Run(tmp_path / "state")
        assert run.run("az", "account", "show").returncode == 0
        for folder in (run.folder, run.state):
            assert folder.stat().st_mode & 0o777 == 0o700
        below = [path.lstat().st_mode & 0o777 for path in run.folder.rglob("*")]
        assert below and not any(mode & 0o077 for mode in below)
        written = [path.read_text() for path in run.folder.rglob("*") if path.is_file()]
        assert not any("PRIVATE KEY" in text for text in written)  # the keys were never on disk
        assert run.end() == 0
        assert not run.folder.exists()
    finally:
        os.umask(umask)


def test_what_a_killed_run_leaves_is_worth_nothing(tmp_path: Path) -> None:
    """`serve` killed: nobody is left to remove the folder of its secrets."""
    first = Served(tmp_path / "state")
    token = first.token()
    secrets = first.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()["sasToken"]
    port, page_port = (
        urlsplit(first.identity[0]).port,
        urlsplit(first.environment["LOCAL_WORKSPACE_PAGE"]).port,
    )
    first.stop(signal.SIGKILL)
    assert first.folder.exists()
    authority = shutil.copy(first.session.verify, tmp_path / "ca.pem")
    second = Served(tmp_path / "state", options=["--port", str(port), "--page-port", str(page_port)])
    try:
        with pytest.raises(requests.exceptions.SSLError):  # the old authority has not signed this server
            requests.get(first.identity[0], verify=authority, timeout=60)
        old = {"Authorization": f"Bearer {token}"}
        assert second.call("GET", SCOPE, headers=old).status_code == 401
        address = "https://localworkspace.blob.azureml.test/workspaceblobstore?restype=container&comp=list"
        assert second.session.get(f"{address}&{secrets}").status_code == 403
        header = {"X-IDENTITY-HEADER": first.identity[1]}
        answer = requests.get(second.identity[0], headers=header, verify=second.session.verify, timeout=60)
        assert answer.status_code == 401
        assert get(first.environment["LOCAL_WORKSPACE_PAGE"]).status_code == 403
    finally:
        second.stop()
    assert not first.folder.exists()  # the next start has removed it


# No credential of the user is read or passed on

DECOY = "DECOY-of-the-user"
FILES = [
    *(
        ".azure/azureProfile.json",
        ".azure/msal_token_cache.json",
        ".azure/accessTokens.json",
        ".azure/config",
    ),
    *(
        ".azure/service_principal_entries.json",
        ".azure/msal_token_cache.bin",
        ".azureml/auth/azureProfile.json",
    ),
    *(".aws/credentials", ".aws/config", ".config/gcloud/application_default_credentials.json", ".netrc"),
    *(".databrickscfg", ".kube/config", ".ssh/id_ed25519", ".git-credentials", ".docker/config.json"),
    *(".IdentityService/msal.cache", ".mlflow/credentials", ".config/pip/pip.conf"),
]
VARIABLES = [
    *("AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID", "AZURE_USERNAME", "AZURE_PASSWORD"),
    *(
        "AZURE_CLIENT_CERTIFICATE_PATH",
        "AZURE_FEDERATED_TOKEN_FILE",
        "AZURE_STORAGE_KEY",
        "azure_client_secret",
    ),
    *(
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZUREML_RUN_TOKEN",
        "ARM_CLIENT_SECRET",
        "ARM_ACCESS_KEY",
        "MSI_SECRET",
    ),
    *("MSI_ENDPOINT", "IDENTITY_ENDPOINT", "IDENTITY_HEADER", "IMDS_ENDPOINT", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "DATABRICKS_TOKEN"),
    *(
        "GOOGLE_APPLICATION_CREDENTIALS",
        "CLOUDSDK_AUTH_ACCESS_TOKEN",
        "HTTPS_PROXY",
        "all_proxy",
        "Ftp_Proxy",
    ),
]
OTHERS = ["HF_TOKEN", "GITHUB_TOKEN", "PIP_INDEX_URL", "OPENAI_API_KEY", "SOMETHING_PRIVATE"]
# What the worker, the batch executor above it and the server above that have in their environments.
TELLING = """
import json, os

def init():
    pass

def told(process):
    pairs = open(f"/proc/{process}/environ", "rb").read().decode().split("\\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)

def parent(process):
    return int(open(f"/proc/{process}/stat").read().rpartition(")")[2].split()[1])

def run(mini_batch):
    executor = os.getppid()
    server = parent(executor)
    shown = [dict(os.environ), told(executor), told(server)]
    return [json.dumps(shown) for path in mini_batch]
"""
WITH_THE_SDK = """
from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential

client = MLClient.from_config(DefaultAzureCredential())
print([model.name for model in client.models.list()])
"""
IN_OPEN, IN_NONBLOCK = 0x20, 0o4000


class Watch:
    """Tells which files of some folders were opened, by any process (inotify)."""

    def __init__(self, folders: set[Path]) -> None:
        library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
        self._descriptor = library.inotify_init1(IN_NONBLOCK)
        for folder in folders:
            assert library.inotify_add_watch(self._descriptor, bytes(folder), IN_OPEN) >= 0

    def opened(self) -> bytes:
        """The events so far, with the names of the files in them."""
        found = b""
        while select.select([self._descriptor], [], [], 0)[0]:
            found += os.read(self._descriptor, 1 << 16)
        return found


@pytest.mark.skipif(sys.platform != "linux", reason="inotify and /proc tell what other processes do")
def test_no_credential_of_the_user_is_read_or_passed_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in FILES:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        text = f"machine {DECOY} default login {DECOY} password {DECOY}" if name == ".netrc" else DECOY
        (home / name).write_text(text)
    caller = {"HOME": str(home)} | dict.fromkeys([*VARIABLES, *OTHERS], DECOY)
    watch = Watch({(home / name).parent for name in FILES if "/" in name})
    watch_home = Watch({home})
    run = Run(tmp_path / "state", **caller)
    make_deployment(run, "telling", TELLING)
    job = invoke(run, "telling").json()["name"]
    assert wait_for(run, job, "Completed", "Failed")["status"] == "Completed"
    for command in (
        [sys.executable, "-c", WITH_THE_SDK],
        ["az", "ml", "model", "list"],
        ["az", "account", "show"],
    ):
        done = run.run(*command, cwd=tmp_path)
        assert done.returncode == 0 and DECOY not in done.stdout + done.stderr, done.stderr
    table = (run.state / "jobs" / job / "output/score/predictions.csv").read_text()
    shown = json.loads(table.splitlines()[0])
    assert run.end() == 0
    assert not [name for name, value in run.variables.items() if DECOY in value and name not in OTHERS]
    for process in shown:  # of these none has anything that is not named in the package
        assert not [name for name, value in process.items() if DECOY in value]
    assert watch.opened() == b""
    assert b".netrc" not in (seen := watch_home.opened()) and b".databrickscfg" not in seen
    assert DECOY not in run.log.read_text() + (run.state / "access.log").read_text()
    for name in FILES:  # and the watch watches
        (home / name).read_text()
    assert len(re.findall(rb"[\w.]+\.json", watch.opened())) >= 5 and b".netrc" in watch_home.opened()


@pytest.mark.parametrize(
    "build", [environment.package_environment, lambda: environment.executor_environment({})]
)
def test_the_environments_of_our_own_processes_are_built(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYTHING", "x")
    assert set(build()) <= {*environment.KEPT, "PYTHONPATH"}


# The pages

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><script>alert(1)</script></svg>'
HTML = b"<html><script>alert(1)</script></html>"
HOSTILE = {
    "1 <svg onload=alert(1)>.svg": SVG,
    "2.html": HTML,
    "3 both.JPEG": photo("JPEG") + HTML,
    "4 javascript:alert(1)": HTML,
    "5 {{ 7 * 7 }} ${7*7}.gif": photo("GIF") + SVG,
}
ROWS = """
import logging
from pathlib import Path

def init():
    pass

def run(mini_batch):
    logging.warning("</pre><script>alert('log')</script>")
    print("</pre><script>alert('stdout')</script>")
    return [f'"{Path(path).name}" 7 0.5' for path in mini_batch]
"""
FAILING = """
def init():
    raise RuntimeError("</pre></div><script>alert('error')</script>")

def run(mini_batch):
    return mini_batch
"""


class Tags(HTMLParser):
    """The elements of a page; no attribute of any is a script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        for name, value in attributes:
            assert not name.startswith("on") and not (value or "").startswith("javascript:")


def test_nothing_in_a_job_becomes_a_script(served: Served) -> None:
    """Names of files, labels, logs, errors; and pictures are what a browser shows, never what it runs."""
    for endpoint, script in (("hostile", ROWS), ("hostile-failing", FAILING)):
        make_deployment(served, endpoint, script)
        labels = "\n".join(["</b><script>alert('label')</script>"] * 1001).encode()
        upload(served, "workspaceblobstore", f"{endpoint}/model/ImageNetLabels.txt", labels)
        for name, content in HOSTILE.items():
            upload(served, "workspaceblobstore", f"{endpoint}/data/{quote(name, safe='')}", content)
        uri = f"azureml://datastores/workspaceblobstore/paths/{endpoint}/data"
        given = {"inputData": {"x": {"jobInputType": "UriFolder", "uri": uri}}}
        given["properties"] = {"experimentName": "<script>alert('experiment')</script>"}
        job = invoke(served, endpoint, **given).json()["name"]
        wait_for(served, job, "Completed", "Failed")
        shown = served.call("GET", f"{SCOPE}/jobs/{job}").json()["properties"]["services"]["Studio"][
            "endpoint"
        ]
        html = get(shown).text
        assert "alert" in html
        assert Tags(html).found.isdisjoint({"script", "svg", "iframe", "object", "embed", "form", "base"})
        for row in range(len(HOSTILE)):
            picture = get(part(shown, f"/jobs/{job}/pictures/{row}"))
            if picture.ok:
                assert picture.headers["content-type"] in ("image/jpeg", "image/svg+xml")
                assert b"script" not in picture.content and b"onload" not in picture.content


# What lies around


def test_the_az_of_a_run_is_its_owners_alone(tmp_path: Path) -> None:
    """The socket of the process that has the SDK loaded: whoever reaches it, runs commands."""
    run = Run(tmp_path / "state")
    try:
        assert run.run("az", "ml", "model", "list").returncode == 0
        address = run.folder / "azure" / "az.sock"
        deadline = time.monotonic() + 120
        while not address.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert address.stat().st_mode & 0o777 == 0o600
        assert address.parent.stat().st_mode & 0o777 == 0o700
    finally:
        assert run.end() == 0
