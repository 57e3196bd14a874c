"""`score DEPLOYMENT.yml --data DIR`: runs a deployment over a folder, with no server and no Azure."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from local_workspace.console import say
from local_workspace.deployment import MLFLOW_MODEL, MODEL, Deployment, read_deployment
from local_workspace.errors import UserError
from local_workspace.executor import Executor, JobFailed
from local_workspace.instance import Job
from local_workspace.job_logs import JobLogs
from local_workspace.journal import Counts, Journal
from local_workspace.labels import KEPT, LABELS_HELP, Labels, keep_labels, labels_of
from local_workspace.listing import list_input_files
from local_workspace.model import lay_out_model, model_of
from local_workspace.profile import Profile
from local_workspace.progress import ProgressFile, progress
from local_workspace.resume import (
    FOLDER,
    SUMMARY,
    deciding_settings,
    is_completed,
    keep_run,
    new_folder,
    only_run,
    read_run,
    remove,
    working_folder,
    write_json,
)
from local_workspace.summary import is_refusal, print_summary, summarise, tell_refusal

COMPLETED, FAILED, INTERRUPTED = 0, 1, 130  # exit codes
TRUTH_HELP = (
    "what the files really show: a CSV with the columns file, and class (its number) or label; or `wordnet`, "
    "the ids in ImageNet's file names (n01440764_10026.JPEG)"
)


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
    parser.add_argument("--profile", action="store_true", help="print where a worker's time goes, by py-spy")
    parser.add_argument("--truth", metavar="FILE.csv", help=TRUTH_HELP)
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help=f"{LABELS_HELP} (default: the model's own)"
    )
    parser.add_argument(
        "--init-timeout", type=float, default=600, metavar="SECONDS", help="of init() (default: 600)"
    )


def score(arguments: argparse.Namespace) -> int:
    """Scores, prints progress and a summary to stderr; returns the exit code.

    Writes score/predictions.csv, failed.csv, summary.json, progress.json and logs/ in the output folder, and
    what --resume needs in .job/. Raises UserError for bad input, which an output folder's summary says, too.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a path need not be UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    output = arguments.output
    try:
        deployment, warnings = read_deployment(arguments.deployment, arguments.set)
        for warning in [*warnings, *other_keras(deployment)]:
            say(f"warning: {warning}")
        output = output or Path("outputs", deployment.name)
        return score_deployment(deployment, output, arguments)
    except UserError as error:
        if output:
            tell_refusal(output, error.message)
        raise


def score_deployment(deployment: Deployment, output: Path, arguments: argparse.Namespace) -> int:
    begin = time.monotonic()
    model = model_of(deployment, arguments.model, arguments.deployment)
    labels = labels_to_keep(arguments, model)
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
        profile=Profile(output / "logs") if arguments.profile else None,
    )
    # The file has no name: nothing is left of it, whatever ends this process.
    with writable(output), tempfile.TemporaryFile("w+", encoding="ascii") as listing:
        files = kept["files"] if kept else list_data(arguments.data, listing, deployment, output)
        with new_folder(output), only_run(output), working_folder(output, listing if not kept else None):
            compare_with_truth = truth_of(arguments.truth, labels, job) if arguments.truth else None
            lay_out_model(model, job.model_dir, output)
            if not kept:
                for path in earlier:  # now that nothing can be wrong with the input any more
                    remove(path)
                keep_run(output, job.run_id, files, settings)
            keep_labels(labels, output)
            code = run(job, files, output, begin)
            if compare_with_truth:
                compare_with_truth(output)
            return code


def other_keras(deployment: Deployment) -> list[str]:
    """A warning where Keras has another backend at the user's home than it has in Azure, without one."""
    variables = os.environ | deployment.environment_variables
    path = Path(variables.get("HOME", ""), ".keras", "keras.json")
    try:
        backend = json.loads(path.read_text("utf-8")).get("backend", "tensorflow")
    except (OSError, ValueError, AttributeError):
        return []
    if backend == "tensorflow" or "KERAS_BACKEND" in deployment.environment_variables:
        return []
    return [
        f"{path} gives Keras the backend {backend!r}, in Azure it has tensorflow: a scoring script that uses "
        "Keras sets KERAS_BACKEND itself, or settings.environment_variables does"
    ]


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
        summary = json.loads((output / SUMMARY).read_text("utf-8"))
        write_json(output / SUMMARY, summary | figures)
        say(truth.describe(figures, source, output / truth.MISSES))

    return compare


def earlier_results(output: Path, deployment: Deployment, overwrite: bool) -> list[Path]:
    """What an earlier run left in `output`. Azure refuses an existing output file."""
    names = (Path("score", deployment.output_file_name), SUMMARY, "logs", "misses.csv", KEPT)
    earlier = [output / name for name in names if os.path.lexists(output / name)]
    if is_refusal(output):
        earlier.remove(output / SUMMARY)
    if earlier and not overwrite:
        raise UserError(
            f"{earlier[0]}: exists already",
            "choose another --output, or --overwrite it; --resume goes on with a run that did not end",
        )
    return [*earlier, *output.glob("score/*.parquet")] if earlier else []


@contextmanager
def writable(output: Path) -> Iterator[None]:
    """Raises UserError where `output`, or a temporary file, cannot be written."""
    try:
        yield
    except OSError as error:
        place = output if error.filename else f"{output} or {tempfile.gettempdir()}"
        hint = "choose another --output, or make room and --resume"
        raise UserError(f"{place}: cannot be written: {error}", hint) from None


def list_data(data: Path, listing: TextIO, deployment: Deployment, output: Path) -> int:
    """Lists the input, and says what is left out. Returns the number of files."""
    if not os.path.exists(data):
        raise UserError(f"{data}: no such folder, expected the files to score", "name it with --data")
    subfolders = not deployment.is_mlflow
    files, left_out = list_input_files(data.absolute(), listing, subfolders, output)
    results = os.path.realpath(output)
    for path in left_out[:5]:
        what = "not a file"
        if f"{os.path.realpath(path)}/".startswith(f"{results}/"):
            what = "the output, which is no input"
        elif not subfolders and os.path.isdir(path):
            what = "a folder, which the deployment of an MLflow model does not look into"
        say(f"warning: {path}: {what}, left out")
    if len(left_out) > 5:
        say(f"warning: {len(left_out) - 5} more that are not files, left out")
    if not files:
        raise UserError(f"{data}: no files to score in it", "name another folder with --data")
    return files


def run(job: Job, files: int, output: Path, begin: float) -> int:
    deployment = job.deployment
    mini_batches = -(-files // deployment.mini_batch_size)
    workers = min(deployment.workers, mini_batches)
    say(f"{deployment.name}: files: {files:,}, mini-batches: {mini_batches:,}, workers: {workers}")
    counts = Counts(files, mini_batches)
    status, cause, code = "Completed", None, COMPLETED
    with (
        open_journal(job, output, counts) as journal,
        JobLogs(job.logs) as logs,
        progress(files, counts.succeeded + counts.failed) as show,
    ):
        news = ProgressFile(output, workers, counts)
        executor = Executor(job, journal, logs, lambda counts: (show(counts), news.update(counts)))
        with stop_on_signals(executor):
            try:
                executor.run()
            except JobFailed as failure:
                status, cause, code = "Failed", str(failure), FAILED
            except KeyboardInterrupt:
                status, cause, code = "Canceled", "interrupted", INTERRUPTED
        news.end(counts)
        summary = summarise(status, cause, counts, executor, time.monotonic() - begin, workers)
        try:
            logs.result(summary)
            write_json(output / SUMMARY, summary)
        except OSError as error:
            say(f"\nerror: {output}: the summary cannot be written: {error.strerror}")
            code = code or FAILED
    if code == COMPLETED:
        remove(job.listing)
    print_summary(summary, output)
    print(results_of(output, deployment))
    if job.profile:
        say(job.profile.describe(deployment.code))
    return code


def open_journal(job: Job, output: Path, counts: Counts) -> Journal:
    """The journal of this run, or of the one that it resumes, whose `counts` it adds."""
    (output / SUMMARY).unlink(missing_ok=True)
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
