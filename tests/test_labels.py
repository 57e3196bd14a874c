"""The labels of any model, from its folder to the page: those of the model that was scored, or numbers."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from local_workspace.__main__ import main
from local_workspace.errors import UserError
from local_workspace.labels import KEPT, Labels, find_labels, keep_labels, kept_labels, read_labels

FLOWERS = ("daisy", "dandelion", "lady's slipper, yellow", "Gänseblümchen 雏菊", "rose")
# The class of 3.jpg is 3.
SCRIPT = """
import os

def init():
    pass

def run(mini_batch):
    names = [os.path.basename(path) for path in mini_batch]
    return [f"{name} {name[0]} 0.5" for name in names]
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A deployment of a model of 5 classes, and a photo of each; nothing is scored yet."""
    for name in ("code", "model", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "driver.py").write_text(SCRIPT)
    (tmp_path / "model" / "flowers.keras").write_text("weights")
    for number in range(5):
        (tmp_path / "data" / f"{number}.jpg").touch()
    deployment = {
        "name": "flowers",
        "endpoint_name": "images",
        "type": "model",
        "model": {"path": "model"},
        "code_configuration": {"code": "code", "scoring_script": "driver.py"},
        "compute": "azureml:cluster",
    }
    (tmp_path / "deployment.yml").write_text(json.dumps(deployment))
    return tmp_path


def write(run: Path, text: str = "\n".join(FLOWERS)) -> Path:
    path = run / "model" / "labels.txt"
    path.write_text(text, "utf-8")
    return path


def score(run: Path, *arguments: object) -> int:
    command = [
        "score",
        run / "deployment.yml",
        "--data",
        run / "data",
        "--output",
        run / "output",
        *arguments,
    ]
    return main([str(part) for part in command])


def show(run: Path, *arguments: object) -> int:
    return main([str(part) for part in ("show", run / "output", "--data", run / "data", *arguments)])


def rows(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines() if ".jpg" in line]


NUMBERS = [f"{number}.jpg {number} 0.500000 class {number}" for number in range(5)]
WORDS = [f"{number}.jpg {number} 0.500000 {label}" for number, label in enumerate(FLOWERS)]


# --- one model, all that shows it


def test_a_model_of_five_classes_is_shown_with_its_own_labels(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    write(run)
    truth = (
        '0.jpg,daisy\n1.jpg,rose\n2.jpg,"lady\'s slipper, yellow"\n3.jpg, Gänseblümchen 雏菊\n4.jpg,rose\n'
    )
    (run / "truth.csv").write_text(f"file,label\n{truth}", "utf-8")
    assert score(run, "--truth", run / "truth.csv") == 0
    assert "top-1 0.8000: 4 of 5 rows are right" in capsys.readouterr().err
    with (run / "output" / "misses.csv").open(newline="", encoding="utf-8") as file:
        (miss,) = csv.DictReader(file)
    assert (miss["file"], miss["label"], miss["truth_label"]) == ("1.jpg", "dandelion", "rose")
    assert show(run) == 0
    expected = WORDS.copy()
    expected[1] += " (truth: rose)"
    assert rows(capsys.readouterr().out) == expected
    assert show(run, "--misses") == 0
    assert rows(capsys.readouterr().out) == expected[1:2]


def test_labels_are_those_of_the_model_that_was_scored(
    run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies in the current folder, and wherever the model has gone."""
    write(run)
    assert score(run) == 0
    elsewhere = run / "elsewhere"
    (elsewhere / "model").mkdir(parents=True)
    for name in ("labels.txt", "model/labels.txt", "model/ImageNetLabels.txt"):
        (elsewhere / name).write_text("wrong\n" * 1001)
    monkeypatch.chdir(elsewhere)
    shutil.rmtree(run / "model")
    shutil.move(run / "output", run / "moved")
    (run / "output").symlink_to(run / "moved")
    capsys.readouterr()
    assert show(run) == 0
    assert rows(capsys.readouterr().out) == WORDS


def test_without_labels_the_classes_are_shown_by_number(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert score(run) == 0
    capsys.readouterr()
    assert show(run) == 0
    shown = capsys.readouterr()
    assert rows(shown.out) == NUMBERS
    assert "no labels of the model: name its folder with --model" in shown.err


def test_labels_can_be_named(run: Path, capsys: pytest.CaptureFixture) -> None:
    write(run, "wrong\n" * 5)
    (run / "flowers").write_text("\n".join(FLOWERS), "utf-8")
    assert score(run, "--labels", run / "flowers") == 0
    assert show(run) == 0
    assert rows(capsys.readouterr().out) == WORDS
    assert score(run, "--overwrite") == 0
    assert show(run, "--labels", run / "flowers") == 0
    assert rows(capsys.readouterr().out) == WORDS
    (run / "model" / "labels.txt").unlink()
    assert score(run, "--overwrite") == 0
    assert show(run) == 0
    assert rows(capsys.readouterr().out) == NUMBERS, "not the labels of the earlier run"
    write(run)
    assert show(run, "--model", run / "model") == 0
    assert rows(capsys.readouterr().out) == WORDS


# --- labels that do not fit


def test_labels_of_another_model_are_never_shown(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Also for the rows whose class has a line, and where the row that has none is not among those shown."""
    write(run, "a\nb\nc\nd\n")
    (run / "truth.csv").write_text("file,class\n0.jpg,0\n1.jpg,2\n")
    assert score(run, "--truth", run / "truth.csv") == 0
    warning = "labels.txt: 4 lines, and a row has class 4, whose label would be in line 5"
    said = capsys.readouterr().err
    assert warning in said and "top-1 0.5000: 1 of 2 rows are right" in said
    assert "1.jpg,1,class 1,2,class 2,0.5" in (run / "output" / "misses.csv").read_text()
    assert show(run, "--most", 1) == 0
    shown = capsys.readouterr()
    assert rows(shown.out) == NUMBERS[:1]
    assert f"{KEPT}: 4 lines, and a row has class 4" in shown.err


def test_a_truth_told_in_labels_that_do_not_fit_is_not_compared(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    write(run, "a\nb\nc\nd\n")
    (run / "truth.csv").write_text("file,label\n0.jpg,a\n")
    assert score(run, "--truth", run / "truth.csv") == 2
    said = capsys.readouterr().err
    assert "error: " in said and "labels.txt: 4 lines, and a row has class 4" in said and "hint: " in said
    summary = json.loads((run / "output" / "summary.json").read_text())
    assert (summary["status"], summary["rows"], "top_1" in summary) == ("Completed", 5, False)
    assert not (run / "output" / "misses.csv").exists()


def test_labels_that_nobody_asked_for_do_not_end_a_run(run: Path, capsys: pytest.CaptureFixture) -> None:
    (run / "model" / "labels.txt").write_bytes(b"caf\xe9\n")
    assert score(run) == 0
    said = capsys.readouterr().err
    assert (
        "warning: " in said and "labels.txt: not UTF-8 at byte 3; the classes will be shown by number" in said
    )
    (run / "truth.csv").write_text("file,class\n0.jpg,0\n")
    assert score(run, "--overwrite", "--truth", run / "truth.csv") == 2
    assert "error: " in capsys.readouterr().err


def test_a_labels_file_that_a_user_has_put_into_the_output_is_not_overwritten(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    write(run)
    (run / "output").mkdir()
    (run / "output" / KEPT).write_text("mine\n")
    assert score(run) == 2
    assert f"{KEPT}: exists already" in capsys.readouterr().err
    assert (run / "output" / KEPT).read_text() == "mine\n"


# --- the file


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"cat\ndog", ("cat", "dog")),
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\ndog\n\n \n", ("cat", "dog")),
        (b"cat\r\ndog\r\n\r\n", ("cat", "dog")),
        (b"cat\rdog\r", ("cat", "dog")),
        (b"\xef\xbb\xbfcat\r\ndog\r\n", ("cat", "dog")),
        (b" cat \n\tdog\t\n", ("cat", "dog")),
        (b"cat\ncat\n", ("cat", "cat")),
        (b'tench, Tinca tinca\n"quoted"\n#1\n', ("tench, Tinca tinca", '"quoted"', "#1")),
        ("a\u2028b\u0085c\x0cd\n雏菊\n".encode(), ("a\u2028b\u0085c\x0cd", "雏菊")),
    ],
)
def test_a_label_is_a_line(content: bytes, labels: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    read = find_labels(tmp_path)
    assert (read.texts, read.path) == (labels, tmp_path / "labels.txt")
    keep_labels(read, tmp_path)
    assert kept_labels(tmp_path).texts == labels


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty, expected a label a line"),
        (b"\n\n", "empty, expected a label a line"),
        (b"cat\n\ndog\n", "line 2: blank, expected the label of class 1"),
        (b"\ncat\n", "line 1: blank, expected the label of class 0"),
        (b"caf\xe9\n", "not UTF-8 at byte 3"),
        ("cat\n".encode("utf-16"), "a NUL in it"),
        (b"x" * (2**24 + 1), "more than 16,777,216 bytes"),
    ],
)
def test_what_are_no_labels_is_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        find_labels(tmp_path)


def test_where_labels_are_found(tmp_path: Path) -> None:
    """In the folder, or deeper, as an MLflow model has them; beside a model that is a file."""
    deep = tmp_path / "mlflow" / "data" / "model"
    deep.mkdir(parents=True)
    assert find_labels(tmp_path / "mlflow") == Labels()
    (deep / "ImageNetLabels.txt").write_text("deep\n")
    assert find_labels(tmp_path / "mlflow").texts == ("deep",)
    (tmp_path / "mlflow" / "labels.txt").write_text("top\n")
    assert find_labels(tmp_path / "mlflow").texts == ("top",)
    (tmp_path / "mlflow" / "flowers.keras").touch()
    assert find_labels(tmp_path / "mlflow" / "flowers.keras").texts == ("top",)


def test_two_labels_files_are_refused(tmp_path: Path) -> None:
    for name in ("ImageNetLabels.txt", "labels.txt"):
        (tmp_path / name).write_text("cat\n")
    with pytest.raises(UserError, match=r"ImageNetLabels.txt and .*/labels.txt: two labels files"):
        find_labels(tmp_path)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    """A named pipe would wait for ever."""
    os.mkfifo(tmp_path / "labels.txt")
    assert find_labels(tmp_path) == Labels()
    with pytest.raises(UserError, match="the labels cannot be read: not a regular file"):
        read_labels(tmp_path / "labels.txt")
    os.mkfifo(tmp_path / KEPT)
    with pytest.raises(UserError, match="not a regular file"):
        kept_labels(tmp_path)
