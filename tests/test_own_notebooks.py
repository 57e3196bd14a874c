"""The notebooks with a model and photos of one's own: five classes, a rescaling inside, hard file names."""

import zipfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from notebook import BATCH, MLFLOW, Executed, code_cells
from PIL import Image

LABELS = ["ash", "birch", "cedar", "dogwood", "elm"]
# Names that pandas would read as "no value" or as a number, and what the model says of a photo of that gray.
PHOTOS = {"NA.png": (10, "elm"), "0001.png": (200, "ash"), "None.png": (200, "ash"), "a b.png": (10, "elm")}


def write_own(folder: Path) -> dict[str, bytes]:
    """Write a model that says `ash` to what is bright, else `elm`, and photos, zipped on a Mac."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(5, activation="softmax"),
        ]
    )
    kernel = np.zeros((3, 5), np.float32)
    kernel[:, 0] = 4
    model.layers[-1].set_weights([kernel, np.array([0, 0, 0, 0, 6], np.float32)])
    (folder / "model").mkdir()
    model.save(folder / "model" / "trees.keras")
    (folder / "model" / "labels.txt").write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    with zipfile.ZipFile(folder / "imagenet-1000.zip", "w") as archive:
        for name, (gray, _) in PHOTOS.items():
            with archive.open(name, "w") as file:
                Image.new("RGB", (32, 24), (gray, gray, gray)).save(file, "PNG")
            archive.writestr(f"__MACOSX/._{name}", "junk")
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


@pytest.mark.parametrize("name", [BATCH, MLFLOW])
def test_a_notebook_with_a_model_and_photos_of_one_s_own(name: str, tmp_path: Path) -> None:
    before = write_own(tmp_path)
    executed = Executed(tmp_path, name, "notebooks")
    assert {row["file"]: row["label"] for row in executed.table("table")} == {
        name: label for name, (_, label) in PHOTOS.items()
    }
    assert executed.printed("download") == f"model/ is there and is used as it is\n{len(PHOTOS)} photos\n"
    assert "model/ holds labels.txt, trees.keras\n" in executed.printed("register")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert {path.name for path in (tmp_path / "data").rglob("*")} == set(PHOTOS)
    assert not (tmp_path / "named-outputs").exists()
    assert not list(tmp_path.glob("tmp*")), "a temporary folder is left"


@pytest.mark.parametrize("name", [BATCH, MLFLOW])
@pytest.mark.parametrize("subscription, given", [("here", False), ("another", False), ("another", True)])
def test_a_stand_in_gets_the_article_s_name_in_its_own_subscription_only(
    name: str, subscription: str, given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/STAND-IN.txt").write_text("A small model.\nsubscription: here\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (cell,) = [cell for cell in code_cells(name) if cell["id"] == "register"]
    check = "".join(cell["source"]).partition("model = Model(")[0]
    if given:
        check = check.replace('model_name = "', 'model_name = "my-')
    client = SimpleNamespace(subscription_id=subscription)
    variables = {"Path": Path, "model_files": [], "ml_client": client}
    if subscription == "here" or given:
        exec(check, variables)
    else:
        with pytest.raises(ValueError, match="set model_name to a name of your own"):
            exec(check, variables)
