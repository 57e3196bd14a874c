"""The local workspace when it is killed, shared, overrun or given what another version has left."""

import base64
import json
import os
import random
import resource
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from azure.storage.blob import BlobClient
from conftest import SCOPE, Run, Served
from deployed import SCRIPT, command, invoke, make_deployment, processes_of, run, upload, wait_for

from local_workspace.errors import UserError
from local_workspace.store import DATABASE, SCHEMA, Store
from local_workspace.workspace import BLOB_HOST

BLOCK = 1 << 20  # bytes
QUEUED = int(os.environ.get("QUEUED", "12"))  # jobs; by hand: QUEUED=50


def sas(served: Served) -> str:
    return served.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()["sasToken"]


def address(served: Served, name: str) -> str:
    return f"https://{BLOB_HOST}/workspaceblobstore/{name}?{sas(served)}"


def begin_upload(served: Served, name: str, content: bytes) -> socket.socket:
    """Half of an upload, straight to the port of the server."""
    context = ssl.create_default_context(cafile=served.session.verify)
    connection = socket.create_connection(("127.0.0.1", urlsplit(served.identity[0]).port))
    tls = context.wrap_socket(connection, server_hostname="localhost")
    head = f"PUT /workspaceblobstore/{name}?{sas(served)} HTTP/1.1\r\nHost: {BLOB_HOST}\r\n"
    tls.sendall(f"{head}Content-Length: {2 * len(content)}\r\n\r\n".encode() + content)
    return tls


def test_an_upload_that_a_kill_cuts_short_is_not_there_and_can_be_repeated(
    own: Path, start: Callable[[], Served]
) -> None:
    first = start()
    upload(first, "workspaceblobstore", "old", b"as it was")
    with begin_upload(first, "new", b"x" * BLOCK), begin_upload(first, "old", b"y" * BLOCK):
        block = base64.b64encode(b"0").decode()
        first.session.put(f"{address(first, 'blocks')}&comp=block&blockid={block}", data=b"z" * BLOCK)
        deadline = time.monotonic() + 120
        while sum(path.is_file() for path in (own / "incoming").glob("*")) < 2:
            assert time.monotonic() < deadline
        first.stop(signal.SIGKILL)
    second = start()
    assert not list((own / "incoming").iterdir())  # nothing half done is kept
    listed = second.session.get(f"{address(second, '').replace('/?', '?')}&restype=container&comp=list").text
    assert "<Name>old</Name>" in listed and "<Name>new</Name>" not in listed and "blocks" not in listed
    assert second.session.get(address(second, "old")).content == b"as it was"
    for name in ("old", "new"):
        upload(second, "workspaceblobstore", name, b"again")
        assert second.session.get(address(second, name)).content == b"again"


def test_whatever_was_acknowledged_before_a_kill_is_there_whole(
    own: Path, start: Callable[[], Served]
) -> None:
    """After as many writes of two clients as a seeded generator chooses."""
    chance = random.Random(6)
    acknowledged: dict[str, bytes] = {}
    written: list[str] = []
    for round_number in range(3):
        served = start()
        base = address(served, "NAME")

        def write(client: int, served: Served = served, base: str = base, turn: int = round_number) -> None:
            with requests.Session() as session:
                session.trust_env, session.verify = False, served.session.verify
                session.proxies = dict(served.session.proxies)
                for number in range(10_000):
                    name, content = f"{turn}-{client}-{number % 7}", f"{number} ".encode() * 20_000
                    try:
                        answer = session.put(base.replace("NAME", name), data=content)
                    except requests.RequestException:
                        return
                    if answer.status_code == 201:
                        acknowledged[name] = content
                        written.append(name)

        clients = [threading.Thread(target=write, args=[client]) for client in range(2)]
        for client in clients:
            client.start()
        enough, deadline = len(written) + chance.randint(6, 40), time.monotonic() + 120
        while len(written) < enough:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        served.stop(signal.SIGKILL)
        for client in clients:
            client.join()
    store = Store(own)
    assert len(acknowledged) > 5
    for name, content in acknowledged.items():
        blob = store.blob("workspaceblobstore", name)
        assert blob is not None
        found = blob.path.read_bytes()  # what was acknowledged, or the write after it, which the kill hid
        assert found == content or found == found[: found.index(b" ") + 1] * 20_000
    store.close()


def test_a_download_that_a_kill_cuts_short_is_an_error_and_can_be_repeated(
    start: Callable[[], Served],
) -> None:
    first, content = start(), random.Random(1).randbytes(32 << 20)
    upload(first, "workspaceblobstore", "big", content)
    answer = first.session.get(address(first, "big"), stream=True)
    pieces = answer.iter_content(BLOCK)
    assert next(pieces)
    first.stop(signal.SIGKILL)
    with pytest.raises(requests.RequestException):
        list(pieces)
    second = start()
    assert second.session.get(address(second, "big")).content == content


LEAVING_A_CHILD = """
import os, subprocess, time

def init():
    subprocess.Popen(["sleep", "47114711"])

def run(mini_batch):
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="processes are looked for in /proc")
def test_no_process_of_a_job_outlives_the_next_start_of_a_killed_server(
    own: Path, start: Callable[[], Served]
) -> None:
    first = start()
    make_deployment(first, "leaving", LEAVING_A_CHILD)
    job = invoke(first, "leaving").json()["name"]
    deadline = time.monotonic() + 120
    while not any("sleep" in line for line in processes_of(own)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.stop(signal.SIGKILL)
    second = start()
    details = wait_for(second, job, "Failed")
    assert "was stopped while this job ran" in details["error"]["error"]["message"]
    second.stop()
    deadline = time.monotonic() + 120
    while left := processes_of(own):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_a_disk_that_is_full_is_told_and_costs_nothing_that_is_there(
    own: Path, start: Callable[[], Served]
) -> None:
    served = start()
    upload(served, "workspaceblobstore", "kept", b"as it was")
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (BLOCK, BLOCK))  # bytes of a file
    for name in ("kept", "new"):
        answer = served.session.put(address(served, name), data=b"x" * 4 * BLOCK)
        assert (answer.status_code, answer.headers["x-ms-error-code"]) == (507, "InsufficientStorage")
    assert not list((own / "incoming").iterdir())
    assert served.session.get(address(served, "kept")).content == b"as it was"
    assert served.session.get(address(served, "new")).status_code == 404
    upload(served, "workspaceblobstore", "new", b"small")
    assert served.stop() == 0


# Many at once


def at_once(served: Served, calls: list[Callable[[requests.Session], requests.Response]]) -> list[int]:
    """The statuses of calls that start together, each over a connection of its own."""
    gate = threading.Barrier(len(calls))

    def one(call: Callable[[requests.Session], requests.Response]) -> int:
        with requests.Session() as session:
            session.trust_env, session.verify = False, served.session.verify
            session.proxies = dict(served.session.proxies)
            session.headers["Authorization"] = f"Bearer {token}"
            gate.wait(120)
            return call(session).status_code

    token = served.token()
    with ThreadPoolExecutor(len(calls)) as pool:
        return sorted(pool.map(one, calls))


def put(path: str, **properties: Any) -> Callable[[requests.Session], requests.Response]:
    body = {"location": "local", "properties": properties}
    return lambda session: session.put(f"https://management.azureml.test{SCOPE}/{path}", json=body)


def test_of_two_clients_that_make_the_same_one_wins_or_both_agree(served: Served) -> None:
    for turn in range(5):
        same = [put(f"data/same{turn}/versions/1", dataType="uri_file", dataUri="a")] * 4
        assert at_once(served, same) == [200, 200, 200, 201]
        differing = [
            put(f"data/differing{turn}/versions/1", dataType="uri_file", dataUri=uri) for uri in "abcd"
        ]
        assert at_once(served, differing) == [201, 409, 409, 409]
        endpoints = [put(f"batchEndpoints/together{turn}")] * 4
        assert at_once(served, endpoints) == [201] * 4
        container = f"https://{BLOB_HOST}/together{turn}?restype=container&{sas(served)}"
        assert at_once(served, [lambda session, url=container: session.put(url)] * 4) == [201, 409, 409, 409]


def test_a_job_name_is_given_once(served: Served) -> None:
    make_deployment(served, "raced", SCRIPT.replace("{WORD}", "7"))
    uri = "azureml://datastores/workspaceblobstore/paths/photos"
    body = {
        "properties": {"name": "raced-job", "inputData": {"x": {"jobInputType": "UriFolder", "uri": uri}}}
    }
    url = f"https://api.azureml.test{SCOPE}/batchEndpoints/raced/jobs"
    assert at_once(served, [lambda session: session.post(url, json=body)] * 5) == [201, 409, 409, 409, 409]
    assert wait_for(served, "raced-job", "Completed", "Failed")["status"] == "Completed"


def test_a_blob_that_must_not_exist_yet_is_written_once(served: Served) -> None:
    """Also where both were let in before either had sent its content."""
    for turn in range(5):
        url = address(served, f"once{turn}")
        calls = [
            lambda session, one=one, url=url: session.put(
                url, data=one * 300_000, headers={"If-None-Match": "*", "x-ms-blob-type": "BlockBlob"}
            )
            for one in (b"a", b"b", b"c")
        ]
        assert at_once(served, calls) == [201, 409, 409]
        assert len(set(served.session.get(url).content)) == 1


@pytest.mark.parametrize("same", [True, False], ids=["same content", "other content"])
def test_two_clients_may_upload_one_blob_in_blocks(served: Served, same: bool) -> None:
    """With the SDK's own client: its block ids are the same for both. The blob is that of one of them."""
    contents = [random.Random(0 if same else number).randbytes(5 * BLOCK + 7) for number in range(3)]
    options = {"proxies": dict(served.session.proxies), "connection_verify": served.session.verify}
    sizes = {"max_single_put_size": BLOCK, "max_block_size": BLOCK}

    def send(content: bytes) -> None:
        with BlobClient.from_blob_url(address(served, "shared"), **options, **sizes) as client:
            client.upload_blob(content, overwrite=True, max_concurrency=2)

    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(send, contents))
        assert served.session.get(address(served, "shared")).content in contents


def test_jobs_wait_in_line_also_while_the_server_is_away(own: Path, start: Callable[[], Served]) -> None:
    first = start()
    make_deployment(first, "queued", SCRIPT.replace("{WORD}", "7"))
    names = [f"job-{number:02d}" for number in range(QUEUED)]
    for name in names:
        assert invoke(first, "queued", name=name).status_code == 201
    wait_for(first, names[1], "Completed")
    first.stop(signal.SIGKILL)
    second = start()
    deadline = time.monotonic() + 600
    history = f"/history/v1.0{SCOPE}/runs"
    while (last := second.call("GET", f"{history}/{names[-1]}", host="api").json())["status"] != "Completed":
        assert time.monotonic() < deadline and last["status"] in ("NotStarted", "Running"), last
        time.sleep(0.2)
    ended = [second.call("GET", f"{history}/{name}", host="api").json() for name in names]
    times = [one["endTimeUtc"] for one in ended]
    assert [one["status"] for one in ended].count(
        "Failed"
    ) <= 1  # the one that ran when the server was killed
    assert {one["status"] for one in ended} <= {"Completed", "Failed"}
    begun = [one["startTimeUtc"] for one in ended]
    assert begun == sorted(begun) and all(one < other for one, other in pairwise(times[2:]))


# State folders and ports


@pytest.mark.parametrize(("schema", "age"), [(0, "an older"), (SCHEMA + 1, "a newer")])
def test_a_state_folder_of_another_version_is_refused_and_can_be_deleted(
    own: Path, schema: int, age: str
) -> None:
    Store(own).close()
    with sqlite3.connect(own / DATABASE) as database:
        database.execute(f"PRAGMA user_version = {schema}")
    database.close()
    refused(own, f"{own} was written by {age} version: schema {schema}, expected {SCHEMA}")
    assert state(own, "delete").returncode == 0
    assert not own.exists()
    assert run(own, "true").returncode == 0


def test_a_state_folder_that_is_damaged_is_refused(own: Path) -> None:
    Store(own).close()
    (own / DATABASE).write_bytes(b"no database" * 1000)
    refused(own, f"{own} cannot be read: {DATABASE}: file is not a database")


def test_a_file_is_no_state_folder(own: Path) -> None:
    own.write_text("mine")
    refused(own, "cannot be a state folder", "serve", "run")
    assert own.read_text() == "mine"


def state(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return command("state", "--state", str(folder), *arguments)


def refused(folder: Path, message: str, *verbs: str) -> None:
    """By every verb: exit code 2, the folder and what to do, no traceback."""
    for verb in verbs or ("serve", "run", "state"):
        more = {"run": ["--", "true"], "state": ["list"]}.get(verb, [])
        done = command(verb, "--state", str(folder), *more)
        assert done.returncode == 2, done.stderr
        assert (
            f"error: {'the state folder ' if verbs == () else ''}" in done.stderr and message in done.stderr
        )
        assert "hint: " in done.stderr and "--state DIR" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--port", "--page-port"])
def test_a_port_that_is_taken_is_named(own: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for verb in (["serve"], ["run", "--", "true"]):
            done = command(verb[0], "--state", str(own), option, port, *verb[1:])
            assert done.returncode == 2 and "Traceback" not in done.stderr
            assert f"error: port {port} of 127.0.0.1 is not free" in done.stderr


@pytest.mark.parametrize("port", ["-1", "65536", "99999999999", "x"])
def test_a_port_that_is_none_is_refused(own: Path, port: str) -> None:
    done = command("serve", "--state", str(own), "--port", port)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


def test_the_config_of_two_runs_in_one_folder_lasts_until_the_last(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    runs = [Run(tmp_path / name) for name in ("one", "two", "three")]
    runs[0].end()  # the one that wrote it
    assert json.loads(config.read_text())["workspace_name"] == "local"
    runs[1].process.kill()  # its server cleans up, and must leave the file to the third
    runs[1].end()
    wait_until_free(tmp_path / "two")
    assert config.exists()
    runs[2].end()
    assert not config.exists()


def wait_until_free(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return Store(folder).close()
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
