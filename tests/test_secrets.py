"""What is printed, recorded and left behind: nothing that is worth anything to whoever finds it."""

import json
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import SCOPE, Run, Served
from deployed import SCRIPT, SLOW, command, invoke, make_deployment, processes_of, wait_for
from pages import get, part

from local_workspace import tokens
from local_workspace.serve import PREFIX
from local_workspace.tokens import Keys


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Served, Path, str]:
    """A workspace that recorded a file which was readable by all, and its job; it has ended."""
    folder = tmp_path_factory.mktemp("recorded")
    record = folder / "record.jsonl"
    record.write_text("of another run\n")
    record.chmod(0o644)
    served = Served(folder / "state", record)
    make_deployment(served, "told", SCRIPT.replace("{WORD}", "7"))
    served.put(
        "data/outside/versions/1", dataType="uri_file", dataUri="https://x.example.com/y?sig=DECOY&a=b"
    )
    served.call("POST", f"{SCOPE}/codes/x/versions/1/startPendingUpload", json={})
    job = invoke(served, "told", name="told-job").json()["name"]
    wait_for(served, job, "Completed", "Failed")
    served.token_once = served.token()
    shown = served.call("GET", f"{SCOPE}/jobs/{job}").json()["properties"]["services"]["Studio"]["endpoint"]
    served.call("GET", f"/history/v1.0{SCOPE}/runs/{job}", host="api")
    assert served.stop() == 0
    return served, record, shown


def test_a_record_is_its_owners_alone_and_of_this_run_only(recorded: tuple[Served, Path, str]) -> None:
    _, record, _ = recorded
    assert record.stat().st_mode & 0o777 == 0o600
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert len(lines) > 10 and {line["status"] for line in lines} >= {200, 201}


def test_a_record_holds_no_secret(recorded: tuple[Served, Path, str]) -> None:
    served, record, shown = recorded
    text = record.read_text()
    key = parse_qs(urlsplit(served.environment["LOCAL_WORKSPACE_PAGE"]).query)["key"][0]
    ticket = parse_qs(urlsplit(shown).query)["ticket"][0]
    for secret in (key, ticket, served.token_once, served.identity[1], "DECOY"):
        assert secret not in text
    assert set(re.findall(r"(?:sig|key|ticket)=([^&\s\"]*)", text)) == {"blanked"}
    assert '"access_token": "blanked"' in text and "sasToken" in text and "logFiles" in text
    assert not re.search(r"eyJ[\w-]+\.", text)


def test_what_a_job_prints_lets_in_and_is_not_the_key(served: Served) -> None:
    """The SDK prints this address into the output of a cell, which is saved."""
    make_deployment(served, "printed", SCRIPT.replace("{WORD}", "7"))
    job = invoke(served, "printed").json()["name"]
    wait_for(served, job, "Completed", "Failed")
    key = parse_qs(urlsplit(served.environment["LOCAL_WORKSPACE_PAGE"]).query)["key"][0]
    arm = served.call("GET", f"{SCOPE}/jobs/{job}").text
    run = served.call("GET", f"/history/v1.0{SCOPE}/runs/{job}", host="api").text
    assert key not in arm + run
    shown = json.loads(arm)["properties"]["services"]["Studio"]["endpoint"]
    page = get(f"{shown}&tid=the-sdk-appends-it")
    assert page.status_code == 200 and job in page.text
    assert [step.status_code for step in page.history] == [303]
    assert page.history[0].headers["cache-control"] == "no-store"
    assert urlsplit(page.url).netloc == urlsplit(shown).netloc and parse_qs(urlsplit(page.url).query)[
        "key"
    ] == [key]
    for wrong in ("", "x", "9999999999.x", f"9999999999.{shown.rpartition('.')[2]}"):
        assert get(f"{part(shown, f'/jobs/{job}').partition('?')[0]}?ticket={wrong}").status_code == 403


def test_a_ticket_is_good_for_an_hour_and_for_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, now = Keys(), time.time()
    ticket = keys.ticket()
    assert keys.accepts_ticket(ticket) and not Keys().accepts_ticket(ticket)
    monkeypatch.setattr(tokens.time, "time", lambda: now + tokens.TICKET_LIFETIME - 2)
    assert keys.accepts_ticket(ticket)
    monkeypatch.setattr(tokens.time, "time", lambda: now + tokens.TICKET_LIFETIME + 2)
    assert not keys.accepts_ticket(ticket)
    assert not any(
        keys.accepts_ticket(one) for one in ("", ".", "x.y", "\u0663.x", f"-1.{ticket}", "9" * 5000)
    )


@pytest.mark.parametrize("name", ["none/record.jsonl", "."])
def test_a_record_that_cannot_be_written_is_refused(own: Path, tmp_path: Path, name: str) -> None:
    done = command("serve", "--state", str(own), "--record", str(tmp_path / name))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: {(tmp_path / name).resolve()} cannot be written" in done.stderr


# What kill -9 leaves


def run_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))


def test_the_folder_of_a_killed_run_goes_with_the_next_start_of_any(
    start: Callable[[], Served], tmp_path: Path
) -> None:
    """Those of runs that are alive stay, and so does what is not ours."""
    killed = start()
    alive = Run(tmp_path / "alive")
    foreign = Path(tempfile.mkdtemp(prefix=PREFIX))
    (foreign / "thesis.doc").write_text("precious")
    killed.stop(signal.SIGKILL)
    assert killed.folder.exists()
    other = Served(tmp_path / "other")
    try:
        assert not killed.folder.exists()
        assert {alive.folder, other.folder, foreign} <= run_folders()
        assert alive.run("az", "account", "show").returncode == 0
    finally:
        assert other.stop() == 0
        assert alive.end() == 0
        shutil.rmtree(foreign)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked for in /proc")
def test_the_processes_of_a_job_end_with_a_killed_server(start: Callable[[], Served]) -> None:
    """The executor and its workers: nobody has to start another server for it."""
    served = start()
    hour = {"maxRetries": 1, "timeout": "PT1H"}
    make_deployment(served, "outliving", SLOW, retrySettings=hour)
    job = invoke(served, "outliving").json()["name"]
    logs = served.state / "jobs" / job / "output" / "logs"
    deadline = time.monotonic() + 120
    while not any("started" in path.read_text() for path in logs.rglob("*.stdout.txt")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(processes_of(served.state / "jobs")) >= 2
    served.stop(signal.SIGKILL)
    while left := processes_of(served.state / "jobs"):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
