"""`score DEPLOYMENT.yml --data DIR`: runs a deployment over a folder, with no server and no Azure."""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from local_workspace.deployment import Deployment, read_deployment
from local_workspace.errors import UserError
from local_workspace.executor import Counts, Executor, JobFailed
from local_workspace.instance import Job
from local_workspace.job_logs import JobLogs
from local_workspace.listing import list_input_files

COMPLETED, FAILED, INTERRUPTED = 0, 1, 130  # exit codes
PLAIN_PROGRESS = 5  # seconds between two lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("deployment", type=Path, metavar="DEPLOYMENT.yml")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder to score")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="default: the YAML's path, or model/ beside it"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: outputs/ and the deployment's name"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as settings.mini_batch_size=20"
    )
    parser.add_argument(
        "--init-timeout", type=float, default=600, metavar="SECONDS", help="of init() (default: 600)"
    )


def score(arguments: argparse.Namespace) -> int:
    """Scores, prints progress and a summary to stderr; returns the exit code.

    Writes score/predictions.csv, failed.csv, summary.json and logs/ in the output folder. Raises
    UserError for bad input.
    """
    begin = time.monotonic()
    deployment, warnings = read_deployment(arguments.deployment, arguments.set)
    for warning in warnings:
        say(f"warning: {arguments.deployment}: {warning}")
    model = model_of(deployment, arguments)
    output = arguments.output or Path("outputs", deployment.name)
    make_way(output, deployment, arguments.overwrite)
    with tempfile.TemporaryDirectory(prefix="local_workspace_") as folder:
        job, files = stage(deployment, model, arguments.data, output.absolute(), Path(folder), arguments)
        return run(job, files, output, begin)


def model_of(deployment: Deployment, arguments: argparse.Namespace) -> Path:
    model = arguments.model or deployment.model or arguments.deployment.parent / "model"
    if not model.exists():
        raise UserError(
            f"{model}: no such model, expected a folder or a file",
            "`python -m local_workspace samples` prepares one in model/; or name yours with --model",
        )
    return model.absolute()


def make_way(output: Path, deployment: Deployment, overwrite: bool) -> None:
    """Removes what an earlier run left in `output`, if it may: Azure refuses an existing output file."""
    predictions = output / "score" / deployment.output_file_name
    earlier = [path for path in (predictions, output / "summary.json", output / "logs") if path.exists()]
    if earlier and not overwrite:
        raise UserError(f"{earlier[0]}: exists already", "choose another --output, or --overwrite it")
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def stage(
    deployment: Deployment, model: Path, data: Path, output: Path, folder: Path, arguments: argparse.Namespace
) -> tuple[Job, int]:
    """Lists the input and lays out what the workers see. Returns the job and the number of files."""
    if not data.exists():
        raise UserError(f"{data}: no such folder, expected the files to score", "name it with --data")
    files, left_out = list_input_files(data.absolute(), folder / "listing")
    for path in left_out[:5]:
        say(f"warning: {path}: not a file, left out")
    if len(left_out) > 5:
        say(f"warning: {len(left_out) - 5} more that are not files, left out")
    if not files:
        raise UserError(f"{data}: no files to score in it", "name another folder with --data")
    # A registered folder keeps its name below AZUREML_MODEL_DIR, and a registered file lies in it.
    (folder / "model").mkdir()
    (folder / "model" / model.name).symlink_to(model)
    (output / "score").mkdir(parents=True, exist_ok=True)
    job = Job(
        deployment=deployment,
        run_id=str(uuid.uuid4()),
        model_dir=folder / "model",
        listing=folder / "listing",
        output=output / "score",
        logs=output / "logs",
        init_timeout=arguments.init_timeout,
    )
    return job, files


def run(job: Job, files: int, output: Path, begin: float) -> int:
    deployment = job.deployment
    mini_batches = -(-files // deployment.mini_batch_size)
    say(
        f"{deployment.name}: {files:,} files in {mini_batches:,} mini-batches, "
        f"{min(deployment.workers, mini_batches)} workers"
    )
    counts = Counts(files, mini_batches)
    status, cause, code = "Completed", "", COMPLETED
    with JobLogs(job.logs, output / "failed.csv") as logs, progress(files) as on_progress:
        executor = Executor(job, counts, logs, on_progress)
        with stop_on_signals(executor):
            try:
                executor.run()
            except JobFailed as failure:
                status, cause, code = "Failed", str(failure), FAILED
            except KeyboardInterrupt:
                status, cause, code = "Canceled", "interrupted", INTERRUPTED
        summary = summarise(status, cause, counts, executor, begin)
        logs.result("\n".join(f"{key}: {value}" for key, value in summary.items()), cause)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    print_summary(summary, output, job)
    return code


@contextmanager
def stop_on_signals(executor: Executor) -> Iterator[None]:
    """A Ctrl-C or SIGTERM ends the job in order; a second Ctrl-C at once."""

    def stop(number: int, frame: object) -> None:
        if executor.interrupted:
            raise KeyboardInterrupt
        executor.interrupted = True

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def progress(files: int) -> Iterator[Callable[[Counts], None]]:
    """A function that shows the counts: a bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("", total=files, rate="")
        begin = time.monotonic()

        def show(counts: Counts) -> None:
            done = counts.succeeded + counts.failed
            rate = f"{done / max(time.monotonic() - begin, 1e-9):.0f}/s, {counts.failed} failed"
            bar.update(shown, completed=done, rate=rate)

        yield show


def plain_progress() -> Callable[[Counts], None]:
    begin = last = time.monotonic()

    def show(counts: Counts) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_PROGRESS:
            done = counts.succeeded + counts.failed
            say(f"{done:,} of {counts.files:,} files, {done / (now - begin):.1f}/s, {counts.failed} failed")
            last = now

    return show


def summarise(status: str, cause: str, counts: Counts, executor: Executor, begin: float) -> dict:
    """The figures of a job that has ended. Images a second count from the end of the first init() on."""
    now = time.monotonic()
    scoring = now - executor.first_ready if executor.first_ready else 0.0
    rate = counts.succeeded / scoring if scoring else 0.0
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "status": status,
        "cause": cause,
        **asdict(counts),
        "not_scored": counts.not_scored,
        "seconds": round(now - begin, 2),
        "seconds_scoring": round(scoring, 2),
        "images_a_second": round(rate, 1),
        "images_a_second_a_worker": round(rate / executor.deployment.workers, 1),
        "peak_memory_of_a_worker_mb": round(kilobytes / (1 << 20 if sys.platform == "darwin" else 1 << 10)),
    }


def print_summary(summary: dict, output: Path, job: Job) -> None:
    files, succeeded, failed, left = (summary[key] for key in ("files", "succeeded", "failed", "not_scored"))
    say(
        f"{summary['status']}: {files:,} files = {succeeded:,} scored + {failed:,} failed"
        + (f" + {left:,} not scored" if left else "")
        + f"; {summary['rows']:,} rows\n"
        f"{summary['seconds']} s, of which {summary['seconds_scoring']} s scoring: "
        f"{summary['images_a_second']} images a second, {summary['images_a_second_a_worker']} a worker; "
        f"a worker's peak memory {summary['peak_memory_of_a_worker_mb']:,} MB"
    )
    if failed:
        say(f"failed files and why: {output / 'failed.csv'}")
    if summary["status"] == "Failed":
        say(f"\nerror: the job failed: {summary['cause']}\n\nhint: the logs are in {output / 'logs'}")
    print(
        output
        / "score"
        / (job.deployment.output_file_name if job.deployment.output_action == "append_row" else "")
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
