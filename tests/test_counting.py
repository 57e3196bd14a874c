"""What becomes of the rows: their bytes, what is counted, and how much memory it takes."""

import json
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest
from score_runs import score

from local_workspace import executor
from local_workspace.deployment import Deployment
from local_workspace.executor import Executor
from local_workspace.instance import Job
from local_workspace.job_logs import JobLogs
from local_workspace.journal import Counts, Journal

# --- what run() may return


def test_each_kind_of_result_gives_its_exact_bytes(tmp_path: Path) -> None:
    script = """
import numpy, pandas

def run(mini_batch):
    return {
        "array": numpy.array([1.5, 2]),
        "columns": pandas.DataFrame(columns=["file"]),
        "empty": pandas.DataFrame(),
        "frame": pandas.DataFrame({
            "file": ["plain.jpg", "a b.jpg", 'say "hi".jpg', "two\\nlines.jpg", "r\\udce9sum\\udce9.jpg"],
            "class": [0, 1, 2, 3, 4],
            "probability": [0.5, 1 / 3, None, 1e-9, 1],
        }, index=list("edcba")),
        "list": ["text, with a comma", 7, 0.25, None, ("a", 1), {"b": [2]}],
        "tuple": ("a b", b"c"),
        "zero": [],
    }[name(mini_batch)]
"""
    run = score(tmp_path, script, ["array", "columns", "empty", "frame", "list", "tuple", "zero"])
    assert run.predictions == (
        b"1.5\n2.0\n"
        b'plain.jpg 0 0.5\n"a b.jpg" 1 0.3333333333333333\n"say ""hi"".jpg" 2 \n'
        b'"two\nlines.jpg" 3 1e-09\nr\xe9sum\xe9.jpg 4 1.0\n'
        b"text, with a comma\n7\n0.25\nNone\n('a', 1)\n{'b': [2]}\n"
        b"a b\nb'c'\n"
    )
    assert run.failed.keys() == {"columns", "empty", "zero"}
    columns = ["file", "class", "probability"]  # as the article reads it
    (tmp_path / "frame.csv").write_bytes(b"".join(run.predictions.splitlines(keepends=True)[2:7]))
    read = pd.read_csv(tmp_path / "frame.csv", sep=" ", names=columns)
    assert list(read["file"]) == ["plain.jpg", "a b.jpg", 'say "hi".jpg', "two\nlines.jpg"]
    assert list(read["class"]) == [0, 1, 2, 3]


def test_a_result_of_any_other_type_fails_the_mini_batch_and_is_named(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    results = {"None": None, "dict": {"a": 1}, "generator": (path for path in mini_batch), "str": "row"}
    return results.get(name(mini_batch), mini_batch)
"""
    run = score(tmp_path, script, ["None", "dict", "generator", "str", "good"])
    expected = "run() returned {}, expected a list, tuple, array or DataFrame"
    assert run.failed == {
        name: f"run() raised TypeError: {expected.format(kind)}"
        for name, kind in {"None": "NoneType", "dict": "dict", "generator": "generator", "str": "str"}.items()
    }
    assert run.rows == [str(tmp_path / "data" / "good")]


def test_a_series_is_refused_and_an_array_without_a_length_too(tmp_path: Path) -> None:
    script = """
import numpy, pandas

def run(mini_batch):
    return {"array": numpy.array(1), "good": [1], "series": pandas.Series([1])}[name(mini_batch)]
"""
    run = score(tmp_path, script, ["array", "good", "series"])
    assert "len() of unsized object" in run.failed["array"]
    assert "returned Series" in run.failed["series"]


# --- counting


def test_fewer_rows_are_failed_files_each_with_its_reason_from_the_log(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    logging.warning("%d", "a message that cannot be formatted costs nothing")
    logging.info("2.jpg: nothing to see")
    logging.warning("12.jpg: truncated")
    logging.error("2.jpg: cannot\\nbe read")
    return [(path, 1) for path in mini_batch if os.path.basename(path) in ("1.jpg", "4.jpg")]
"""
    names = ["1.jpg", "12.jpg", "2.jpg", "3.jpg", "4.jpg"]
    run = score(tmp_path, script, names, mini_batch_size=9)
    assert run.failed == {
        "12.jpg": "12.jpg: truncated",
        "2.jpg": "2.jpg: cannot\nbe read",
        "3.jpg": "no row, and nothing in the log names it",
    }
    assert [run.summary[key] for key in ("files", "succeeded", "failed", "rows")] == [5, 2, 3, 2]
    assert run.code == 0
    assert "failed files and why: " in run.stderr


def test_the_reason_is_from_the_attempt_that_counts(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    note("tried")
    logging.warning("0.jpg: try %d", len(notes()))
    assert len(notes()) > 1
    return ["1.jpg"]
"""
    run = score(tmp_path, script, 2, mini_batch_size=2, retry_settings={"max_retries": 2})
    assert run.failed == {"0.jpg": "0.jpg: try 2"}


def test_fewer_rows_that_do_not_name_their_files_are_counted_as_unknown(tmp_path: Path) -> None:
    run = score(tmp_path, "def run(mini_batch): return [0.5]", 3, mini_batch_size=3)
    assert run.failed == {"one of 0.jpg ... 2.jpg": "no row, and the rows do not name their files"}
    assert [run.summary[key] for key in ("succeeded", "failed", "rows")] == [1, 2, 1]


def test_more_rows_than_files_are_kept_and_the_files_counted_once(tmp_path: Path) -> None:
    run = score(tmp_path, "def run(mini_batch): return [1, 2, 3]", 2, mini_batch_size=2)
    assert run.rows == ["1", "2", "3"]
    assert [run.summary[key] for key in ("succeeded", "failed", "rows")] == [2, 0, 3]


def test_every_file_of_a_mini_batch_that_raised_has_failed(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    if name(mini_batch) == "0.jpg":
        raise ValueError("no\\ngood")
    return mini_batch
"""
    run = score(tmp_path, script, 4, mini_batch_size=3)
    assert run.failed == {f"{number}.jpg": "run() raised ValueError: no good" for number in range(3)}
    assert run.rows == [str(tmp_path / "data" / "3.jpg")]
    error_log = tmp_path / "output" / "logs" / "user" / "error" / "instance0" / "process000.error.txt"
    assert 'raise ValueError("no\\ngood")' in error_log.read_text()


# --- output


def test_summary_only_counts_rows_and_leaves_the_output_to_the_script(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    with open(os.path.join(os.environ["AZUREML_BI_OUTPUT_PATH"], name(mini_batch) + ".txt"), "w") as file:
        file.write("a row")
    return mini_batch[1:]
"""
    run = score(tmp_path, script, 4, mini_batch_size=2, output_action="summary_only")
    output = tmp_path / "output" / "score"
    assert sorted(path.name for path in output.iterdir()) == ["0.jpg.txt", "2.jpg.txt"]
    assert [run.summary[key] for key in ("files", "succeeded", "failed", "rows")] == [4, 2, 2, 2]
    assert run.failed.keys() == {"0.jpg", "2.jpg"}
    assert Path(run.stdout.strip()) == output


def test_rows_come_in_the_order_of_the_input_whatever_is_finished_first(tmp_path: Path) -> None:
    script = """
import random

def run(mini_batch):
    if name(mini_batch) == "0.jpg":
        wait_until(lambda: len(notes()) == 8)
    time.sleep(random.random() / 50)
    note(name(mini_batch))
    return [os.path.basename(path) for path in mini_batch]
"""
    run = score(tmp_path, script, 9, instance_count=3)
    assert run.notes[-1] == "0.jpg"
    assert run.rows == [f"{number}.jpg" for number in range(9)]
    first, _ = run.predictions, (tmp_path / "code" / "notes").unlink()
    assert score(tmp_path, script, 9, ["--overwrite"], instance_count=3).predictions == first


# --- memory


def test_a_slow_mini_batch_holds_up_the_others_once_enough_wait_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "WINDOW", 2)
    script = """
def run(mini_batch):
    if name(mini_batch) == "00":
        wait_until(lambda: len(notes()) == 4)
        time.sleep(0.5)
    note(name(mini_batch))
    return mini_batch
"""
    run = score(tmp_path, script, [f"{number:02}" for number in range(40)], instance_count=2)
    assert run.notes.index("00") <= 5, "2 for each worker, and the slow one"
    assert run.summary["rows"] == 40


def peak_memory(folder: Path, files: int) -> int:
    """The most memory, in bytes, that the executor took for a job of so many `files`."""
    folder.mkdir()
    (folder / "driver.py").write_text("def init(): pass\ndef run(mini_batch): return mini_batch")
    deployment = Deployment("classifier", folder, "driver.py", mini_batch_size=100)
    with (folder / "listing").open("w") as listing:
        listing.writelines(json.dumps(f"/data/{number:0100}.jpg") + "\n" for number in range(files))
    job = Job(deployment, "run", folder, folder / "listing", folder, folder / "logs", init_timeout=60)
    journal = folder / "logs" / "journal.csv"
    with (
        Journal(
            folder / "predictions.csv", folder / "failed.csv", journal, Counts(files, files // 100)
        ) as done,
        JobLogs(job.logs) as logs,
    ):
        tracemalloc.start()
        try:
            Executor(job, done, logs, on_progress=lambda counts: None).run()
            assert done.counts.rows == files
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    few = peak_memory(tmp_path / "few", 2_000)
    many = peak_memory(tmp_path / "many", 100_000)  # 10 MB of paths
    assert many < few + 1_000_000
