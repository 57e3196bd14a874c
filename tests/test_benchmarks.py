"""The benchmark runs and writes what it should. How fast anything is, is not tested."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.__main__ import measure, prepare
from benchmarks.contenders import MEMORY, RATE, SECONDS, Contender, LeftOut, process, steady_rate
from benchmarks.report import agreement, spread
from benchmarks.targets import LITE0, Target, best, compare, paired

ROOT = Path(__file__).parent.parent


def contender(name: str, *rounds: dict[str, float], model: str = LITE0) -> Contender:
    return Contender(name, model, "", lambda contender: {}, rounds=list(rounds))


def rates(*values: float) -> list[dict[str, float]]:
    return [{RATE: value} for value in values]


def test_a_small_run_writes_the_table_and_the_plot(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--models", "lite0", "--rounds", "1", "--images", "8"]
    command += ["--output", str(tmp_path), "--work", str(tmp_path / "work")]
    names = ("by-file", "naive by-file", "no-op, 100,000 files")
    command += [part for name in names for part in ("--only", name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'results.md'}\n"
    assert "Traceback" not in done.stderr
    table = (tmp_path / "results.md").read_text()
    (row,) = [line for line in table.splitlines() if "| at least 6x |" in line]
    assert row.startswith(f"| by-file ({LITE0}) | naive by-file | images a second | ")
    assert f"by-file against naive by-file ({LITE0})" not in table
    assert "Not measured: no-op, 1,000,000 files against no-op, 100,000 files" in table
    (naive,) = [line for line in table.splitlines() if line.startswith("| naive by-file |")]
    assert "| 8 of 8 |" in naive, "both scored the same photos, with the same classes"
    with Image.open(tmp_path / "results.png") as plot:
        assert plot.width > 500


def test_a_name_that_no_contender_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "nobody", "--work", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "no such contender" in done.stderr and "naive by-file" in done.stderr


def test_a_rate_is_taken_while_all_workers_score(tmp_path: Path) -> None:
    """The first worker scores 10 a second from second 0 to 4, the other 20 a second from 1 to 5.

    The first mini-batch of each, the other's until second 3, is its warm-up.
    """
    processed = tmp_path / "processed.csv"
    rows = [
        "instance,process,files,seconds",
        "a,p,1,1.0",
        "a,p,10,1.0",
        "a,p,10,1.0",
        "a,p,10,1.0",
        "b,p,3,2",
        "b,p,40,2",
    ]
    processed.write_text("\n".join(rows) + "\n")
    assert steady_rate(processed, {"a p": 100.0, "b p": 101.0}) == pytest.approx(30)


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    ours, peer = contender("by-file", *rates(10, 60, 30)), contender("naive by-file", *rates(1, 10, 1))
    (row,), missing = compare([ours, peer])
    assert row.ratios == [10, 6, 30]
    assert (row.ratio, row.met) == (10, True)
    assert f"by-batch against naive by-batch ({LITE0})" not in missing


@pytest.mark.parametrize(
    ("target", "mine", "theirs", "ratio"),
    [
        (Target("a", ("b",), RATE, 2), 6.0, 3.0, 2.0),
        (Target("a", ("b",), SECONDS, 2), 3.0, 6.0, 2.0),
        (Target("a", ("b",), SECONDS, 2, at_most=True), 3.0, 6.0, 0.5),
        (Target("a", ("b",), MEMORY, 2, at_most=True), 6.0, 3.0, 2.0),
    ],
)
def test_a_ratio_says_how_much_better_or_how_much_at_most(
    target: Target, mine: float, theirs: float, ratio: float
) -> None:
    ours, peer = contender("a", {target.quantity: mine}), contender("b", {target.quantity: theirs})
    assert paired(target, ours, [peer]) == [ratio]


def test_peers_together_take_the_time_of_both() -> None:
    ours, *peers = [contender(name, {RATE: rate}) for name, rate in (("a", 20.0), ("b", 30.0), ("c", 60.0))]
    target = Target("a", ("b", "c"), RATE, 1, together=True)
    assert paired(target, ours, peers) == pytest.approx([1.0])  # 1 / (1/30 + 1/60) is 20


def test_a_bound_of_two_is_not_measured_by_one_of_them() -> None:
    model, reading = "model alone, 2 workers", "reading alone, 2 workers"
    ours, *peers = [contender(name, *rates(30)) for name in ("by-batch, 2 workers", model, reading)]
    rows, _ = compare([ours, *peers])
    assert [(row.against, row.ratio) for row in rows] == [(f"{model} and {reading}", 2.0)]
    rows, missing = compare([ours, peers[0]])
    assert rows == []
    assert f"by-batch, 2 workers against {model} and {reading} ({LITE0})" in missing


def test_the_best_peer_is_the_one_with_the_best_median() -> None:
    peers = [contender("OpenVINO", *rates(20, 22, 24)), contender("ONNX Runtime", *rates(10, 40, 15))]
    (row,), _ = compare([contender("by-batch, 2 workers", *rates(20, 22, 24)), *peers])
    assert (row.peers, row.ratio, row.met) == ([peers[0]], 1.0, True)
    assert best(peers, RATE) is peers[0]


def test_predictions_are_compared_where_both_scored_a_file() -> None:
    one, other = contender("OpenVINO"), contender("by-file")
    one.predictions = {"a": (1, 0.5), "b": (2, 0.5), "c": (3, 0.5)}
    other.predictions = {"a": (1, 0.75), "b": (9, 0.1), "d": (4, 0.5)}
    assert agreement(one, other) == ["1 of 2", "0.2500"]


@pytest.mark.parametrize(
    ("values", "text"),
    [([3.0, 1.0, 2.0], "1.00 / 2.00 / 3.00"), ([12345.6], "12,346 / 12,346 / 12,346"), ([], "-")],
)
def test_a_spread_has_digits_that_suit_it(values: list[float], text: str) -> None:
    assert spread(values) == text


def test_a_contender_whose_package_is_missing_is_left_out_and_named(capsys: pytest.CaptureFixture) -> None:
    one = contender("OpenVINO")
    one.packages = ("pytest", "not_installed_here")
    prepare(one)
    measure(one, 0)
    assert one.rounds == []
    assert one.left_out == "not_installed_here not installed: pip install '.[bench]'"
    assert f"OpenVINO ({LITE0}): left out: not_installed_here" in capsys.readouterr().err


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: no JPEGs in it\n\nhint: ")


@pytest.mark.parametrize("script", ["", "input()\nraise SystemExit(3)"])
def test_a_contender_that_dies_is_left_out_with_its_exit_code(script: str) -> None:
    ask, end = process([sys.executable, "-c", script], [], [])
    with pytest.raises(LeftOut, match="ended"):
        ask(contender("dies"))
    end()
