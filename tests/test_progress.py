"""progress.json, for programs that watch a job, and the cause in summary.json."""

import fcntl
import json
import os
from datetime import datetime
from pathlib import Path

import pytest
from score_runs import score

from local_workspace import progress
from local_workspace.journal import Counts

ROWS = "def run(mini_batch): return mini_batch"
KEYS = {
    *("files", "mini_batches", "workers", "processed_mini_batches", "scored", "failed", "rows"),
    *("started", "updated", "ended"),
}


def read_progress(folder: Path) -> dict:
    return json.loads((folder / "output" / "progress.json").read_text())


def counts_in(found: dict) -> list[int]:
    return [
        found[key] for key in ("files", "mini_batches", "processed_mini_batches", "scored", "failed", "rows")
    ]


def test_progress_is_told_while_the_job_runs_and_at_its_end(tmp_path: Path) -> None:
    script = """
import json

def progress():
    with open("../output/progress.json") as file:
        return json.load(file)

def run(mini_batch):
    if name(mini_batch) == "4.jpg":
        wait_until(lambda: progress()["processed_mini_batches"] == 2)
        note(json.dumps(progress()))
    return mini_batch if name(mini_batch) != "2.jpg" else mini_batch * 3 + ["more"]
"""
    run = score(tmp_path, script, 5, mini_batch_size=2)
    during, after = json.loads(run.notes[0]), read_progress(tmp_path)
    assert during.keys() == after.keys() == KEYS
    assert counts_in(during) == [5, 3, 2, 4, 0, 9]
    assert counts_in(after) == [5, 3, 3, 5, 0, 10]
    assert during["ended"] is None
    assert during["workers"] == after["workers"] == 1
    moments = [during["started"], during["updated"], after["updated"], after["ended"]]
    times = [datetime.fromisoformat(moment.replace("Z", "+00:00")) for moment in moments]
    assert times == sorted(times)
    assert all(moment.endswith("Z") for moment in moments)
    assert not list((tmp_path / "output").glob(".progress*"))


def test_a_job_that_fails_ends_its_progress_and_one_that_is_resumed_counts_all_files(tmp_path: Path) -> None:
    script = "def run(mini_batch): return mini_batch if name(mini_batch) < '2.jpg' else []"
    score(tmp_path, script, 4, error_threshold=0)
    failed = read_progress(tmp_path)
    assert counts_in(failed) == [4, 4, 3, 2, 1, 2]
    assert failed["ended"]
    score(tmp_path, script, 4, ["--resume"])
    resumed = read_progress(tmp_path)
    assert counts_in(resumed) == [4, 4, 4, 2, 2, 2]
    assert resumed["started"] >= failed["ended"]


def test_a_job_does_without_progress_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "output" / "progress.json").mkdir(parents=True)
    run = score(tmp_path, ROWS, 3)
    assert (run.code, len(run.rows)) == (0, 3)
    assert list((tmp_path / "output" / "progress.json").iterdir()) == []
    assert not (tmp_path / "output" / ".progress.json.part").exists()


def test_progress_is_written_a_few_times_a_second_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: moment)
    replaced = []
    monkeypatch.setattr(progress.os, "replace", lambda part, path: replaced.append(path))
    news = progress.ProgressFile(tmp_path, 1, Counts(9, 9))
    for number in range(1000):
        moment = number / 500  # two seconds
        news.update(Counts(9, 9))
    news.end(Counts(9, 9))
    assert len(replaced) <= 1 + 2 * 4 + 1


# --- the cause


def test_a_completed_job_has_no_cause(tmp_path: Path) -> None:
    run = score(tmp_path, ROWS, 1)
    assert run.summary["cause"] is None
    assert "cause: \n" in (tmp_path / "output" / "logs" / "job_result.txt").read_text()
    assert not (tmp_path / "output" / "logs" / "job_error.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--data", "{}/nowhere"], "{}/nowhere: no such folder, expected the files to score"),
        (["--model", "{}/nowhere"], "{}/nowhere: no such model, expected a folder or a file"),
        (
            ["--set", "settings.timeout=5"],
            "{}/deployment.yml: unknown key settings.timeout, expected",
        ),
        (["--truth", "{}/nowhere"], "{}/nowhere: no such file, expected a CSV or `wordnet`"),
    ],
)
def test_bad_input_is_the_cause_where_there_is_an_output_folder(
    tmp_path: Path, arguments: list[str], cause: str
) -> None:
    (tmp_path / "output").mkdir()
    complete = score(tmp_path, ROWS, 1, ["--output", str(tmp_path / "other")])
    keys = json.loads((tmp_path / "other" / "summary.json").read_text()).keys()
    for _ in range(2):
        run = score(tmp_path, ROWS, 1, [argument.format(tmp_path) for argument in arguments])
        assert (complete.code, run.code) == (0, 2)
        assert run.summary["status"] == "Failed"
        assert run.summary["cause"].startswith(cause.format(tmp_path))
        assert run.summary.keys() == keys
        assert (run.summary["files"], run.summary["images_a_second"]) == (0, 0)
    assert score(tmp_path, ROWS, 1).code == 0, "it is no result that has to be overwritten"


def test_bad_input_changes_no_summary_and_no_folder_of_another_run(tmp_path: Path) -> None:
    first = score(tmp_path, ROWS, 1).summary
    assert score(tmp_path, ROWS, 1, ["--overwrite", "--data", str(tmp_path / "nowhere")]).summary == first
    (tmp_path / "output" / "summary.json").unlink()
    folder = os.open(tmp_path / "output", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert score(tmp_path, ROWS, 1, ["--resume"]).code == 2
    finally:
        os.close(folder)
    assert not (tmp_path / "output" / "summary.json").exists()
