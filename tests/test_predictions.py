"""The one reader of predictions: every layout, every name of a file, and no file but a regular one."""

import csv
import io
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from local_workspace.errors import UserError
from local_workspace.predictions import Row, find_predictions, mini_batches, output_file_name, read_rows

BOM = "\ufeff"
# Names that the article's read_csv changes, and some that are only odd.
NAMES = [f"{BOM}bom.jpg", "NA", "nan", "None", "null", "", "0001", "1e5", "True", "a b.jpg", 'say "x".jpg']
NAMES += [
    "two\nlines.jpg",
    "a,b.jpg",
    " leading.jpg",
    "ü.jpg",
    "\u2028.jpg",
    os.fsdecode(b"\xff.jpg"),
    "#.jpg",
]


def scored(rows: list[tuple]) -> bytes:
    """Rows as `append_row` writes a script's DataFrame."""
    text = pd.DataFrame(rows).to_csv(sep=" ", header=False, index=False, lineterminator="\n")
    return text.encode("utf-8", "surrogateescape")


def of_mlflow(rows: list[tuple]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("most", [None, 48])
def test_the_names_of_files_come_back_as_they_were(most: int | None, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(scored([(name, 7, 0.25) for name in NAMES]))
    assert read_rows(path, most) == [Row(name, (7,), 0.25, "") for name in NAMES]
    path.write_bytes(of_mlflow([(7, 0.25, "tench, Tinca tinca", name) for name in NAMES]))
    assert read_rows(path, most) == [Row(name, (7,), 0.25, "tench, Tinca tinca") for name in NAMES]


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_one_row_is_enough_for_a_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(scored([(name, 7, 0.25)]))
    assert [row.file for row in read_rows(tmp_path / "rows")] == [name]


def test_a_row_goes_on_with_the_next_best_classes(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("a.jpg 1 0.5 2 0.25\nb.jpg 3 0.5 4 0.25\n")
    assert read_rows(tmp_path / "rows") == [Row("a.jpg", (1, 2), 0.5, ""), Row("b.jpg", (3, 4), 0.5, "")]


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_rows_has_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text(text)
    assert read_rows(tmp_path / "rows") == []


@pytest.mark.parametrize(
    "row",
    [
        "a.jpg",
        "a.jpg 1",
        "a.jpg 1 0.5 2",
        "a b.jpg 1 0.5",
        "a.jpg 1.0 0.5",
        "a.jpg -1 0.5",
        "a.jpg \u0661 0.5",
        "a.jpg 1 nan",
        "a.jpg 1 inf",
        "a.jpg 1 x",
        "a.jpg 1 0.5 x 0.5",
        "a.jpg 1 0.5 2 0.25",
        '"a.jpg 1 0.5',
        '"a"x 1 0.5',
        "1,0.5,a.jpg",
        "x,0.5,label,a.jpg",
        "1,0.5,label,more,a.jpg",
        "7,0.25,label,a.jpg",
    ],
)
def test_what_is_no_row_beside_others_is_an_error(row: str, tmp_path: Path) -> None:
    """Never the rest of the rows without it."""
    (tmp_path / "rows").write_text(f"c.jpg 1 0.5\n{row}\n")
    with pytest.raises(UserError, match="rows: not rows of file, class and probability"):
        read_rows(tmp_path / "rows")


def test_a_file_that_is_being_written_ends_at_its_last_whole_row(tmp_path: Path) -> None:
    for cut in ("b.j", "b.jpg 2 0.", '"two\nlines'):
        (tmp_path / "rows").write_text(f"a.jpg 1 0.5\n{cut}")
        assert read_rows(tmp_path / "rows", 48) == [Row("a.jpg", (1,), 0.5, "")]


# --- Parquet


def write_parquet(path: Path, files: list[str], **columns: object) -> None:
    columns = {"class": 1, "probability": 0.5} | columns
    pd.DataFrame({"file": files, **columns}).to_parquet(path, index=False)


def test_a_folder_of_parquet_is_read_in_the_order_of_the_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", ["0001", f"{BOM}b"], class_2=2)
    write_parquet(tmp_path / "2.parquet", ["NA", "a"], class_2=2)
    expected = ["0001", "NA", "a", f"{BOM}b"]
    assert read_rows(find_predictions(tmp_path)) == [Row(file, (1, 2), 0.5, "") for file in expected]
    assert [row.file for row in read_rows(tmp_path, 3)] == ["0001", f"{BOM}b", "NA"]


@pytest.mark.parametrize("columns", [{"class": "x"}, {"class": 1.5}, {"class": None}, {"probability": "x"}])
def test_parquet_of_another_form_is_an_error(columns: dict[str, object], tmp_path: Path) -> None:
    write_parquet(tmp_path / "1.parquet", ["a"], **columns)
    with pytest.raises(UserError, match=r"1\.parquet: not rows of file, class and probability"):
        read_rows(tmp_path)


def test_parquet_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "1.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"1\.parquet: not rows"):
        read_rows(tmp_path)
    (tmp_path / "1.parquet").unlink()
    pd.DataFrame({"name": ["a"]}).to_parquet(tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet: not rows"):
        read_rows(tmp_path)


# --- which file


def test_the_rows_that_the_executor_wrote_come_before_parquet(tmp_path: Path) -> None:
    """A script may leave tables of its own beside them."""
    write_parquet(tmp_path / "embeddings.parquet", ["a"])
    assert find_predictions(tmp_path) == tmp_path
    (tmp_path / "rows.txt").touch()
    assert find_predictions(tmp_path, "rows.txt") == tmp_path / "rows.txt"


def test_a_file_of_another_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").touch()
    assert find_predictions(tmp_path) == tmp_path / "rows.txt"
    (tmp_path / "more.txt").touch()
    with pytest.raises(
        UserError, match=r"2 files, expected predictions.csv or one file: 'more.txt', 'rows.txt'"
    ):
        find_predictions(tmp_path)
    assert find_predictions(tmp_path, "more.txt") == tmp_path / "more.txt"
    (tmp_path / "predictions.csv").touch()
    assert find_predictions(tmp_path) == tmp_path / "predictions.csv"


@pytest.mark.parametrize("name", [None, "predictions.csv", "x" * 300, "a\0b", "\ud800", "..", "."])
def test_predictions_that_are_not_there_are_an_error(name: str | None, tmp_path: Path) -> None:
    for score in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no such file"):
            find_predictions(score, name)


def test_the_name_of_the_file_is_known_from_the_run(tmp_path: Path) -> None:
    path = tmp_path / ".job" / "run.json"
    assert output_file_name(tmp_path) is None
    path.parent.mkdir()
    for text in ("", "[]", "{}", '{"settings": 5}'):
        path.write_text(text)
        assert output_file_name(tmp_path) is None
    path.write_text(json.dumps({"settings": {"settings.output_file_name": "rows.txt"}}))
    assert output_file_name(tmp_path) == "rows.txt"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """A named pipe would wait for ever."""
    os.mkfifo(tmp_path / "predictions.csv")
    with pytest.raises(UserError, match="no such file"):
        find_predictions(tmp_path)
    with pytest.raises(UserError, match="not a regular file"):
        read_rows(tmp_path / "predictions.csv")
    os.mkfifo(tmp_path / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet: .*not a regular file"):
        read_rows(tmp_path)
    journal = tmp_path / "logs" / "sys" / "job_report" / "processed_mini-batches.csv"
    journal.parent.mkdir(parents=True)
    os.mkfifo(journal)
    assert mini_batches(tmp_path) == ()
