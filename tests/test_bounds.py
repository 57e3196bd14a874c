"""What a scoring script says has a bound wherever it is kept, and what was cut is said."""

import csv
import re
from pathlib import Path

import pytest
from score_runs import score

from local_workspace import job_logs
from local_workspace.reasons import LONGEST_REASON, cut

MEGABYTE = 1 << 20
CUT = re.compile(r"x \.\.\. \(1,04[78],\d\d\d characters cut here\) \.\.\. x")


@pytest.mark.parametrize(
    "run", ["raise ValueError('x' * (1 << 20))", "logging.error('%s: ' + 'x' * (1 << 20), mini_batch[0])"]
)
def test_a_reason_of_a_megabyte_is_cut_in_all_that_is_kept(tmp_path: Path, run: str) -> None:
    script = f"def run(mini_batch):\n    {run}\n    return []"
    run = score(tmp_path, script, 8)
    assert run.code == 1
    with (tmp_path / "output" / "failed.csv").open(newline="") as lines:
        reasons = [row["reason"] for row in csv.DictReader(lines)]  # which refuses fields over 131,072
    assert len(reasons) == 8
    assert all(CUT.search(reason) and len(reason) < LONGEST_REASON + 100 for reason in reasons)
    assert CUT.search(run.summary["cause"])
    assert len(run.stderr) < 10_000
    kept = [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    printed = {path for path in kept if path.parent.parent.name in ("stderr", "entry_script_log")}
    assert sum(path.stat().st_size for path in {*kept} - printed) < MEGABYTE / 2


def test_a_log_that_grows_without_end_is_shortened_also_the_errors_and_the_overview(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_logs, "LONGEST_LOG", 100_000)
    script = """
def run(mini_batch):
    time.sleep(0.01)
    raise ValueError("x" * 2000)
"""
    score(tmp_path, script, 150)
    logs = tmp_path / "output" / "logs"
    (overview,) = logs.glob("job_progress_overview.*")
    for log in (overview, logs / "user" / "error" / "instance0" / "process000.error.txt"):
        text = log.read_bytes()
        assert job_logs.SHORTENED in text
        assert len(text) < 150_000, "and not 150 or 400 kB"


def test_a_text_that_is_short_enough_is_kept_as_it_is() -> None:
    assert cut("x" * LONGEST_REASON) == "x" * LONGEST_REASON
    assert cut("x" * 1001) == "x" * 500 + " ... (1 characters cut here) ... " + "x" * 500
    assert cut("abcdef", 4) == "ab ... (2 characters cut here) ... ef"


def test_an_error_that_cannot_be_printed_is_a_failed_attempt(tmp_path: Path) -> None:
    script = """
class Odd(Exception):
    def __str__(self):
        raise RuntimeError

def run(mini_batch):
    raise Odd
"""
    run = score(tmp_path, script, 1)
    assert run.failed == {"0.jpg": "run() raised Odd: (the error cannot be printed)"}
