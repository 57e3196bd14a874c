"""What the local workspace hands out says so in itself, and `make clean` deletes it and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, Served

from local_workspace import samples
from local_workspace.clean import clean
from local_workspace.errors import UserError
from local_workspace.workspace import SUBSCRIPTION_ID


def write_files(folder: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def left(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def handed_out() -> dict[str, str]:
    """What a local workspace keeps of what it hands out, and what deploy-and-run.sh makes of it."""
    model, photos = (
        {"saved_model.pb": "small", samples.STAND_IN: "note"},
        {"cat.png": "cat", "cup.png": "cup"},
    )
    kept = {"model.zip": "zip", "imagenet-1000.zip": "photos"}
    kept |= {f"model/{name}": text for name, text in model.items()}
    kept |= {f"data/{name}": text for name, text in photos.items()}
    return kept | {f".local_workspace/samples/embedded/{name}": text for name, text in kept.items()}


def test_the_prepared_model_says_that_it_is_a_stand_in(samples_folder: Path) -> None:
    note = (samples_folder / "model" / samples.STAND_IN).read_text(encoding="utf-8")
    assert "stands in for the article's" in note.splitlines()[0]
    assert f"subscription: {SUBSCRIPTION_ID}" in note.splitlines()
    assert left(samples_folder / "data") == set(samples.PHOTOS)  # a note there would be scored


def test_a_zip_of_a_mac_brings_its_photos_only(tmp_path: Path) -> None:
    photos = {"photos/a.jpg", "photos/more/b.jpg"}
    junk = {
        "__MACOSX/photos/._a.jpg",
        "photos/__MACOSX/c.jpg",
        "photos/._a.jpg",
        "photos/.DS_Store",
        "._d.jpg",
    }
    with zipfile.ZipFile(tmp_path / "imagenet-1000.zip", "w") as file:
        for name in photos | junk:
            file.writestr(name, name)
    data, _ = samples.prepare_part(samples.DATA, tmp_path)
    assert left(data) == {name.removeprefix("photos/") for name in photos}


def test_a_first_run_after_make_score_starts(tmp_path: Path) -> None:
    samples.prepare_part(samples.DATA, tmp_path)
    command = [sys.executable, "-m", "local_workspace", "run", "--state", tmp_path / ".local_workspace"]
    run = subprocess.run([*command, "--", "true"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


def test_clean_deletes_what_a_run_made(tmp_path: Path, handed_out: dict[str, str]) -> None:
    job = ".local_workspace/jobs/one/output/score/predictions.csv"
    score = "named-outputs/score/predictions.csv"
    results = {job: "a.png 1 0.5", score: "a.png 1 0.5", f"outputs/high-throughput/{score}": "a.png 1 0.5"}
    scored = {
        "outputs/by-file/score/predictions.csv": "",
        "outputs/logs/one/log.txt": "",
        "named-outputs/predictions.png": "",
    }
    mlflow = {
        "mlflow-model/MLmodel": "flavors:\n  python_function:\n    loader_module: imagenet_classifier\n"
    }
    write_files(tmp_path, handed_out | results | scored | mlflow | {".local_workspace/state.sqlite": ""})
    assert clean(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_clean_deletes_what_samples_made(tmp_path: Path) -> None:
    samples.prepare_part(samples.DATA, tmp_path)
    assert clean(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_clean_deletes_nothing_of_the_user_s(tmp_path: Path, handed_out: dict[str, str]) -> None:
    own = {
        "data/me.jpg": "me",
        "data/cat.png": "another cat",
        "model/labels.txt": "cat\n",
        "model.zip": "the article's",
        "mlflow-model/MLmodel": "loader_module: mlflow.sklearn",
        "named-outputs/score/predictions.csv": "me.jpg 1 0.5",
        "outputs/mine/predictions.csv": "me.jpg 1 0.5",
        ".local_workspace/samples/model.zip": "the article's",
    }
    write_files(tmp_path, handed_out | own)
    stays = [path.relative_to(tmp_path).as_posix() for path in clean(tmp_path)]
    assert left(tmp_path) == set(own)
    assert stays == [
        "model",
        "data",
        "model.zip",
        "named-outputs",
        "outputs",
        "mlflow-model",
        ".local_workspace",
    ]


def test_clean_without_a_local_workspace_deletes_no_model_and_no_photos(tmp_path: Path) -> None:
    own = {"model/saved_model.pb": "mine", "data/me.jpg": "me", "imagenet-1000.zip": "mine"}
    write_files(tmp_path, own)
    clean(tmp_path)
    assert left(tmp_path) == set(own)


def test_clean_does_not_follow_links(tmp_path: Path, handed_out: dict[str, str]) -> None:
    write_files(
        tmp_path / "mine", {name: text for name, text in handed_out.items() if name.startswith("data/")}
    )
    write_files(
        tmp_path / "here", {name: text for name, text in handed_out.items() if not name.startswith("data/")}
    )
    (tmp_path / "here" / "data").symlink_to(tmp_path / "mine" / "data")
    clean(tmp_path / "here")
    assert left(tmp_path / "mine") == {"data/cat.png", "data/cup.png"}


def test_clean_leaves_a_workspace_that_runs(served: Served, tmp_path: Path) -> None:
    (tmp_path / ".local_workspace").symlink_to(served.state)
    with pytest.raises(UserError, match="is in use by another local workspace"):
        clean(tmp_path)
    assert (served.state / "state.sqlite").exists()
