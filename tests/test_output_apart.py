"""What runs have written is no input of another, on whatever path, and nothing is left beside the script."""

from pathlib import Path

import pytest
from score_runs import score

from local_workspace.__main__ import main

ROWS = "def run(mini_batch): return [os.path.basename(path) for path in mini_batch]"


def test_an_output_folder_within_the_input_is_not_scored(tmp_path: Path) -> None:
    inside = ["--output", str(tmp_path / "data" / "out")]
    score(tmp_path, ROWS, 3, inside, mini_batch_size=9)
    (tmp_path / "data" / "out" / "predictions.png").touch()  # as `show` draws it
    data = tmp_path / "data"
    (data / "by a link.csv").symlink_to(data / "out" / "score" / "predictions.csv")
    (data / "link to a folder").symlink_to("out/score")
    (tmp_path / "elsewhere").symlink_to(data)
    for way in (["--data", str(data)], ["--data", str(tmp_path / "elsewhere")]):
        run = score(tmp_path, ROWS, 3, [*inside, *way, "--overwrite"], mini_batch_size=9)
        assert (run.code, (data / "out" / "score" / "predictions.csv").read_text().split()) == (
            0,
            ["0.jpg", "1.jpg", "2.jpg"],
        )
        assert f"warning: {way[1]}/out: the output, which is no input, left out\n" in run.stderr
        assert f"warning: {way[1]}/by a link.csv: the output, which is no input, left out\n" in run.stderr


@pytest.mark.parametrize("data", ["output", "output/score", "output/score/predictions.csv", "link"])
def test_an_input_within_the_results_is_refused(tmp_path: Path, data: str) -> None:
    first = score(tmp_path, ROWS, 3)
    (tmp_path / "link").symlink_to("output/score")
    run = score(tmp_path, ROWS, 3, ["--overwrite", "--data", str(tmp_path / data)])
    assert run.code == 2
    assert f"{tmp_path / data}: holds the results, and cannot be the input\n\nhint: " in run.stderr
    assert first.rows == ["0.jpg", "1.jpg", "2.jpg"], "they are left alone"


def test_an_input_beside_the_results_in_one_folder_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(tmp_path, ROWS, 3)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["score", "deployment.yml", "--data", "data", "--output", ".", "--overwrite"]) == 0
        assert (tmp_path / "score" / "predictions.csv").read_text() == "0.jpg\n1.jpg\n2.jpg\n"


def test_the_results_are_no_part_of_a_model_that_lies_around_them(tmp_path: Path) -> None:
    script = """
def init():
    folder = os.environ["AZUREML_MODEL_DIR"]
    note(sorted(os.path.relpath(path, folder) for path in glob.glob(folder + "/**", recursive=True)))

"""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").touch()
    inside = ["--output", str(tmp_path / "model" / "output")]
    score(tmp_path, script + ROWS, 1, inside)
    run = score(tmp_path, script + ROWS, 1, [*inside, "--overwrite"])
    assert run.notes == [str([".", "model", "model/weights"])] * 2
    run = score(tmp_path, script + ROWS, 1, ["--output", str(tmp_path / "model")])
    run = score(tmp_path, script + ROWS, 1, ["--output", str(tmp_path / "model"), "--overwrite"])
    assert run.code == 0


def test_nothing_is_left_beside_the_scoring_script_or_its_modules(tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "package" / "within").mkdir(parents=True)
    (code / "photo.py").write_text("SIDE = 224")
    (code / "package" / "__init__.py").touch()
    (code / "package" / "within" / "crop.py").write_text("CROP = 7")
    script = "import photo\nfrom package.within import crop\n\n" + ROWS
    before = {path.relative_to(code) for path in code.rglob("*")}
    run = score(tmp_path, script, 1, ["--output", str(tmp_path / "output")])
    assert run.code == 0
    assert {path.relative_to(code) for path in code.rglob("*")} - before == {Path("driver.py")}


SHADOWS = ("json", "logging", "re", "queue", "tokenize", "linecache", "traceback", "struct", "textwrap")
OURS = ("worker", "reasons", "errors", "listing", "executor", "local_workspace")


@pytest.mark.parametrize("script_name", ["code", "json", "worker", "tokenize"])
def test_modules_called_like_those_of_python_or_ours_do_no_harm(tmp_path: Path, script_name: str) -> None:
    code = tmp_path / "code"
    code.mkdir()
    for name in {*SHADOWS, *OURS} - {script_name}:
        (code / f"{name}.py").write_text(f"NAME = {name!r}\n")
    (code / f"{script_name}.py").write_text("""
import logging, os
import errors, executor, listing, local_workspace, reasons

def init():
    assert errors.NAME + listing.NAME + reasons.NAME == "errorslistingreasons"

def run(mini_batch):
    if mini_batch[0].endswith("1.jpg"):
        raise ValueError("no good")
    logging.getLogger("x").error("%s: left out", mini_batch[1])
    return mini_batch[:1]
""")
    run = score(
        tmp_path,
        "",
        ["0.jpg", "00.jpg", "1.jpg"],
        ["--set", f"code_configuration.scoring_script={script_name}.py"],
        mini_batch_size=2,
    )
    assert (run.code, run.summary["succeeded"]) == (0, 1), run.summary
    assert run.failed == {
        "00.jpg": f"{tmp_path}/data/00.jpg: left out",
        "1.jpg": "run() raised ValueError: no good",
    }
