"""`score --profile`: where the time goes, of scoring scripts that know nothing of it."""

import json
import re
import subprocess
from pathlib import Path

from score_runs import COMMAND, ROOT, run_command, write_deployment

SLOW = """
import threading, time
from concurrent.futures import ThreadPoolExecutor
from PIL import Image

def run(mini_batch):
    rested = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        resized = threads.submit(resize, rested)
        nothing()
        rested.set()
        resized.result()
    return mini_batch

def nothing():
    time.sleep(0.2)

def resize(rested):  # until run() has waited for it as long as it had nothing to do
    photo = Image.new("RGB", (1000, 1000))
    while not rested.is_set():
        photo.resize((750, 750), Image.Resampling.LANCZOS)
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        photo.resize((750, 750), Image.Resampling.LANCZOS)
"""


def test_the_slow_part_of_any_scoring_script_is_named(tmp_path: Path) -> None:
    write_deployment(tmp_path, SLOW, files=3)
    job = run_command(tmp_path, "--profile")
    assert job.code == 0
    lines = [line.split() for line in job.stderr.partition("run() itself is in:")[2].splitlines() if line]
    assert len(lines) >= 2
    shares = {" ".join(line[3:]): int(line[0]) for line in lines}
    assert shares["time.sleep(0.2)"] > 5 and shares["resized.result()"] > 5
    assert re.search(r"^ +resize +\d+ % +$", job.stderr, re.M)  # in the other thread
    assert re.search(
        r" together: run\(\) \d+ %, \d+\.\d ms a file; queue.* \d+ %; rows.* \d+ %$", job.stderr, re.M
    )
    assert "the script" not in job.stdout


def test_the_work_of_tensorflows_own_threads_is_told_apart(samples_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number in range(40):
        (tmp_path / "data" / f"{number}.jpg").symlink_to(samples_folder / "data" / "rocket.jpg")
    arguments = [
        "--data",
        tmp_path / "data",
        "--model",
        samples_folder / "model",
        "--output",
        tmp_path / "output",
    ]
    job = subprocess.run(
        [*COMMAND, ROOT / "deployment-by-batch.yml", *arguments, "--profile"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    (measured,) = (tmp_path / "output").rglob("*.profile.txt")
    profile = json.loads(measured.read_text())
    assert set(profile["operations"]) == {"model"}  # the images are read by threads of Python
    assert {"read", "decode", "resize"} & set(profile["threads"])
    assert profile["script"]["model"] > 0 and profile["script"].get("decode", 0) == 0
    assert profile["files"] == 40 and 0 < profile["window"] <= profile["run"] < profile["seconds"]
    assert "self.score(tf.constant(pixels))" in job.stderr


def test_a_worker_that_is_killed_leaves_no_profile(tmp_path: Path) -> None:
    write_deployment(tmp_path, "def run(mini_batch): os._exit(1)", files=3)
    job = run_command(tmp_path, "--profile")
    assert job.code == 1
    assert "no profile: no worker came to its end" in job.stderr


def test_a_profile_changes_no_row(tmp_path: Path) -> None:
    write_deployment(tmp_path, "def run(mini_batch): return [p[-5:] for p in mini_batch]", files=30)
    run_command(tmp_path, "--profile")
    with_profile = (tmp_path / "output" / "score" / "predictions.csv").read_text()
    assert run_command(tmp_path, "--overwrite").code == 0
    assert (tmp_path / "output" / "score" / "predictions.csv").read_text() == with_profile != ""
