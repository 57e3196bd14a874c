"""The page survives any job: odd records, odd files, and what a scoring script can leave in its output."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import pytest
import requests
from conftest import Served
from PIL import Image

from local_workspace import results
from local_workspace.__main__ import main
from local_workspace.jobs import EXECUTION_LOG, new_job
from local_workspace.labels import KEPT
from local_workspace.store import Store

FLOWERS = ("daisy", "dandelion", "lady's slipper, yellow", "Gänseblümchen", "rose")
SCRIPT = """
import os

def init():
    pass

def run(mini_batch):
    names = [os.path.basename(path) for path in mini_batch]
    return [f"{name} {name[0]} 0.5" for name in names]
"""
ROWS = "1.png 1 0.5\n"
MLFLOW = '2,0.75,"tench, Tinca tinca",a b.png\n3,0.5,Egyptian cat,c d.png\n'
# What a client can have asked for as the name of the file, as far as a record of any age can hold it.
FILE_NAMES = [
    5,
    None,
    ["x"],
    {},
    True,
    "",
    ".",
    "..",
    "a\0b",
    "x" * 300,
    "\ud800",
    "missing.csv",
    "/etc/passwd",
]


def record(name: str, **changes: Any) -> dict[str, Any]:
    settings = {"mini_batch_size": 1, "output_file_name": "predictions.csv", "environment_variables": {}}
    deployment = {"name": "main", "resources": {"instance_count": 1}, "settings": settings}
    place = {"container": "workspaceblobstore", "path": f"azureml/{name}/score"}
    details = {"endpoint": "flowers", "compute": "cluster", "experiment": "flowers", "environment": None}
    job = new_job(
        name,
        deployment=deployment | {"code_configuration": {"code": "code", "scoring_script": "driver.py"}},
        places={"model": place, "data": place, "output": place},
        input={"type": "UriFolder", "uri": "azureml:photos"},
        model="azureml:flowers:1",
        **details,
    )
    return job | {"status": "Completed", "started": job["created"], "ended": job["created"]} | changes


class Prepared:
    """Jobs of a workspace that is not running yet."""

    def __init__(self, state: Path) -> None:
        self.store, self.state = Store(state), state

    def add(self, name: str, files: dict[str, bytes | str], **changes: Any) -> Path:
        """A job with these files in its folder, which is returned."""
        folder = self.state / "jobs" / name
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        self.store.put("jobs", name, record(name, **changes))
        return folder

    def add_named(self, name: str, file_name: Any) -> None:
        deployment = record(name)["deployment"]
        deployment["settings"]["output_file_name"] = file_name
        self.add(name, {"output/score/predictions.csv": ROWS}, deployment=deployment)


def add_flowers(jobs: Prepared, folder: Path) -> None:
    """A model of 5 classes with its own labels, scored as `jobs` scores."""
    job = jobs.add("flowers", {EXECUTION_LOG: "scored\n"})
    for name in ("code", "model/flowers"):
        (folder / name).mkdir(parents=True)
    (folder / "code" / "driver.py").write_text(SCRIPT)
    (folder / "model" / "flowers" / "labels.txt").write_text("\n".join(FLOWERS), "utf-8")
    (job / "data").mkdir()
    for number in range(5):
        Image.new("RGB", (60, 40)).save(job / "data" / f"{number}.png")
    settings = record("flowers")["deployment"]
    (folder / "deployment.yml").write_text(
        json.dumps(settings | {"endpoint_name": "flowers", "type": "model"})
    )
    command = ["score", folder / "deployment.yml", "--data", job / "data", "--output", job / "output"]
    assert main([str(part) for part in [*command, "--model", folder / "model" / "flowers"]]) == 0


def add_pipes(jobs: Prepared) -> None:
    """Each would wait for ever."""
    folder = jobs.add("pipes", {"output/logs/user/error/x/a.txt": "", "data/1.png": ""}, summary=None)
    paths = [EXECUTION_LOG, "output/progress.json", "output/failed.csv", f"output/{KEPT}", "output/1.parquet"]
    paths += ["output/score/predictions.csv", "output/score/1.parquet", "output/logs/user/error/x/b.txt"]
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(folder / path)
    (folder / "output/logs/user/error/x/c.txt").symlink_to("nothing")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("any-job")
    jobs = Prepared(folder / "state")
    rows = "output/score/predictions.csv"
    for number, name in enumerate(FILE_NAMES):
        jobs.add_named(f"named-{number}", name)
    for number, summary in enumerate([{}, {"files": "5"}, {"files": 1, "succeeded": None}, [], "x", 5]):
        jobs.add(f"summary-{number}", {rows: ROWS}, summary=summary)
    jobs.add("nothing", {})
    jobs.add("numbers", {rows: ROWS}, environment=5, model=None, compute=7, error={"message": 5})
    jobs.add("log", {EXECUTION_LOG: "files: 9, mini-batches: 1\n,,, of ,,, files, ..../s, ,,, failed\n"})
    jobs.add("mlflow", {rows: MLFLOW}, deployment=record("x")["deployment"] | {"code_configuration": None})
    mlflow = record("mlflow-rows")["deployment"]
    del mlflow["code_configuration"]
    jobs.add("mlflow-rows", {rows: "0,a label,b c.png\n"}, deployment=mlflow)
    jobs.add("misfit", {rows: "1.png 1 0.5\n2.png 7 0.5\n", f"output/{KEPT}": "cat\ndog\n"})
    jobs.add("no-text", {rows: ROWS, f"output/{KEPT}": b"\xff"})
    latin = jobs.add(
        "latin", {rows: b"latin \xe4.png 1 0.5\n", "output/failed.csv": b"file\n\xe4.png,0,\xe4\n"}
    )
    (latin / "output" / "score" / os.fsdecode(b"\xe4")).touch()
    parquet = jobs.add("parquet", {"output/score/x": ""})
    frame = pd.DataFrame({"file": ["NA", "0001"], "class": 1, "probability": 0.5})
    frame.to_parquet(parquet / "output" / "score" / "1.parquet")
    link = jobs.add("link", {rows: ROWS, "data/x": "", "photo.png": ""})
    Image.new("RGB", (60, 40)).save(link / "photo.png")
    (link / "data" / "1.png").symlink_to(link / "photo.png")
    add_flowers(jobs, folder)
    add_pipes(jobs)
    jobs.store.close()
    workspace = Served(folder / "state")
    yield workspace
    assert workspace.stop(signal.SIGINT) == 0


def get(served: Served, path: str) -> requests.Response:
    parts = urlsplit(served.environment["LOCAL_WORKSPACE_PAGE"])
    with requests.Session() as session:
        session.trust_env = False
        return session.get(f"{parts.scheme}://{parts.netloc}{path}?{parts.query}", timeout=60)


NAMES = [
    "link",
    "nothing",
    "numbers",
    "log",
    "mlflow",
    "mlflow-rows",
    "misfit",
    "no-text",
    "latin",
    "parquet",
]
NAMES += [
    "flowers",
    "pipes",
    *(f"named-{n}" for n in range(len(FILE_NAMES))),
    *(f"summary-{n}" for n in range(6)),
]


@pytest.mark.parametrize("name", NAMES)
def test_every_job_has_a_page(name: str, served: Served) -> None:
    answer = get(served, f"/jobs/{name}")
    assert answer.status_code == 200, answer.text
    assert f"<h1>{name} " in answer.text
    assert get(served, f"/jobs/{name}/pictures/0").status_code in (200, 404)


def test_every_job_is_listed(served: Served) -> None:
    answer = get(served, "/")
    assert answer.status_code == 200
    assert all(f'<a href="/jobs/{name}?key=' in answer.text for name in NAMES)


def test_a_model_of_five_classes_has_its_own_labels(served: Served) -> None:
    html = get(served, "/jobs/flowers").text
    for label in ("daisy", "dandelion", "lady&#39;s slipper, yellow", "Gänseblümchen", "rose"):
        assert f'<b title="{label}">{label}</b> 0.500' in html
    assert get(served, "/jobs/flowers/pictures/4").headers["Content-Type"] == "image/jpeg"


def test_labels_that_do_not_fit_are_not_shown(served: Served) -> None:
    html = get(served, "/jobs/misfit").text
    assert "<b title" in html and ">class 1</b>" in html and ">class 7</b>" in html and "dog" not in html
    assert f"output/{KEPT}: 2 lines, and a row has class 7" in html
    html = get(served, "/jobs/no-text").text
    assert ">class 1</b>" in html and f"output/{KEPT}: not UTF-8" in html


def test_rows_of_an_mlflow_model_are_read_by_their_commas(served: Served) -> None:
    html = get(served, "/jobs/mlflow").text
    assert ">tench, Tinca tinca</b> 0.750" in html and ">a b.png</small>" in html
    assert "<td>0</td><td>a label</td><td>b c.png</td>" in get(served, "/jobs/mlflow-rows").text


def test_rows_in_parquet_files_are_shown(served: Served) -> None:
    html = get(served, "/jobs/parquet").text
    assert ">NA</small>" in html and ">0001</small>" in html


def test_rows_in_parquet_files_are_not_shown_while_files_are_added(tmp_path: Path) -> None:
    """Row 3 of the page is then another one than row 3 of its pictures."""
    score = tmp_path / "output" / "score"
    score.mkdir(parents=True)
    pd.DataFrame({"file": ["a"], "class": 1, "probability": 0.5}).to_parquet(score / "1.parquet")
    assert results.read_rows(record("x", status="Running"), tmp_path) == []
    assert [row.file for row in results.read_rows(record("x"), tmp_path)] == ["a"]


def test_no_picture_is_read_through_a_link(served: Served) -> None:
    answer = get(served, "/jobs/link/pictures/0")
    assert answer.headers["Content-Type"] == "image/svg+xml" and "it is a link" in answer.text


def test_log_lines_that_look_like_progress_are_none(served: Served) -> None:
    html = get(served, "/jobs/log").text
    assert "<progress" not in html and ",,, of ,,, files" in html
