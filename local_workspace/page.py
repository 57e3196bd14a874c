"""The page of a job, and the list of all jobs: what `az ml job show --web` opens. Plain HTML, no JavaScript.

Everyone on this machine can reach the port, so every address but the icon's carries the key of the run.
"""

import os
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from local_workspace import pictures, results
from local_workspace.errors import ServiceError, UserError
from local_workspace.jobs import TERMINAL, Job
from local_workspace.predictions import mini_batches
from local_workspace.tokens import Keys
from local_workspace.workspace import Call, not_found

MOST_JOBS, MOST_COLUMNS = 100, 10
REFRESH = 3  # seconds between two looks at a job that has not ended
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the key
    "Cache-Control": "no-store",
}
NO_PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 320 240"><text x="160" y="125" fill="#777"'
    ' font-family="sans-serif" font-size="18" text-anchor="middle">no picture: {why}</text></svg>'
)
ASSET_ID = re.compile(r".*/([^/]+)/versions/([^/]+)")
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


async def show_jobs(call: Call) -> Response:
    return await run_in_threadpool(_jobs_page, call)


async def show_job(call: Call) -> Response:
    return await run_in_threadpool(_job_page, call)


async def get_picture(call: Call) -> Response:
    """The picture of a row. The client names the row by its number, never a path."""
    content = await run_in_threadpool(_picture, call)
    if isinstance(content, str):
        return Response(NO_PICTURE.format(why=content), 200, HEADERS, "image/svg+xml")
    return Response(content, 200, HEADERS, "image/jpeg")


def get_icon(call: Call) -> Response:
    """A browser asks for one."""
    return Response(status_code=204, headers=HEADERS)


def authorise(keys: Keys, request: Request) -> None:
    if not keys.accepts_page_key(request.query_params.get("key", "")):
        message = "This address lacks the key of its run: open the page with az ml job show --name JOB --web"
        raise ServiceError(403, "Forbidden", message)


def error_response(error: ServiceError) -> Response:
    return Response(f"{error.status} {error.code}\n\n{error.message}\n", error.status, HEADERS, "text/plain")


def _jobs_page(call: Call) -> Response:
    jobs = call.workspace.jobs.all()
    newest = list(reversed(jobs))[:MOST_JOBS]
    refresh = any(job["status"] not in TERMINAL for job in newest)
    told = [(job, results.progress_of(job["summary"])) for job in newest]
    return _page(call, "jobs.html", jobs=told, total=len(jobs), refresh=refresh)


def _job_page(call: Call) -> Response:
    job, folder = _find(call)
    rows = results.read_rows(job, folder)
    labels, problem = results.read_labels(folder, rows)
    return _page(
        call,
        "job.html",
        job=job,
        refresh=job["status"] not in TERMINAL,
        ended=job["status"] in TERMINAL,
        details=_details(job),
        settings=_flat(job["deployment"]["settings"]),
        progress=results.read_progress(job, folder),
        failed=results.read_failed(folder),
        pictures=rows,
        label=labels.of_row,
        labels_problem=problem,
        cells=[] if rows else results.read_cells(job, folder),
        columns=MOST_COLUMNS,
        logs=results.read_logs(folder),
    )


def _page(call: Call, template: str, **values: Any) -> Response:
    key, seconds = call.workspace.keys.page_key, REFRESH if values.pop("refresh") else 0
    html = TEMPLATES.get_template(template).render(key=key, seconds=seconds, time=_time, **values)
    content = html.encode("utf-8", "replace")  # names of files that are not UTF-8
    return Response(content, 200, HEADERS, "text/html; charset=utf-8")


def _find(call: Call) -> tuple[Job, Path]:
    """A job by its name or by that of its scoring job, and its folder."""
    jobs, name = call.workspace.jobs, call.names["job"]
    job = jobs.get(name) or jobs.find_child(name)
    if job is None:
        raise not_found(f"Job {name}")
    return job, jobs.folder(job)


def _picture(call: Call) -> bytes | str:
    """The small picture of a row's photo, or why there is none."""
    job, folder = _find(call)
    files = tuple(row.file for row in results.read_rows(job, folder))
    number = call.names["row"]
    if not re.fullmatch("[0-9]{1,3}", number) or int(number) >= len(files):
        raise not_found(f"Row {number}")
    try:
        paths = pictures.find_photos(folder / "data", files)[int(number)]
        if len(paths) > 1:
            batches = mini_batches(folder / "output")
            paths = pictures.find_photos(folder / "data", files, batches)[int(number)]
    except UserError:
        return "the input cannot be searched"
    if len(paths) != 1:
        return f"ambiguous, {len(paths)} such files" if paths else "no such file"
    # The input is staged without links: one that is there now was put there by the scoring script.
    if os.path.islink(paths[0]):
        return "it is a link"
    return pictures.thumbnail(Path(paths[0])) or "the file is no photo"


def _details(job: Job) -> dict[str, str]:
    output = job["places"]["output"]
    return {
        "endpoint": job["endpoint"],
        "deployment": job["deployment"]["name"],
        "model": _asset(job["model"]),
        "environment": _asset(job["environment"] or "-"),
        "compute": job["compute"],
        "instances": str(job["deployment"]["resources"]["instance_count"]),
        "input": _asset(job["input"]["uri"]),
        "output": f"{output['container']}/{output['path']}",
        "scoring job": job["child"],
        "created": _time(job["created"]),
        "started": _time(job["started"]),
        "ended": _time(job["ended"]),
        "duration": _duration(job["started"], job["ended"]),
    }


def _asset(asset_id: Any) -> str:
    """`name:version` of a registered asset; any other address as it is."""
    found = ASSET_ID.fullmatch(str(asset_id))
    return f"{found[1]}:{found[2]}" if found else str(asset_id)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by one name each, such as `retry_settings.timeout`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": inner[key] for key in inner}
    return flat


def _time(text: str | None) -> str:
    """ARM's time for a person, to the second."""
    return f"{text[:10]} {text[11:19]} UTC" if text else "-"


def _duration(started: str | None, ended: str | None) -> str:
    if started is None:
        return "-"
    until = _moment(ended) if ended else datetime.now(timezone.utc)
    seconds = max(0, round((until - _moment(started)).total_seconds()))  # a clock may be set back
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def _moment(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
