"""Rows and failed files are counted by what is written, where that tells it, and else as Azure does."""

from collections import deque
from pathlib import Path

import pandas as pd
import pytest
from score_runs import score

from local_workspace import reasons, worker

NAMES_IN_ORDER = [f"{number}.jpg" for number in range(8)]


@pytest.mark.parametrize(
    ("returned", "rows", "failed"),
    [
        ("['0.jpg 7'] * 50", 50, 7),  # for one file
        ("[name(mini_batch)] * 8", 8, 7),
        ("[(name(mini_batch), 'two\\nlines'), *[os.path.basename(path) for path in mini_batch[1:]]]", 8, 0),
        ("['two\\nlines'] * 8", 16, 0),
        ("Endless(mini_batch)", 8, 0),
        ("Endless(mini_batch[:5])", 5, 3),
        ("pandas.DataFrame({'file': ['0.jpg'] * 50, 'class': 7})", 50, 7),
        ("pandas.DataFrame({'file': ['two\\nlines'] * 3, 'class': 7})", 3, 5),
        ("pandas.DataFrame({'class': range(8)})", 8, 0),
        ("numpy.zeros((8, 2))", 8, 0),
        ("numpy.zeros((9, 2))", 9, 0),
        ("[os.path.basename(path) for path in mini_batch] * 2", 16, 0),
    ],
)
@pytest.mark.parametrize("action", ["append_row", "summary_only"])
def test_what_was_really_written_is_what_is_said(
    tmp_path: Path, action: str, returned: str, rows: int, failed: int
) -> None:
    script = f"""
import numpy, pandas

class Endless(list):
    def __len__(self):
        return 10**9

def run(mini_batch):
    return {returned}
"""
    run = score(tmp_path, script, NAMES_IN_ORDER, mini_batch_size=8, output_action=action)
    summary = run.summary
    assert (summary["succeeded"], summary["failed"]) == (8 - failed, failed)
    assert len(run.failed) == (1 if "one of 0.jpg ... 7.jpg" in run.failed else failed)
    if action == "append_row":
        assert summary["rows"] == rows
        if "DataFrame" not in returned:  # there a line may be a part of a row
            assert summary["rows"] == run.predictions.count(b"\n")


def test_files_of_one_name_in_several_folders_are_counted(tmp_path: Path) -> None:
    for folder in "abc":
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "image.jpg").touch()
    all_named = score(tmp_path, "def run(mini_batch): return ['image.jpg'] * 3", 0, mini_batch_size=3)
    assert all_named.summary["succeeded"] == 3
    fewer = "def run(mini_batch): return ['image.jpg'] * 2"
    run = score(tmp_path, fewer, 0, ["--overwrite"], mini_batch_size=3)
    assert run.failed == {"one of image.jpg ... image.jpg": reasons.NOT_NAMED}
    by_path = "def run(mini_batch): logging.error('%s: bad', mini_batch[1]); return mini_batch[::2]"
    run = score(tmp_path, by_path, 0, ["--overwrite"], mini_batch_size=3)
    path = tmp_path / "data" / "b" / "image.jpg"
    assert run.failed == {"image.jpg": f"{path}: bad"}


def explain(paths: list[str], result: object, messages: list[str]) -> list[tuple[str, str]]:
    """As the worker does."""
    found = worker.describe(
        result, paths, True, lambda *rows: reasons.failed_files(paths, *rows, deque(messages))
    )
    return found["failed"]


@pytest.mark.parametrize(
    "result",
    [
        ["/data/a.jpg 7 0.5"],
        ["a.jpg"],
        [["a.jpg", 7]],
        [{"file": "a.jpg"}],
        [(Path("/data/a.jpg"), 7)],
        pd.DataFrame({"class": [7], "file": ["a.jpg"]}),
        pd.DataFrame({"file": pd.Series(["a.jpg"], dtype="string")}),
        pd.DataFrame({"file": pd.Categorical(["a.jpg"])}),
        pd.DataFrame({"file": ["a.jpg"]}).to_numpy(),
        pd.DataFrame({"file": ["a.jpg"]}).to_numpy(dtype=str),
    ],
)
def test_a_row_names_its_file_by_name_or_path_in_any_kind_of_result(result: object) -> None:
    missing = explain(["/data/a.jpg", "/data/b.jpg"], result, ["b.jpg: broken"])
    assert missing == [("/data/b.jpg", "b.jpg: broken")]


@pytest.mark.parametrize(
    ("rows", "failed"),
    [
        (["a b.jpg 3"], "/data/b.jpg"),
        (["b.jpg 3"], "/data/a b.jpg"),
        (["7: /data/a b.jpg"], "/data/b.jpg"),
        ([("a b.jpg", 3)], "/data/b.jpg"),
        (["xa b.jpg 3"], "/data/a b.jpg"),
        (["a b.jpgs b.jpg"], "/data/a b.jpg"),
    ],
)
def test_a_row_is_about_the_longest_name_in_it(rows: list, failed: str) -> None:
    found = explain(["/data/a b.jpg", "/data/b.jpg"], rows, [])
    assert found == [(failed, reasons.NO_ROW)]


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ("11.jpg: broken", "11.jpg"),
        ("'1.jpg' is broken", "1.jpg"),
        ("broken:1.jpg", "1.jpg"),
        ("/data/[1.jpg: broken", "[1.jpg"),
        ("/data/1.jpg", "1.jpg"),
        ("\u6587\u4ef61.jpg\u574f", "1.jpg"),
        ("2.jpg", None),
    ],
)
def test_a_message_is_about_the_longest_name_in_it(message: str, about: str | None) -> None:
    paths = ["/data/1.jpg", "/data/11.jpg", "/data/[1.jpg"]
    found = dict(explain(paths, [], [message]))
    assert found == {path: message if path == f"/data/{about}" else reasons.NO_ROW for path in paths}
