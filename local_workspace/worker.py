"""A worker: the child process that loads a scoring script, calls init() once and run() for each mini-batch.

It imports nothing of this package: a scoring script finds what it would find in Azure, its own folder
first in `sys.path` and no module of ours.

The executor says `start`, and then orders each mini-batch by a line `OFFSET COUNT`: where its paths stand in
the listing, which is a file with a path, as a JSON string, on each line. The worker answers init(), as INIT,
and each order by a line `OFFSET LENGTH` and so many bytes of JSON. Where it is meanwhile stands on the slate,
memory that both share: the offsets of the mini-batch that run() got last, and of the one it ended last.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import json
import logging
import mmap
import os
import struct
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_MESSAGES = 10_000  # of the log, kept of each run() to explain its failed files
LONGEST_ANSWER = 256 << 20  # bytes
LONGEST_TRACEBACK = 10_000  # characters
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
INIT = -1  # in place of an offset
BEGUN, ENDED, SLATE_SIZE = 0, 8, 16  # where the two offsets stand on the slate; bytes


def main() -> None:
    arguments = parser().parse_args()
    for pipe in (arguments.orders, arguments.answers):
        os.set_inheritable(pipe, False)  # what the scoring script starts must not keep them open
    reasons = load_ours("reasons")
    messages = log_to(arguments.log, arguments.logging_level, reasons.cut)
    append = arguments.output_action == "append_row"
    slate = mmap.mmap(arguments.slate, SLATE_SIZE)
    os.close(arguments.slate)
    orders, answers = os.fdopen(arguments.orders), os.fdopen(arguments.answers, "wb")
    process = os.getpid()
    if not orders.readline():
        return  # the executor is gone already

    def only_the_worker() -> None:
        if os.getpid() != process:  # the scoring script has forked, and both of them have returned
            os._exit(1)

    def note(place: int, offset: int) -> None:
        only_the_worker()
        struct.pack_into("=q", slate, place, offset)

    def send(order: int, answer: dict[str, Any]) -> None:
        only_the_worker()
        answers.write(encode(order, answer))
        answers.flush()

    def one(offset: int, paths: list[str]) -> dict[str, Any]:
        result = script[0].run(list(paths))
        note(ENDED, offset)  # what follows is not the script's time
        return describe(result, paths, append, lambda *found: reasons.failed_files(paths, *found, messages))

    script: list[ModuleType] = []
    send(INIT, attempt(lambda: script.append(load(Path(arguments.scoring_script))), reasons.cut))
    if not script:
        sys.exit(1)
    for offset, paths in mini_batches(orders, arguments.listing):
        messages.clear()
        note(BEGUN, offset)
        send(offset, attempt(lambda offset=offset, paths=paths: one(offset, paths), reasons.cut))
    if hasattr(script[0], "shutdown"):
        script[0].shutdown()


def parser() -> argparse.ArgumentParser:
    """The worker's arguments; the scoring script sees them in sys.argv, as it does Azure's own."""
    parser = argparse.ArgumentParser(prog="worker.py")
    for name in ("--scoring-script", "--listing", "--output-action", "--logging-level", "--log"):
        parser.add_argument(name, required=True)
    for name in ("--orders", "--answers", "--slate"):
        parser.add_argument(name, required=True, type=int, help="file descriptor of a pipe or of the slate")
    return parser


def log_to(path: str, level: str, cut: Callable[[str], str]) -> deque[str]:
    """Sends the script's log records to the file `path` and to stderr; returns its last warnings, cut."""
    messages: deque[str] = deque(maxlen=MAX_MESSAGES)
    keep = logging.Handler(logging.WARNING)

    def emit(record: logging.LogRecord) -> None:
        with suppress(Exception):  # "%d" without a number: the other handlers say so, and nothing raises
            messages.append(cut(record.getMessage()))

    keep.emit = emit
    handlers = [
        logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"),
        logging.StreamHandler(),
    ]
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, handlers=[*handlers, keep])
    return messages


# --- the scoring script


class Unwritten(importlib.machinery.SourceFileLoader):
    """Loads a module, and leaves no __pycache__ beside it."""

    def set_data(self, path: str, data: bytes, **options: Any) -> None:
        pass


def load(path: Path) -> ModuleType:
    """The scoring script at `path`, after its init()."""
    folders = list(dict.fromkeys([str(path.parent), os.getcwd()]))
    if os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):  # not PYTHONSAFEPATH
        del sys.path[0]
    sys.path[:0] = folders
    leave_no_cache(folders)
    # A script that is called like a module of Python, such as code.py, must not take that one's place.
    name = "scoring_script" if path.stem in {*sys.stdlib_module_names, *sys.modules} else path.stem
    script = load_module(name, path, Unwritten(name, str(path)))
    for function in ("init", "run"):
        if not callable(getattr(script, function, None)):
            raise AttributeError(f"{path.name} has no function {function}()")
    script.init()
    return script


def leave_no_cache(folders: list[str]) -> None:
    """Has the modules in `folders`, or below them, loaded by Unwritten; not those that pip has installed."""
    machinery = importlib.machinery
    make_finder = machinery.FileFinder.path_hook(
        (machinery.ExtensionFileLoader, machinery.EXTENSION_SUFFIXES),
        (Unwritten, machinery.SOURCE_SUFFIXES),
        (machinery.SourcelessFileLoader, machinery.BYTECODE_SUFFIXES),
    )

    def find_in(folder: str) -> importlib.machinery.FileFinder:
        ours = any(f"{folder}/".startswith(f"{each}/") for each in folders)
        if not ours or "site-packages" in folder:
            raise ImportError  # another finder's
        return make_finder(folder)

    sys.path_hooks.insert(0, find_in)
    for folder in folders:
        sys.path_importer_cache.pop(folder, None)


def load_ours(name: str) -> ModuleType:
    return load_module(f"local_workspace_{name}", Path(__file__).with_name(f"{name}.py"))


def load_module(name: str, path: Path, loader: Any = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- mini-batches


def mini_batches(orders: Iterator[str], listing: str) -> Iterator[tuple[int, list[str]]]:
    """The offset and paths of each mini-batch that the executor orders, until it orders no more."""
    with open(listing, encoding="ascii") as lines:
        for order in orders:
            offset, count = map(int, order.split())
            if not count:
                return
            lines.seek(offset)
            yield offset, [json.loads(lines.readline()) for _ in range(count)]


def describe(result: Any, paths: list[str], append: bool, explain: Callable) -> dict[str, Any]:
    """What run() returned: its rows as text, how many they are, and the failed files with reasons.

    A list's rows are counted as the lines that they take, and not as it says itself.
    """
    frame = is_frame(result)
    if not frame and not isinstance(result, (list, tuple)) and not is_a("numpy", "ndarray", result):
        raise TypeError(f"run() returned {type(result).__name__}, expected a list, tuple, array or DataFrame")
    len(result)  # raises for an array without a dimension, which Azure cannot count either
    rows = list(result) if isinstance(result, (list, tuple)) else result
    count = len(rows) if isinstance(rows, list) else rows.shape[0]
    text = to_text(rows) if append else ""
    return {
        "rows": text.count("\n") if append and not frame else count,
        "text": text,
        "failed": explain(values(rows), count),
    }


def is_a(module: str, name: str, value: Any) -> bool:
    """Whether `value` is an instance of module.name, without importing what the script did not."""
    return isinstance(value, getattr(sys.modules.get(module), name, ()))


def is_frame(value: Any) -> bool:
    return is_a("pandas", "DataFrame", value)


def to_text(rows: Any) -> str:
    """The lines that append_row adds: a DataFrame's rows separated by spaces, or str() of each element."""
    if is_frame(rows):
        text = rows.to_csv(sep=" ", header=False, index=False, lineterminator="\n") if rows.shape[0] else ""
        return quote_carriage_returns(rows) if "\r" in text else text
    return "".join(f"{element}\n" for element in rows)


def quote_carriage_returns(frame: Any) -> str:
    """The rows of `frame`; to_csv() quotes a carriage return only where it can end a line, and readers do."""
    rows = (frame.iloc[[number]] for number in range(frame.shape[0]))
    lines = (row.to_csv(sep=" ", header=False, index=False, lineterminator="\r\n") for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def values(rows: Any) -> Iterable[Iterable[Any]]:
    """The values of each row that may name its file; a row is one itself unless it holds several."""
    if is_a("numpy", "ndarray", rows):  # one of numbers holds no name
        rows = rows.tolist() if rows.dtype.kind in "OSU" else [()] * len(rows)
    if is_frame(rows):
        columns = (rows.iloc[:, number] for number in range(rows.shape[1]))
        texts = [column for column in columns if column.dtype.kind not in "biufcmM"]
        return zip(*texts) if texts else [()] * rows.shape[0]
    return map(flatten, rows)


def flatten(row: Any) -> Iterable[Any]:
    if isinstance(row, dict):
        return row.values()
    return row if isinstance(row, (list, tuple)) or is_a("numpy", "ndarray", row) else (row,)


def attempt(work: Callable[[], Any], cut: Callable[..., str]) -> dict[str, Any]:
    """What `work` returns, or the error it raised."""
    try:
        return work() or {"rows": 0, "text": "", "failed": []}
    except Exception as error:
        try:
            text, trace = str(error), traceback.format_exc()
        except Exception:  # of the error's own making
            text = trace = "(the error cannot be printed)"
        return {
            "error": cut(f"{type(error).__name__}: {text}"),
            "traceback": cut(trace, LONGEST_TRACEBACK),
            "fails_job": getattr(error, "fails_job", False) is True,  # as the MLflow driver asks for
        }


def encode(order: int, answer: dict[str, Any]) -> bytes:
    body = json.dumps(answer).encode()
    if len(body) > LONGEST_ANSWER:
        text = (
            f"the rows of a mini-batch take {len(body):,} bytes, at most {LONGEST_ANSWER:,}: "
            "lower settings.mini_batch_size"
        )
        return encode(order, {"error": text, "traceback": text, "fails_job": False})
    return b"%d %d\n%b" % (order, len(body), body)


if __name__ == "__main__":
    main()
