"""The deployment of an MLflow model: saved by the sample, run by the executor as Azure runs one.

Most tests call the driver of such deployments with small models, which tell what they were given.
"""

from __future__ import annotations

import csv
import datetime
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from PIL import Image
from score_runs import COMMAND, Run
from scoring import load
from test_scoring_scripts import UNREADABLE

from local_workspace.__main__ import main
from local_workspace.deployment import MLFLOW_DRIVER
from local_workspace.predictions import read_rows
from local_workspace.samples import PHOTOS

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "code" / "score-with-mlflow"
SIZE = (6, 4)  # pixels, width and height
NUMBERS = count()

WHAT_IT_GETS = """
    if isinstance(data, dict):
        (name, data), = data.items()
        return pd.DataFrame({"name": [name], "shape": [str(data.shape)]})
    first = data.reshape(-1, data.shape[-1])[0].tolist()
    return pd.DataFrame({"shape": [str(data.shape)], "type": [str(data.dtype)], "first": [str(first)]})
"""
COLOUR = (200, 100, 50)


def import_file(path: Path) -> ModuleType:
    """The script at `path`, which finds the modules beside it."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mlflow_model(samples_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, saved by the sample."""
    target = tmp_path_factory.mktemp("mlflow") / "mlflow-model"
    return import_file(SAMPLE / "save_model.py").save_model(samples_folder / "model", target)


def write_model(folder: Path, body: str, *inputs: TensorSpec | ColSpec) -> Path:
    """An MLflow model in `folder`/model, whose predict(data) has the `body`; no inputs: no signature."""
    name = f"model_{next(NUMBERS)}"  # Python keeps a loader module by its name
    loader = folder / f"{name}.py"
    imports = "import sys\nimport numpy as np\nimport pandas as pd\n"
    body = "\n".join(f"    {line}" for line in body.splitlines())
    loader.write_text(
        f"{imports}\ncalls = []\n\ndef predict(data):\n{body}\n\n"
        "def _load_pyfunc(path):\n    return sys.modules[__name__]\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is no input example, or no signature
        mlflow.pyfunc.save_model(
            folder / "model",
            loader_module=name,
            code_paths=[str(loader)],
            signature=ModelSignature(inputs=Schema(list(inputs))) if inputs else None,
            pip_requirements=[],
        )
    return folder / "model"


def load_driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The driver after its init(), with `folder` for AZUREML_MODEL_DIR."""
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(folder))
    driver = import_file(MLFLOW_DRIVER)
    driver.init()
    return driver


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function: the driver's lines for files, scored by a model with that body and those inputs."""

    def predict(body: str, *inputs: TensorSpec | ColSpec, files: list[Path]) -> list[str]:
        write_model(tmp_path, body, *inputs)
        driver = load_driver(tmp_path, monkeypatch)
        return [str(row) for row in driver.run([str(path) for path in files])]

    return predict


def tensor(*shape: int, type_: str = "uint8", name: str | None = None) -> TensorSpec:
    return TensorSpec(np.dtype(type_), shape, name)


RGB = tensor(-1, -1, -1, 3)


def picture(path: Path, mode: str = "RGB", colour: object = COLOUR) -> Path:
    Image.new(mode, SIZE, colour).save(path)
    return path


def cells(line: str) -> list[str]:
    """The values of a line of the output."""
    return next(csv.reader([line]))


def score(deployment: Path, data: Path, output: Path, *arguments: str | Path) -> Run:
    """The command line, as a process of its own."""
    command = [*COMMAND, deployment, "--data", data, "--output", output / "output", *arguments]
    job = subprocess.run(command, cwd=output, capture_output=True, text=True, timeout=300)
    return Run(job.returncode, output, job.stdout, job.stderr)


# --- the sample's model and deployment


def test_the_photos_get_the_labels_of_the_deployment_by_file(
    mlflow_model: Path, samples_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = score(ROOT / "deployment-mlflow.yml", samples_folder / "data", tmp_path, "--model", mlflow_model)
    assert run.code == 0, run.stderr
    predictions = tmp_path / "output" / "score" / "predictions.csv"
    rows = pd.read_csv(predictions, header=None, names=["class", "probability", "label", "file"])
    assert dict(zip(rows["file"], rows["label"])) == PHOTOS
    by_file = load("score-by-file", {"AZUREML_MODEL_DIR": str(samples_folder)}, monkeypatch).run(
        [str(samples_folder / "data" / name) for name in rows["file"]]
    )
    assert list(rows["class"]) == list(by_file["class"])
    assert np.allclose(rows["probability"], by_file["probability"], atol=0.1)  # a hair's breadth moves rocket
    assert np.allclose(rows["probability"][:3], by_file["probability"][:3], atol=0.01)
    read = [(row.file, *row.classes, row.probability, row.label) for row in read_rows(predictions)]
    assert read == list(rows[["file", "class", "probability", "label"]].itertuples(index=False, name=None))


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (300, 300), (301, 1024)])
def test_the_model_takes_many_images_of_any_size_and_a_row_for_each_is_returned(
    mlflow_model: Path, size: tuple[int, int]
) -> None:
    model = mlflow.pyfunc.load_model(str(mlflow_model))
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    together = model.predict(images)
    assert list(together.columns) == ["class", "probability", "label"]
    alone = pd.concat([model.predict(image[np.newaxis]) for image in images])
    assert list(together["class"]) == list(alone["class"])
    assert np.allclose(together["probability"], alone["probability"], atol=1e-4)
    assert together["probability"].between(0.001, 1).all()


def test_what_is_saved_has_the_articles_signature_and_the_pinned_requirements(mlflow_model: Path) -> None:
    saved = yaml.safe_load((mlflow_model / "MLmodel").read_text())
    (tensor,) = json.loads(saved["signature"]["inputs"])
    assert tensor == {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, -1, -1, 3]}}
    conda = yaml.safe_load((ROOT / "environment" / "conda.yml").read_text())["dependencies"]
    (pinned,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]
    first, *others = (mlflow_model / "requirements.txt").read_text().splitlines()
    assert first == f"mlflow-skinny=={mlflow.__version__}"
    assert len(others) == 6
    assert set(others) <= set(pinned)


@pytest.mark.filterwarnings("ignore:unclosed scandir iterator")  # MLflow's, where it refuses the folder
@pytest.mark.filterwarnings("ignore:Exception ignored in.*ScandirIterator")
def test_saving_replaces_an_mlflow_model_and_nothing_else(samples_folder: Path, tmp_path: Path) -> None:
    save_model = import_file(SAMPLE / "save_model.py").save_model
    save_model(samples_folder / "model", tmp_path / "old")
    (tmp_path / "old" / "left over").touch()
    save_model(samples_folder / "model", tmp_path / "old")
    assert not (tmp_path / "old" / "left over").exists()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").touch()
    with pytest.raises(MlflowException, match="not empty"):
        save_model(samples_folder / "model", tmp_path / "notes")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "MLmodel").write_text(
        "flavors: {python_function: {loader_module: mlflow.sklearn}}"
    )
    with pytest.raises(MlflowException, match="not empty"):
        save_model(samples_folder / "model", tmp_path / "theirs")
    with pytest.raises(FileNotFoundError, match=r"0 models, expected one .*found: mine\.txt"):
        save_model(tmp_path / "notes", tmp_path / "new")


def test_the_client_loads_the_deployment() -> None:
    from azure.ai.ml.entities._load_functions import load_model_batch_deployment

    deployment = load_model_batch_deployment(ROOT / "deployment-mlflow.yml")
    assert deployment.name == deployment.endpoint_name == "imagenet-classifier-mlflow"
    assert deployment.model == "imagenet-classifier-mlflow@latest"  # the client takes `azureml:` off
    assert deployment.code_configuration is deployment.environment is None
    by_file = yaml.safe_load((ROOT / "deployment-by-file.yml").read_text())
    own = yaml.safe_load((ROOT / "deployment-mlflow.yml").read_text())
    for key in ("compute", "resources", "settings"):
        assert own[key] == by_file[key]


# --- images


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "tiff", "bmp", "gif"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_every_supported_type_in_any_case_is_one_array(
    predict: Callable, kind: str, case: Callable, tmp_path: Path
) -> None:
    image = tmp_path / f"a.b.{case(kind)}"
    Image.new("RGB", SIZE, COLOUR).save(image, {"jpg": "jpeg"}.get(kind, kind))
    (line,) = predict(WHAT_IT_GETS, RGB, files=[image])
    shape, type_, first, file = cells(line)
    assert (shape, type_, file) == ("(1, 4, 6, 3)", "uint8", image.name)
    assert np.allclose(json.loads(first), COLOUR, atol=3)


@pytest.mark.parametrize("name", ["photo.tif", "photo.webp", "notes.txt", "photo", ".png", "photo.png.avro"])
def test_any_other_type_is_an_error_that_names_file_and_type(
    predict: Callable, name: str, tmp_path: Path
) -> None:
    first = picture(tmp_path / "first.png")
    (tmp_path / name).write_bytes(first.read_bytes())
    kind = Path(name).suffix.removeprefix(".")
    with pytest.raises(ValueError, match=rf"{name}: file type '{kind}' is not supported.*png.*parquet"):
        predict(WHAT_IT_GETS, RGB, files=[first, tmp_path / name])


def test_each_image_is_a_call_of_its_own_whatever_its_size(predict: Callable, tmp_path: Path) -> None:
    sizes = [(6, 4), (5, 9), (6, 4)]
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, size in zip(files, sizes):
        Image.new("RGB", size).save(file)
    body = (
        "calls.append(data.shape)\nreturn pd.DataFrame({'calls': [len(calls)], 'of': [str(calls[-1][1:3])]})"
    )
    lines = predict(body, RGB, files=files)
    assert lines == ['1,"(4, 6)",0.png', '2,"(9, 5)",1.png', '3,"(4, 6)",2.png']


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full(SIZE[::-1], 100 * 256 + 7, np.uint16)).save(path)


def palette(path: Path) -> None:
    Image.new("RGB", SIZE, COLOUR).quantize(4).save(path)


def clear_palette(path: Path) -> None:
    image = Image.new("P", SIZE, 0)
    image.putpalette(COLOUR)
    image.save(path, transparency=0)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1], COLOUR).save(path, exif=exif)


# name: how it is written, and what an RGB, a gray and an RGBA signature get of it
PIXELS = {
    "rgb.png": (picture, [*COLOUR], [124], [*COLOUR, 255]),
    "gray.png": (lambda path: picture(path, "L", 100), [100] * 3, [100], [100, 100, 100, 255]),
    "one bit.png": (lambda path: picture(path, "1", 1), [255] * 3, [255], [255] * 4),
    "clear.png": (lambda path: picture(path, "RGBA", (9, 8, 7, 0)), [255] * 3, [255], [9, 8, 7, 0]),
    "gray-alpha.png": (lambda path: picture(path, "LA", (9, 0)), [255] * 3, [255], [9, 9, 9, 0]),
    "palette.png": (palette, [*COLOUR], [124], [*COLOUR, 255]),
    "clear palette.png": (clear_palette, [255] * 3, [255], [*COLOUR, 0]),
    "sixteen bits.png": (sixteen_bits, [100] * 3, [100], [100, 100, 100, 255]),
    "sixteen bits.tiff": (sixteen_bits, [100] * 3, [100], [100, 100, 100, 255]),
    "cmyk.tiff": (lambda path: picture(path, "CMYK", (55, 155, 205, 0)), [*COLOUR], [124], [*COLOUR, 255]),
    "turned.png": (turned, [*COLOUR], [124], [*COLOUR, 255]),
}


@pytest.mark.parametrize("name", PIXELS)
@pytest.mark.parametrize("channels", [3, 1, 4])
def test_pixels_of_every_kind_become_the_signatures_channels(
    predict: Callable, name: str, channels: int, tmp_path: Path
) -> None:
    write, rgb, gray, rgba = PIXELS[name]
    write(tmp_path / name)
    (line,) = predict(WHAT_IT_GETS, tensor(-1, -1, -1, channels), files=[tmp_path / name])
    shape, type_, first, file = cells(line)
    assert (shape, type_, file) == (f"(1, 4, 6, {channels})", "uint8", name)
    assert json.loads(first) == {3: rgb, 1: gray, 4: rgba}[channels]


SIGNATURES = {
    "none": ([], "(1, 4, 6, 3)", "uint8"),
    "float": ([tensor(-1, -1, -1, 3, type_="float32")], "(1, 4, 6, 3)", "float32"),
    "double": ([tensor(-1, -1, -1, 3, type_="float64")], "(1, 4, 6, 3)", "float64"),
    "wider": ([tensor(-1, -1, -1, 3, type_="int32")], "(1, 4, 6, 3)", "int32"),
    "one image": ([tensor(1, -1, -1, 3)], "(1, 4, 6, 3)", "uint8"),
    "fixed": ([tensor(-1, 4, 6, 3)], "(1, 4, 6, 3)", "uint8"),
    "any channels": ([tensor(-1, -1, -1, -1)], "(1, 4, 6, 3)", "uint8"),
    "no batch": ([tensor(-1, -1, 3)], "(4, 6, 3)", "uint8"),
}


@pytest.mark.parametrize("case", SIGNATURES)
def test_an_image_has_the_signatures_shape_and_type(predict: Callable, case: str, tmp_path: Path) -> None:
    inputs, shape, type_ = SIGNATURES[case]
    (line,) = predict(WHAT_IT_GETS, *inputs, files=[picture(tmp_path / "photo.png")])
    found_shape, found_type, first, _ = cells(line)
    assert (found_shape, found_type, json.loads(first)) == (shape, type_, [*COLOUR])


def test_a_flat_signature_gets_gray_and_a_named_one_its_name(predict: Callable, tmp_path: Path) -> None:
    photo = picture(tmp_path / "photo.png", "L", 100)
    (line,) = predict(WHAT_IT_GETS, tensor(-1, -1), files=[photo])
    assert cells(line)[:2] == ["(4, 6)", "uint8"]
    shutil.rmtree(tmp_path / "model")
    (line,) = predict(WHAT_IT_GETS, tensor(-1, -1, -1, 3, name="image"), files=[photo])
    assert line == 'image,"(1, 4, 6, 3)",photo.png'


UNFIT = {
    "another size": ([tensor(-1, 8, 8, 3)], r"6 x 4 pixels .*\(1, 4, 6, 3\).* does not fit \(-1, 8, 8, 3\)"),
    "channels first": ([tensor(-1, 3, -1, -1)], r"does not fit \(-1, 3, -1, -1\)"),
    "five channels": ([tensor(-1, -1, -1, 5)], "1, 3 or 4 channels"),
    "too many axes": ([tensor(-1, -1, -1, -1, 3)], "1, 3 or 4 channels"),
    "too few axes": ([tensor(-1)], "1, 3 or 4 channels"),
    "texts": ([tensor(-1, -1, -1, 3, type_="str")], "expected numbers up to 255"),
    "numbers to 127": ([tensor(-1, -1, -1, 3, type_="int8")], "expected numbers up to 255"),
    "two inputs": ([tensor(-1, name="a"), tensor(-1, name="b")], "expected one TensorSpec"),
    "columns": ([ColSpec("double", "age")], "expected one TensorSpec"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_image_that_does_not_fit_the_signature_is_refused(
    predict: Callable, case: str, tmp_path: Path
) -> None:
    inputs, message = UNFIT[case]
    with pytest.raises(ValueError, match=rf"photo\.png: .*{message}"):
        predict("return 1", *inputs, files=[picture(tmp_path / "photo.png")])


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_image_that_cannot_be_read_is_logged_and_left_out(
    predict: Callable, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, reason = UNREADABLE[kind]
    write(Image.new("RGB", (300, 300)), tmp_path / kind)
    photo = picture(tmp_path / "photo.png")
    with caplog.at_level(logging.WARNING):
        lines = predict("return [7]", RGB, files=[photo, tmp_path / kind, photo])
    assert lines == ["7,photo.png"] * 2
    (message,) = [record.getMessage() for record in caplog.records if kind in record.getMessage()]
    assert message.startswith(str(tmp_path / kind))
    assert reason in message


# --- tables

COLUMNS = [
    ColSpec("string", "code"),
    ColSpec("integer", "age"),
    ColSpec("double", "dose"),
    ColSpec("boolean", "smokes"),
    ColSpec("datetime", "day"),
]
CSV = "day,extra,smokes,dose,age,code\n2026-11-22,x,True,1,50,007\n2026-11-23,y,False,2.5,61,a b\n"
TELL = "return [' '.join(map(str, row)) for row in data.itertuples(index=False)]"


def test_a_csv_is_one_frame_with_the_columns_and_types_of_the_signature(
    predict: Callable, tmp_path: Path
) -> None:
    table = tmp_path / "heart, unlabeled.CSV"
    table.write_text(CSV)
    assert (
        predict(TELL, *COLUMNS, files=[table, table])
        == [
            '0,007 50 1.0 True 2026-11-22 00:00:00,"heart, unlabeled.CSV"',
            '1,a b 61 2.5 False 2026-11-23 00:00:00,"heart, unlabeled.CSV"',
        ]
        * 2
    )


@pytest.mark.parametrize("kind", ["parquet", "pqt"])
def test_a_parquet_file_is_one_frame(predict: Callable, kind: str, tmp_path: Path) -> None:
    table = tmp_path / f"heart.{kind}"
    day = pd.to_datetime([datetime.datetime(2026, 11, 22)])
    pd.DataFrame(
        {"day": day, "smokes": [True], "dose": [1.0], "age": np.array([50], "int32"), "code": ["007"]}
    ).to_parquet(table)
    assert predict(TELL, *COLUMNS, files=[table]) == [f"0,007 50 1.0 True 2026-11-22 00:00:00,heart.{kind}"]


def test_without_a_signature_a_table_is_as_it_is(predict: Callable, tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("b,a\n1,2\n3,4\n")
    assert predict("return data['a'] + list(data.columns).index('a')", files=[table]) == [
        "0,3,a.csv",
        "1,5,a.csv",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CSV.replace("61", "old"), "invalid literal for int"),
        (CSV.replace("smokes", "drinks"), r"missing inputs \['smokes'\]"),
        (CSV.replace("False", "maybe"), "convert .* bool"),
        ("", "No columns to parse"),
    ],
)
def test_a_table_that_does_not_fit_the_signature_is_refused(
    predict: Callable, text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "heart.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)heart\.csv: .*{message}") as refused:
        predict(TELL, *COLUMNS, files=[tmp_path / "heart.csv"])
    assert refused.value.fails_job


# --- predictions of every form


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ("pd.DataFrame({'class': [7], 'label': ['a, \"b\"']})", '7,"a, ""b""",photo.png'),
        ("pd.Series([0.5])", "0.5,photo.png"),
        ("np.array([0.1], 'float32')", "0.1,photo.png"),
        ("np.array([[1, 2, 3]])", "1,2,3,photo.png"),
        ("['cat']", "cat,photo.png"),
        ("[{'class': 1, 'label': 'cat'}]", "1,cat,photo.png"),
        ("{'class': np.array([1]), 'scores': np.array([[0.5, 1]])}", "1,[0.5 1. ],photo.png"),
        ("{'class': 1}", "1,photo.png"),
        ("'cat'", "cat,photo.png"),
        ("0.5", "0.5,photo.png"),
    ],
)
def test_predictions_of_every_form_are_columns_before_the_file(
    predict: Callable, prediction: str, line: str, tmp_path: Path
) -> None:
    assert predict(f"return {prediction}", RGB, files=[picture(tmp_path / "photo.png")]) == [line]


# --- the model's folder


@pytest.mark.parametrize("depth", [0, 1])
def test_the_model_lies_directly_or_one_level_down(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path, "return 1", RGB)
    driver = load_driver([model, model.parent][depth], monkeypatch)
    assert driver.schema.inputs == [RGB]


def test_no_model_or_two_is_an_error_that_tells_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"0 MLflow models, expected one .*found: nothing"):
        load_driver(tmp_path, monkeypatch)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "saved_model.pb").touch()
    with pytest.raises(FileNotFoundError, match=r"0 MLflow models.*found: b, b/saved_model.pb$"):
        load_driver(tmp_path, monkeypatch)
    for name in ("a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "MLmodel").touch()
    with pytest.raises(FileNotFoundError, match=r"2 MLflow models, expected one .*found: a, b$"):
        load_driver(tmp_path, monkeypatch)


# --- through the executor


def write_deployment(folder: Path, **settings: object) -> Path:
    deployment = {"name": "m", "endpoint_name": "e", "type": "model", "model": {"path": "model"}}
    settings = {"mini_batch_size": 2, **settings}
    (folder / "deployment.yml").write_text(json.dumps(deployment | {"compute": "c", "settings": settings}))
    (folder / "data" / "within").mkdir(parents=True)
    return folder / "deployment.yml"


def test_a_job_scores_the_folder_but_not_its_subfolders_and_tells_why_a_file_failed(tmp_path: Path) -> None:
    write_model(tmp_path, "return [data.shape[2]]", RGB)
    deployment = write_deployment(tmp_path)
    data = tmp_path / "data"
    for name in ("a, b.png", "c.JPG", "within/d.png"):
        picture(data / name)
    (data / "broken.png").write_text("not an image")
    run = score(deployment, data, tmp_path)
    assert run.code == 0, run.stderr
    assert run.rows == ['6,"a, b.png"', "6,c.JPG"]
    assert run.failed.keys() == {"broken.png"}
    assert "broken.png: left out: cannot identify image file" in run.failed["broken.png"]
    expected = "a folder, which the deployment of an MLflow model does not look into, left out"
    assert f"warning: {data / 'within'}: {expected}" in run.stderr


def test_a_file_of_another_type_fails_the_job_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, "return 1", RGB)
    deployment = write_deployment(tmp_path, error_threshold=-1, retry_settings={"max_retries": 3})
    for name in ("a.png", "b.png", "d.png", "e.png"):
        picture(tmp_path / "data" / name)
    (tmp_path / "data" / "c.avro").touch()
    run = score(deployment, tmp_path / "data", tmp_path)
    assert run.code == 1
    assert f"{tmp_path / 'data' / 'c.avro'}: file type 'avro' is not supported" in run.summary["cause"]
    assert run.rows == ["1,a.png", "1,b.png"]
    assert run.summary["not_scored"] == 3


def test_without_a_model_the_hint_says_how_to_save_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = tmp_path / "deployment.yml"
    deployment.write_text((ROOT / "deployment-mlflow.yml").read_text())
    assert main(["score", str(deployment), "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path / 'mlflow-model'}: no such model" in error
    assert "save_model.py model mlflow-model" in error.rpartition("hint: ")[2]
    assert (SAMPLE / "save_model.py").is_file()
