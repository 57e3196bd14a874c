"""The notebooks: their text, the names they share with the YAML files and the shell script, and every cell of
them, run in a local workspace."""

import ast
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from notebook import ARTICLE, BATCH, CELL_SECONDS, MLFLOW, NOTEBOOKS, ROOT, Executed, code_cells, source

from local_workspace.samples import PHOTOS


def read_yaml(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


# The text


def test_these_are_all_notebooks() -> None:
    assert (
        sorted(path.stem for path in ROOT.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
        == NOTEBOOKS
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nothing_is_stored_that_a_run_makes(name: str) -> None:
    for cell in code_cells(name):
        assert (cell["outputs"], cell["execution_count"]) == ([], None), cell["id"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_cell_writes_a_script_sleeps_or_knows_a_machine(name: str) -> None:
    text = source(name)
    assert not re.search(r"%%writefile|\bsleep\b", text)
    assert not re.search(r"""["'](/|~|[A-Za-z]:[\\/])""", text), "an absolute path"
    assert "local_workspace" not in text, "a cell for the local run only"


# The names


def calls(name: str) -> dict[str, list[dict[str, Any]]]:
    """Keyword arguments of the calls in a notebook, by the name of what is called."""
    tree = ast.parse(re.sub(r"^%.*$", "", source(name), flags=re.MULTILINE))
    constants = {
        node.targets[0].id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.targets[0], ast.Name)
    }

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=constant):
                return constant
            case ast.Name(id=variable):
                return constants.get(variable)
            case ast.Attribute(attr=member):  # of an enumeration
                return member.lower()
            case ast.Dict(keys=keys, values=values):
                return {value(key): value(one) for key, one in zip(keys, values)}
            case ast.JoinedStr(values=[ast.Constant(value=start), *_]):
                return start
            case ast.Call(keywords=keywords):
                return {keyword.arg: value(keyword.value) for keyword in keywords}

    found: dict[str, list[dict[str, Any]]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.setdefault(node.func.id, []).append(value(node))
    return found


@pytest.mark.parametrize(
    "notebook, files",
    [(BATCH, ["deployment-by-file.yml", "deployment-by-batch.yml"]), (MLFLOW, ["deployment-mlflow.yml"])],
)
def test_notebooks_and_yaml_files_describe_the_same(notebook: str, files: list[str]) -> None:
    made = calls(notebook)
    assert len(made["ModelBatchDeployment"]) == len(files)
    for deployment, described in zip(made["ModelBatchDeployment"], map(read_yaml, files)):
        settings = described["settings"] | described["resources"]
        assert deployment["settings"] == settings
        for key in ("name", "description", "tags", "code_configuration"):
            assert deployment.get(key) == described.get(key)
        assert ("environment" in deployment) == ("environment" in described)
        assert made.get("Environment", [None])[0] == described.get("environment")
        assert f"azureml:{made['Model'][0]['name']}@latest" == described["model"]
        assert f"azureml:{deployment['compute']}" == described["compute"]
        assert made["BatchEndpoint"][0]["name"] == described["endpoint_name"] + "-"
    data = read_yaml("imagenet-sample-unlabeled.yml")
    assert made["Data"] == [{key: data[key] for key in ("name", "description", "type", "path")}]


def test_the_batch_notebook_makes_the_endpoint_of_endpoint_yml() -> None:
    (endpoint,) = calls(BATCH)["BatchEndpoint"]
    described = read_yaml("endpoint.yml")
    assert (endpoint["name"], endpoint["description"]) == (described["name"] + "-", described["description"])


def test_the_shell_script_has_the_same_names() -> None:
    script = (ROOT / "deploy-and-run.sh").read_text(encoding="utf-8")
    made = calls(BATCH)
    assert f"ENDPOINT_NAME:-{made['BatchEndpoint'][0]['name']}$(" in script
    assert f"MODEL_NAME:-{made['Model'][0]['name']}}}" in script
    assert f"azureml:{made['Data'][0]['name']}@latest" in script
    (cluster,) = made["AmlCompute"]
    assert calls(MLFLOW)["AmlCompute"] == [cluster]
    assert f"COMPUTE_NAME:-{cluster['name']}}}" in script
    assert f"--size {cluster['size']} --min-instances {cluster['min_instances']}" in script
    assert f"--max-instances {cluster['max_instances']}" in script
    for deployment in made["ModelBatchDeployment"]:
        assert f'DEPLOYMENT_NAME="{deployment["name"]}"' in script
    for address in re.findall(r'_URL="(.*?)"', script):
        folder, _, archive = address.rpartition("/")
        assert f'"{folder}"' in source(BATCH) and f'"{archive}"' in source(BATCH)


# Every cell, in a local workspace


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """Opened in its folder, as JupyterLab does; it downloads the model and the photos."""
    return Executed(tmp_path_factory.mktemp("batch"), BATCH, "notebooks")


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory, samples_folder: Path) -> Executed:
    """Started in the root of the repository, with a model and photos that are there."""
    folder = tmp_path_factory.mktemp("mlflow")
    for part in ("model", "data"):
        shutil.copytree(samples_folder / part, folder / part)
    return Executed(folder, MLFLOW, ".")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_and_leaves_no_endpoint(name: str, request: pytest.FixtureRequest) -> None:
    executed = request.getfixturevalue({BATCH: "batch", MLFLOW: "mlflow"}[name])
    assert " 0 refused" in executed.done.stderr
    assert executed.printed("clean-up").split("Deleted ")[1].startswith(name + "-")
    assert executed.endpoints_left == []
    assert not (executed.folder / "config.json").exists()


def test_the_table_is_the_article_s(batch: Executed) -> None:
    for cell in ("table", "ht-table"):
        rows = batch.table(cell)
        assert list(rows[0]) == ARTICLE
        assert {row["file"]: row["label"] for row in rows} == PHOTOS
        assert len(rows) == len(PHOTOS)
        assert all(0.1 < float(row["probabilities"]) < 1 for row in rows)


def test_both_deployments_find_the_same(batch: Executed) -> None:
    one, other = batch.table("table"), batch.table("ht-table")
    assert [row["class"] for row in one] == [row["class"] for row in other]
    assert batch.printed("compare").startswith("100% of the photos in the same class")
    assert batch.printed("default") == "Default deployment: imagenet-classifier-resnetv2\n"
    assert "imagenet-classifier-resnetv2-ht: files: 4," in batch.printed("ht-invoke")


def test_the_photo_in_the_notebook_gets_the_label_of_the_table(batch: Executed, mlflow: Executed) -> None:
    assert batch.printed("download") == f"{len(PHOTOS)} photos\n"
    assert batch.printed("one-photo") == "Label: tiger cat\n"
    (row,) = mlflow.table("one-photo")
    assert row["label"] == "tiger cat"


def test_the_job_is_followed_and_its_duration_told(batch: Executed) -> None:
    assert "Completed: 4 files = 4 scored + 0 failed; 4 rows" in batch.printed("stream")
    seconds = re.fullmatch(r"Completed after (\d+) seconds\n", batch.printed("child"))
    assert seconds and 0 < int(seconds[1]) < CELL_SECONDS


def test_the_scripts_are_shown_as_they_are(batch: Executed, mlflow: Executed) -> None:
    for executed, cell, path in (
        (batch, "script", "code/score-by-file/batch_driver.py"),
        (batch, "ht-script", "code/score-by-batch/batch_driver.py"),
        (mlflow, "loader", "code/score-with-mlflow/imagenet_classifier.py"),
        (mlflow, "yaml", "deployment-mlflow.yml"),
    ):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert executed.shown(cell, "text/plain").strip() == text.strip()
        assert (executed.folder / path).read_text(encoding="utf-8") == text


def test_there_are_pictures(batch: Executed, mlflow: Executed) -> None:
    for cell in ("one-photo", "pictures", "histogram", "throughput"):
        assert len(batch.shown(cell, "image/png")) > 5000
    assert len(mlflow.shown("pictures", "image/png")) > 5000


def test_the_mlflow_model_finds_the_same_in_its_own_columns(batch: Executed, mlflow: Executed) -> None:
    rows = mlflow.table("table")
    assert list(rows[0]) == ["class", "probabilities", "label", "file"]
    assert {row["file"]: row["label"] for row in rows} == PHOTOS
    assert [row["class"] for row in rows] == [row["class"] for row in batch.table("table")]
    assert "Tensor('uint8', (-1, -1, -1, 3))" in mlflow.printed("signature")
    (path,) = mlflow.folder.glob("outputs/*/named-outputs/score/predictions.csv")
    assert re.search(r"^873,0\.9\d+,tripod,camera\.png$", path.read_text(encoding="utf-8"), re.MULTILINE)


YAML_FLOW = """
set -e
az ml batch-endpoint create --name by-yaml
az ml batch-deployment create --file deployment-mlflow.yml --endpoint-name by-yaml --set-default
job=$(az ml batch-endpoint invoke --name by-yaml --input azureml:imagenet-sample-unlabeled@latest \
    --query name --output tsv)
az ml job stream --name "$job"
az ml job download --name "$job" --output-name score --download-path by-yaml
"""


def test_the_yaml_file_makes_the_same_mlflow_deployment(mlflow: Executed) -> None:
    done = mlflow.run("bash", "-c", YAML_FLOW)
    assert done.returncode == 0, done.stderr
    assert mlflow.endpoints() == ["by-yaml"]
    predictions = "named-outputs/score/predictions.csv"
    one, (other,) = mlflow.folder / "by-yaml" / predictions, mlflow.folder.glob(f"outputs/*/{predictions}")
    assert one.read_text(encoding="utf-8") == other.read_text(encoding="utf-8")
