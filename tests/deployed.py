"""Deployments and jobs of a local workspace, made without the SDK."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests
from conftest import ROOT, SCOPE, Served

RUN = [sys.executable, "-m", "local_workspace", "run"]


SCRIPT = (
    "def init():\n    pass\n\n\ndef run(mini_batch):\n    return [f'{path} {WORD}' for path in mini_batch]\n"
)
SLOW = """
import time


def init():
    print("started", flush=True)


def run(mini_batch):
    time.sleep(600)
    return mini_batch
"""


def run(state: Path, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"cwd": ROOT, "text": True, "capture_output": True, "timeout": 300} | options
    return subprocess.run([*RUN, "--state", str(state), "--", *command], **options)


def upload(served: Served, container: str, name: str, content: bytes) -> None:
    secrets = served.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets")
    address = f"https://localworkspace.blob.azureml.test/{container}/{name}?{secrets.json()['sasToken']}"
    assert (
        served.session.put(address, data=content, headers={"x-ms-blob-type": "BlockBlob"}).status_code == 201
    )


def make_deployment(
    served: Served, endpoint: str, script: str = SCRIPT, **properties: Any
) -> requests.Response:
    """An endpoint with a default deployment `main`, and two photos to score."""
    upload(served, "workspaceblobstore", f"{endpoint}/model/weights", b"7")
    upload(served, "workspaceblobstore", f"{endpoint}/code/driver.py", script.encode())
    for photo in ("tench.JPEG", "great%20white.JPEG"):
        upload(served, "workspaceblobstore", f"photos/{photo}", b"photo")
    at = "azureml://datastores/workspaceblobstore/paths"
    served.put(f"models/{endpoint}/versions/1", modelUri=f"{at}/{endpoint}/model", modelType="custom_model")
    code = f"https://localworkspace.blob.azureml.test/workspaceblobstore/{endpoint}/code"
    served.put(f"codes/{endpoint}/versions/1", codeUri=code)
    served.put(f"environments/{endpoint}/versions/1", image="python")
    served.put("computes/cluster", computeType="AmlCompute", properties={"vmSize": "S"})
    served.put(f"batchEndpoints/{endpoint}")
    named = {
        "model": {"referenceType": "Id", "assetId": f"{SCOPE}/models/{endpoint}/versions/1"},
        "environmentId": f"{SCOPE}/environments/{endpoint}/versions/1",
        "codeConfiguration": {"codeId": f"{SCOPE}/codes/{endpoint}/versions/1", "scoringScript": "driver.py"},
        "compute": f"{SCOPE}/computes/cluster",
    }
    answer = served.put(f"batchEndpoints/{endpoint}/deployments/main", **(named | properties))
    if answer.ok:
        served.put(f"batchEndpoints/{endpoint}", defaults={"deploymentName": "main"})
    return answer


def invoke(served: Served, endpoint: str, **properties: Any) -> requests.Response:
    uri = "azureml://datastores/workspaceblobstore/paths/photos"
    properties = {"inputData": {"UriFolder": {"jobInputType": "UriFolder", "uri": uri}}} | properties
    body = {"properties": properties}
    return served.call("POST", f"{SCOPE}/batchEndpoints/{endpoint}/jobs", host="api", json=body)


def wait_for(served: Served, job: str, *statuses: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        details = served.call("GET", f"/history/v1.0{SCOPE}/runs/{job}/details", host="api").json()
        if details["status"] in statuses:
            return details
        time.sleep(0.1)
    raise AssertionError(details)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A verb of the local workspace."""
    line = [sys.executable, "-m", "local_workspace", *arguments]
    return subprocess.run(line, cwd=ROOT, text=True, capture_output=True, timeout=300)


def processes_of(folder: Path) -> list[str]:
    """Processes that work in a folder, as their folder or their arguments tell."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes().decode(errors="replace") + os.readlink(process / "cwd")
        except OSError:
            continue
        if str(folder) in told and process.name != str(os.getpid()):
            found.append(f"{process.name} {told}")
    return found
