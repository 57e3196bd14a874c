"""A disk that takes no more: what cannot be kept is said, and nothing is lost or stuck once there is room."""

import os
import resource
import signal
import time
from collections.abc import Callable

import pytest
from conftest import SCOPE, Served
from deployed import SCRIPT, SLOW, invoke, make_deployment, wait_for

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def fill(served: Served) -> None:
    """No file of the server grows any more: the database first of all."""
    journal = served.state / "state.sqlite-wal"
    limit = max(journal.stat().st_size, 1)
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def empty(served: Served) -> None:
    resource.prlimit(served.process.pid, resource.RLIMIT_FSIZE, UNLIMITED)


def test_what_arm_cannot_keep_is_said_and_can_be_repeated(start: Callable[[], Served]) -> None:
    served = start()
    assert served.put("data/before/versions/1", dataType="uri_file", dataUri="a").status_code == 201
    fill(served)
    for path, more in (
        ("data/during/versions/1", {"dataType": "uri_file", "dataUri": "a"}),
        ("batchEndpoints/during", {}),
        ("computes/during", {"computeType": "AmlCompute"}),
    ):
        answer = served.put(path, **more)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (507, "InsufficientStorage"), answer.text
        assert "The state folder takes no more: " in error["message"]
    assert served.call("GET", f"{SCOPE}/data/before/versions/1").status_code == 200
    assert served.call("GET", f"{SCOPE}/data/during/versions/1").status_code == 404
    empty(served)
    assert served.put("data/during/versions/1", dataType="uri_file", dataUri="a").status_code == 201
    assert served.stop() == 0
    told = served.log.read_text() + (served.state / "access.log").read_text()
    assert "Traceback" not in told and "Logging error" not in told


def test_a_job_ends_once_there_is_room_and_the_next_has_its_turn(start: Callable[[], Served]) -> None:
    """The thread that works the jobs must not die of a full disk."""
    served = start()
    make_deployment(served, "crammed", SLOW)
    make_deployment(served, "roomy", SCRIPT.replace("{WORD}", "7"))
    first = invoke(served, "crammed").json()["name"]
    wait_for(served, first, "Running")
    second = invoke(served, "roomy").json()["name"]
    fill(served)
    wait_for(served, first, "Running")  # its logs can be read as before
    assert served.call("POST", f"{SCOPE}/jobs/{first}/cancel").status_code == 507
    empty(served)
    executor = int((served.state / "jobs" / first / "alive").read_text())
    os.kill(executor, signal.SIGSTOP)  # it ends only once the disk is full again, not before
    assert served.call("POST", f"{SCOPE}/jobs/{first}/cancel").status_code == 202
    fill(served)
    os.kill(executor, signal.SIGCONT)
    log = served.state / "jobs" / first / "logs/azureml/executionlogs.txt"
    deadline = time.monotonic() + 120
    while f"canceled: {first}" not in log.read_text():  # it has ended, which cannot be kept
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # a thread that dies of it has its time to
    empty(served)
    wait_for(served, first, "Canceled")
    assert wait_for(served, second, "Completed", "Failed")["status"] == "Completed"
    assert served.stop() == 0


def test_an_invoke_that_cannot_be_kept_starts_nothing(start: Callable[[], Served]) -> None:
    served = start()
    make_deployment(served, "unkept", SCRIPT.replace("{WORD}", "7"))
    fill(served)
    assert invoke(served, "unkept", name="unkept-job").status_code == 507
    assert served.call("GET", f"{SCOPE}/jobs/unkept-job").status_code == 404
    empty(served)
    assert invoke(served, "unkept", name="unkept-job").status_code == 201
    assert wait_for(served, "unkept-job", "Completed", "Failed")["status"] == "Completed"
    assert served.stop(signal.SIGTERM) == 0
