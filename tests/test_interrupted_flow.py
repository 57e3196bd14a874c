"""deploy-and-run.sh, interrupted: it leaves no endpoint and no job that still runs."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flow_script import (  # noqa: F401  # make_...: fixtures
    commands,
    make_environment,
    make_folder,
    make_programs,
    write_program,
)


@pytest.mark.parametrize("number, send", [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_signal_ends_the_streaming_cancels_the_job_and_leaves_no_endpoint(
    number: signal.Signals, send: Callable[[int, int], None], folder: Path, environment: dict[str, str]
) -> None:
    with subprocess.Popen(
        ["bash", "./deploy-and-run.sh", "my-endpoint"],
        cwd=folder,
        env=environment | {"AZ_SECONDS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while not commands(environment, "ml job stream"):
            assert process.poll() is None
            time.sleep(0.05)
        send(process.pid, number)
        assert process.wait(120) == 128 + number
    assert commands(environment)[-2:] == [
        "ml job cancel --name job-1",
        "ml batch-endpoint delete --name my-endpoint --yes",
    ]


def interrupt(
    folder: Path,
    environment: dict[str, str],
    call: int,
    when: str,
    signals: str,
    target: str,
    **variables: str,
) -> subprocess.CompletedProcess:
    """Run the script; the az call of this number sends the signals to it (`$$`), or to its group (`-$$`)."""
    Path(environment["AZ_COMMANDS"]).write_text("", encoding="utf-8")
    command = ["bash", "-c", f"AZ_TARGET={target} exec bash ./deploy-and-run.sh my-endpoint"]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment | {"AZ_CALL": str(call), "AZ_WHEN": when, "AZ_SIGNALS": signals} | variables,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
    )


def expected_clean_up(whole_flow: list[str], call: int) -> list[str]:
    """What an interruption at this call has to undo: the job that runs, the endpoint."""

    def calls(command: str) -> list[int]:
        return [number for number, line in enumerate(whole_flow, 1) if line.startswith(command)]

    expected = []
    runs = zip(calls("ml batch-endpoint invoke"), calls("ml job download"), strict=True)
    for job, (started, downloaded) in enumerate(runs, 1):
        if started <= call < downloaded:
            expected.append(f"ml job cancel --name job-{job}")
    if calls("ml batch-endpoint create")[0] <= call:
        expected.append("ml batch-endpoint delete --name my-endpoint --yes")
    return expected


@pytest.mark.parametrize(
    "when, signals, target, exit_code",
    [
        ("before", "INT", "-$$", 130),
        ("after", "INT", "-$$", 130),
        ("before", "TERM", "$$", 143),
        ("after", "HUP", "-$$", 129),
        ("before", "INT INT", "$$", 130),
    ],
)
def test_interrupted_at_any_call_of_az_it_leaves_nothing_and_a_second_run_succeeds(
    when: str, signals: str, target: str, exit_code: int, folder: Path, environment: dict[str, str]
) -> None:
    assert interrupt(folder, environment, 0, "", "", "$$").returncode == 0
    whole_flow = commands(environment)
    for call in range(1, len(whole_flow) + 1):
        result = interrupt(folder, environment, call, when, signals, target)
        done, expected = commands(environment), expected_clean_up(whole_flow, call)
        undone = [line for line in done if " cancel " in line or " delete " in line]
        if call == len(whole_flow):
            undone = undone[-1:]  # the flow's own deletion is repeated
        assert (result.returncode, undone) == (exit_code, expected), (call, result.stderr)
        assert done[len(done) - len(expected) :] == expected
        assert not list(folder.glob("*.part"))
    result = interrupt(folder, environment, 0, "", "", "$$")
    assert (result.returncode, result.stdout.count("\n3 rows\n")) == (0, 2)


def test_a_second_ctrl_c_does_not_stop_the_deletion(folder: Path, environment: dict[str, str]) -> None:
    interrupt(folder, environment, 0, "", "", "$$", AZ_DEPLOYMENT="7")
    deletion = len(commands(environment))
    result = interrupt(folder, environment, deletion, "before", "INT TERM HUP", "-$$", AZ_DEPLOYMENT="7")
    assert result.returncode == 7
    assert commands(environment)[-1] == "ml batch-endpoint delete --name my-endpoint --yes"


def test_what_could_not_be_cancelled_or_deleted_is_told(
    folder: Path, programs: Path, environment: dict[str, str]
) -> None:
    (programs / "sleep").unlink()
    write_program(programs, "sleep", "#!/usr/bin/env bash\n")
    interrupt(folder, environment, 0, "", "", "$$")
    invoke = commands(environment).index(commands(environment, "ml batch-endpoint invoke")[0]) + 1
    result = interrupt(folder, environment, invoke, "after", "TERM", "$$", AZ_CANCEL="1", AZ_DELETE="1")
    assert result.returncode == 143
    assert len(commands(environment, "ml batch-endpoint delete")) == 3
    for command in ("ml job cancel --name job-1", "ml batch-endpoint delete --name my-endpoint --yes"):
        assert f"\n\nhint: az {command}\n" in result.stderr


def test_a_closed_terminal_does_not_stop_the_deletion(folder: Path, environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run(
        ["bash", "./deploy-and-run.sh", "my-endpoint"],
        cwd=folder,
        env=environment | {"AZ_DEPLOYMENT": "7"},
        stdout=subprocess.DEVNULL,
        stderr=writer,
        timeout=300,
    )
    os.close(writer)
    assert commands(environment)[-1] == "ml batch-endpoint delete --name my-endpoint --yes"
