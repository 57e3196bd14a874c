"""`score --profile`: where a worker's time goes, as py-spy sees it from outside.

The workers are alike, so one is sampled: the first that has done its init(), for at most SECONDS. What it
does is told from the Python functions that its threads are in. Threads that are not Python's, such as
TensorFlow's own, are in none: what they do for run() is seen as the line of run() that waits for it.
"""

from __future__ import annotations

import ctypes
import functools
import json
import linecache
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from local_workspace.errors import UserError

RATE = 100  # samples a second
SECONDS = 30  # of samples: a few MB at most, also where a worker has many threads
FEWEST = 20  # samples of run() that tell anything
LINES, LONGEST_LINE = 6, 120  # of the scoring script, printed; characters
PATIENCE = 60  # seconds that py-spy may take to begin, and to write what it saw
PR_SET_PTRACER = 0x59616D61
WITHOUT = "score without --profile"
DENIED = (
    "a container needs --cap-add SYS_PTRACE, macOS needs sudo, and on Linux "
    f"/proc/sys/kernel/yama/ptrace_scope has to be 0 or 1; or {WITHOUT}"
)
# Where the thread is that calls run().
RUN, WAIT, ROWS = "in run()", "waiting for a mini-batch", "passing rows on"
WORKER = str(Path(__file__).with_name("worker.py"))


def check_py_spy() -> None:
    """Raises UserError where py-spy is not installed, or may not look into a process that this one starts."""
    child = [sys.executable, "-I", "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=let_itself_be_traced()
    ) as process:
        process.stdout.readline()  # now it runs
        command = [py_spy(), "dump", "--pid", str(process.pid)]
        try:
            tried = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"--profile: py-spy does not run here: {error}", WITHOUT) from None
    if tried.returncode:
        cause = cause_in(tried.stderr) or f"exit code {tried.returncode}"
        raise UserError(f"--profile: py-spy cannot look into another process here: {cause}", DENIED)


def cause_in(said: str) -> str:
    """The error that py-spy has printed, without its list of causes but for the last, and its traceback."""
    lines = [line.strip() for line in said.partition("Stack backtrace:")[0].splitlines() if line.strip()]
    last = f" ({lines[-1].partition(': ')[2]})" if len(lines) > 1 else ""
    return lines[0].removeprefix("Error: ") + last if lines else ""


def py_spy() -> str:
    folders = [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    found = shutil.which("py-spy", path=os.pathsep.join(folders))
    if not found:
        raise UserError("--profile: py-spy is not installed", "install it: python -m pip install -e .")
    return found


def let_itself_be_traced() -> Callable[[], object] | None:
    """For Popen's `preexec_fn`: this process, and what it starts, may look into the new one.

    On Linux with Yama (Ubuntu, for one) only an ancestor may, as long as the process itself does not say
    otherwise, and py-spy is none. What a process has said still holds after its exec.
    """
    if sys.platform != "linux":
        return None
    prctl, tracer = ctypes.CDLL(None).prctl, ctypes.c_ulong(os.getpid())
    return lambda: prctl(PR_SET_PTRACER, tracer, 0, 0, 0)


class Profile:
    """The samples of one worker: `begin` once one is ready, `describe` when all have ended."""

    def __init__(self, logs: Path) -> None:
        """Raises UserError where py-spy cannot do it."""
        check_py_spy()
        self.samples = logs / "profile.speedscope.json"
        self.log = logs / "py-spy.txt"
        self.process: subprocess.Popen | None = None

    def begin(self, worker: int) -> None:
        """Samples the process `worker`, unless another is, or was; returns once py-spy does."""
        if self.process:
            return
        self.samples.unlink(missing_ok=True)  # of the run that is resumed
        command = [py_spy(), "record", "--pid", str(worker), "--output", str(self.samples)]
        options = ["--format", "speedscope", "--rate", str(RATE), "--duration", str(SECONDS)]
        options += ["--idle", "--full-filenames"]  # what run() waits for counts
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is the executor's: py-spy ends when the worker does
            )
        until = time.monotonic() + PATIENCE
        while not self.log.stat().st_size and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)  # it says something as soon as it samples, or cannot

    def describe(self, code: Path) -> str:
        """What the samples show: the shares of run() and the rest, and the lines that run() is in."""
        if not self.process:
            return "no profile: no worker came to the end of its init()"
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        try:
            stacks = list(read_stacks(self.samples))
        except (OSError, ValueError, LookupError):
            return f"no profile: py-spy wrote none; what it said: {self.log}"
        return describe(stacks, Path(os.path.realpath(code)), self.samples)


Call = tuple[str, str, int]  # file, function, line


def read_stacks(path: Path) -> Iterator[list[Call]]:
    """The sampled stacks of all threads, the outermost call first. The file is for speedscope.app."""
    profile = json.loads(path.read_bytes())
    calls = [
        (frame["file"], frame["name"].rpartition(".")[2], frame["line"])
        for frame in profile["shared"]["frames"]
    ]
    for thread in profile["profiles"]:
        for sample in thread["samples"]:
            yield [calls[index] for index in sample]


def describe(stacks: Iterable[list[Call]], code: Path, samples: Path) -> str:
    does: Counter[str] = Counter()  # samples of the thread that calls run(), by where it is
    own: Counter[str] = Counter()  # the same in run(), by line of the scoring script
    others: Counter[str] = Counter()  # of other threads, by line
    line_of = functools.cache(lambda call: line_in(code, call))
    for stack in stacks:
        part = part_of(stack)
        line = next(filter(None, map(line_of, reversed(stack))), "")
        if part:
            does[part] += 1
        if part == RUN:
            own[line] += 1
        elif not part and line:
            others[line] += 1
    if does[RUN] < FEWEST:
        return (
            f"no profile: run() was too short to tell, seen in {does[RUN]} samples of {RATE} a second, "
            f"where at least {FEWEST} are needed: score more files"
        )
    whole = does.total()
    lines = [
        f"\nwhere a worker's time went ({whole / RATE:.1f} s, sampled {RATE} times a second): "
        + ", ".join(f"{share(does[part], whole)} {part}" for part in (RUN, WAIT, ROWS)),
        "the lines that run() itself is in:",
        *table(own, whole, code),
    ]
    if others:
        lines += ["the lines that its other threads are in meanwhile:", *table(others, whole, code)]
    return "\n".join([*lines, f"the whole profile, to open at https://www.speedscope.app: {samples}"])


def part_of(stack: list[Call]) -> str:
    """What the thread that calls run() does; nothing for another thread, and in shutdown()."""
    function = next((name for file, name, _ in reversed(stack) if file == WORKER), "")
    if function in ("", "main", "<module>"):
        return ""
    return {"one": RUN, "mini_batches": WAIT}.get(function, ROWS)


def line_in(code: Path, call: Call) -> str:
    """The call's place in `code`, the scoring script's folder, as `driver.py:12`; nothing outside of it."""
    path = Path(os.path.realpath(call[0]))
    if not path.is_relative_to(code):
        return ""
    inside = path.relative_to(code)
    return "" if "site-packages" in inside.parts else f"{inside}:{call[2]}"


def table(samples: Counter[str], whole: int, code: Path) -> Iterator[str]:
    for place, seen in samples.most_common(LINES):
        file, _, number = place.rpartition(":")
        text = linecache.getline(str(code / file), int(number)).strip()[:LONGEST_LINE]
        yield f"{share(seen, whole):>6}  {place}  {text}"


def share(samples: int, whole: int) -> str:
    return f"{100 * samples / whole:.0f} %"
