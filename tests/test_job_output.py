"""What a scoring script leaves in the folders of its job: files become blobs, all else is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import SCOPE, Served
from deployed import SCRIPT, invoke, make_deployment, wait_for

from local_workspace.files import open_regular, read_text, walk

LEAVING = """
import os
from pathlib import Path

def init():
    pass

def run(mini_batch):
    output = Path(os.environ["AZUREML_BI_OUTPUT_PATH"])
    job = output.parent.parent
    LEAVE
    return [f"{os.path.basename(path)} 7" for path in mini_batch]
"""
LEFT = """(output / "good.txt").write_text("good")
    os.mkfifo(output / "pipe")
    os.symlink("/etc/passwd", output / "link")
    os.symlink("/etc", output / "folder")
    (output / "line\\x01break\\n.txt").write_text("x")
    with open(os.fsencode(output) + b"/bytes\\xff.txt", "w") as file:
        file.write("x")
    deep = output / "deep"
    for _ in range(8):
        deep /= "d" * 200
        deep.mkdir(parents=True)
    (deep / "x.txt").write_text("x")"""
HOSTILE = """os.mkfifo(output.parent / "logs/user/pipe.txt")
    os.symlink("/etc/passwd", output.parent / "logs/user/link.txt")
    log = job / "logs/azureml/executionlogs.txt"
    log.unlink()
    os.mkfifo(log)"""


def run_job(served: Served, endpoint: str, leave: str) -> dict[str, object]:
    make_deployment(served, endpoint, LEAVING.replace("LEAVE", leave))
    name = invoke(served, endpoint, name=f"{endpoint}-job").json()["name"]
    return wait_for(served, name, "Completed", "Failed")


def output_of(served: Served, job: str) -> list[str]:
    """Names below the output, as a listing has them, which has to be XML."""
    sas = served.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()["sasToken"]
    (child,) = served.call("GET", f"/history/v1.0{SCOPE}/runs/{job}/children", host="api").json()["value"]
    prefix = f"azureml/{child['runId']}/score/"
    address = "https://localworkspace.blob.azureml.test/workspaceblobstore"
    listing = served.session.get(f"{address}?restype=container&comp=list&prefix={prefix}&{sas}")
    root = ElementTree.fromstring(listing.content)  # noqa: S314  # our own
    return [name.text.removeprefix(prefix) for name in root.iter("Name")]


def test_what_cannot_be_a_blob_is_named_and_the_rest_is_published(served: Served) -> None:
    details = run_job(served, "leaves", LEFT)
    assert details["status"] == "Completed"
    assert output_of(served, "leaves-job") == ["good.txt", "predictions.csv"]
    log = served.session.get(details["logFiles"]["logs/azureml/executionlogs.txt"]).text
    told = dict(
        line.split("left out of the output: ")[1].split(": ")
        for line in log.splitlines()
        if "left out" in line
    )
    deep = "/".join(["deep", *["d" * 200] * 8, "x.txt"])
    assert told == {
        "pipe": "not a regular file",
        "link": "not a regular file",
        "folder": "not a regular file",
        "line\\x01break\\n.txt": "its name has a control character",
        "bytes\\udcff.txt": "its name is not UTF-8",
        deep: "its name is longer than 1024 characters",
    }


def test_predictions_that_are_no_file_fail_the_job(served: Served) -> None:
    """A script can exchange the file under the executor; nothing waits for the other end of a pipe."""
    exchange = 'rows = output / "predictions.csv"; rows.unlink(); os.mkfifo(rows)'
    details = run_job(served, "exchanged", exchange)
    assert details["status"] == "Failed"
    assert "predictions.csv: not a regular file" in details["error"]["error"]["message"]


def test_pipes_in_the_logs_stop_neither_the_job_nor_the_end_of_the_server(
    start: Callable[[], Served],
) -> None:
    served = start()
    details = run_job(served, "hostile-logs", HOSTILE)
    assert details["status"] in ("Completed", "Failed")  # the executor's log is gone
    (child,) = served.call("GET", f"/history/v1.0{SCOPE}/runs/hostile-logs-job/children", host="api").json()[
        "value"
    ]
    files = served.call("GET", f"/history/v1.0{SCOPE}/runs/{child['runId']}/details", host="api").json()
    assert files["logFiles"] and not {name for name in files["logFiles"] if "pipe" in name or "link" in name}
    again = details["logFiles"].get("logs/azureml/executionlogs.txt")
    assert served.session.get(again, timeout=60).status_code == 404
    make_deployment(served, "after", SCRIPT.replace("{WORD}", "7"))
    assert (
        wait_for(served, invoke(served, "after").json()["name"], "Completed", "Failed")["status"]
        == "Completed"
    )
    assert served.stop() == 0


def test_a_blob_that_has_become_a_pipe_is_not_found(start: Callable[[], Served]) -> None:
    served = start()
    run_job(served, "later", "pass")
    sas = served.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()["sasToken"]
    (child,) = served.call("GET", f"/history/v1.0{SCOPE}/runs/later-job/children", host="api").json()["value"]
    path = served.state / "jobs/later-job/output/score/predictions.csv"
    path.unlink()
    os.mkfifo(path)
    address = f"https://localworkspace.blob.azureml.test/workspaceblobstore/azureml/{child['runId']}/score"
    assert served.session.get(f"{address}/predictions.csv?{sas}", timeout=60).status_code == 404
    assert served.stop() == 0


@pytest.mark.parametrize("text", ["[]", "not JSON", '{"files": 1', ""])
def test_a_summary_that_a_script_has_written_over_is_none(served: Served, text: str) -> None:
    leave = f"import atexit, threading; (output.parent / 'summary.json').write_text({text!r})"
    endpoint = f"summary{len(text)}"
    assert run_job(served, endpoint, leave)["status"] == "Completed"
    json.loads((served.state / f"jobs/{endpoint}-job/output/summary.json").read_text())


# The small parts


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    os.symlink("file", tmp_path / "link")
    for name in ("pipe", "link", ".", "/dev/null"):
        for mode in ("rb", "ab", "wb"):
            with pytest.raises(OSError):
                open_regular(tmp_path / name, mode, links=False)
        assert read_text(tmp_path / name) == ""
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"text"
    with open_regular(tmp_path / "new", "a") as file:
        file.write("made")
    assert (read_text(tmp_path / "new"), read_text(tmp_path / "file")) == ("made", "text")


def test_a_folder_is_walked_however_deep_it_is_and_never_through_a_link(tmp_path: Path) -> None:
    """A path may be longer than the system takes: what is below it is named as a whole."""
    folder, name = os.open(tmp_path, os.O_RDONLY), "d" * 200
    for _ in range(30):
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    (tmp_path / "a").write_text("x")
    os.symlink("/", tmp_path / "b")
    found = list(walk(tmp_path))
    assert [(path.name, problem) for path, problem in found] == [
        ("a", ""),
        ("b", "not a regular file"),
        (name, "File name too long"),
    ]
    assert list(walk(tmp_path / "none")) == [(tmp_path / "none", "No such file or directory")]
