"""A worker: the child process that loads a scoring script, calls init() once and run() for each mini-batch.

It imports nothing of this package: a scoring script finds what it would find in Azure, its own folder
first in `sys.path` and no module of ours.

The executor says `start`, and then orders each mini-batch by a line `OFFSET COUNT`: where its paths stand in
the listing, which is a file with a path, as a JSON string, on each line. The worker answers each with a line
of JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_MESSAGES = 1000  # of the log, kept of each run() to explain its failed files
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main() -> None:
    arguments = parser().parse_args()
    for pipe in (arguments.orders, arguments.answers):
        os.set_inheritable(pipe, False)  # what the scoring script starts must not keep them open
    messages = log_to(arguments.log, arguments.logging_level)
    append = arguments.output_action == "append_row"

    orders, answers = os.fdopen(arguments.orders), os.fdopen(arguments.answers, "w")
    process = os.getpid()
    if not orders.readline():
        return  # the executor is gone already

    def send(order: int | None, answer: dict[str, Any]) -> None:
        if os.getpid() != process:  # the scoring script has forked, and both of them have returned
            os._exit(1)
        answers.write(json.dumps({"order": order, **answer}) + "\n")
        answers.flush()

    script: list[ModuleType] = []
    send(None, attempt(lambda: script.append(load(Path(arguments.scoring_script)))))
    if not script:
        sys.exit(1)
    ordered = mini_batches(orders, arguments.listing)
    if arguments.profile:
        path = Path(__file__).with_name("profiler.py")
        profiler = load_module("local_workspace_profiler", path).Profiler(Path.cwd())
        ordered, script[0].run = profiler.waits(ordered), profiler.watch(script[0].run)
    for offset, paths in ordered:
        messages.clear()
        send(offset, attempt(lambda paths=paths: score(script[0], paths, append, messages)))
    if arguments.profile:
        profiler.write(Path(arguments.profile))
    if hasattr(script[0], "shutdown"):
        script[0].shutdown()


def parser() -> argparse.ArgumentParser:
    """The worker's arguments; the scoring script sees them in sys.argv, as it does Azure's own."""
    parser = argparse.ArgumentParser(prog="worker.py")
    for name in ("--scoring-script", "--listing", "--output-action", "--logging-level", "--log"):
        parser.add_argument(name, required=True)
    parser.add_argument("--profile", help="where to write the profile, if one is wanted")
    for name in ("--orders", "--answers"):
        parser.add_argument(name, required=True, type=int, help="file descriptor of a pipe")
    return parser


def log_to(path: str, level: str) -> deque[str]:
    """Sends the script's log records to the file `path` and to stderr; returns the warnings of late."""
    messages: deque[str] = deque(maxlen=MAX_MESSAGES)
    keep = logging.Handler(logging.WARNING)

    def emit(record: logging.LogRecord) -> None:
        with suppress(Exception):  # "%d" without a number: the other handlers say so, and nothing raises
            messages.append(record.getMessage())

    keep.emit = emit
    handlers = [
        logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"),
        logging.StreamHandler(),
    ]
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, handlers=[*handlers, keep])
    return messages


def load(path: Path) -> ModuleType:
    """The scoring script at `path`, after its init()."""
    sys.path[:1] = list(dict.fromkeys([str(path.parent), os.getcwd()]))
    script = load_module(path.stem, path)
    for name in ("init", "run"):
        if not callable(getattr(script, name, None)):
            raise AttributeError(f"{path.name} has no function {name}()")
    script.init()
    return script


def load_module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def mini_batches(orders: Iterator[str], listing: str) -> Iterator[tuple[int, list[str]]]:
    """The offset and paths of each mini-batch that the executor orders, until it orders no more."""
    with open(listing, encoding="ascii") as lines:
        for order in orders:
            offset, count = map(int, order.split())
            if not count:
                return
            lines.seek(offset)
            yield offset, [json.loads(lines.readline()) for _ in range(count)]


def score(script: ModuleType, paths: list[str], append: bool, messages: deque[str]) -> dict[str, Any]:
    """Runs one mini-batch. Returns its rows as text, how many they are, and the failed files with reasons.

    As many files failed as rows are missing (Microsoft's batch-inferencing-scoring-script).
    """
    result = script.run(list(paths))
    if (
        not isinstance(result, (list, tuple))
        and not is_a("numpy", "ndarray", result)
        and not is_frame(result)
    ):
        raise TypeError(f"run() returned {type(result).__name__}, expected a list, tuple, array or DataFrame")
    missing = max(0, len(paths) - len(result))
    failed = explain(missing, paths, result, messages) if missing else []
    return {"rows": len(result), "text": to_text(result) if append else "", "failed": failed}


def is_a(module: str, name: str, value: Any) -> bool:
    """Whether `value` is an instance of module.name, without importing what the script did not."""
    return module in sys.modules and isinstance(value, getattr(sys.modules[module], name))


def is_frame(value: Any) -> bool:
    return is_a("pandas", "DataFrame", value)


def to_text(result: Any) -> str:
    """The lines that append_row adds: a DataFrame's rows separated by spaces, or str() of each element."""
    if is_frame(result):
        text = result.to_csv(sep=" ", header=False, index=False, lineterminator="\n") if len(result) else ""
        return quote_carriage_returns(result) if "\r" in text else text
    return "".join(f"{element}\n" for element in result)


def quote_carriage_returns(frame: Any) -> str:
    """The rows of `frame`; to_csv() quotes a carriage return only where it can end a line, and readers do."""
    rows = (frame.iloc[[number]] for number in range(len(frame)))
    lines = (row.to_csv(sep=" ", header=False, index=False, lineterminator="\r\n") for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def explain(missing: int, paths: list[str], result: Any, messages: deque[str]) -> list[tuple[str, str]]:
    """The `missing` failed files, each with the first message of the log that names it.

    Azure only counts them. Which they are can be told when the rows name their files.
    """
    names = {name for path in paths for name in (path, os.path.basename(path))}
    words = max(len(name.split()) for name in names)
    rows = result.values if is_frame(result) else result
    named = {find_name(str(value), names, words) for row in rows for value in flatten(row)}
    left_out = [p for p in paths if p not in named and os.path.basename(p) not in named]
    if len(left_out) != missing:
        among = f"one of {os.path.basename(paths[0])} ... {os.path.basename(paths[-1])}"
        return [(among, "no row, and the rows do not name their files")] * missing
    reasons = reasons_in(messages, paths)
    return [(p, reasons.get(p, "no row, and nothing in the log names it")) for p in left_out]


def find_name(text: str, names: set[str], most_words: int) -> str:
    """The one of `names` that is `text` or the longest that stands in it between blanks; "" if there is none.

    The longest: the row "a b.jpg 3" is about "a b.jpg", and not about "b.jpg".
    """
    if text in names:
        return text
    words = [match.span() for match in re.finditer(r"\S+", text)]
    parts = (
        text[begin : words[last][1]]
        for first, (begin, _) in enumerate(words)
        for last in range(first, min(first + most_words, len(words)))
    )
    return max((part for part in parts if part in names), key=len, default="")


def reasons_in(messages: deque[str], paths: list[str]) -> dict[str, str]:
    """For each of `paths` the first message that is about it.

    It is about the file with the longest name in it: "11.jpg: cannot be read" is not about 1.jpg.
    """
    reasons: dict[str, str] = {}
    for message in messages:
        names = [(p, p if p in message else os.path.basename(p)) for p in paths]
        lengths = {p: len(name) for p, name in names if name in message}
        for p, length in lengths.items():
            if length == max(lengths.values()):
                reasons.setdefault(p, message)
    return reasons


def flatten(row: Any) -> list[Any]:
    """The values of a row, which is one itself unless it is a sequence or a mapping."""
    if isinstance(row, dict):
        return list(row.values())
    return list(row) if isinstance(row, (list, tuple)) or is_a("numpy", "ndarray", row) else [row]


def attempt(work: Callable[[], Any]) -> dict[str, Any]:
    """What `work` returns, or the error it raised."""
    try:
        return work() or {}
    except Exception as error:
        return {
            "error": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc(),
            "fails_job": getattr(error, "fails_job", False),  # as the MLflow driver asks for
        }


if __name__ == "__main__":
    main()
