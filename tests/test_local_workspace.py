"""The local workspace as its clients see it: the unmodified SDK and plain HTTP calls."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, SCOPE, Served
from deployed import SCRIPT, SLOW, invoke, make_deployment, wait_for

from local_workspace import environment, routes
from local_workspace.files import local_path

VERIFIED = os.environ.get("AZURE_VERIFIED") == "1"


# The SDK, in processes of its own


@pytest.fixture(scope="session")
def flow(request: pytest.FixtureRequest) -> subprocess.CompletedProcess[str]:
    """The flow's own tests: in the local workspace, or with AZURE_VERIFIED=1 in a real one."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / "sdk_flow.py"),
    ]
    if VERIFIED:
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=7200)
    served = request.getfixturevalue("served")
    begin = len(served.log.read_text())
    done = served.run(*command)
    assert "refused" not in served.log.read_text()[begin:]  # the flow asks for nothing that is not answered
    return done


def test_the_whole_flow_through_the_sdk(flow: subprocess.CompletedProcess[str]) -> None:
    assert flow.returncode == 0, flow.stdout + flow.stderr
    assert " passed" in flow.stdout


@pytest.mark.skipif(VERIFIED, reason="nothing is recorded from Azure")
def test_every_answer_fits_the_models_of_the_sdk(
    served: Served, flow: subprocess.CompletedProcess[str]
) -> None:
    record = str(served.state.parent / "record.jsonl")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/sdk_contract.py"]
    contract = served.run(*command, env={"RECORD": record})
    assert contract.returncode == 0, contract.stdout


DEFAULT_ROUTING = """
from azure.ai.ml import Input, MLClient
from azure.identity import DefaultAzureCredential
from azure.core.exceptions import HttpResponseError

client = MLClient(DefaultAzureCredential(), "test_subscription", "group", "shop")
data = Input(type="uri_folder", path="azureml://datastores/workspaceblobstore/paths/photos")
for endpoint in ("routed", "unrouted"):
    try:
        job = client.batch_endpoints.invoke(endpoint_name=endpoint, input=data)
        print(endpoint, client.batch_endpoints.get(endpoint).defaults.deployment_name)
    except HttpResponseError as error:
        print(endpoint, error.status_code, repr(error.message))
"""


def test_a_fresh_process_is_routed_to_the_default_deployment(served: Served) -> None:
    make_deployment(served, "routed")
    assert served.put("batchEndpoints/unrouted").status_code == 201
    asked = served.run(sys.executable, "-c", DEFAULT_ROUTING)
    assert "\nrouted main\n" in "\n" + asked.stdout, asked.stderr
    assert "\nunrouted 400" in asked.stdout and "No valid deployments to route to" in asked.stdout


# Deployments and jobs, made without the SDK


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"model": {"assetId": f"{SCOPE}/models/gone/versions/1"}}, "model"),
        ({"environmentId": f"{SCOPE}/environments/gone/versions/1"}, "environment"),
        ({"codeConfiguration": {"codeId": "gone", "scoringScript": "x.py"}}, "code"),
        ({"compute": f"{SCOPE}/computes/gone"}, "compute"),
    ],
)
def test_a_deployment_names_only_what_exists(served: Served, changed: dict[str, Any], what: str) -> None:
    answer = make_deployment(served, "incomplete", **changed)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "UserError"
    assert f"a {what} that does not exist" in answer.json()["error"]["message"].replace("an ", "a ")


def test_a_deployment_has_the_defaults_of_the_service(served: Served) -> None:
    properties = make_deployment(served, "sparse").json()["properties"]
    assert (properties["miniBatchSize"], properties["errorThreshold"]) == (10, -1)
    assert properties["retrySettings"] == {"maxRetries": 3, "timeout": "PT30S"}


def test_names_ignore_case_and_keep_the_one_they_were_made_with(served: Served) -> None:
    make_deployment(served, "CamelCase")
    shown = served.call("GET", SCOPE.upper() + "/BATCHENDPOINTS/camelcase").json()
    assert shown["name"] == "CamelCase"
    assert served.call("DELETE", f"{SCOPE}/batchEndpoints/camelCASE").status_code == 202
    assert served.call("GET", f"{SCOPE}/batchEndpoints/CamelCase").status_code == 404
    assert served.call("DELETE", f"{SCOPE}/batchEndpoints/camelCASE").status_code == 204


@pytest.mark.parametrize(
    "path", ["batchEndpoints/1st", "batchEndpoints/x", "batchEndpoints/a_b", "computes/-"]
)
def test_names_that_break_the_rules_are_refused(served: Served, path: str) -> None:
    assert served.put(path, computeType="AmlCompute").status_code == 400


def test_a_version_that_exists_keeps_its_content(served: Served) -> None:
    path = "data/fixed/versions/1"
    assert served.put(path, dataType="uri_file", dataUri="a").status_code == 201
    assert served.put(path, dataType="uri_file", dataUri="a", description="new").status_code == 200
    assert served.put(path, dataType="uri_file", dataUri="b").status_code == 409


def test_a_job_says_why_it_failed(served: Served) -> None:
    make_deployment(served, "failing")  # WORD is not set
    job = invoke(served, "failing").json()["name"]
    details = wait_for(served, job, "Failed", "Completed")
    assert "WORD" in details["error"]["error"]["message"]
    log = served.session.get(details["logFiles"]["logs/azureml/executionlogs.txt"]).text
    assert "WORD" in log


def test_logs_can_be_read_while_the_job_runs(served: Served) -> None:
    """The parent's execution log, and of its scoring job what the scoring script has printed so far."""
    make_deployment(served, "growing", SLOW)
    job = invoke(served, "growing").json()["name"]
    history = f"/history/v1.0{SCOPE}/runs"
    wait_for(served, job, "Running")
    (child,) = served.call("GET", f"{history}/{job}/children", host="api").json()["value"]
    printed, deadline = "", time.monotonic() + 120
    while "started" not in printed and time.monotonic() < deadline:
        files = served.call("GET", f"{history}/{child['runId']}/details", host="api").json()["logFiles"]
        printed = "".join(served.session.get(url).text for name, url in files.items() if "stdout" in name)
        time.sleep(0.1)
    parent = wait_for(served, job, "Running")
    log = served.session.get(parent["logFiles"]["logs/azureml/executionlogs.txt"]).text
    served.call("POST", f"{SCOPE}/jobs/{job}/cancel")
    assert "started" in printed and "data: 2 file(s)" in log and "completed" not in log
    wait_for(served, job, "Canceled")


def test_the_output_goes_where_the_caller_says_and_only_once(served: Served) -> None:
    make_deployment(served, "placed", SCRIPT.replace("{WORD}", "7"))
    uri = "azureml://datastores/workspaceblobstore/paths/results/mine.csv"
    outputs = {"outputData": {"score": {"jobOutputType": "UriFile", "uri": uri}}}
    jobs = [invoke(served, "placed", **outputs).json()["name"] for _ in range(2)]
    assert wait_for(served, jobs[0], "Completed", "Failed")["status"] == "Completed"
    second = wait_for(served, jobs[1], "Completed", "Failed")
    assert second["status"] == "Failed" and "exists already" in second["error"]["error"]["message"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inputData": {}}, "one data input"),
        ({"inputData": {"x": {"jobInputType": "MLTable", "uri": "u"}}}, "uri_folder or uri_file"),
        (
            {"inputData": {"x": {"jobInputType": "UriFile", "uri": "https://example.com/x"}}},
            "not in this workspace",
        ),
        ({"name": "../outside"}, "is not valid"),
    ],
)
def test_an_input_that_cannot_be_scored_is_refused(
    served: Served, changed: dict[str, Any], message: str
) -> None:
    make_deployment(served, "strict")
    answer = invoke(served, "strict", **changed)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_killed_server_starts_again_with_its_state_and_a_reason_for_the_job(
    own: Path, start: Callable[[], Served]
) -> None:
    first = start()
    make_deployment(first, "slow", SLOW)
    running, waiting = (invoke(first, "slow").json()["name"] for _ in range(2))
    wait_for(first, running, "Running")
    alive = own / "jobs" / running / "alive"
    while not alive.is_file() or not alive.read_text().strip():
        time.sleep(0.05)
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + 120
    while is_locked(alive):  # the executor does not go on without a server
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = start()
    details = wait_for(second, running, "Failed")
    assert "was stopped while this job ran" in details["error"]["error"]["message"]
    assert second.call("GET", f"{SCOPE}/batchEndpoints/slow").json()["properties"]["defaults"]
    wait_for(second, waiting, "Running")
    assert not first.folder.exists()  # the next start has removed it
    second.call("POST", f"{SCOPE}/jobs/{waiting}/cancel")
    wait_for(second, waiting, "Canceled")
    assert second.stop() == 0


# Who may call, and what is answered


@pytest.mark.parametrize(
    ("authorization", "code"), [("", "AuthenticationFailed"), ("Bearer x.y.z", "InvalidAuthenticationToken")]
)
@pytest.mark.parametrize("host", ["management", "api"])
def test_a_missing_or_wrong_token_is_refused(
    served: Served, host: str, authorization: str, code: str
) -> None:
    path = SCOPE if host == "management" else f"/history/v1.0{SCOPE}/runs/x"
    answer = served.call("GET", path, host=host, headers={"Authorization": authorization})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == code


def test_the_token_endpoint_wants_its_secret(served: Served) -> None:
    answer = requests.get(
        served.identity[0], headers={"X-IDENTITY-HEADER": "wrong"}, verify=served.session.verify
    )
    assert answer.status_code == 401


def test_an_unknown_operation_is_named_and_points_to_the_readme(served: Served) -> None:
    answer = served.call("GET", f"{SCOPE}/onlineEndpoints/nonexistent")
    assert answer.status_code == 501
    assert "README" in answer.json()["error"]["message"]
    assert "refused GET https://management.azureml.test" in served.log.read_text()


BODIES = [(b"{", 400), (b"[]", 400), (b'{"properties": {"defaults": "main"}}', 400), (b"x" * (5 << 20), 413)]


@pytest.mark.parametrize(("body", "status"), BODIES)
def test_a_body_that_has_another_form_or_is_too_large_is_refused(
    served: Served, body: bytes, status: int
) -> None:
    assert served.call("PUT", f"{SCOPE}/batchEndpoints/broken", data=body).status_code == status


def test_every_line_of_the_table_can_be_reached() -> None:
    for method, host, path, handler in routes.TABLE:
        path = (
            path.replace("{kind:asset}", "models")
            .replace("{blob:path}", "a/b")
            .replace("{", "")
            .replace("}", "")
        )
        path, _, query = path.partition("?")
        found = routes.find(method, host, path, dict(part.split("=") for part in query.split("&") if part))
        assert found is not None and found[0] is handler, path


def test_only_the_two_sample_downloads_are_answered(served: Served) -> None:
    samples = served.state / "samples"
    samples.mkdir(exist_ok=True)
    (samples / "model.zip").write_bytes(b"mine")
    url = "https://azuremlexampledata.blob.core.windows.net/data/"
    download = ["curl", "--silent", "--show-error", "--fail", url + "imagenet/model.zip"]
    assert served.run(*download).stdout == "mine"
    assert "model.zip is your own file" in served.log.read_text()
    assert served.session.get(url + "other.zip").status_code == 501


# Small parts


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../../x", "/etc/passwd", "a//b", ".", "a\\..\\b", "\0", "C:x"]
)
def test_no_name_leads_out_of_a_folder(tmp_path: Path, name: str) -> None:
    path = local_path(tmp_path, name)
    assert path.resolve().is_relative_to(tmp_path) and path != tmp_path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("inside")


def test_other_names_arrive_as_they_are(tmp_path: Path) -> None:
    for name in ('with "quotes".JPEG', "100%.JPEG", "a\\b", "...", "new\nline", "C:x"):
        assert local_path(tmp_path, f"photos/{name}") == tmp_path / "photos" / name


def test_the_files_of_a_run_are_private(served: Served) -> None:
    assert served.folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in served.folder.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert not any("PRIVATE KEY" in path.read_text() for path in files)
    assert environment.VARIABLES in [path.name for path in files]
