"""The whole flow through the unmodified azure-ai-ml, in the environment that it is run in.

`test_local_workspace.py` runs this file in a process of its own: inside a local workspace, or, with
AZURE_VERIFIED=1, as it is, against the workspace that the variables AZUREML_ARM_* name.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.ai.ml import Input, MLClient
from azure.ai.ml.entities import (
    AmlCompute,
    BatchEndpoint,
    BatchJob,
    BatchRetrySettings,
    CodeConfiguration,
    Data,
    Environment,
    Model,
    ModelBatchDeployment,
    ModelBatchDeploymentSettings,
    ResourceConfiguration,
)
from azure.ai.ml.exceptions import JobException
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.identity import DefaultAzureCredential

LOCAL = "IDENTITY_HEADER" in os.environ and os.environ.get("AZUREML_CURRENT_CLOUD") == "LocalWorkspace"
local_only = pytest.mark.skipif(not LOCAL, reason="too slow or too costly on a real cluster")

SUFFIX = uuid.uuid4().hex[:6]
ENDPOINT = f"flow-{SUFFIX}"
CLUSTER = os.environ.get("AZURE_VERIFIED_CLUSTER", "cpu-cluster")
IMAGE = "mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:latest"
CONDA = """name: flow
dependencies:
  - python=3.11
  - pip
  - pip: ["setuptools<81", azureml-core, "azureml-dataset-runtime[fuse]", "pandas<3"]
"""

# A registered folder keeps its name below AZUREML_MODEL_DIR.
SCRIPT = """
import os
from pathlib import Path


def init():
    global weight
    weight = Path(os.environ["AZUREML_MODEL_DIR"], "model", "weight.txt").read_text()


def run(mini_batch):
    import pandas as pd

    return pd.DataFrame([(Path(path).name, weight, len(mini_batch)) for path in mini_batch])
"""
FAILING = (
    "def init():\n    pass\n\n\ndef run(mini_batch):\n    raise RuntimeError('the weights do not fit')\n"
)
SLOW = FAILING.replace("raise RuntimeError('the weights do not fit')", "__import__('time').sleep(600)")
PHOTOS = ["tench.JPEG", "great white.JPEG", "Österreich.JPEG", "dogs/beagle.JPEG", "dogs/basset.JPEG"]


@pytest.fixture(scope="module")
def client() -> MLClient:
    names = ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")
    return MLClient(DefaultAzureCredential(), *(os.environ[f"AZUREML_ARM_{name}"] for name in names))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    contents = {"model/weight.txt": "7", "conda.yml": CONDA, "code/driver.py": SCRIPT}
    contents |= {"failing/driver.py": FAILING, "slow/driver.py": SLOW}
    for name, text in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    for photo in PHOTOS:
        (folder / "data" / photo).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / photo).write_bytes(photo.encode())
    return folder


@pytest.fixture(scope="module")
def model(client: MLClient, files: Path) -> Model:
    return client.models.create_or_update(
        Model(name=f"m-{SUFFIX}", path=files / "model", type="custom_model")
    )


@pytest.fixture(scope="module")
def data(client: MLClient, files: Path) -> Data:
    return client.data.create_or_update(Data(name=f"d-{SUFFIX}", path=files / "data", type="uri_folder"))


@pytest.fixture(scope="module")
def endpoint(client: MLClient) -> Iterator[str]:
    created = client.batch_endpoints.begin_create_or_update(BatchEndpoint(name=ENDPOINT, tags={"of": "flow"}))
    assert created.result().name == ENDPOINT
    yield ENDPOINT
    client.batch_endpoints.begin_delete(ENDPOINT).result()
    with pytest.raises(ResourceNotFoundError):
        client.batch_endpoints.get(ENDPOINT)


@pytest.fixture(scope="module")
def cluster(client: MLClient) -> str:
    size = AmlCompute(name=CLUSTER, size="STANDARD_DS3_V2", min_instances=0, max_instances=2)
    assert client.compute.begin_create_or_update(size).result().provisioning_state == "Succeeded"
    return CLUSTER


def deployment(files: Path, model: Model, name: str, code: str, **settings: object) -> ModelBatchDeployment:
    return ModelBatchDeployment(
        name=name,
        endpoint_name=ENDPOINT,
        model=model,
        environment=Environment(name=f"e-{SUFFIX}", image=IMAGE, conda_file=files / "conda.yml"),
        code_configuration=CodeConfiguration(code=str(files / code), scoring_script="driver.py"),
        compute=CLUSTER,
        resources=ResourceConfiguration(instance_count=2),
        settings=ModelBatchDeploymentSettings(
            mini_batch_size=2,
            retry_settings=BatchRetrySettings(max_retries=1, timeout=300),
            **settings,
        ),
    )


@pytest.fixture(scope="module")
def main(client: MLClient, files: Path, model: Model, endpoint: str, cluster: str) -> str:
    """The name of a deployment that works, and is the default one."""
    created = client.batch_deployments.begin_create_or_update(
        deployment(files, model, "main", "code")
    ).result()
    assert created.provisioning_state == "Succeeded"
    shown = client.batch_endpoints.get(endpoint)
    shown.defaults.deployment_name = created.name  # as the article has it
    updated = client.batch_endpoints.begin_create_or_update(shown).result()
    assert updated.defaults.deployment_name == "main"
    assert updated.tags == {"of": "flow"}
    return created.name


@pytest.fixture(scope="module")
def job(client: MLClient, data: Data, main: str) -> BatchJob:
    """A job of the default deployment that has completed. No deployment was named before in this process."""
    started = client.batch_endpoints.invoke(
        endpoint_name=ENDPOINT, input=Input(type="uri_folder", path=data.id)
    )
    client.jobs.stream(started.name)
    return started


def rows(folder: Path) -> list[str]:
    (path,) = folder.rglob("predictions.csv")
    return sorted(path.read_text(encoding="utf-8").splitlines())


EXPECTED = sorted(
    ['"great white.JPEG" 7', "basset.JPEG 7", "beagle.JPEG 7", "tench.JPEG 7", "Österreich.JPEG 7"]
)


def test_a_model_gets_a_new_version_each_time(client: MLClient, files: Path, model: Model) -> None:
    again = client.models.create_or_update(
        Model(name=f"m-{SUFFIX}", path=files / "model", type="custom_model")
    )
    assert (model.version, again.version) == ("1", "2")
    assert client.models.get(f"m-{SUFFIX}", label="latest").version == "2"
    assert [one.version for one in client.models.list(f"m-{SUFFIX}")] == ["2", "1"]
    assert again.path == model.path  # the files were there already


def test_an_environment_changes_by_a_new_version(client: MLClient, files: Path) -> None:
    name = f"other-{SUFFIX}"
    first = client.environments.create_or_update(Environment(name=name, image=IMAGE))
    same = client.environments.create_or_update(Environment(name=name, image=IMAGE))
    with_conda = Environment(name=name, image=IMAGE, conda_file=files / "conda.yml")
    assert (first.version, same.version) == ("1", "1")
    assert client.environments.create_or_update(with_conda).version == "2"
    with pytest.raises(ResourceExistsError):
        client.environments.create_or_update(Environment(name=name, version="1", image="other"))


def test_a_version_of_data_keeps_its_content(client: MLClient, files: Path, data: Data) -> None:
    other = Data(name=data.name, version=data.version, path=files / "code", type="uri_folder")
    with pytest.raises(HttpResponseError):
        client.data.create_or_update(other)
    assert client.data.get(data.name, label="latest").path == data.path


def test_the_job_is_completed_with_a_row_for_each_file(
    client: MLClient, job: BatchJob, tmp_path: Path
) -> None:
    assert client.jobs.get(job.name).status == "Completed"
    client.jobs.download(job.name, download_path=tmp_path, output_name="score")
    assert [row.rpartition(" ")[0] for row in rows(tmp_path)] == EXPECTED
    assert {row.rpartition(" ")[2] for row in rows(tmp_path)} == {"1", "2"}  # 5 files in mini-batches of 2


def test_the_scoring_job_is_the_child_and_has_the_output(
    client: MLClient, job: BatchJob, tmp_path: Path
) -> None:
    (child,) = client.jobs.list(parent_job_name=job.name)
    assert (child.display_name, child.status) == ("batchscoring", "Completed")
    times = child.creation_context
    assert times.last_modified_at > times.created_at  # Microsoft's notebook takes its duration from these
    assert client.jobs.get(child.name).status == "Completed"
    client.jobs.download(child.name, download_path=tmp_path, output_name="score")
    assert (tmp_path / "named-outputs" / "score" / "predictions.csv").is_file()
    client.jobs.download(child.name, download_path=tmp_path / "logs")
    assert (tmp_path / "logs/artifacts/logs/sys/job_report/processed_mini-batches.csv").is_file()


def test_jobs_are_listed(client: MLClient, job: BatchJob) -> None:
    assert job.name in [one.name for one in client.jobs.list()]
    assert job.name in [one.name for one in client.batch_endpoints.list_jobs(ENDPOINT)]
    assert job.name in [one.name for one in client.batch_deployments.list_jobs(ENDPOINT, name="main")]


@local_only
def test_the_log_is_streamed(client: MLClient, job: BatchJob, capsys: pytest.CaptureFixture[str]) -> None:
    client.jobs.stream(job.name)  # of a job that has ended it prints the summary only
    assert "Execution Summary" in capsys.readouterr().out


@local_only
def test_a_file_is_scored_with_the_settings_of_the_call(
    client: MLClient, main: str, files: Path, tmp_path: Path
) -> None:
    """By name, after the job of the default: the SDK keeps the name for later calls of the process."""
    job = client.batch_endpoints.invoke(
        endpoint_name=ENDPOINT,
        deployment_name=main,
        input=Input(type="uri_file", path=str(files / "data/tench.JPEG")),
        job_name=f"file-{SUFFIX}",
        params_override=[{"output_file_name": "other.csv"}, {"mini_batch_size": 1}],
    )
    client.jobs.stream(job.name)
    client.jobs.download(job.name, download_path=tmp_path, output_name="score")
    assert job.name == f"file-{SUFFIX}"
    assert [path.read_text() for path in tmp_path.rglob("other.csv")] == ["tench.JPEG 7 1\n"]


@local_only
def test_a_failing_script_fails_the_job_with_its_cause(
    client: MLClient, files: Path, model: Model, data: Data, main: str
) -> None:
    client.batch_deployments.begin_create_or_update(deployment(files, model, "failing", "failing")).result()
    job = client.batch_endpoints.invoke(
        endpoint_name=ENDPOINT, deployment_name="failing", input=Input(type="uri_folder", path=data.id)
    )
    with pytest.raises(JobException, match="the weights do not fit"):
        client.jobs.stream(job.name)
    assert client.jobs.get(job.name).status == "Failed"


@local_only
def test_a_job_can_be_canceled(client: MLClient, files: Path, model: Model, data: Data, main: str) -> None:
    client.batch_deployments.begin_create_or_update(deployment(files, model, "slow", "slow")).result()
    invoke = {"endpoint_name": ENDPOINT, "deployment_name": "slow"}
    jobs = [
        client.batch_endpoints.invoke(**invoke, input=Input(type="uri_folder", path=data.id)) for _ in "12"
    ]
    for job in reversed(jobs):  # the one that waits first
        client.jobs.begin_cancel(job.name).result()
    for job in jobs:
        client.jobs.stream(job.name)
        while client.jobs.get(job.name).status == "CancelRequested":
            pass
        assert client.jobs.get(job.name).status == "Canceled"


def test_what_is_not_there_is_not_found(client: MLClient) -> None:
    for get in (
        lambda: client.models.get("nothing", "1"),
        lambda: client.compute.get("nothing"),
        lambda: client.batch_endpoints.get("nothing"),
        lambda: client.jobs.get("nothing"),
    ):
        with pytest.raises(ResourceNotFoundError):
            get()


def test_deployments_are_listed_and_shown(client: MLClient, main: str) -> None:
    assert "main" in [one.name for one in client.batch_deployments.list(ENDPOINT)]
    shown = client.batch_deployments.get("main", ENDPOINT)
    assert (shown.mini_batch_size, shown.resources.instance_count) == (2, 2)
    assert shown.retry_settings.timeout == 300
