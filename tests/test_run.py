"""`run -- COMMAND`: what the command gets, what it reaches, what is left behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, Served
from deployed import RUN, invoke, make_deployment, run, wait_for

from local_workspace.store import Store

# Nothing gets out

LEAKS = {
    "curl": ["curl", "--silent", "--max-time", "60", "https://curl.example.com/"],
    "curl over http": ["curl", "--silent", "--fail", "--max-time", "60", "http://plain.example.com/"],
    "wget": ["wget", "-q", "-t", "1", "-T", "60", "-O", "-", "https://wget.example.com/"],
    "urllib": [
        sys.executable,
        "-c",
        "import urllib.request as u; u.urlopen('https://urllib.example.com', timeout=60)",
    ],
    "requests": [
        sys.executable,
        "-c",
        "import requests; requests.get('https://requests.example.com', timeout=60)",
    ],
    "Azure": [
        sys.executable,
        "-c",
        "import requests; requests.get('https://management.azure.com', timeout=60)",
    ],
}


@pytest.mark.parametrize("leak", LEAKS)
def test_no_other_host_is_reached(served: Served, leak: str) -> None:
    command = LEAKS[leak]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not here")
    host = next(part for part in " ".join(command).replace("'", "/").split("/") if ".com" in part)
    assert served.run(*command).returncode != 0
    assert f"refused {host}" in served.log.read_text().replace("GET http://", "")


LEAKING = """
import urllib.request
def init(): pass
def run(mini_batch):
    try:
        return [urllib.request.urlopen("https://script.example.com", timeout=20)]
    except OSError as error:
        return [f"{path}: {error}" for path in mini_batch]
"""


def test_no_other_host_is_reached_from_a_scoring_script(served: Served) -> None:
    assert make_deployment(served, "leaking", LEAKING).status_code in (200, 201)
    job = invoke(served, "leaking").json()["name"]
    wait_for(served, job, "Completed")
    assert "refused script.example.com" in served.log.read_text()


# run -- COMMAND


def test_run_gives_the_command_its_own_environment_and_its_exit_code(own: Path) -> None:
    """And leaves nothing behind. What the caller has of Azure does not get in."""
    script = "cat; env; curl -s https://leak.example.com; exit 7"
    caller = os.environ | {"AZURE_CLIENT_SECRET": "real", "https_proxy": "http://real", "KEPT": "yes"}
    ran = run(own, "bash", "-c", script, input="from stdin\n", env=caller)
    shown = dict(line.split("=", 1) for line in ran.stdout.splitlines() if "=" in line)
    assert ran.returncode == 7
    assert ran.stdout.startswith("from stdin\n")
    assert "AZURE_CLIENT_SECRET" not in shown and "real" not in shown["https_proxy"]
    assert shown["KEPT"] == "yes" and shown["PATH"].startswith(str(ROOT / "local_workspace" / "bin"))
    last = ran.stderr.splitlines()[-1]
    assert last == "local workspace: 0 requests answered, 1 refused: leak.example.com:443 (1)"
    assert not Path(shown["AZURE_CONFIG_DIR"]).exists()


def test_two_runs_side_by_side_do_not_meet(own: Path, served: Served) -> None:
    script = "curl -s $ARM_CLOUD_METADATA_URL; "
    script += "curl -s -o /dev/null -w '%{http_code}' -H \"X-IDENTITY-HEADER: $WRONG\" $IDENTITY_ENDPOINT"
    ran = run(own, "bash", "-c", script, env=os.environ | {"WRONG": served.identity[1]})
    assert '"name":"LocalWorkspace"' in ran.stdout and ran.stdout.endswith("401")


def test_a_state_folder_has_one_workspace_at_a_time(served: Served) -> None:
    refused = run(served.state, "true")
    assert refused.returncode == 2
    assert "in use by another local workspace" in refused.stderr and "--state" in refused.stderr


def test_a_folder_with_other_things_in_it_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("precious")
    assert run(tmp_path, "true").returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), (str(ROOT / "LICENSE"), 126)])
def test_a_command_that_cannot_start(own: Path, command: str, code: int) -> None:
    assert run(own, command).returncode == code


def test_a_signal_reaches_the_command_and_the_server_ends(own: Path) -> None:
    script = "trap 'echo cleaned; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    command = [*RUN, "--state", str(own), "--", "bash", "-c", script]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
        out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (5, "cleaned\n")
    Store(own).close()  # nobody holds it


def test_the_server_ends_with_a_run_that_is_killed(own: Path) -> None:
    command = [*RUN, "--state", str(own), "--", "sh", "-c", "echo $AZURE_CONFIG_DIR; sleep 20"]
    with subprocess.Popen(command, cwd=own.parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        secrets = Path(process.stdout.readline().strip()).parent
        process.kill()
    deadline = time.monotonic() + 120
    while secrets.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not secrets.exists()
    assert not (own.parent / "config.json").exists()
    Store(own).close()  # nobody holds it


FROM_CONFIG = """
from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential

client = MLClient.from_config(DefaultAzureCredential())
print(client.workspace_name, client.workspaces.get(client.workspace_name).name)
"""


def test_from_config_finds_the_workspace_while_the_command_runs(own: Path) -> None:
    asked = run(own, sys.executable, "-c", FROM_CONFIG, cwd=own.parent)
    assert asked.stdout == "local local\n", asked.stderr
    assert not (own.parent / "config.json").exists()


def test_a_config_of_the_user_is_used_and_stays(own: Path) -> None:
    config = own.parent / "config.json"
    names = {"subscription_id": "test_subscription", "resource_group": "group", "workspace_name": "shop"}
    config.write_text(json.dumps(names))
    asked = run(own, sys.executable, "-c", FROM_CONFIG, cwd=own.parent)
    assert asked.stdout == "shop shop\n", asked.stderr
    assert json.loads(config.read_text()) == names


def test_state_is_listed_exported_and_deleted(own: Path, tmp_path: Path) -> None:
    store = Store(own)
    store.put("models", "imagenet/1", {"a": 1})
    for name in ("photos/tench.JPEG", "../../outside"):
        content = store.new_file()
        content.write_bytes(b"photo")
        store.create_container("blobs")
        store.put_blob("blobs", name, content, {})
    store.close()

    def state(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "local_workspace", "state", "--state", str(own), *arguments]
        return subprocess.run(command, cwd=ROOT, text=True, capture_output=True)

    assert "models imagenet/1" in state("list").stdout
    assert state("export", str(tmp_path / "export")).returncode == 0
    exported = tmp_path / "export"
    assert json.loads((exported / "resources/models/imagenet/1.json").read_text()) == {"a": 1}
    assert (exported / "blobs/blobs/photos/tench.JPEG").read_bytes() == b"photo"
    assert (exported / "blobs/blobs/%2E%2E/%2E%2E/outside").is_file()
    assert state("delete").returncode == 0
    assert not own.exists()
    assert state("list").returncode == 2
