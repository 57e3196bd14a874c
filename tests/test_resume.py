"""`score --resume`: whatever ends a run, another goes on with it, and the results are as if nothing had."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from score_runs import (
    ROOT,
    Run,
    command,
    is_alive,
    read_notes,
    run_after,
    run_command,
    score,
    scoring,
    wait_until,
    write_deployment,
)

# Rows of many lengths, mini-batches that raise, and files without a row; by name alone, so always the same.
# TOGETHER is how many workers must have begun before a mini-batch is done.
SCRIPT = """
import zlib

def init():
    note(f"worker {os.getpid()}")

def run(mini_batch):
    number = int(name(mini_batch)[:4])
    time.sleep(float(os.environ.get("SECONDS", "0")))
    if number % 9 == 0:
        raise ValueError(f"no good: {number}")
    if number % 4 == 0:
        logging.warning("%s: left out", mini_batch[0])
        mini_batch = mini_batch[1:]
    return [os.path.basename(path) + " " + "x" * (zlib.crc32(path.encode()) % 999) for path in mini_batch]
"""
NAMES = [f"{number:04} \u00fc.jpg" for number in range(900)]  # 300 mini-batches
SETTINGS = {"mini_batch_size": 3, "instance_count": 2}


def results(output: Path) -> tuple[bytes, bytes]:
    return (output / "score" / "predictions.csv").read_bytes(), (output / "failed.csv").read_bytes()


def undisturbed(folder: Path, script: str = SCRIPT, **settings: object) -> tuple[bytes, bytes]:
    """The results of a run that nothing has interrupted; those to be resumed have the same input."""
    output = folder / "undisturbed"
    assert score(folder, script, NAMES, ["--output", str(output)], **(SETTINGS | settings)).code == 0
    return results(output)


def resume(folder: Path, *arguments: str) -> Run:
    return run_command(folder, "--resume", *arguments)


def assert_complete(run: Run, expected: tuple[bytes, bytes]) -> None:
    assert run.code == 0, run.stderr
    assert results(run.folder / "output") == expected
    summary = run.summary
    assert summary["status"] == "Completed"
    assert summary["processed"] == summary["mini_batches"] == len(run.processed) == len(NAMES) / 3
    assert (summary["files"], summary["not_scored"]) == (len(NAMES), 0)
    assert summary["rows"] == summary["succeeded"] == expected[0].count(b"\n")
    assert summary["failed"] == len(run.failed) == expected[1].count(b"\r\n") - 1
    assert [row["mini_batch"] for row in run.processed] == [str(number) for number in range(300)]
    assert [path.name for path in (run.folder / "output" / ".job").iterdir()] == ["run.json"]


# --- killed at any moment


def kill_and_resume(folder: Path, chance: random.Random, kills: int) -> int:
    """Starts the job, kills the executor after a random time, and so on; returns how often it was alive."""
    for kill in range(kills):
        with subprocess.Popen(
            [*command(folder), "--resume"],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder / "temporary")},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as job:
            try:
                job.wait(chance.uniform(0.05, 1.2))
                return kill
            except subprocess.TimeoutExpired:
                job.kill()
        wait_until(lambda: not any(is_alive(int(line.split()[1])) for line in read_notes(folder)))
    return kills


def test_an_executor_that_is_killed_again_and_again_loses_and_repeats_nothing(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    (tmp_path / "temporary").mkdir()
    # 300 x 0.03 s on two workers are longer than the first four times together, whatever the machine does
    write_deployment(tmp_path, SCRIPT, 0, **SETTINGS, environment_variables={"SECONDS": "0.03"})
    assert kill_and_resume(tmp_path, random.Random(6), kills=8) > 3
    assert list((tmp_path / "temporary").iterdir()) == []
    assert_complete(resume(tmp_path), expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_canceled_job_is_resumed_also_when_later_mini_batches_were_written(
    tmp_path: Path, number: signal.Signals
) -> None:
    hangs = SCRIPT.replace(
        "    time.sleep", "    note(number)\n    if number == 60: time.sleep(60)\n    time.sleep"
    )
    with scoring(tmp_path, hangs, NAMES, **SETTINGS) as job:
        wait_until(lambda: "240" in read_notes(tmp_path))
        job.send_signal(number)
        assert job.wait(120) == 130
    canceled = Run(130, tmp_path, "", "")
    assert canceled.summary["status"] == "Canceled"
    assert [row["mini_batch"] for row in canceled.processed][19:21] == ["19", "21"], "there is a gap"
    expected = undisturbed(tmp_path)
    assert_complete(resume(tmp_path), expected)


def test_a_job_that_failed_is_resumed_with_another_threshold_and_other_workers(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    failed = score(tmp_path, SCRIPT, 0, error_threshold=40, **SETTINGS)
    assert failed.code == 1
    assert 40 < failed.summary["failed"] <= 40 + 3
    assert "--resume goes on where this run stopped" in failed.stderr
    again = resume(tmp_path)
    assert again.code == 1
    assert 40 < again.summary["failed"] <= 40 + 3, "as many as before"
    changes = ("settings.error_threshold=-1", "settings.instance_count=3", "settings.logging_level=debug")
    run = resume(tmp_path, *(part for change in changes for part in ("--set", change)))
    assert_complete(run, expected)
    assert not (tmp_path / "output" / "logs" / "job_error.txt").exists()


# --- what the disk has lost, or never had room for


JOURNAL = "logs/sys/job_report/processed_mini-batches.csv"
CUTS = [(JOURNAL, -7), (JOURNAL, 40), (JOURNAL, 0), ("score/predictions.csv", -500), ("failed.csv", 99)]


def test_what_the_journal_promises_and_the_disk_has_not_is_scored_again(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    score(tmp_path, SCRIPT, 0, error_threshold=100, **SETTINGS)
    (tmp_path / "output").rename(tmp_path / "stopped")
    for name, length in CUTS:
        shutil.copytree(tmp_path / "stopped", tmp_path / "output")
        path = tmp_path / "output" / name
        os.truncate(path, length if length >= 0 else path.stat().st_size + length)
        assert_complete(score(tmp_path, SCRIPT, 0, ["--resume"], **SETTINGS), expected)
        shutil.rmtree(tmp_path / "output")


def test_what_was_written_of_a_mini_batch_that_does_not_count_is_cut_off(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    score(tmp_path, SCRIPT, 0, error_threshold=100, **SETTINGS)
    for name in ("score/predictions.csv", "failed.csv", JOURNAL):
        with (tmp_path / "output" / name).open("ab") as file:
            file.write(b"\0\xff half a line")
    assert_complete(score(tmp_path, SCRIPT, 0, ["--resume"], **SETTINGS), expected)


def run_with_room(folder: Path, most: int, *arguments: str) -> Run:
    """The command line where no file can become longer than `most` bytes, as on a full disk."""
    return run_after(f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))", folder, *arguments)


def test_a_full_disk_fails_the_job_which_keeps_whole_rows_and_can_be_resumed(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    write_deployment(tmp_path, SCRIPT, 0, **SETTINGS)
    full = []
    for most in (200_000, 220_001, 240_777):  # the listing has to fit
        run = run_with_room(tmp_path, most, "--resume")
        assert run.code == 1
        assert "Traceback" not in run.stderr
        assert "\nerror: the job failed: " in run.stderr
        assert "File too large\n\nhint: " in run.stderr
        rows, failed = results(tmp_path / "output")
        assert set(rows.splitlines()) <= set(expected[0].splitlines()), "whole ones"
        assert set(failed.splitlines()) <= set(expected[1].splitlines())
        assert run.summary["rows"] == rows.count(b"\n")
        assert run.summary["failed"] == failed.count(b"\r\n") - 1
        full.append(len(rows))
    assert 0 < full[0] < full[2]
    assert_complete(resume(tmp_path), expected)


def test_no_room_for_the_listing_is_an_error_and_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    write_deployment(tmp_path, SCRIPT, 0, **SETTINGS)
    run = run_with_room(tmp_path, 5_000)
    assert run.code == 2
    # Coverage has no room either, and prints a traceback of its own.
    assert "/local_workspace/" not in run.stderr
    assert "\nerror: " in run.stderr
    assert "File too large\n\nhint: " in run.stderr
    assert_complete(run_command(tmp_path), expected)


# --- what can be resumed, and what cannot


def test_without_an_earlier_run_it_starts_from_the_beginning(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path)
    write_deployment(tmp_path, SCRIPT, 0, **SETTINGS)
    assert_complete(resume(tmp_path), expected)


def test_a_completed_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = score(tmp_path, SCRIPT, NAMES, **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "output").rglob("*")}
    again = resume(tmp_path)
    assert again.code == 0
    assert "output: completed already, nothing is left to resume\n" in again.stderr
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "output").rglob("*")} == before


def test_a_run_whose_summary_alone_is_missing_only_writes_that(tmp_path: Path) -> None:
    score(tmp_path, SCRIPT, NAMES, **SETTINGS)
    started = len(read_notes(tmp_path))
    expected = results(tmp_path / "output")
    (tmp_path / "output" / "summary.json").unlink()
    assert_complete(resume(tmp_path), expected)
    assert len(read_notes(tmp_path)) == started, "no worker was needed"


DIFFERENCES = [
    (["--set", "settings.mini_batch_size=4"], "settings.mini_batch_size is 4, and was 3"),
    (["--set", "settings.output_file_name=b.csv"], "_name is 'b.csv', and was 'predictions.csv'"),
    (["--set", "name=other"], "name is 'other', and was 'classifier'"),
    (["--data", "{}/model"], "the data is '{}/model', and was '{}/data'"),
    (["--model", "{}/data"], "the model is '{}/data', and was '{}/model'"),
    (
        ["--set", "settings.environment_variables.KEY=secret"],
        "_variables.KEY is another text, and was not set",
    ),
]


@pytest.mark.parametrize("threshold", [0, -1], ids=["failed", "completed"])
def test_another_deployment_model_or_data_is_refused_and_the_difference_named(
    tmp_path: Path, threshold: int
) -> None:
    score(tmp_path, SCRIPT, NAMES, error_threshold=threshold, **SETTINGS)
    before = results(tmp_path / "output")
    for arguments, difference in DIFFERENCES:
        changes = [argument.format(tmp_path) for argument in arguments]
        run = score(tmp_path, SCRIPT, 0, ["--resume", *changes], **SETTINGS)
        assert run.code == 2
        assert f"error: {tmp_path}/output: cannot be resumed: " in run.stderr
        assert f"{difference.format(tmp_path, tmp_path)}\n\nhint: " in run.stderr
        assert "secret" not in run.stderr
        assert results(tmp_path / "output") == before


def test_results_without_their_listing_are_not_resumed_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "output" / "score").mkdir(parents=True)
    (tmp_path / "output" / "score" / "predictions.csv").write_text("of an older version")
    run = score(tmp_path, SCRIPT, 3, ["--resume"])
    assert run.code == 2
    assert "predictions.csv: exists already\n\nhint: " in run.stderr
    assert run.predictions == b"of an older version"


def test_a_folder_that_another_run_writes_to_is_refused(tmp_path: Path) -> None:
    score(tmp_path, SCRIPT, NAMES, error_threshold=0, **SETTINGS)
    before = results(tmp_path / "output")
    folder = os.open(tmp_path / "output", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for way in ("--resume", "--overwrite"):
            run = run_command(tmp_path, way)
            assert run.code == 2
            assert f"error: {tmp_path}/output: another run is writing to it\n\nhint: " in run.stderr
    finally:
        os.close(folder)
    assert results(tmp_path / "output") == before


def test_files_that_are_gone_have_failed_and_new_ones_are_not_looked_for(tmp_path: Path) -> None:
    script = "def run(mini_batch):\n    open(mini_batch[0]).close()\n    return [name(mini_batch)]"
    stops = script.replace("return", "assert name(mini_batch) < '3'; return")
    stopped = score(tmp_path, stops, ["1.jpg", "2.jpg", "3.jpg", "4.jpg"], error_threshold=0)
    assert stopped.rows == ["1.jpg", "2.jpg"]
    (tmp_path / "data" / "4.jpg").unlink()
    (tmp_path / "data" / "0.jpg").touch()
    run = score(tmp_path, script, [], ["--resume"])
    assert "FileNotFoundError" in run.failed.pop("4.jpg")
    assert run.rows == ["1.jpg", "2.jpg"]


def test_a_job_that_keeps_no_rows_is_resumed_too(tmp_path: Path) -> None:
    script = SCRIPT.replace("time.sleep", "note(number); time.sleep")
    settings = {**SETTINGS, "output_action": "summary_only"}
    stopped = score(tmp_path, script, NAMES, error_threshold=100, **settings)
    kept = {row["mini_batch"] for row in stopped.processed}
    done = next(number for number in range(300) if str(number) not in kept)
    assert 0 < done < 300
    begun = len(stopped.notes)
    run = score(tmp_path, script, NAMES, ["--resume"], **settings)
    assert run.code == 0
    assert list((tmp_path / "output" / "score").iterdir()) == []
    assert run.summary["succeeded"] == run.summary["rows"] == 900 - run.summary["failed"]
    numbers = sorted(int(line) for line in run.notes[begun:] if line.isdigit())
    assert numbers == list(range(3 * done, 900, 3)), "what is in the journal without a gap is not done again"


def test_the_run_keeps_its_id(tmp_path: Path) -> None:
    script = "def run(mini_batch): return [os.environ['AZUREML_RUN_ID']] if name(mini_batch) < '2' else []"
    score(tmp_path, script, 4, error_threshold=0)
    run = score(tmp_path, script.replace("< '2'", "< '99'"), 4, ["--resume"])
    assert len(run.rows) == 3, "and the failed file, which is not tried again"
    assert set(run.rows) == {json.loads((tmp_path / "output" / ".job" / "run.json").read_text())["run_id"]}
