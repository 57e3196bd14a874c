"""az inside a run: exit codes, output forms, its speed, and that it gives what azure.ai.ml gives."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, Run

from local_workspace import az, az_account, az_client

SCORING_SCRIPT = """
import time
from pathlib import Path

def init(): ...

def run(mini_batch):
    if any(path.endswith("slow.JPEG") for path in mini_batch):
        time.sleep(600)
    return [f"{Path(path).name} 1 0.5" for path in mini_batch]
"""

Az = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's YAML files with a tiny model, tiny data and scoring scripts."""
    folder = tmp_path_factory.mktemp("az")
    for path in ROOT.glob("*.yml"):
        shutil.copy(path, folder)
    for name in (
        "environment/conda.yml",
        "code/score-by-file/batch_driver.py",
        "model/m.txt",
        "data/a b.JPEG",
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(SCORING_SCRIPT, encoding="utf-8")
    shutil.copy(ROOT / "environment/conda.yml", folder / "environment")
    (folder / "slow").mkdir()
    (folder / "slow" / "slow.JPEG").write_text("x", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> Iterator[dict[str, str]]:
    """The variables of a run that lasts as long as the tests of this file."""
    run = Run(folder / "state")
    yield run.variables
    assert run.end() == 0


@pytest.fixture(scope="module")
def az_call(folder: Path, environment: dict[str, str]) -> Az:
    def az_call(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["az", *arguments],
            cwd=folder,
            env=environment | variables,
            executable=ROOT / "local_workspace/bin/az",
            capture_output=True,
            text=True,
            timeout=300,
        )

    return az_call


@pytest.fixture(scope="module")
def deployed(az_call: Az) -> str:
    """The name of an endpoint with one deployment, its default."""
    steps = [
        "ml compute create -n gpu-cluster --type amlcompute --size STANDARD_NC4AS_T4_V3 --max-instances 2",
        "ml model create --name imagenet-classifier --path model",
        "ml batch-endpoint create --file endpoint.yml --name tested",
        "ml batch-deployment create --file deployment-by-file.yml --endpoint-name tested --set-default "
        "--set resources.instance_count=1",
        "ml data create --file imagenet-sample-unlabeled.yml",
    ]
    for step in steps:
        result = az_call(*step.split())
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["resourceGroup"] == "local"
    return "tested"


def answer(result: subprocess.CompletedProcess) -> object:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# exit codes and forms


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("ml model show", 2, "ERROR: az ml model show: the following arguments are required: --name/-n\n"),
        ("ml model shw --name x", 2, "ERROR: az ml model: 'shw' is not in the 'az ml model' command group."),
        ("account show --query [", 2, "ERROR: az account show: argument --query: invalid jmespath_type"),
        ("account show -o xml", 2, "ERROR: az account show: 'xml' is not a valid value for '--output/-o'."),
        ("ml model show -n nothing", 3, "ERROR: Asset nothing does not exist"),
        ("ml batch-endpoint show -n nothing", 3, "ERROR: ("),
        ("ml job show -n nothing", 3, "ERROR: ("),
        ("ml batch-endpoint create -f nothing.yml", 1, "ERROR: "),
        ("ml batch-endpoint update -n tested --set nothing=1", 1, "ERROR: Couldn't find 'nothing'"),
        ("ml batch-endpoint invoke -n tested --output-path here", 1, "ERROR: --output-path takes azureml://"),
        ("configure --defaults workspace", 1, "ERROR: usage error: --defaults STRING=STRING"),
        ("extension show --name nothing", 1, "ERROR: The extension nothing is not installed."),
    ],
)
def test_exit_codes_are_those_of_az(
    arguments: str, code: int, message: str, az_call: Az, deployed: str
) -> None:
    result = az_call(*arguments.split())
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(message)


def test_output_forms(az_call: Az, deployed: str) -> None:
    show = ["ml", "batch-endpoint", "show", "--name", deployed]
    shown = answer(az_call(*show))
    assert shown["defaults"] == {"deployment_name": "imagenet-classifier-resnetv2"}
    assert shown["auth_mode"] == "aad_token"
    assert shown["id"].startswith("/subscriptions/")
    assert az_call(*show, "--query", "name", "-o", "tsv").stdout == "tested\n"
    assert az_call(*show, "--query", "{n: name}", "-o", "yaml").stdout == "n: tested\n"
    assert az_call(*show, "--query", "{n: name}", "-o", "table").stdout == "N\n------\ntested\n"
    assert az_call(*show, "-o", "none").stdout == ""
    assert az_call(*show, AZURE_CORE_OUTPUT="none").stdout == ""


@pytest.mark.parametrize(
    "command",
    [f"{group} {verb}".strip() for group, (_, verbs) in az.COMMANDS.items() for verb in verbs.split()],
)
def test_every_command_explains_itself(command: str, az_call: Az) -> None:
    result = az_call(*command.split(), "--help")
    assert result.returncode == 0
    assert f"az {command} : " in " ".join(result.stdout.split())
    assert " : " in result.stdout.partition("Arguments")[2]


def test_every_argument_has_a_text(az_call: Az) -> None:
    for arguments in az.ARGUMENTS.values():
        assert all(settings["help"].endswith(".") for settings in arguments.values())


def test_account_defaults_and_extension(az_call: Az) -> None:
    assert answer(az_call("account", "show"))["isDefault"] is True
    token = answer(az_call("account", "get-access-token"))
    assert token["tokenType"] == "Bearer"
    assert token["accessToken"].count(".") == 2
    assert token["expires_on"] > time.time()
    assert az_call("configure", "--defaults", "compute=here").stdout == ""
    defaults = answer(az_call("configure", "--list-defaults"))
    assert {default["name"]: default["value"] for default in defaults}["compute"] == "here"
    assert answer(az_call("extension", "show", "--name", "ml")) in answer(az_call("extension", "list"))
    assert answer(az_call("--version")) == answer(az_call("version"))


# the flow


def test_assets(az_call: Az, deployed: str) -> None:
    assert answer(az_call("ml", "model", "show", "-n", "imagenet-classifier"))["type"] == "custom_model"
    assert "imagenet-classifier" in [model["name"] for model in answer(az_call("ml", "model", "list"))]
    data = answer(az_call("ml", "data", "show", "--name", "imagenet-sample-unlabeled", "--label", "latest"))
    again = answer(az_call("ml", "data", "create", "-f", "imagenet-sample-unlabeled.yml"))
    assert int(again["version"]) == int(data["version"]) + 1
    assert len(answer(az_call("ml", "data", "list", "-n", "imagenet-sample-unlabeled"))) == int(
        again["version"]
    )
    compute = answer(az_call("ml", "compute", "show", "-n", "gpu-cluster"))
    assert (compute["type"], compute["min_instances"], compute["max_instances"]) == ("amlcompute", 0, 2)


def test_a_job_from_invoke_to_download(az_call: Az, deployed: str, folder: Path) -> None:
    invoke = ["ml", "batch-endpoint", "invoke", "-n", deployed]
    job = answer(az_call(*invoke, "--input", "azureml:imagenet-sample-unlabeled@latest"))["name"]
    stream = az_call("ml", "job", "stream", "--name", job)
    assert stream.returncode == 0, stream.stderr
    assert f"RunId: {job}" in stream.stdout
    assert az_call("ml", "job", "show", "-n", job, "--query", "status", "-o", "tsv").stdout == "Completed\n"
    assert job in [listed["name"] for listed in answer(az_call("ml", "job", "list"))]
    assert len(answer(az_call("ml", "batch-endpoint", "list-jobs", "-n", deployed))) >= 1
    download = az_call(
        "ml", "job", "download", "-n", job, "--output-name", "score", "--download-path", "here"
    )
    assert (download.returncode, download.stdout) == (0, "")
    assert [path.read_text() for path in (folder / "here").rglob("predictions.csv")] == ["a b.JPEG 1 0.5\n"]


def test_the_logs_of_the_scoring_job(az_call: Az, deployed: str, folder: Path) -> None:
    job = answer(az_call("ml", "job", "list", "--max-results", "1"))[0]["name"]
    child = answer(az_call("ml", "job", "list", "--parent-job-name", job))[0]["name"]
    assert az_call("ml", "job", "download", "--name", child, "-p", "logs").returncode == 0
    assert list((folder / "logs").rglob("job_result.txt"))


def test_the_page_of_a_job_is_told_where_no_display_is(az_call: Az, deployed: str) -> None:
    job = answer(az_call("ml", "job", "list", "--max-results", "1"))[0]
    quiet = {"DISPLAY": "", "BROWSER": "", "WAYLAND_DISPLAY": ""}
    result = az_call("ml", "job", "show", "--web", "-n", job["name"], **quiet)
    ticket = re.compile(r"ticket=[^&]+")  # a new one each time
    page = ticket.sub("", job["services"]["Studio"]["endpoint"])
    assert ticket.sub("", result.stderr) == f"The job's page: {page}\n"
    assert ticket.search(result.stderr)
    assert json.loads(result.stdout)["name"] == job["name"]


def test_cancel(az_call: Az, deployed: str) -> None:
    job = answer(az_call("ml", "batch-endpoint", "invoke", "-n", deployed, "--input", "slow"))["name"]
    assert az_call("ml", "job", "cancel", "--name", job).returncode == 0
    az_call("ml", "job", "stream", "--name", job)
    assert answer(az_call("ml", "job", "show", "--name", job))["status"] == "Canceled"


def test_a_deployment_is_deleted_only_when_that_is_meant(az_call: Az, deployed: str) -> None:
    create = f"ml batch-deployment create -f deployment-by-file.yml -e {deployed} -n second"
    assert answer(az_call(*create.split()))["name"] == "second"
    delete = ["ml", "batch-deployment", "delete", "-n", "second", "-e", deployed]
    refused = az_call(*delete)
    assert refused.returncode == 1
    assert "Use --yes" in refused.stderr
    assert az_call(*delete, "--yes").returncode == 0
    listed = answer(az_call("ml", "batch-deployment", "list", "-e", deployed))
    assert [deployment["name"] for deployment in listed] == ["imagenet-classifier-resnetv2"]


# the preloaded process


def test_a_command_ends_with_its_client(az_call: Az, deployed: str, folder: Path, environment: dict) -> None:
    job = answer(az_call("ml", "batch-endpoint", "invoke", "-n", deployed, "--input", "slow"))["name"]
    program = ROOT / "local_workspace/bin/az"
    with subprocess.Popen(
        [program, "ml", "job", "stream", "--name", job], env=environment, stdout=subprocess.PIPE, text=True
    ) as stream:
        assert stream.stdout
        assert stream.stdout.readline() == f"RunId: {job}\n"
        stream.send_signal(signal.SIGINT)
        assert stream.wait(60) == -signal.SIGINT
        rest = stream.stdout.read()  # ends when the forked process has ended, too
        assert "Execution Summary" not in rest
    assert az_call("ml", "job", "cancel", "--name", job).returncode == 0


def test_its_socket_is_the_owners_alone(az_call: Az, environment: dict[str, str]) -> None:
    az_call("ml", "model", "list")
    folder = Path(environment["AZURE_CONFIG_DIR"])
    assert (folder.stat().st_mode & 0o777, (folder / "az.sock").stat().st_mode & 0o777) == (0o700, 0o600)


def test_the_commands_without_the_sdk_need_no_preloaded_process(
    az_call: Az, environment: dict[str, str], tmp_path: Path
) -> None:
    shutil.copytree(
        environment["AZURE_CONFIG_DIR"], tmp_path / "azure", ignore=shutil.ignore_patterns("az.*")
    )
    result = az_call(
        "account", "get-access-token", AZURE_CONFIG_DIR=str(tmp_path / "azure"), PYTHONVERBOSE="1"
    )
    assert result.returncode == 0
    assert "import 'azure.identity'" in result.stderr
    assert "import 'azure.ai.ml'" not in result.stderr
    assert not (tmp_path / "azure" / "az.sock").exists()


def test_outside_a_run_it_says_where_it_belongs() -> None:
    result = subprocess.run([ROOT / "local_workspace/bin/az"], env={}, capture_output=True, text=True)
    assert result.returncode == 1
    assert "hint: python -m local_workspace run -- az ..." in result.stderr


def test_no_account_is_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    with pytest.raises(az_account.CLIError, match="az login"):
        az_account.account_show()


def test_a_socket_of_a_killed_process_is_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "az.sock").touch()
    monkeypatch.chdir(tmp_path)  # connect() goes into the folder
    assert az_client.connect(str(tmp_path / "killed")) is None
    assert az_client.connect(str(tmp_path / "missing")) is None
