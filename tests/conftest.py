"""What more than one test file uses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from local_workspace import environment, samples

ROOT = Path(__file__).parents[1]
SCOPE = (
    "/subscriptions/test_subscription/resourceGroups/group"
    "/providers/Microsoft.MachineLearningServices/workspaces/shop"
)

# Prints its variables once it is inside the run, and stays there until its stdin is closed.
STAY = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"


class Served:
    """`serve` in a process of its own, and calls to it that need no SDK."""

    def __init__(self, state: Path, record: Path | None = None, options: list[str] | None = None) -> None:
        self.state = state
        self.log = state.with_suffix(".log")
        command = [sys.executable, "-m", "local_workspace", "serve", "--state", str(state)]
        command += ["--record", str(record)] if record else options or []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        self.folder = self._wait_until_ready()
        self.connect(json.loads((self.folder / environment.VARIABLES).read_text()))

    def connect(self, variables: dict[str, str]) -> None:
        self.environment = environment.child_environment(variables)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.proxies = {"https": variables["HTTPS_PROXY"]}
        self.session.verify = variables["REQUESTS_CA_BUNDLE"]
        self.identity = (variables["IDENTITY_ENDPOINT"], variables["IDENTITY_HEADER"])

    def _wait_until_ready(self) -> Path:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if announced := re.search(r"source (\S+)/activate", self.log.read_text()):
                return Path(announced[1])
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def token(self) -> str:
        address, secret = self.identity
        answer = requests.get(
            address,
            params={"resource": "r"},
            headers={"X-IDENTITY-HEADER": secret},
            verify=self.session.verify,
        )
        return answer.json()["access_token"]

    def call(self, method: str, path: str, host: str = "management", **options: Any) -> requests.Response:
        """A call with a good token."""
        headers = {"Authorization": f"Bearer {self.token()}"} | options.pop("headers", {})
        return self.session.request(method, f"https://{host}.azureml.test{path}", headers=headers, **options)

    def put(self, path: str, **properties: Any) -> requests.Response:
        return self.call("PUT", f"{SCOPE}/{path}", json={"location": "local", "properties": properties})

    def run(self, *command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command in the environment of the workspace."""
        options = {"cwd": ROOT, "text": True, "capture_output": True, "timeout": 300} | options
        variables = self.environment | options.pop("env", {})
        return subprocess.run([str(part) for part in command], env=variables, **options)

    def stop(self, number: int = signal.SIGINT) -> int:
        self.session.close()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(120)


class Run(Served):
    """`run -- COMMAND`, whose command tells its variables and waits."""

    def __init__(self, state: Path, **caller: str) -> None:
        self.state, self.log = state, state.with_suffix(".log")
        python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        caller = os.environ | {"PYTHONPATH": python_path} | caller
        command = [sys.executable, "-m", "local_workspace", "run", "--state", str(state), "--"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, sys.executable, "-c", STAY], cwd=state.parent, env=caller, stderr=log, **pipes
            )
        self.variables = json.loads(self.process.stdout.readline())
        self.folder = Path(self.variables["AZURE_CONFIG_DIR"]).parent
        self.connect(self.variables)
        self.environment = self.variables

    def end(self) -> int:
        self.process.communicate(timeout=120)
        return self.process.returncode


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One workspace for all tests that can share one. Its JSON answers are recorded for the contract test."""
    folder = tmp_path_factory.mktemp("workspace")
    workspace = Served(folder / "state", folder / "record.jsonl")
    yield workspace
    assert workspace.stop() == 0
    assert not workspace.folder.exists()  # the secrets of the run are gone


@pytest.fixture(scope="session")
def samples_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with model/ and data/ as the packages give them; read it, never write to it."""
    folder = tmp_path_factory.mktemp("samples")
    samples.prepare(folder)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The state folder of a workspace that the test starts itself."""
    return tmp_path / "state"


@pytest.fixture
def start(own: Path) -> Iterator[Callable[[], Served]]:
    """Starts a workspace on `own`, again and again."""
    started: list[Served] = []
    yield lambda: started.append(Served(own)) or started[-1]
    for workspace in started:
        workspace.stop(signal.SIGKILL)
        shutil.rmtree(workspace.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The workspace that the tests of bad requests share."""
    from attacked import attack

    yield from attack(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from accounts import Account

    import benchmarks.azurite
    from benchmarks.contenders import LeftOut

    try:
        process, address = benchmarks.azurite.start(tmp_path_factory.mktemp("azurite"))
    except LeftOut as reason:
        pytest.skip(str(reason))
    url, _, signature = address.partition("?")
    yield Account(url, signature, {})
    process.kill()  # a polite end waits until the client's idle connections are closed
    process.wait()


@pytest.fixture(params=["ours", "azurite"])
def account(request: pytest.FixtureRequest) -> Any:
    from accounts import ours

    if request.param == "ours":
        return ours(request.getfixturevalue("served"))
    return request.getfixturevalue("azurite")


@pytest.fixture
def container(account: Any) -> Iterator[Any]:
    with account.service() as service:
        yield service.create_container(f"test-{uuid.uuid4()}")
