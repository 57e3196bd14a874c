"""Whatever is wrong with the input or the output, each file ends as a row or as a failure with a reason."""

import errno
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from score_runs import (
    UNPRIVILEGED,
    run_after,
    run_command,
    score,
    write_deployment,
)

from local_workspace import listing

NAMES = [f"{number:03}.jpg" for number in range(600)]
BATCH = 2


# Leaves out what it cannot read, as the scripts of this repository do.
READS = """
def run(mini_batch):
    rows = []
    for path in mini_batch:
        try:
            open(path).close()
        except OSError as error:
            logging.warning("%s: left out: %s", path, error)
        else:
            rows.append(os.path.basename(path))
    return rows
"""


def test_a_file_that_may_not_be_read_has_failed_and_a_folder_is_an_error(tmp_path: Path) -> None:
    write_deployment(tmp_path, READS, NAMES, mini_batch_size=BATCH)
    for name in NAMES[::7]:
        (tmp_path / "data" / name).chmod(0)
    run = run_after(UNPRIVILEGED, tmp_path)
    assert list(run.failed) == NAMES[::7]
    assert all("Permission denied" in reason for reason in run.failed.values())
    assert run.rows == [name for name in NAMES if name not in run.failed]
    (tmp_path / "data" / "closed").mkdir(mode=0)
    closed = run_after(UNPRIVILEGED, tmp_path, "--overwrite")
    assert (closed.code, closed.summary) == (2, run.summary), "the earlier results stay"
    assert "data/closed: cannot be read: Permission denied\n" in closed.stderr


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [("", ["--output", "{}/new"]), ("output", []), ("output/score", []), ("output/failed.csv", ["--resume"])],
)
def test_an_output_that_cannot_be_written_is_an_error(
    tmp_path: Path, closed: str, arguments: list[str]
) -> None:
    write_deployment(tmp_path, "def run(mini_batch): return mini_batch", 3)
    (tmp_path / "output" / "score").mkdir(parents=True)
    if "--resume" in arguments:
        score(tmp_path, "def run(mini_batch): return mini_batch[1:]", 3, error_threshold=0)
    (tmp_path / closed).chmod(0o555)
    run = run_after(UNPRIVILEGED, tmp_path, *(argument.format(tmp_path) for argument in arguments))
    (tmp_path / closed).chmod(0o755)
    assert run.code == 2
    assert "\nerror: " in run.stderr
    assert ": cannot be written: [Errno 13] Permission denied: " in run.stderr
    assert run.stderr.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in run.stderr


def test_a_folder_that_changes_while_it_is_scored_gives_the_files_it_had(tmp_path: Path) -> None:
    changes = """
    if mini_batch[0].endswith("/000.jpg"):
        for number in range(300, 600):
            path = f"{os.path.dirname(mini_batch[0])}/{number}.jpg"
            os.rename(path, path.replace("/data/", "/data/new "))
            if number % 3 == 0:
                os.mkdir(path)
            if number % 3 == 1:
                os.symlink(path, path)
"""
    script = READS.replace("    rows = []\n", changes + "    rows = []\n")
    write_deployment(tmp_path, script, NAMES, mini_batch_size=BATCH)
    run = run_command(tmp_path)
    assert run.rows == NAMES[:300]
    assert list(run.failed) == NAMES[300:]
    found = [run.failed[name].rpartition("[Errno ")[2].partition(":")[0] for name in NAMES[300:303]]
    assert found == [
        "21] Is a directory",
        f"{errno.ELOOP}] {os.strerror(errno.ELOOP)}",
        "2] No such file or directory",
    ]


def test_a_folder_that_changes_while_it_is_listed_gives_each_file_that_stays_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(2000):
        (data / str(number % 20)).mkdir(parents=True, exist_ok=True)
        (data / str(number % 20) / f"{number}.jpg").touch()
    staying = {str(path) for path in data.rglob("*.jpg")}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for number in range(50):
                (data / f"passing {number}" / "within").mkdir(parents=True)
                (data / f"passing {number}" / "within" / "passing").touch()
            for number in range(50):
                shutil.rmtree(data / f"passing {number}")

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(20):
            with (tmp_path / "listing").open("w+", encoding="ascii") as lines:
                count, _ = listing.list_input_files(data, lines)
                lines.seek(0)
                found = [json.loads(line) for line in lines]
            assert len(found) == len(set(found)) == count
            assert {path for path in found if path.endswith(".jpg")} == staying
    finally:
        stop.set()
        changing.join()


def test_pipes_devices_and_loops_are_never_opened(tmp_path: Path) -> None:
    write_deployment(tmp_path, READS, 2)
    data = tmp_path / "data"
    os.mkfifo(data / "pipe")
    for name, target in {
        "pipe.jpg": "pipe",
        "zero.jpg": "/dev/zero",
        "loop": ".",
        "loop.jpg": "loop.jpg",
    }.items():
        (data / name).symlink_to(target)
    run = run_command(tmp_path)
    assert (run.code, run.rows) == (0, ["0.jpg", "1.jpg"])
    assert run.stderr.count(": not a file, left out\n") == 5


FRAME = """
import pandas

def run(mini_batch):
    return pandas.DataFrame({"file": map(os.path.basename, mini_batch), "class": 7, "probability": 0.5})
"""
ODD_NAMES = [
    *("-n.jpg", "--data", " lead and trail ", 'say "hi".jpg', '"', "it's.jpg", "two\nlines.jpg", "a\rreturn"),
    *("both\r\n.jpg", "tab\t.jpg", "back\\slash.jpg", "comma, dot.jpg", "#.jpg", "%d %s.jpg", "\u2028.jpg"),
    *("\x0c\x1b\x7f.jpg", "\u00fc\U0001f600.jpg", "n" * 251 + ".jpg", "\u00fc" * 125 + ".jpg"),
]


def test_any_name_in_unicode_comes_back_when_the_rows_are_read_as_the_article_does(tmp_path: Path) -> None:
    folder = tmp_path / "data" / ("d" * 200)  # every path is longer than 300 characters
    folder.mkdir(parents=True)
    for name in ODD_NAMES:
        (folder / name).touch()
    run = score(tmp_path, FRAME, 0, mini_batch_size=5)
    columns = ["file", "class", "probability"]
    path = tmp_path / "output" / "score" / "predictions.csv"
    predictions = pd.read_csv(path, header=None, names=columns, sep=" ")
    assert list(predictions["file"]) == sorted(ODD_NAMES)
    assert set(predictions["class"]) == {7}
    assert run.summary["rows"] == len(ODD_NAMES)


@pytest.mark.parametrize(
    "names",
    [
        ["0001", "0002", "1e5"],
        ["NA", "None", "nan", "null", "x"],
        ["0x10", "True", "False", "-inf", "1_000", "2026-01-01"],
        ["a", "\ufeffb", "\ufeff"],
    ],
)
def test_a_name_that_pandas_takes_for_something_else_comes_back_when_it_is_read_as_text(
    tmp_path: Path, names: list[str]
) -> None:
    score(tmp_path, FRAME, names, mini_batch_size=9)
    predictions = pd.read_csv(
        tmp_path / "output" / "score" / "predictions.csv",
        header=None,
        names=["file", "class", "probability"],
        sep=" ",
        dtype={"file": str},
        keep_default_na=False,
    )
    assert list(predictions["file"]) == sorted(names)
    assert list(predictions["class"]) == [7] * len(names)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no names that are not UTF-8")
def test_a_name_that_is_not_unicode_comes_back_as_its_bytes(tmp_path: Path) -> None:
    names = [b"r\xe9sum\xe9.jpg", b"\xff \n", b"\xc3"]
    run = score(tmp_path, FRAME, map(os.fsdecode, names), mini_batch_size=5)
    columns = ["file", "class", "probability"]
    predictions = pd.read_csv(
        run.folder / "output" / "score" / "predictions.csv",
        header=None,
        names=columns,
        sep=" ",
        encoding_errors="surrogateescape",
    )
    assert sorted(map(os.fsencode, predictions["file"])) == sorted(names)
