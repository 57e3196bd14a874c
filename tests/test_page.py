"""The page of a job, through HTTP, as a browser asks for it."""

import io
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pytest
import requests
from conftest import SCOPE, Served
from deployed import SCRIPT, SLOW, invoke, make_deployment, upload, wait_for
from pages import get, part, photo
from PIL import Image

from local_workspace import page, pictures, results
from local_workspace.predictions import Row

SCORING = """
import logging
from pathlib import Path


def init():
    pass


def run(mini_batch):
    import pandas as pd

    rows = []
    for path in map(Path, mini_batch):
        if "broken" in path.name:
            logging.warning("%s: left out: <i>not an image</i>", path)
        else:
            rows.append((path.name, 283, 0.9))
    return pd.DataFrame(rows)
"""
# A script that names files which are not its input.
LYING = """
def init():
    pass


def run(mini_batch):
    names = "OUTSIDE", "../../../secret.png", "/etc/passwd"
    return [f"{name} 283 0.5" for name in names[: len(mini_batch)]]
"""
HOSTILE = '<img src=x onerror="alert(1)">&.JPEG'
LABELS = "\n".join(["background", *(f"label {number} <b>" for number in range(1, 1001))])


class Scored(NamedTuple):
    name: str
    child: str
    address: str  # of its page, as the SDK has it


def turned() -> bytes:
    """Upright only where EXIF's orientation is heeded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return photo("JPEG", exif=exif)


PHOTOS = {
    "01.JPEG": photo("JPEG"),
    "02 turned.JPEG": turned(),
    "03.png": photo("PNG"),
    "04.gif": photo("GIF"),
    "05.tif": photo("TIFF"),
    "06.webp": photo("WEBP"),
    "07 no picture.JPEG": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "dogs/08.JPEG": photo("JPEG"),
    "dogs/same.JPEG": photo("JPEG"),
    "same.JPEG": photo("JPEG"),
    HOSTILE: photo("JPEG"),
    "broken <script>.JPEG": b"",
}


def scored(served: Served, endpoint: str, script: str, photos: dict[str, bytes], **options: Any) -> Scored:
    """A job over `photos`, invoked; with labels beside the model."""
    make_deployment(served, endpoint, script)
    upload(served, "workspaceblobstore", f"{endpoint}/model/ImageNetLabels.txt", LABELS.encode())
    for name, content in photos.items():
        upload(served, "workspaceblobstore", f"{endpoint}/data/{quote(name)}", content)
    uri = f"azureml://datastores/workspaceblobstore/paths/{endpoint}/data"
    given = {"inputData": {"UriFolder": {"jobInputType": "UriFolder", "uri": uri}}} | options
    name = invoke(served, endpoint, **given).json()["name"]
    shown = served.call("GET", f"{SCOPE}/jobs/{name}").json()["properties"]
    return Scored(name, "", shown["services"]["Studio"]["endpoint"] + "&tid=the-sdk-appends-it")


@pytest.fixture(scope="module")
def finished(served: Served) -> Scored:
    job = scored(served, "paged", SCORING, PHOTOS)
    assert wait_for(served, job.name, "Completed", "Failed")["status"] == "Completed"
    runs = served.call("GET", f"/history/v1.0{SCOPE}/runs/{job.name}/children", host="api").json()["value"]
    return job._replace(child=runs[0]["runId"])


def picture(job: Scored, row: int | str) -> requests.Response:
    return get(part(job.address, f"/jobs/{job.name}/pictures/{row}"))


def test_a_finished_job_shows_what_it_was_and_what_came_of_it(finished: Scored) -> None:
    html = get(finished.address).text
    assert "Completed</span>" in html and "refresh" not in html
    assert "12 of 12 files" in html and "1 failed" in html
    for name, value in {"endpoint": "paged", "deployment": "main", "mini_batch_size": "10"}.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in html
    assert "11 of 11 rows" in html and html.count("<figure>") == 11
    assert "label 283" in html and "0.900" in html and "01.JPEG" in html
    assert f"completed: {finished.name}" in html  # the log


def test_every_value_is_escaped(finished: Scored) -> None:
    html = get(finished.address).text
    assert "<script" not in html and "<b>label" not in html and "<i>" not in html
    assert html.count("<img ") == html.count("<figure>")
    assert 'alt="&lt;img src=x onerror=&#34;alert(1)&#34;&gt;&amp;.JPEG"' in html
    assert "<td>broken &lt;script&gt;.JPEG</td>" in html
    assert "left out: &lt;i&gt;not an image&lt;/i&gt;</td>" in html
    assert "label 283 &lt;b&gt;" in html


def test_a_row_has_a_picture_of_its_file(finished: Scored) -> None:
    rows = sorted(Path(name) for name in PHOTOS if "broken" not in name)
    names = [path.name for path in rows]
    for row, name in enumerate(names):
        answer = picture(finished, row)
        assert answer.status_code == 200
        if name in (why := {"07 no picture.JPEG": "is no photo", "same.JPEG": "ambiguous, 2 such files"}):
            assert answer.headers["Content-Type"] == "image/svg+xml" and "no picture" in answer.text
            assert why[name] in answer.text
            continue
        size = Image.open(io.BytesIO(answer.content)).size
        assert size == ((160, 240) if "turned" in name else (320, 213)), name


def test_the_page_of_the_scoring_job_is_that_of_its_job(served: Served, finished: Scored) -> None:
    run = served.call("GET", f"/history/v1.0{SCOPE}/runs/{finished.child}", host="api").json()
    assert f"<h1>{finished.name}" in get(run["services"]["Studio"]["endpoint"]).text


def test_all_jobs_are_listed(served: Served, finished: Scored) -> None:
    html = get(served.environment["LOCAL_WORKSPACE_PAGE"]).text
    assert f'<a href="/jobs/{finished.name}?key=' in html
    assert "jobs, the newest first" in html


def test_a_running_job_shows_its_progress(served: Served) -> None:
    job = scored(served, "paged-slow", SLOW, {"1.JPEG": b"1", "2.JPEG": b"2"})
    wait_for(served, job.name, "Running")
    deadline = time.monotonic() + 120
    output = served.state / "jobs" / job.name / "output"
    while not output.is_dir() and time.monotonic() < deadline:
        time.sleep(0.1)
    write_progress(output)  # as the executor does, so both say the same
    while "0 of 2 files" not in (html := get(job.address).text) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "Running</span>" in html and '<progress value="0" max="2">' in html
    assert f'<meta http-equiv="refresh" content="{page.REFRESH}">' in html
    served.call("POST", f"{SCOPE}/jobs/{job.name}/cancel")
    wait_for(served, job.name, "Canceled")
    assert "refresh" not in get(job.address).text


def write_progress(output: Path, **changes: Any) -> None:
    """What `score` writes there as it goes."""
    times = {"started": "2026-05-04T10:00:00Z", "updated": "2026-05-04T10:00:04Z", "ended": None}
    counts = {"files": 2, "mini_batches": 1, "workers": 1, "processed_mini_batches": 0}
    told = {**counts, "scored": 0, "failed": 0, "rows": 0, **times, **changes}
    (output / "progress.new").write_text(json.dumps(told))
    (output / "progress.new").replace(output / results.PROGRESS)


def test_the_progress_is_what_the_executor_says(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    write_progress(tmp_path / "output", files=12_345, scored=1234, failed=5, rows=1300)
    progress = results.read_progress({"summary": None}, tmp_path)
    assert progress == results.Progress(files=12_345, done=1239, failed=5, rows=1300, rate=308.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"files": None},
        {"files": "12"},
        {"files": -1},
        {"scored": True},
        {"failed": {}},
        {"started": None},
        {"started": "yesterday"},
        {"updated": 5},
        {"updated": "2026-05-04T10:00:04"},
    ],
    ids=str,
)
def test_a_progress_that_cannot_be_understood_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "output").mkdir()
    write_progress(tmp_path / "output", **changes)
    assert results.read_progress({"summary": None}, tmp_path) is None


@pytest.mark.parametrize(
    "text", [None, b"", b"{", b"[]", b"5", b"null", b"\xff", b"[" * 60_000, b" " * 70_000]
)
def test_a_progress_that_cannot_be_read_is_none(tmp_path: Path, text: bytes | None) -> None:
    (tmp_path / "output").mkdir()
    if text is not None:
        (tmp_path / "output" / results.PROGRESS).write_bytes(text)
    log = tmp_path / results.EXECUTION_LOG
    log.parent.mkdir(parents=True)
    log.write_text("files: 2, mini-batches: 1, workers: 1\n" + "1 of 1,,, files, 1.1.1/s, , failed\n")
    assert results.read_progress({"summary": None}, tmp_path) is None


def test_a_failed_job_shows_why(served: Served) -> None:
    script = SCRIPT.replace("return [", "raise RuntimeError('no <b>') or [")
    job = scored(served, "paged-failing", script, {"1.JPEG": b"1"})
    wait_for(served, job.name, "Failed")
    html = get(job.address).text
    assert 'class="error">No succeeded mini batch' in html
    assert "logs/user/error/instance0/process000.error.txt" in html and "Traceback" in html
    assert "RuntimeError: no &lt;b&gt;</td>" in html


def test_rows_of_another_form_are_a_table(served: Served) -> None:
    job = scored(served, "paged-rows", SCRIPT.replace("{WORD}", "<7>"), {"1.JPEG": b"1"})
    wait_for(served, job.name, "Completed")
    html = get(job.address).text
    assert "1.JPEG</td><td>&lt;7&gt;</td>" in html and "<figure>" not in html
    assert picture(job, 0).status_code == 404


def test_a_job_whose_folder_a_person_has_deleted_has_a_page(served: Served) -> None:
    job = scored(served, "paged-deleted", SCRIPT.replace("{WORD}", "7"), {"1.JPEG": b"1"})
    wait_for(served, job.name, "Completed")
    shutil.rmtree(served.state / "jobs" / job.name)
    assert "1 of 1 files" in get(job.address).text


# Who may look, and at what


def test_a_page_is_a_text_and_nothing_else(finished: Scored) -> None:
    """No script, no other host, no frame around it, nothing kept, no key in a Referer."""
    for path in (f"/jobs/{finished.name}", "/", f"/jobs/{finished.name}/pictures/0", "/jobs/none", "/none"):
        headers = get(part(finished.address, path)).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'unsafe-inline';")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
    html = get(finished.address).text
    assert "http://" not in html and "https://" not in html and "<script" not in html


@pytest.mark.parametrize("key", ["", "?key=", "?key=wrong", "?key=%ff%C3%B6", "?wsid=x"])
@pytest.mark.parametrize("path", ["/", "/jobs/{job}", "/jobs/{job}/pictures/0", "/jobs/none"])
def test_without_the_key_of_the_run_nothing_is_shown(finished: Scored, path: str, key: str) -> None:
    parts = urlsplit(finished.address)
    answer = get(f"http://{parts.netloc}{path.format(job=finished.name)}{key}")
    assert answer.status_code == 403
    assert finished.name not in answer.text and "az ml job show" in answer.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example"])
def test_another_host_is_refused(finished: Scored, host: str) -> None:
    """A name of another site that resolves to this machine (DNS rebinding)."""
    answer = get(finished.address, Host=host)
    assert answer.status_code in (400, 501) and "<html" not in answer.text


def test_localhost_is_this_host(finished: Scored) -> None:
    """By the header: the name need not be one that this machine resolves."""
    assert get(finished.address, Host=f"localhost:{urlsplit(finished.address).port}").status_code == 200


@pytest.mark.parametrize("row", ["11", "-1", "999999999999", "x", "..%2f..%2fstate.sqlite", "%00", "01.JPEG"])
def test_a_picture_is_named_by_its_row_alone(finished: Scored, row: str) -> None:
    assert picture(finished, row).status_code in (404, 501)


def test_a_row_leads_to_no_file_outside_of_the_input(served: Served, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(photo("PNG"))
    (served.state / "jobs" / "secret.png").write_bytes(photo("PNG"))
    job = scored(served, "lying", LYING.replace("OUTSIDE", str(secret)), {f"{n}.JPEG": b"" for n in range(3)})
    assert wait_for(served, job.name, "Completed", "Failed")["status"] == "Completed"
    assert get(job.address).text.count("<figure>") == 3
    assert {picture(job, row).headers["Content-Type"] for row in range(3)} == {"image/svg+xml"}


def test_the_name_of_the_output_leads_to_no_other_file(served: Served, tmp_path: Path) -> None:
    """It is refused where it enters, and leads nowhere in a job of an older version either."""
    (tmp_path / "secret.csv").write_text("a.JPEG 7 0.5\n")
    assert invoke(served, "paged", outputFileName=str(tmp_path / "secret.csv")).status_code == 400
    settings = {"output_file_name": str(tmp_path / "secret.csv")}
    job = {"deployment": {"settings": settings}, "status": "Completed"}
    (tmp_path / "output" / "score").mkdir(parents=True)
    assert not results.read_rows(job, tmp_path)


def test_the_key_is_worth_nothing_in_another_run(tmp_path: Path, finished: Scored) -> None:
    other = Served(tmp_path / "state")
    try:
        address = other.environment["LOCAL_WORKSPACE_PAGE"]
        assert "No job has run" in get(address).text
        query = urlsplit(finished.address).query
        assert get(f"{address.partition('?')[0]}?{query}").status_code == 403
    finally:
        other.stop(signal.SIGINT)


# Bounds


def job_of(output_file_name: Any, status: str = "Completed") -> dict[str, Any]:
    """What the readers of results need of a job's record."""
    deployment = {"settings": {"output_file_name": output_file_name}, "code_configuration": {}}
    return {"deployment": deployment, "status": status, "summary": None}


def write_rows(folder: Path, text: str) -> None:
    path = folder / "output" / "score" / "p.csv"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_what_is_shown_is_bounded(tmp_path: Path) -> None:
    job = job_of("p.csv")
    data = tmp_path / "data"
    files = {
        "output/score/p.csv": '"a b" 1 0.5\n' * 100_000 + "cut 1",
        "output/failed.csv": "file,mini_batch,reason\n" + f"{data}/a,1,because of {data}/a\n" * 1000,
        results.EXECUTION_LOG: "line\n" * 100_000,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    rows = results.read_rows(job, tmp_path)
    assert rows == [Row("a b", (1,), 0.5, "")] * results.MOST_ROWS
    assert results.read_failed(tmp_path) == [("a", "because of a")] * results.MOST_FAILED
    (log,) = results.read_logs(tmp_path)
    assert (len(log.lines), log.total) == (results.MOST_LINES, 100_000)


@pytest.mark.parametrize(
    "text", ["", "no end", "\0 \0\n", "x" * 300_000, f"{'x' * 200_000}\n", '"\n', "\n\n"]
)
def test_no_content_of_a_file_is_an_error(tmp_path: Path, text: str) -> None:
    write_rows(tmp_path, text)
    assert results.read_rows(job_of("p.csv"), tmp_path) == []


@pytest.mark.parametrize("row", ["a -1 0.5", "a 1 1.5", "a 1 nan", "a b 0.5", "a 1", "a 1 0.5 x"])
def test_only_a_class_and_a_probability_make_a_picture(row: str, tmp_path: Path) -> None:
    write_rows(tmp_path, f"a 1 0.5\n{row}\n")
    assert results.read_rows(job_of("p.csv"), tmp_path) == []
    assert results.read_cells(job_of("p.csv"), tmp_path) == [["a", "1", "0.5"], row.split()]


def test_a_picture_of_too_many_pixels_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 10_000)).save(path)
    assert pictures.thumbnail(path) is None


def test_only_formats_of_photos_are_opened(tmp_path: Path) -> None:
    """Pillow knows some that run a program (EPS)."""
    path = tmp_path / "photo.JPEG"
    path.write_bytes(photo("PPM"))
    assert pictures.thumbnail(path) is None


def test_an_input_file_whose_name_is_not_utf_8_is_found(tmp_path: Path) -> None:
    name = b"latin \xe4.JPEG".decode("utf-8", "surrogateescape")
    try:
        (tmp_path / name).write_bytes(photo("JPEG"))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert pictures.find_photos(tmp_path, (name,)) == [[str(tmp_path / name)]]
