"""What the files really show: `score --truth`, its misses on the contact sheet, and rows in Parquet files."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from score_runs import Run, score

from local_workspace.__main__ import main
from local_workspace.errors import UserError
from local_workspace.labels import Labels, find_labels
from local_workspace.predictions import find_predictions, read_rows
from local_workspace.samples import LABELS, PHOTOS
from local_workspace.truth import read_truth, wordnet_classes

ROOT = Path(__file__).parent.parent
# Names say their class, as 3.jpg; what has an x before it gets the class 7.
BY_NAME = """
def run(mini_batch):
    names = [os.path.basename(path) for path in mini_batch]
    return [f"{name} {7 if name[0] == 'x' else name[:-4]} 0.5" for name in names if "lost" not in name]
"""


def told(folder: Path, table: str, files: list[str], *arguments: str, script: str = BY_NAME) -> Run:
    """Scores `files`, with the CSV `table` as their truth."""
    (folder / "truth.csv").write_text(table)
    return score(folder, script, files, ["--truth", str(folder / "truth.csv"), *arguments])


def misses(run: Run) -> list[dict[str, str]]:
    with (run.folder / "output" / "misses.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_labels(folder: Path) -> None:
    labels = ["background", *(f"thing {number}" for number in range(1, 1000)), "thing 999"]
    (folder / LABELS).write_text("\n".join(labels))


# --- what is compared


def test_what_is_right_and_what_is_not_is_told(tmp_path: Path) -> None:
    files = ["1.jpg", "2.jpg", "3.jpg", "x4.jpg", "5.jpg", "lost.jpg"]
    table = "file,class\n1.jpg,1\nsome/folder/2.jpg,2\n3.jpg,3\nx4.jpg,4\nlost.jpg,8\ngone.jpg,9\n"
    run = told(tmp_path, table, files)
    assert run.code == 0
    figures = {
        "rows_with_truth": 4,
        "rows_without_truth": 1,
        "truth_without_row": 2,
        "right": 3,
        "top_1": 0.75,
    }
    assert run.summary.items() >= figures.items()
    assert "top_5" not in run.summary
    expected = {"file": "x4.jpg", "class": "7", "label": "class 7", "truth": "4", "truth_label": "class 4"}
    assert misses(run) == [expected | {"probability": "0.5"}]
    assert "top-1 0.7500: 3 of 4 rows are right" in run.stderr
    assert "warning: 1 rows are of files that" in run.stderr
    assert "warning: 2 files that" in run.stderr


def test_labels_are_those_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "model" / "data" / "model").mkdir(parents=True)
    write_labels(tmp_path / "model" / "data" / "model")  # where an MLflow model has them
    run = told(tmp_path, "label,file\nthing 1,1.jpg\nthing 5,x4.jpg\n", ["1.jpg", "x4.jpg"])
    assert run.summary["top_1"] == 0.5
    assert [(miss["label"], miss["truth_label"]) for miss in misses(run)] == [("thing 7", "thing 5")]


FIVE = """
def run(mini_batch):
    names = [os.path.basename(path) for path in mini_batch]
    return [f"{name} 1 0.5 2 0.2 3 0.1 4 0.1 5 0.05" for name in names]
"""


def test_top_5_is_told_where_the_rows_give_five_classes(tmp_path: Path) -> None:
    table = "file,class\na.jpg,1\nb.jpg,5\nc.jpg,6\nd.jpg,3\n"
    run = told(tmp_path, table, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], script=FIVE)
    assert (run.summary["top_1"], run.summary["top_5"]) == (0.25, 0.75)
    assert "top-1 0.2500, top-5 0.7500: 1 of 4" in run.stderr


def test_a_name_that_two_folders_have_has_no_known_truth(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "1.jpg").touch()
    run = told(tmp_path, "file,class\n1.jpg,1\n2.jpg,2\n", ["2.jpg"])
    assert (run.summary["rows_with_truth"], run.summary["rows_without_truth"]) == (1, 2)


def test_a_failed_job_is_compared_as_far_as_it_came(tmp_path: Path) -> None:
    run = told(tmp_path, "file,class\n1.jpg,1\n", ["1.jpg"], script="def run(mini_batch): raise ValueError")
    assert run.code == 1
    assert (run.summary["rows_with_truth"], run.summary["top_1"]) == (0, None)
    assert "no row has a known truth" in run.stderr


FRAME = """
import pandas as pd

def run(mini_batch):
    files = [os.path.basename(path) for path in mini_batch]
    return pd.DataFrame({"file": files, "class": 1, "probability": 0.5})
"""


def test_a_file_may_be_called_null_or_007_or_be_no_utf_8(tmp_path: Path) -> None:
    names = [b"null", b"007", b"a b.jpg", b"\xff.jpg"]
    (tmp_path / "truth.csv").write_bytes(b"file,class\n" + b"".join(name + b",1\n" for name in names))
    run = score(tmp_path, FRAME, map(os.fsdecode, names), ["--truth", str(tmp_path / "truth.csv")])
    assert (run.summary["rows_with_truth"], run.summary["top_1"]) == (4, 1)


def test_results_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    told(tmp_path, "file,class\nx1.jpg,1\n", ["x1.jpg"])
    assert (tmp_path / "output" / "misses.csv").exists()
    assert score(tmp_path, BY_NAME, ["x1.jpg"], ["--overwrite"]).code == 0
    assert not (tmp_path / "output" / "misses.csv").exists()


# --- ImageNet's file names


def test_a_wordnet_id_is_the_class_with_its_label(samples_folder: Path) -> None:
    labels = find_labels(samples_folder / "model")
    classes = wordnet_classes(labels)
    assert list(classes) == sorted(classes)
    known = {"n01440764": "tench", "n02123045": "tabby", "n03773504": "missile", "n15075141": "toilet tissue"}
    assert {name: labels.of(classes[name]) for name in known} == known


def test_without_background_the_classes_of_wordnet_ids_are_from_0(samples_folder: Path) -> None:
    """As Keras's own models have them, whose labels may have underscores, more words, and capitals."""
    texts = list(find_labels(samples_folder / "model").texts[1:])
    texts[0], texts[-1] = "n01440764 Tench, Tinca tinca", "toilet_tissue"
    assert wordnet_classes(Labels(tuple(texts)))["n01440764"] == 0
    assert wordnet_classes(Labels(("background", *texts)))["n01440764"] == 1
    for others in (texts[:-1], ["x", "y", *texts], texts[::-1], ["x", *texts[1:]], [*texts[:-1], "x"]):
        with pytest.raises(UserError, match="expected ImageNet's 1000 from tench to toilet tissue"):
            wordnet_classes(Labels(tuple(others)))


def test_wordnet_ids_are_found_in_names(samples_folder: Path, tmp_path: Path) -> None:
    names = {
        "n01440764_10026.JPEG": 1,
        "n01440764_tench.JPEG": 1,
        "ILSVRC2012_val_00000293_n01443537.JPEG": 2,
        "n014407641.JPEG": None,
        "ann01440764.JPEG": None,
        "n00000000_no_class.JPEG": None,
    }
    listing = tmp_path / "listing"
    listing.write_text("".join(f'"/data/n15075141/{name}"\n' for name in names))
    truth = read_truth("wordnet", find_labels(samples_folder / "model"), listing)
    assert truth.classes == {name: number for name, number in names.items() if number}


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("", "wordnet: the model has no labels, expected ImageNet's 1000"),
        ("others", "ImageNetLabels.txt: 1001 labels, expected ImageNet's 1000 from tench to toilet tissue"),
        ("imagenet", "holds an id"),
    ],
)
def test_wordnet_needs_the_labels_and_the_ids(
    labels: str, problem: str, samples_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    if labels == "others":
        write_labels(tmp_path / "model")
    if labels == "imagenet":
        shutil.copy(samples_folder / "model" / LABELS, tmp_path / "model")
    run = score(tmp_path, BY_NAME, ["1.jpg"], ["--truth", "wordnet"])
    assert (run.code, problem in run.stderr, "hint: " in run.stderr) == (2, True, True)
    assert not (tmp_path / "output").exists()


# --- truth that cannot be read


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("", "truth.csv, line 1: columns , expected file, and class or label"),
        ("file\n1.jpg\n", "line 1: columns file, expected"),
        ("file,class,label\n1.jpg,1,thing 1\n", "line 1: columns file, class, label, expected"),
        ("file,class\n", "truth.csv: no lines below the header"),
        (
            "file,class\n1.jpg,1\n\n2.jpg,two\n",
            "truth.csv, line 4: class 'two', expected a whole number from 0 to 1000",
        ),
        ("file,class\n1.jpg,1001\n", "line 2: class '1001', expected a whole number from 0 to 1000"),
        ("file,class\n1.jpg,-1\n", "line 2: class '-1', expected"),
        ("file,class\n1.jpg\n", "line 2: class '', expected"),
        ("file,class\n,1\n", "line 2: no file"),
        ("file,class\na/1.jpg,1\nb/1.jpg,2\n", "line 3: 1.jpg is 2 here, and 1 in an earlier line"),
        ("file,label\n1.jpg,thing 1001\n", "line 2: label 'thing 1001', expected one of the 1001"),
        ("file,label\n1.jpg,thing 999\n", "line 2: the label 'thing 999' is that of the classes [999, 1000]"),
        ('file,class\n"1.jpg,1\n', "not readable as CSV"),
    ],
)
def test_a_truth_that_cannot_be_read_is_an_error_before_anything_is_scored(
    table: str, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    write_labels(tmp_path / "model")
    run = told(tmp_path, table, ["1.jpg"])
    assert run.code == 2
    assert problem in run.stderr
    assert not (tmp_path / "output").exists()


def test_a_truth_that_is_missing_or_has_labels_for_a_model_without_is_an_error(tmp_path: Path) -> None:
    run = score(tmp_path, BY_NAME, 1, ["--truth", "no.csv"])
    assert (run.code, "no.csv: no such file, expected a CSV or `wordnet`" in run.stderr) == (2, True)
    assert "give the column class instead" in told(tmp_path, "file,label\n0.jpg,cat\n", ["0.jpg"]).stderr


# --- the contact sheet


def red_columns(folder: Path) -> list[int]:
    """Where a line across the photos of the contact sheet is red."""
    with Image.open(folder / "output" / "predictions.png") as sheet:
        return [x for x in range(sheet.width) if sheet.getpixel((x, 100)) == (178, 34, 34)]


def test_show_marks_the_misses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    write_labels(tmp_path / "model")
    for name in ("1.jpg", "x2.jpg"):
        Image.new("RGB", (240, 180), "white").save(tmp_path / "data" / name)
    table = "file,class\n1.jpg,1\nx2.jpg,2\n"
    told(tmp_path, table, [])
    show = ["show", f"{tmp_path}/output", "--data", f"{tmp_path}/data"]
    capsys.readouterr()
    assert main(show) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if ".jpg" in line]
    assert lines == ["1.jpg 1 0.500000 thing 1", "x2.jpg 7 0.500000 thing 7 (truth: thing 2)"]
    assert len(red_columns(tmp_path)) == 6, "a frame of 3 pixels left and right"
    assert min(red_columns(tmp_path)) > 250, "around the second photo, not the first"
    assert main([*show, "--misses"]) == 0
    assert re.findall(r"\w+\.jpg", capsys.readouterr().out) == ["x2.jpg"]
    told(tmp_path, table.replace("x2.jpg,2", "x2.jpg,7"), [], "--overwrite")
    assert main(show) == 0
    assert "truth" not in capsys.readouterr().out
    assert red_columns(tmp_path) == []


def test_show_of_misses_wants_a_truth(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    score(tmp_path, BY_NAME, ["1.jpg"])
    show = ["show", f"{tmp_path}/output", "--data", f"{tmp_path}/data"]
    assert main([*show, "--misses"]) == 2
    assert "`score --truth` writes it" in capsys.readouterr().err


# --- Parquet, written by the sample's own script


# The sample's script, which fails once for each mini-batch, after it has written its file.
FAILS_ONCE = """
import importlib.util

sys.path.insert(0, {path!r}.rpartition("/")[0])
spec = importlib.util.spec_from_file_location("sample", {path!r})
sample = importlib.util.module_from_spec(spec)
sys.modules["sample"] = sample
spec.loader.exec_module(sample)
init = sample.init

def run(mini_batch):
    frame = sample.run(mini_batch)
    if ascii(mini_batch) not in notes():
        note(ascii(mini_batch))
        raise RuntimeError("once")
    return frame
"""


def test_a_mini_batch_that_is_tried_again_replaces_its_own_parquet_file(
    samples_folder: Path, tmp_path: Path
) -> None:
    """The rows are those of append_row, which this job asks for too."""
    (tmp_path / "data").mkdir()
    for name in (b"a.png", b"b.png", b"\xff.png"):
        shutil.copy(samples_folder / "data" / "coffee.png", tmp_path / "data" / os.fsdecode(name))
    script = FAILS_ONCE.format(path=str(ROOT / "code" / "score-by-batch" / "batch_driver.py"))
    run = score(
        tmp_path,
        script,
        [],
        ["--model", str(samples_folder / "model")],
        mini_batch_size=2,
        retry_settings={"max_retries": 2, "timeout": 60},
        environment_variables={"OUTPUT_FORMAT": "parquet"},
    )
    assert run.code == 0, run.stderr
    assert [line["attempts"] for line in run.processed] == ["2", "2"]
    folder = tmp_path / "output" / "score"
    assert sorted(path.suffix for path in folder.iterdir()) == [".csv", ".parquet", ".parquet"]
    parquet = pd.concat(map(pd.read_parquet, folder.glob("*.parquet"))).sort_values("file")
    written = parquet.to_csv(sep=" ", header=False, index=False).splitlines()
    assert sorted(written) == sorted(run.predictions.decode(errors="backslashreplace").splitlines())
    assert len(written) == 3


def test_a_very_large_job_leaves_a_parquet_file_for_each_mini_batch(
    samples_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The deployment and the settings that the README names, in a process of their own."""
    (tmp_path / "truth.csv").write_text(
        "file,label\n" + "".join(f"{file},{label}\n" for file, label in PHOTOS.items())
    )
    command = [sys.executable, "-m", "local_workspace", "score", "deployment-by-batch.yml"]
    command += ["--data", samples_folder / "data", "--model", samples_folder / "model", "--output", tmp_path]
    command += ["--truth", tmp_path / "truth.csv", "--set", "settings.mini_batch_size=1"]
    command += ["--set", "settings.output_action=summary_only"]
    command += ["--set", "settings.environment_variables.OUTPUT_FORMAT=parquet"]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert job.returncode == 0, job.stderr
    assert "top-1 1.0000: 4 of 4 rows are right" in job.stderr
    assert len(list((tmp_path / "score").iterdir())) == 4
    rows = pd.read_parquet(tmp_path / "score")  # as the README says
    labels = find_labels(samples_folder / "model")
    assert dict(zip(rows["file"], map(labels.of, rows["class"]))) == PHOTOS
    assert [row.file for row in read_rows(find_predictions(tmp_path / "score"))] == sorted(PHOTOS)
    show = ["show", tmp_path, "--data", samples_folder / "data"]
    assert main([str(part) for part in show]) == 0
    assert "espresso" in capsys.readouterr().out


def test_parquet_files_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    script = """
import pandas as pd

def run(mini_batch):
    frame = pd.DataFrame({"file": mini_batch})
    frame.to_parquet(f"{os.environ['AZUREML_BI_OUTPUT_PATH']}/{os.getpid()}.parquet")
    return frame
"""
    for arguments in ([], ["--overwrite"]):
        assert score(tmp_path, script, 1, arguments, output_action="summary_only").code == 0
    assert len(list((tmp_path / "output" / "score").iterdir())) == 1


def test_the_cluster_writes_parquet_with_the_version_of_the_tests() -> None:
    """azureml-dataset-runtime of the conda file allows no other: with one, no environment could be made."""
    texts = [(ROOT / name).read_text() for name in ("pyproject.toml", "environment/conda.yml")]
    here, there = (re.search(r"pyarrow==([\d.]+)", text)[1] for text in texts)
    assert here == there
