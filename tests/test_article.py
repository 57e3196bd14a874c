"""What the article includes from this repository is there, as the article includes it."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent

WHOLE_FILES = [
    "endpoint.yml",
    "deployment-by-file.yml",
    "deployment-by-batch.yml",
    "imagenet-sample-unlabeled.yml",
    "code/score-by-file/batch_driver.py",
    "code/score-by-batch/batch_driver.py",
]
DEPLOYMENTS = ["deployment-by-file.yml", "deployment-by-batch.yml"]
LINE_RANGE = ("deployment-by-file.yml", 7, 10)  # the article's step "Indicate over which environment to run"


def read_yaml(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", WHOLE_FILES)
def test_every_file_that_the_article_includes_is_there(name: str) -> None:
    assert (ROOT / name).read_text().strip()


def test_the_range_of_lines_is_the_environment_block() -> None:
    name, first, last = LINE_RANGE
    lines = (ROOT / name).read_text().splitlines()
    block = yaml.safe_load("\n".join(lines[first - 1 : last]))
    assert list(block) == ["environment"]
    assert list(block["environment"]) == ["name", "image", "conda_file"]
    assert block["environment"] == read_yaml(name)["environment"]
    assert (ROOT / block["environment"]["conda_file"]).is_file()


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_the_client_loads_the_deployment(name: str) -> None:
    from azure.ai.ml.entities._load_functions import load_model_batch_deployment

    deployment = load_model_batch_deployment(ROOT / name)
    document = read_yaml(name)
    assert deployment.name == document["name"]
    assert deployment.settings.mini_batch_size == document["settings"]["mini_batch_size"]
    assert deployment.settings.retry_settings.max_retries == 3
    assert deployment.settings.retry_settings.timeout == 300
    assert deployment.settings.error_threshold == 10
    assert deployment.settings.output_file_name == "predictions.csv"
    assert deployment.resources.instance_count == 2
    assert all(isinstance(value, str) for value in (deployment.tags or {}).values())


def test_the_client_loads_endpoint_and_data_asset() -> None:
    from azure.ai.ml import load_batch_endpoint, load_data

    assert load_batch_endpoint(ROOT / "endpoint.yml").name == "imagenet-classifier-batch"
    data = load_data(ROOT / "imagenet-sample-unlabeled.yml")
    assert (data.name, data.type, Path(data.path).name) == ("imagenet-sample-unlabeled", "uri_folder", "data")


def test_the_deployments_differ_in_name_and_share_the_rest() -> None:
    by_file, by_batch = map(read_yaml, DEPLOYMENTS)
    assert by_file["name"] != by_batch["name"], "the second would overwrite the first"
    for key in ("endpoint_name", "model", "environment", "compute", "type"):
        assert by_file[key] == by_batch[key]
    assert by_file["endpoint_name"] == read_yaml("endpoint.yml")["name"]
    device_batch = by_batch["settings"]["environment_variables"]["DEVICE_BATCH_SIZE"]
    assert device_batch == by_batch["tags"]["device_batching"] == "16"
    assert by_batch["settings"]["mini_batch_size"] >= int(device_batch)


def pinned(requirements: list[str]) -> dict[str, str]:
    """name: version, of the requirements that name one version; extras are left out."""
    found = [re.fullmatch(r"([\w.-]+)(?:\[.*\])?==([\w.]+)", line) for line in requirements]
    return {match[1]: match[2] for match in found if match}


def project_requirements() -> list[str]:
    """What pyproject.toml wants for the tests, read without tomllib, which Python 3.10 lacks."""
    text = re.sub(r"^bench = .*?^\]", "", (ROOT / "pyproject.toml").read_text(), flags=re.M | re.S)
    return re.findall(r'^    "([\w.\[\]-]+==[\w.]+)",$', text, re.MULTILINE)


def test_conda_file_and_local_requirements_agree() -> None:
    dependencies = read_yaml("environment/conda.yml")["dependencies"]
    (conda,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    shared = ["tensorflow", "tf-keras", "pillow", "numpy", "pandas"]
    there, here = pinned(conda), pinned(project_requirements())
    assert {name: there[name] for name in shared} == {name: here[name] for name in shared}
    assert "setuptools<81" in conda
    assert {"azureml-core", "azureml-dataset-runtime"} <= there.keys()


def test_the_tests_run_in_those_versions() -> None:
    from importlib.metadata import version

    here = pinned(project_requirements())
    assert {name: version(name) for name in here} == here
