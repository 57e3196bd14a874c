"""`sweep DEPLOYMENT.yml --data DIR`: measures a deployment under many settings, and names the best that fits.

Each setting is a `score` of its own, a child process: one that dies is a row with its cause. The settings
take turns in rounds, so that what else the machine does meanwhile meets all of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from local_workspace.console import say
from local_workspace.deployment import Deployment, read_deployment
from local_workspace.errors import UserError
from local_workspace.labels import find_labels
from local_workspace.listing import list_input_files
from local_workspace.model import model_of
from local_workspace.predictions import find_predictions, read_rows
from local_workspace.resume import SUMMARY
from local_workspace.score import TRUTH_HELP
from local_workspace.setting import Setting, changes
from local_workspace.sweep_report import as_yaml, draw, print_table, write_csv
from local_workspace.truth import read_truth

# What is tried when no --try says it: of the environment variables, those that the scoring script mentions.
VARIABLES = {"MIXED_PRECISION": ["0", "1"], "DEVICE_BATCH_SIZE": ["4", "8", "16", "32"]}
WORKERS = ("resources.instance_count", ["1", "2"])
ENOUGH = 4  # mini-batches for each worker: with fewer, some wait at the end while others work


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("deployment", type=Path, metavar="DEPLOYMENT.yml")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder to score")
    parser.add_argument("--model", type=Path, metavar="DIR", help="as of `score`")
    parser.add_argument(
        "--try",
        action="append",
        default=[],
        dest="tries",
        metavar="KEY=VALUE,...",
        help="as settings.mini_batch_size=10,50: each combination with the other --try is measured, and "
        "compared with that of the first values. Default: instance_count, and of DEVICE_BATCH_SIZE and "
        "MIXED_PRECISION what the scoring script mentions",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all of them")
    parser.add_argument("--truth", metavar="FILE.csv", help=TRUTH_HELP)
    parser.add_argument(
        "--images", type=positive, default=256, metavar="N", help="files, spread over the data"
    )
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="of which the median counts")
    parser.add_argument(
        "--memory", type=positive, metavar="MB", help="for all workers together; default: what is available"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: outputs/ and the deployment's name-sweep"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier sweep")


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1")
    return int(text)


def sweep(arguments: argparse.Namespace) -> int:
    """Measures every setting; prints the table and the best to stdout, progress to stderr.

    Writes sweep.csv and sweep.png, and the last output of each setting in runs/. Returns the exit code: 1
    where no setting fits or none could be measured. Raises UserError for bad input.
    """
    deployment, _ = read_deployment(arguments.deployment, arguments.set)
    output = arguments.output or Path("outputs", f"{deployment.name}-sweep")
    if (output / "sweep.csv").exists() and not arguments.overwrite:
        raise UserError(
            f"{output / 'sweep.csv'}: exists already", "choose another --output, or --overwrite it"
        )
    model = model_of(deployment, arguments.model, arguments.deployment)
    memory = arguments.memory or available_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with some_files(arguments, deployment, model, output) as (data, files):
        settings = read_settings(arguments, deployment, files)
        shutil.rmtree(output / "runs", ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)
        code = measure(settings, arguments, model, data, output)
    write_csv(settings, output / "sweep.csv")
    measured = [setting for setting in settings if setting.speeds]
    best = max((s for s in measured if s.memory <= memory), key=lambda s: s.speed, default=None)
    print_table(settings, best)
    draw(settings, best, memory, f"{deployment.name}: {files} files").save(output / "sweep.png")
    print_best(best, measured, memory)
    print(f"table: {output / 'sweep.csv'}\nplot: {output / 'sweep.png'}")
    return code or (0 if best else 1)


def print_best(best: Setting | None, measured: list[Setting], memory: int) -> None:
    if best:
        told = " ".join(f"--set {change}" for change in changes(best.values))
        print(f"\nthe fastest that fits into {memory:,} MB:\n\n{as_yaml(best.values)}\nor: {told}")
        rivals = [s for s in measured if s is not best and s.memory <= memory]
        close = sum(max(setting.speeds) >= min(best.speeds) for setting in rivals)
        if close:
            say(
                f"warning: {close} other settings had a round as fast as its slowest: more --images or "
                "--rounds, on a machine with nothing else to do, tell them apart"
            )
    elif measured:
        least = min(setting.memory for setting in measured)
        say(f"\nerror: no setting fits into {memory:,} MB: the smallest needs {least:,} MB")
    else:
        say("\nerror: nothing was measured")


# --- what is measured


def read_settings(arguments: argparse.Namespace, deployment: Deployment, files: int) -> list[Setting]:
    """Every combination of what is tried; each must be a deployment that can be read."""
    tries = read_tries(arguments.tries) or default_tries(deployment)
    settings = []
    for values in itertools.product(*tries.values()):
        tried = dict(zip(tries, values))
        changed, _ = read_deployment(arguments.deployment, [*arguments.set, *changes(tried)])
        settings.append(Setting(tried, changed, files))
    enough = max(ENOUGH * s.deployment.mini_batch_size * s.deployment.workers for s in settings)
    if files < enough:
        say(
            f"warning: {files} files are not {ENOUGH} mini-batches for each worker: some wait for others, "
            f"and speeds come out too low; give --images {enough}, or --set settings.mini_batch_size=..."
        )
    return settings


def read_tries(texts: list[str]) -> dict[str, list[str]]:
    tries: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found = [value.strip() for value in values.split(",")]
        if not equals or not key or not all(found) or len(set(found)) < len(found):
            raise UserError(
                f"--try {text}: expected KEY=VALUE,... with different values",
                "such as --try settings.environment_variables.DEVICE_BATCH_SIZE=8,16,32",
            )
        if key in tries:
            raise UserError(f"--try {text}: {key} is tried already", "give all its values in one --try")
        tries[key] = found
    return tries


def default_tries(deployment: Deployment) -> dict[str, list[str]]:
    beside = (deployment.code / deployment.scoring_script).parent.glob("*.py")  # the script and its modules
    text = "".join(path.read_text("utf-8", "replace") for path in beside)
    mentioned = {name: values for name, values in VARIABLES.items() if re.search(f"['\"]{name}['\"]", text)}
    tries = {f"settings.environment_variables.{name}": values for name, values in mentioned.items()}
    return tries | dict([WORKERS])


@contextmanager
def some_files(
    arguments: argparse.Namespace, deployment: Deployment, model: Path, output: Path
) -> Iterator[tuple[Path, int]]:
    """A folder of links to --images files, spread over the sorted data, and how many they are."""
    if not os.path.exists(arguments.data):
        raise UserError(
            f"{arguments.data}: no such folder, expected the files to score", "name it with --data"
        )
    with tempfile.TemporaryDirectory(prefix="local_workspace_") as folder:
        listing, links, data = Path(folder, "listing"), Path(folder, "data"), arguments.data.absolute()
        with listing.open("w", encoding="ascii") as lines:
            total, _ = list_input_files(data, lines, not deployment.is_mlflow, output)
        if not total:
            raise UserError(f"{arguments.data}: no files to score in it", "name another folder with --data")
        if arguments.truth:
            read_truth(arguments.truth, find_labels(model), listing)  # is it readable?
        files = min(total, arguments.images)
        if files < arguments.images:
            say(f"warning: {arguments.data} has {files} files, fewer than {arguments.images} to measure with")
        wanted = {number * total // files for number in range(files)}
        with listing.open(encoding="ascii") as lines:
            for number, line in enumerate(lines):
                if number in wanted:
                    path = Path(json.loads(line))
                    link = links / (path.relative_to(data) if data.is_dir() else path.name)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        link.symlink_to(path)
                    except OSError as error:  # a path that is too long for a link
                        raise UserError(f"{path}: cannot be linked: {error.strerror}") from None
        yield links, files


def available_memory() -> int:
    """MB that the machine has left for the workers; all of it where the system does not say what is left."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (available,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
        return int(available) >> 10
    except (OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20


# --- measuring


def measure(
    settings: list[Setting], arguments: argparse.Namespace, model: Path, data: Path, output: Path
) -> int:
    """Fills in what is measured, in turns; returns 130 when interrupted, with what there is so far."""
    say(f"{len(settings)} settings, {arguments.rounds} rounds: {len(settings) * arguments.rounds} runs")
    reference: pd.Series | None = None  # the classes of the first setting that ran
    try:
        for turn in range(arguments.rounds):
            for number, setting in enumerate(settings):
                if setting.cause:
                    continue
                run = output / "runs" / f"{number:02d}"
                score_once(setting, arguments, model, data, run)
                if setting.speeds and turn == 0:
                    classes = read_classes(run, setting)
                    reference = classes if reference is None else reference
                    setting.agreement = share_alike(classes, reference)
                figures = setting.cause or f"{setting.speeds[-1]} images a second"
                say(f"round {turn + 1}, setting {number + 1}: {setting.name}: {figures}")
    except KeyboardInterrupt:
        say("interrupted: what there is so far")
        return 130
    return 0


def score_once(
    setting: Setting, arguments: argparse.Namespace, model: Path, data: Path, output: Path
) -> None:
    """One run of `score`, whose summary.json has the figures, or the cause."""
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    command = [sys.executable, "-m", "local_workspace", "score", str(arguments.deployment)]
    command += ["--data", str(data), "--model", str(model), "--output", str(output)]
    command += [part for change in [*arguments.set, *changes(setting.values)] for part in ("--set", change)]
    command += ["--truth", arguments.truth] if arguments.truth else []
    # A session of its own: a Ctrl-C is for this process, which hands it on once.
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        try:
            child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)
            child.wait()
            raise
    summary = read_summary(output)
    if child.returncode:
        setting.cause = summary.get("cause") or f"score ended with exit code {child.returncode}"
        setting.speeds.clear()
        return
    setting.speeds.append(summary["images_a_second"])
    setting.memories.append(summary["peak_memory_of_a_worker_mb"] * setting.workers)
    setting.top_1 = summary.get("top_1")


def read_summary(output: Path) -> dict[str, Any]:
    try:
        return json.loads((output / SUMMARY).read_text("utf-8"))
    except (OSError, ValueError):  # the process was killed
        return {}


def read_classes(run: Path, setting: Setting) -> pd.Series | None:
    """The predicted class of each file; None where the rows do not tell it."""
    try:
        rows = read_rows(find_predictions(run / "score", setting.deployment.output_file_name))
    except UserError:
        return None
    return pd.Series({row.file: row.classes[0] for row in reversed(rows)}, dtype=int)  # the first of a name


def share_alike(classes: pd.Series | None, reference: pd.Series | None) -> float | None:
    """The share of the files of `reference` that have the same class in `classes`."""
    if classes is None or reference is None or reference.empty:
        return None
    return float((classes.reindex(reference.index) == reference).mean())
