"""`score DEPLOYMENT.yml --data DIR`: runs a deployment over a folder, with no server and no Azure."""

from __future__ import annotations

import argparse
import json
import os
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
from typing import TextIO

from local_workspace.deployment import MLFLOW_MODEL, MODEL, Deployment, read_deployment
from local_workspace.errors import UserError
from local_workspace.executor import Executor, JobFailed
from local_workspace.instance import Job
from local_workspace.job_logs import JobLogs
from local_workspace.journal import Counts, Journal
from local_workspace.labels import KEPT, LABELS_HELP, Labels, keep_labels, labels_of
from local_workspace.listing import list_input_files
from local_workspace.profile import print_profile
from local_workspace.resume import (
    FOLDER,
    deciding_settings,
    is_completed,
    keep_run,
    only_run,
    read_run,
    remove,
    working_folder,
    write_json,
)

COMPLETED, FAILED, INTERRUPTED = 0, 1, 130  # exit codes
SAVE_MODEL = "`python code/score-with-mlflow/save_model.py model mlflow-model`"
PLAIN_PROGRESS = 5  # seconds between two lines of progress where there is no terminal
TRUTH_HELP = (
    "what the files really show: a CSV with the columns file, and class (its number) or label; or `wordnet`, "
    "the ids in ImageNet's file names (n01440764_10026.JPEG)"
)
QUIET = 60  # seconds without progress until that is said


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("deployment", type=Path, metavar="DEPLOYMENT.yml")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder to score")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help=f"default: the YAML's path, or {MODEL}/ beside it ({MLFLOW_MODEL}/ without a scoring script)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: outputs/ and the deployment's name"
    )
    earlier = parser.add_mutually_exclusive_group()
    earlier.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    earlier.add_argument("--resume", action="store_true", help="go on where an earlier run stopped")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="as settings.mini_batch_size=20"
    )
    parser.add_argument("--profile", action="store_true", help="print where the workers' time goes")
    parser.add_argument("--truth", metavar="FILE.csv", help=TRUTH_HELP)
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help=f"{LABELS_HELP} (default: the model's own)"
    )
    parser.add_argument(
        "--init-timeout", type=float, default=600, metavar="SECONDS", help="of init() (default: 600)"
    )


def score(arguments: argparse.Namespace) -> int:
    """Scores, prints progress and a summary to stderr; returns the exit code.

    Writes score/predictions.csv, failed.csv, summary.json and logs/ in the output folder, and what
    --resume needs in .job/. Raises UserError for bad input.
    """
    begin = time.monotonic()
    deployment, warnings = read_deployment(arguments.deployment, arguments.set)
    for warning in warnings:
        say(f"warning: {warning}")
    model = model_of(deployment, arguments)
    labels = labels_to_keep(arguments, model)
    output = arguments.output or Path("outputs", deployment.name)
    settings = deciding_settings(deployment, model, arguments.data)
    kept = read_run(output, settings) if arguments.resume else None
    if kept and is_completed(output):
        say(f"{output}: completed already, nothing is left to resume")
        print(results_of(output, deployment))
        return COMPLETED
    earlier = [] if kept else earlier_results(output, deployment, arguments.overwrite)
    job = Job(
        deployment=deployment,
        run_id=kept["run_id"] if kept else str(uuid.uuid4()),
        model_dir=output.absolute() / FOLDER / "model",
        listing=output.absolute() / FOLDER / "listing",
        output=output.absolute() / "score",
        logs=output.absolute() / "logs",
        init_timeout=arguments.init_timeout,
        profile=arguments.profile,
    )
    # The file has no name: nothing is left of it, whatever ends this process.
    with writable(output), tempfile.TemporaryFile("w+", encoding="ascii") as listing:
        files = (
            kept["files"] if kept else list_data(arguments.data, listing, subfolders=not deployment.is_mlflow)
        )
        output.mkdir(parents=True, exist_ok=True)
        with only_run(output), working_folder(output, listing if not kept else None):
            compare_with_truth = truth_of(arguments.truth, labels, job) if arguments.truth else None
            lay_out_model(model, job.model_dir)
            if not kept:
                make_way(output, earlier)
                keep_run(output, job.run_id, files, settings)
            keep_labels(labels, output)
            code = run(job, files, output, begin)
            if compare_with_truth:
                compare_with_truth(output)
            return code


def results_of(output: Path, deployment: Deployment) -> Path:
    """predictions.csv, or the folder of a deployment whose script writes its results itself."""
    append = deployment.output_action == "append_row"
    return output / "score" / (deployment.output_file_name if append else "")


def labels_to_keep(arguments: argparse.Namespace, model: Path) -> Labels:
    """The labels of the model. Where nobody asked for them, what is wrong with them is a warning."""
    try:
        return labels_of(model, arguments.labels)
    except UserError as error:
        if arguments.labels or arguments.truth:
            raise
        say(f"warning: {error.message}; the classes will be shown by number")
        return Labels()


def truth_of(source: str, labels: Labels, job: Job) -> Callable[[Path], None]:
    """Reads the truth; returns what compares the job's rows with it, in summary.json and on stderr."""
    from local_workspace import predictions, truth

    known = truth.read_truth(source, labels, job.listing)

    def compare(output: Path) -> None:
        rows = predictions.find_predictions(job.output, job.deployment.output_file_name)
        figures = truth.compare(output, rows, known, labels)
        summary = json.loads((output / "summary.json").read_text("utf-8"))
        write_json(output / "summary.json", summary | figures)
        say(truth.describe(figures, source, output / truth.MISSES))

    return compare


def model_of(deployment: Deployment, arguments: argparse.Namespace) -> Path:
    folder = MLFLOW_MODEL if deployment.is_mlflow else MODEL
    model = arguments.model or deployment.model or arguments.deployment.parent / folder
    if not os.path.exists(model):
        raise UserError(
            f"{model}: no such model, expected a folder or a file",
            "`python -m local_workspace samples` prepares one in model/"
            + (f", which {SAVE_MODEL} saves in {MLFLOW_MODEL}/" if deployment.is_mlflow else "")
            + "; or name yours with --model",
        )
    return Path(os.path.abspath(model))


def earlier_results(output: Path, deployment: Deployment, overwrite: bool) -> list[Path]:
    """What an earlier run left in `output`. Azure refuses an existing output file."""
    names = (Path("score", deployment.output_file_name), "summary.json", "logs", "misses.csv", KEPT)
    earlier = [output / name for name in names if os.path.lexists(output / name)]
    if earlier and not overwrite:
        raise UserError(
            f"{earlier[0]}: exists already",
            "choose another --output, or --overwrite it; --resume goes on with a run that did not end",
        )
    return [*earlier, *output.glob("score/*.parquet")] if earlier else []


def make_way(output: Path, earlier: list[Path]) -> None:
    """Removes the `earlier` results, once nothing can be wrong with the input any more."""
    for path in earlier:
        remove(path)


@contextmanager
def writable(output: Path) -> Iterator[None]:
    """Raises UserError where `output`, or a temporary file, cannot be written."""
    try:
        yield
    except OSError as error:
        place = output if error.filename else f"{output} or {tempfile.gettempdir()}"
        hint = "choose another --output, or make room and --resume"
        raise UserError(f"{place}: cannot be written: {error}", hint) from None


def list_data(data: Path, listing: TextIO, subfolders: bool) -> int:
    """Lists the input, and says what is left out. Returns the number of files."""
    if not os.path.exists(data):
        raise UserError(f"{data}: no such folder, expected the files to score", "name it with --data")
    files, left_out = list_input_files(data.absolute(), listing, subfolders)
    for path in left_out[:5]:
        folder = not subfolders and os.path.isdir(path)
        what = (
            "a folder, which the deployment of an MLflow model does not look into" if folder else "not a file"
        )
        say(f"warning: {path}: {what}, left out")
    if len(left_out) > 5:
        say(f"warning: {len(left_out) - 5} more that are not files, left out")
    if not files:
        raise UserError(f"{data}: no files to score in it", "name another folder with --data")
    return files


def lay_out_model(model: Path, model_dir: Path) -> None:
    """A registered folder keeps its name below AZUREML_MODEL_DIR, and a registered file lies in it.

    The folders are real and the files are links: rglob(), as scripts search a model, follows no links to
    folders. MLflow follows no links at all, so its models are copied.
    """
    model_dir.mkdir()
    if not model.is_dir():
        (model_dir / model.name).symlink_to(model)
        return

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None

    put = shutil.copy2 if (model / "MLmodel").exists() else os.symlink
    for folder, folders, files in list(os.walk(model, onerror=refuse)):  # model_dir may be below it
        copy = model_dir / model.name / os.path.relpath(folder, model)
        copy.mkdir()
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in files + links:
            try:
                put(os.path.join(folder, name), copy / name)
            except OSError as error:
                refuse(error)


def run(job: Job, files: int, output: Path, begin: float) -> int:
    deployment = job.deployment
    mini_batches = -(-files // deployment.mini_batch_size)
    workers = min(deployment.workers, mini_batches)
    say(f"{deployment.name}: files: {files:,}, mini-batches: {mini_batches:,}, workers: {workers}")
    counts = Counts(files, mini_batches)
    status, cause, code = "Completed", "", COMPLETED
    with (
        open_journal(job, output, counts) as journal,
        JobLogs(job.logs) as logs,
        progress(files, counts.succeeded + counts.failed) as on_progress,
    ):
        executor = Executor(job, journal, logs, on_progress)
        with stop_on_signals(executor):
            try:
                executor.run()
            except JobFailed as failure:
                status, cause, code = "Failed", str(failure), FAILED
            except KeyboardInterrupt:
                status, cause, code = "Canceled", "interrupted", INTERRUPTED
        summary = summarise(status, cause, counts, executor, time.monotonic() - begin, workers)
        try:
            logs.result("\n".join(f"{key}: {value}" for key, value in summary.items()), cause)
            write_json(output / "summary.json", summary)
        except OSError as error:
            say(f"\nerror: {output}: the summary cannot be written: {error.strerror}")
            code = code or FAILED
    if code == COMPLETED:
        remove(job.listing)
    print_summary(summary, output, job)
    if job.profile:
        print_profile(job.logs, deployment.code)
    return code


def open_journal(job: Job, output: Path, counts: Counts) -> Journal:
    """The journal of this run, or of the one that it resumes, whose `counts` it adds."""
    (output / "summary.json").unlink(missing_ok=True)
    job.output.mkdir(exist_ok=True)
    append = job.deployment.output_action == "append_row"
    predictions = job.output / job.deployment.output_file_name if append else None
    journal = job.logs / "sys" / "job_report" / "processed_mini-batches.csv"
    opened = Journal(predictions, output / "failed.csv", journal, counts)
    if counts.processed:
        say(f"resumed: {counts.succeeded + counts.failed:,} of {counts.files:,} files were done")
    return opened


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
def progress(files: int, resumed: int) -> Iterator[Callable[[Counts], None]]:
    """A function that shows the counts: a bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        yield plain_progress(resumed)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        shown = bar.add_task("", total=files, rate="")
        rate = files_a_second(resumed)

        def show(counts: Counts) -> None:
            done = counts.succeeded + counts.failed
            bar.update(shown, completed=done, rate=f"{rate(done):.0f}/s, {counts.failed} failed")

        yield show


def plain_progress(resumed: int = 0) -> Callable[[Counts], None]:
    last, said, rate = time.monotonic(), resumed, files_a_second(resumed)

    def show(counts: Counts) -> None:
        nonlocal last, said
        now, done = time.monotonic(), counts.succeeded + counts.failed
        speed = rate(done)
        if now - last >= (PLAIN_PROGRESS if done > said else QUIET):
            say(f"{done:,} of {counts.files:,} files, {speed:.1f}/s, {counts.failed} failed")
            last, said = now, done

    return show


def files_a_second(resumed: int) -> Callable[[int], float]:
    """The speed at which files are done after those of a `resumed` run, from the last moment at which none
    was: init() is not counted.
    """
    begin = time.monotonic()

    def rate(done: int) -> float:
        nonlocal begin
        now = time.monotonic()
        begin = begin if done > resumed else now
        return (done - resumed) / max(now - begin, 1e-3)

    return rate


def summarise(
    status: str, cause: str, counts: Counts, executor: Executor, seconds: float, workers: int
) -> dict:
    """The figures of a job that has ended. `seconds_scoring` runs from the end of the first init() on.

    A resumed run counts all files, and its seconds and speed are its own.
    """
    scoring = max(0.0, executor.last_finished - executor.first_ready)
    rate = (counts.succeeded - executor.resumed) / scoring if scoring else 0.0
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "status": status,
        "cause": cause,
        **asdict(counts),
        "not_scored": counts.not_scored,
        "seconds": round(seconds, 2),
        "seconds_scoring": round(scoring, 2),
        "images_a_second": round(rate, 1),
        "images_a_second_a_worker": round(rate / workers, 1),
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
    if left:
        say("--resume goes on where this run stopped")
    if summary["status"] == "Failed":
        say(f"\nerror: the job failed: {summary['cause']}\n\nhint: the logs are in {output / 'logs'}")
    print(results_of(output, job.deployment))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
