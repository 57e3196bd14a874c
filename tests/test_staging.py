"""What a job gets of the registered data: copies, and one file for each blob or a reason."""

import os
from pathlib import Path
from urllib.parse import quote

import pytest
from conftest import SCOPE, Served
from deployed import SCRIPT, command, invoke, make_deployment, upload, wait_for

from local_workspace import job_files
from local_workspace.errors import UserError
from local_workspace.files import copy, local_path
from local_workspace.job_files import stage
from local_workspace.store import Store

WRITING = """
import os
from pathlib import Path

def init():
    pass

def run(mini_batch):
    for path in mini_batch:
        os.chmod(path, 0o644)
        with open(path, "r+b") as file:
            file.write(b"overwritten")
    model = next(path for path in Path(os.environ["AZUREML_MODEL_DIR"]).rglob("*") if path.is_file())
    os.chmod(model, 0o644)
    model.write_bytes(b"overwritten")
    return [f"{os.path.basename(path)} 1" for path in mini_batch]
"""


def score(served: Served, endpoint: str, folder: str, **more: object) -> dict[str, object]:
    uri = f"azureml://datastores/workspaceblobstore/paths/{folder}"
    given = {"inputData": {"x": {"jobInputType": "UriFolder", "uri": uri}}} | more
    job = invoke(served, endpoint, **given).json()["name"]
    return wait_for(served, job, "Completed", "Failed") | {"name": job}


def content(served: Served, name: str) -> bytes:
    sas = served.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()["sasToken"]
    return served.session.get(
        f"https://localworkspace.blob.azureml.test/workspaceblobstore/{quote(name)}?{sas}"
    ).content


def message(details: dict[str, object]) -> str:
    assert details["status"] == "Failed", details
    return details["error"]["error"]["message"]


def fill(store: Store, names: list[str]) -> None:
    store.create_container("c")
    for name in names:
        path = store.new_file()
        path.write_bytes(name.encode())
        store.put_blob("c", name, path, {})


def test_a_script_that_writes_to_its_input_changes_no_blob(served: Served) -> None:
    """As root too, for whom a file that is not writable is."""
    make_deployment(served, "writing", WRITING)
    upload(served, "workspaceblobstore", "precious/a.txt", b"as it was registered")
    assert score(served, "writing", "precious")["status"] == "Completed"
    assert content(served, "precious/a.txt") == b"as it was registered"
    assert content(served, "writing/model/weights") == b"7"


def test_what_is_staged_or_exported_shares_nothing_with_the_blob(own: Path, tmp_path: Path) -> None:
    store = Store(own)
    fill(store, ["data/a", "data/b/c"])
    assert stage(store, {"container": "c", "path": "data"}, tmp_path / "staged") == (2, [])
    store.close()
    assert command("state", "--state", str(own), "export", str(tmp_path / "out")).returncode == 0
    copies = [path for path in tmp_path.rglob("*") if path.is_file() and own not in path.parents]
    assert len(copies) == 4 and {path.stat().st_nlink for path in copies} == {1}
    for path in copies:
        path.chmod(0o644)
        path.write_bytes(b"overwritten")
    assert {path.read_bytes() for path in (own / "blobs").iterdir()} == {b"data/a", b"data/b/c"}


TWINS = [
    ("data//x.txt", "data/%/x.txt"),
    ("data/./x.txt", "data/%2E/x.txt"),
    ("data/a/../x.txt", "data/a/%2E%2E/x.txt"),
    ("data/a", "data/a/b"),
    ("data/a/b/c", "data/a/b"),
    ("data/a/", "data/a/%"),
    ("data/a", "data/a/"),
]


@pytest.mark.parametrize("names", TWINS)
def test_two_blobs_never_become_one_file(own: Path, tmp_path: Path, names: tuple[str, str]) -> None:
    store = Store(own)
    fill(store, [*names, "data/other"])
    with pytest.raises(UserError) as raised:
        stage(store, {"container": "c", "path": "data"}, tmp_path / "staged")
    assert all(repr(name) in raised.value.message for name in names), raised.value.message
    assert {path.read_bytes() for path in (own / "blobs").iterdir()} == {
        name.encode() for name in (*names, "data/other")
    }
    store.close()


def test_nor_where_the_file_system_ignores_case(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_files, "local_path", lambda folder, name: local_path(folder, name.lower()))
    store = Store(own)
    fill(store, ["data/Cat.jpg", "data/cat.JPG"])
    with pytest.raises(UserError, match=r"'data/Cat\.jpg' and 'data/cat\.JPG' would be one file"):
        stage(store, {"container": "c", "path": "data"}, tmp_path / "staged")
    store.close()


def test_a_job_whose_input_would_collide_fails_and_changes_nothing(served: Served) -> None:
    make_deployment(served, "colliding", SCRIPT.replace("{WORD}", "7"))
    upload(served, "workspaceblobstore", "col//x.txt", b"first")
    upload(served, "workspaceblobstore", "col/%25/x.txt", b"second")
    told = message(score(served, "colliding", "col"))
    assert "'col//x.txt'" in told and "'col/%/x.txt'" in told
    assert content(served, "col//x.txt") == b"first" and content(served, "col/%/x.txt") == b"second"


def test_a_path_that_is_a_blob_and_a_folder_is_not_guessed_at(own: Path, tmp_path: Path) -> None:
    store = Store(own)
    fill(store, ["data", "data/a"])
    with pytest.raises(UserError, match="'data' is a blob, and a folder with 'data/a' in it"):
        stage(store, {"container": "c", "path": "data"}, tmp_path / "staged")
    store.close()


LONG = "l" * 300  # a file's name has 255 bytes at most


def test_a_name_that_no_file_can_have_fails_that_file_and_not_the_job(served: Served) -> None:
    make_deployment(served, "long", SCRIPT.replace("{WORD}", "7"))
    for name in ("a.txt", LONG):
        upload(served, "workspaceblobstore", f"long-data/{name}", b"content")
    details = score(served, "long", "long-data")
    assert details["status"] == "Completed"
    log = served.session.get(details["logFiles"]["logs/azureml/executionlogs.txt"]).text
    assert f"failed: long-data/{LONG}: File name too long" in log and "data: 1 file(s)" in log


def test_such_files_count_as_failed_ones(served: Served) -> None:
    make_deployment(served, "counting", SCRIPT.replace("{WORD}", "7"))
    for name in ("a.txt", LONG + "1", LONG + "2"):
        upload(served, "workspaceblobstore", f"counted/{name}", b"content")
    assert score(served, "counting", "counted", errorThreshold=2)["status"] == "Completed"
    assert "more than the error_threshold" in message(score(served, "counting", "counted", errorThreshold=1))


def test_a_path_longer_than_the_system_allows_fails_that_file(own: Path, tmp_path: Path) -> None:
    store = Store(own)
    deep = "/".join(["é" * 100] * 10)  # 2,009 bytes in a name of 1,009 characters
    fill(store, ["data/a", f"data/{deep}"])
    folder = tmp_path.joinpath(*["z" * 200] * 15)
    count, problems = stage(store, {"container": "c", "path": "data"}, folder)
    assert count == 1 and problems == [(f"data/{deep}", "File name too long")]
    store.close()


def test_a_copy_is_made_whatever_the_system_offers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, content = tmp_path / "source", os.urandom(3 << 20)
    source.write_bytes(content)
    copy(source, tmp_path / "fast")
    monkeypatch.setattr("os.copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(18, "other device")))
    copy(source, tmp_path / "slow")
    monkeypatch.delattr("os.copy_file_range")  # as on macOS
    copy(source, tmp_path / "none")
    assert all((tmp_path / name).read_bytes() == content for name in ("fast", "slow", "none"))
    with pytest.raises(FileExistsError):
        copy(source, tmp_path / "fast")
