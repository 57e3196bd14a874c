"""`sweep`: every setting is measured, compared with the first, and the best that fits the memory is named."""

import csv
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image
from score_runs import write_deployment

from local_workspace import setting
from local_workspace.__main__ import main
from local_workspace.deployment import read_deployment
from local_workspace.setting import Setting
from local_workspace.sweep import default_tries, print_best
from local_workspace.sweep_report import as_yaml

ROOT = Path(__file__).parent.parent
VARIABLE = "settings.environment_variables"
# Slow when SLOW is set, large when LARGE is, wrong for one file in four when WRONG is; dies when DIES is.
SCRIPT = """
def init():
    global ballast
    ballast = b"x" * (100 << 20) if os.environ.get("LARGE") == "1" else b""

def run(mini_batch):
    if os.environ.get("DIES") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2 if os.environ.get("SLOW") == "1" else 0.01)
    numbers = [int(os.path.basename(path)[:-4]) for path in mini_batch]
    wrong = os.environ.get("WRONG") == "1"
    return [f"{number}.jpg {number + (wrong and number % 4 == 0)} 0.5" for number in numbers]
"""


@dataclass(frozen=True)
class Swept:
    code: int
    folder: Path
    stdout: str
    stderr: str

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "sweep" / "sweep.csv").open(newline="") as file:
            return [{setting.short(key): value for key, value in row.items()} for row in csv.DictReader(file)]


def command(folder: Path, *arguments: str, tries: list[str]) -> list[str]:
    """The command line over what write_deployment has laid out in `folder`."""
    words = ["sweep", f"{folder}/deployment.yml", "--data", f"{folder}/data", "--output", f"{folder}/sweep"]
    return [*words, *[word for text in tries for word in ("--try", text)], *arguments]


@pytest.fixture
def sweep(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Sweeps over eight files, a mini-batch each."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "200")
    write_deployment(tmp_path, SCRIPT, 8)

    def run(*arguments: str, tries: list[str]) -> Swept:
        capsys.readouterr()
        code = main(command(tmp_path, *arguments, tries=tries))
        return Swept(code, tmp_path, *capsys.readouterr())

    return run


def test_the_fastest_setting_is_named_and_all_are_compared_with_the_first(sweep, tmp_path: Path) -> None:
    (tmp_path / "truth.csv").write_text("file,class\n" + "".join(f"{n}.jpg,{n}\n" for n in range(8)))
    truth = ["--truth", str(tmp_path / "truth.csv")]
    swept = sweep("--rounds", "1", *truth, tries=[f"{VARIABLE}.SLOW=1,0", f"{VARIABLE}.WRONG=0,1"])
    assert swept.code == 0, swept.stderr
    assert [row["SLOW"] + row["WRONG"] for row in swept.rows] == ["10", "11", "00", "01"]
    assert [row["agreement"] for row in swept.rows] == ["1.0", "0.75", "1.0", "0.75"]
    assert [row["top_1"] for row in swept.rows] == ["1.0", "0.75", "1.0", "0.75"]
    speeds = [float(row["images_a_second"]) for row in swept.rows]
    assert max(speeds[:2]) <= 5, "a mini-batch of one file takes 0.2 s"
    best = swept.rows[speeds.index(max(speeds))]
    assert f"--set {VARIABLE}.SLOW={best['SLOW']} --set {VARIABLE}.WRONG={best['WRONG']}" in swept.stdout
    with Image.open(tmp_path / "sweep" / "sweep.png") as plot:
        assert any(color == (46, 139, 87) for _, color in plot.getcolors(1 << 16)), "the best is green"


def test_a_setting_that_dies_is_a_row_with_its_cause(sweep) -> None:
    swept = sweep("--rounds", "2", tries=[f"{VARIABLE}.DIES=1,0"])
    dead, alive = swept.rows
    assert swept.code == 0
    assert "killed by SIGKILL" in dead["cause"]
    assert (dead["images_a_second"], alive["rounds"], alive["agreement"]) == ("", "2", "1.0")
    assert "failed: DIES 1: " in swept.stdout
    assert swept.stderr.count("DIES 1: ") == 1, "it is not tried in the second round"


def test_what_does_not_fit_the_memory_is_not_named(sweep) -> None:
    tries = [f"{VARIABLE}.LARGE=1,0", f"{VARIABLE}.SLOW=0,1"]
    swept = sweep("--rounds", "1", "--memory", "100", tries=tries)
    memory = {(row["LARGE"], row["SLOW"]): int(row["memory_mb"]) for row in swept.rows}
    assert min(memory["1", "0"], memory["1", "1"]) > 100 > max(memory["0", "0"], memory["0", "1"]) > 0
    assert "the fastest that fits into 100 MB:" in swept.stdout
    assert f"or: --set {VARIABLE}.LARGE=0 " in swept.stdout
    swept = sweep("--rounds", "1", "--memory", "1", "--overwrite", tries=tries[:1])
    assert swept.code == 1
    assert "error: no setting fits into 1 MB: the smallest needs" in swept.stderr


def test_the_memory_is_that_of_all_workers(sweep) -> None:
    swept = sweep("--rounds", "1", tries=["resources.instance_count=1,2", "settings.mini_batch_size=1,8"])
    assert [row["workers"] for row in swept.rows] == ["1", "1", "2", "1"], "one mini-batch needs one worker"
    one, _, two, _ = (int(row["memory_mb"]) for row in swept.rows)
    assert 1.5 * one < two < 2.5 * one
    assert "8 files are not 4 mini-batches for each worker" in swept.stderr


def test_some_files_of_all_folders_are_enough(sweep, tmp_path: Path) -> None:
    for number in range(100, 108):
        (tmp_path / "data" / "sub").mkdir(exist_ok=True)
        (tmp_path / "data" / "sub" / f"{number}.jpg").touch()
    swept = sweep("--rounds", "1", "--images", "4", tries=[f"{VARIABLE}.SLOW=0"])
    rows = (tmp_path / "sweep" / "runs" / "00" / "score" / "predictions.csv").read_text().split("\n")
    assert [row.split()[0] for row in rows if row] == ["0.jpg", "4.jpg", "100.jpg", "104.jpg"], swept.stderr


def test_ctrl_c_prints_what_is_done_so_far(tmp_path: Path) -> None:
    write_deployment(tmp_path, SCRIPT.replace("0.2 if", "60 if"), 2)
    words = command(tmp_path, tries=[f"{VARIABLE}.SLOW=0,1"])
    with subprocess.Popen(
        [sys.executable, "-m", "local_workspace", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as job:
        slow = tmp_path / "sweep" / "runs" / "01" / "logs" / "user" / "stdout"
        until = time.monotonic() + 300
        while not slow.exists() and time.monotonic() < until:
            time.sleep(0.05)
        job.send_signal(signal.SIGINT)
        out, errors = job.communicate(timeout=300)
    assert job.returncode == 130, errors
    assert "interrupted" in errors
    fast, slow = Swept(130, tmp_path, out, errors).rows
    assert (fast["rounds"], slow["rounds"], slow["cause"]) == ("1", "", "")
    assert f"--set {VARIABLE}.SLOW=0" in out


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("by-batch", ["MIXED_PRECISION", "DEVICE_BATCH_SIZE", "instance_count"]),
        ("by-file", ["MIXED_PRECISION", "instance_count"]),
        ("mlflow", ["instance_count"]),
    ],
)
def test_what_is_tried_by_default_is_what_the_scoring_script_mentions(name: str, names: list[str]) -> None:
    deployment, _ = read_deployment(ROOT / f"deployment-{name}.yml", [])
    assert [setting.short(key) for key in default_tries(deployment)] == names


def test_a_sweep_in_which_every_setting_fails_says_so(sweep) -> None:
    swept = sweep("--set", f"{VARIABLE}.DIES=1", tries=["settings.mini_batch_size=8"])
    assert swept.code == 1
    assert "error: nothing was measured" in swept.stderr
    assert "failed: mini_batch_size 8: " in swept.stdout


def test_settings_that_rounds_do_not_tell_apart_are_said(capsys: pytest.CaptureFixture) -> None:
    deployment, _ = read_deployment(ROOT / "deployment-by-file.yml", [])
    speeds = {"1": [9.0, 12.0, 11.0], "2": [8.0, 9.5, 8.5], "3": [2.0, 3.0, 8.9]}
    key = "settings.mini_batch_size"
    settings = [Setting({key: size}, deployment, 9, found, [1]) for size, found in speeds.items()]
    print_best(settings[0], settings, 100)
    assert "warning: 1 other settings had a round as fast" in capsys.readouterr().err
    print_best(settings[0], settings[::2], 100)
    assert "warning" not in capsys.readouterr().err


def test_lines_of_yaml_quote_environment_variables() -> None:
    values = {f"{VARIABLE}.DEVICE_BATCH_SIZE": "16", "settings.mini_batch_size": "50"}
    text = as_yaml(values)
    expected = {"environment_variables": {"DEVICE_BATCH_SIZE": "16"}, "mini_batch_size": 50}
    assert yaml.safe_load(text) == {"settings": expected}


@pytest.mark.parametrize(
    ("tries", "problem"),
    [
        (["settings.mini_batch_size"], "--try settings.mini_batch_size: expected KEY=VALUE,..."),
        (["settings.mini_batch_size=1,,2"], "expected KEY=VALUE,... with different values"),
        (["settings.mini_batch_size=1,1"], "expected KEY=VALUE,... with different values"),
        (["settings.mini_batch_size=1", "settings.mini_batch_size=2"], "is tried already"),
        (["settings.mini_batch_size=1,none"], "settings.mini_batch_size is 'none', expected a whole number"),
    ],
)
def test_bad_tries_are_errors_before_anything_is_measured(tries: list[str], problem: str, sweep) -> None:
    swept = sweep(tries=tries)
    assert swept.code == 2
    assert problem in swept.stderr
    assert not (swept.folder / "sweep").exists()


def test_bad_input_is_an_error_before_anything_is_measured(sweep, tmp_path: Path) -> None:
    tries = ["resources.instance_count=1"]
    assert "no such folder" in sweep("--data", str(tmp_path / "none"), tries=tries).stderr
    assert "no such model" in sweep("--model", str(tmp_path / "none"), tries=tries).stderr
    assert "no such file, expected a CSV" in sweep("--truth", str(tmp_path / "none"), tries=tries).stderr
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.csv").touch()
    swept = sweep(tries=tries)
    assert (swept.code, "sweep.csv: exists already" in swept.stderr) == (2, True)
