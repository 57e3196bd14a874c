"""`az ml job` as calls of azure.ai.ml.

One function a command, which returns what is printed; az.py reads the flags from the
signatures and the help from the docstrings. With other variables in the environment they call Azure.
"""

import os
import sys
import webbrowser
from itertools import islice

from azure.ai.ml import MLClient

from local_workspace.az_ml import Printed, printed, without_progress


def job_show(client: MLClient, name: str, web: bool = False) -> Printed:
    """Show a job."""
    job = client.jobs.get(name)
    if web:
        open_page(job.services["Studio"].endpoint)
    return printed(job)


def open_page(url: str) -> None:
    """In the browser; where there is no display, the reader gets the address."""
    has_display = sys.platform == "darwin" or {"BROWSER", "DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    if not (has_display and webbrowser.open(url)):
        print(f"The job's page: {url}", file=sys.stderr)


def job_list(
    client: MLClient, parent_job_name: str | None = None, max_results: int | None = None
) -> list[Printed]:
    """List the jobs of the workspace, or the children of one job."""
    return [
        printed(job) for job in islice(client.jobs.list(parent_job_name=parent_job_name), max_results) if job
    ]


def job_stream(client: MLClient, name: str) -> None:
    """Follow a job's log until the job ends; a failed job is an error."""
    client.jobs.stream(name)


def job_download(
    client: MLClient,
    name: str,
    download_path: str = ".",
    output_name: str | None = None,
    all: bool = False,
) -> None:
    """Download an output of a finished job; its logs, when no output is named; or everything."""
    with without_progress():
        client.jobs.download(name, download_path=download_path, output_name=output_name, all=all)


def job_cancel(client: MLClient, name: str) -> None:
    """Cancel a running job."""
    with without_progress():
        client.jobs.begin_cancel(name).result()
