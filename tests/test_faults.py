"""Whatever happens, each file ends as a row or as a failure with a reason, and the job ends.

Each fault is real, and strikes at the first, a middle and the last of 300 mini-batches. The command line is a
process of its own, which has to end.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from test_executor import Run, is_alive, read_notes, score, wait_until, write_deployment
from test_score import ROOT, command, run_command, scoring

from local_workspace import executor, instance, listing

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce RLIMIT_AS")
NAMES = [f"{number:03}.jpg" for number in range(600)]
BATCH = 2
STRUCK = (0, 151, 299)  # mini-batches
SCRIPT = f"""
import ctypes, locale, resource, shutil

STRUCK = {STRUCK}
ANSWERS = int(sys.argv[sys.argv.index("--answers") + 1])
FORGED = b'{{"order": -1, "rows": 1, "text": "of another mini-batch", "failed": []}}\\n'
FOLDER = os.getcwd()

def note_process(process):
    with open(os.path.join(FOLDER, "notes"), "a") as notes:
        notes.write(f"process {{process}}\\n")

def init():
    note_process(os.getpid())
    starting()

def run(mini_batch):
    for path in mini_batch:
        open(path).close()
    if int(name(mini_batch)[:3]) // {BATCH} in STRUCK:
        struck(mini_batch)
    return [os.path.basename(path) for path in mini_batch]

def starting():
    pass

"""
GONE = "the worker ended during run(): "


def run_struck(folder: Path, fault: str, *, seconds: int = 20, **settings: object) -> Run:
    """Scores NAMES where `fault` strikes, and finds every file once and no process left."""
    definitions = fault if fault.startswith("def ") else f"def struck(mini_batch):\n    {fault}"
    settings = {"mini_batch_size": BATCH, "instance_count": 2, **settings}
    settings.setdefault("retry_settings", {"max_retries": 1, "timeout": seconds})
    write_deployment(folder, SCRIPT + definitions, NAMES, **settings)
    run = run_command(folder)
    assert "Traceback" not in run.stderr
    assert sorted([*run.rows, *run.failed]) == NAMES
    assert run.rows == sorted(run.rows)
    summary = run.summary
    assert (summary["succeeded"], summary["failed"]) == (len(run.rows), len(run.failed))
    assert (summary["files"], summary["not_scored"]) == (len(NAMES), 0)
    wait_until(lambda: not any(is_alive(int(line.split()[1])) for line in read_notes(folder)))
    return run


def in_struck(names: dict[str, str]) -> bool:
    return list(names) == [NAMES[BATCH * number + place] for number in STRUCK for place in range(BATCH)]


# --- workers


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", GONE + "killed by SIGKILL"),
        ("ctypes.string_at(0)", GONE + "killed by SIGSEGV"),
        ("sys.exit()", GONE + "exit code 0"),
        ("os.closerange(0, 256)", GONE),
        ("os.write(ANSWERS, FORGED); time.sleep(60)", GONE + "killed by SIGKILL"),
        ("os.chdir('/'); os.rmdir('/'); ", "run() raised OSError: "),
        ("print('\\ud800')", "run() raised UnicodeEncodeError: "),
        pytest.param(
            "resource.setrlimit(resource.RLIMIT_AS, (1 << 29, -1)); [bytes(1 << 20) for _ in range(1 << 12)]",
            "run() raised MemoryError",
            marks=LINUX,
        ),
    ],
)
def test_a_fault_costs_the_files_of_its_mini_batch_and_no_others(
    tmp_path: Path, fault: str, reason: str
) -> None:
    run = run_struck(tmp_path, fault)
    assert in_struck(run.failed)
    assert all(found.startswith(reason) for found in run.failed.values()), run.failed
    assert run.code == 0


@pytest.mark.parametrize(
    "fault",
    [
        "ctypes.PyDLL(None).sleep(60)",  # which keeps the interpreter's lock
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "os.fork() and os._exit(0); time.sleep(60)",  # the child holds the pipe to the executor open
    ],
)
def test_a_worker_that_hangs_is_ended_whatever_it_holds(tmp_path: Path, fault: str) -> None:
    run = run_struck(tmp_path, fault, seconds=3, instance_count=3)
    assert in_struck(run.failed)
    assert set(run.failed.values()) == {"run() took longer than the timeout of 3 s"}


@pytest.mark.parametrize(
    "fault",
    [
        "os.write(1, bytes(range(256)) * 99); sys.stderr.buffer.write(b'\\xff\\0' * 99)",
        "os.chdir('/')",
        "os.closerange(0, 3)",
        "[os.remove(path) for path in mini_batch]",
        "shutil.rmtree(os.environ['AZUREML_MODEL_DIR'], ignore_errors=True)",
        "os.fork()",  # and both go on
        "process = os.fork(); note_process(process or os.getpid()); process or time.sleep(60)",
        "note_process(subprocess.Popen(['sleep', '60']).pid)",
        "os.umask(0o777); sys.path.clear(); sys.modules.clear(); os.environ.clear(); sys.argv.clear()",
        "locale.setlocale(locale.LC_ALL, 'C'); signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    ],
)
def test_what_does_no_harm_costs_nothing(tmp_path: Path, fault: str) -> None:
    assert run_struck(tmp_path, fault).failed == {}


def test_a_locale_that_does_not_exist_costs_nothing(tmp_path: Path) -> None:
    variables = {"LC_ALL": "xx_YY.EBCDIC", "LANG": "", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-16"}
    run = run_struck(tmp_path, "print('\\u00fc'); logging.error('\\u00fc')", environment_variables=variables)
    assert run.failed == {}


def test_input_that_a_script_deletes_has_failed(tmp_path: Path) -> None:
    run = run_struck(tmp_path, f"shutil.rmtree({str(tmp_path / 'data')!r})")
    assert len(run.failed) > len(NAMES) / 2
    assert all("FileNotFoundError" in reason for reason in run.failed.values())


@pytest.mark.parametrize(
    "starting", ["os._exit(5)", "sys.exit(5)", "raise OSError", "os.kill(os.getpid(), signal.SIGSEGV)"]
)
def test_an_exit_in_every_second_init_costs_time_alone(tmp_path: Path, starting: str) -> None:
    fault = f"""def struck(mini_batch):
    os._exit(1)

def starting():
    if len(notes()) % 2 == 0:
        {starting}
"""
    assert in_struck(run_struck(tmp_path, fault, instance_count=1).failed)


@pytest.mark.parametrize(
    "ending", ["sys.exit(1)", "os._exit(1)", "os.kill(0, signal.SIGKILL)", "os.closerange(0, 99)"]
)
def test_an_exit_in_shutdown_costs_nothing(tmp_path: Path, ending: str) -> None:
    fault = f"def struck(mini_batch):\n    pass\n\ndef shutdown():\n    {ending}"
    assert run_struck(tmp_path, fault).failed == {}


def test_endless_output_ends_with_the_timeout_and_the_logs_stay_small(tmp_path: Path) -> None:
    script = """
def run(mini_batch):
    line = "x" * (1 << 16)
    print("the first line")
    while name(mini_batch) == "2.jpg":
        print(line)
        print(line, file=sys.stderr)
        logging.error(line)
    return mini_batch
"""
    run = score(tmp_path, script, 5, retry_settings={"max_retries": 1, "timeout": 5})
    assert run.failed == {"2.jpg": "run() took longer than the timeout of 5 s"}
    assert len(run.rows) == 4
    logs = list((tmp_path / "output" / "logs" / "user").rglob("*.txt"))
    assert len(logs) == 6, "three of each process"
    assert max(path.stat().st_size for path in logs) <= instance.LONGEST_LOG + len(instance.SHORTENED)
    stdout = next(path for path in logs if path.name == "process000.stdout.txt")
    with stdout.open() as lines:
        assert lines.readline() == "the first line\n", "what comes first is kept"


def test_the_death_of_a_worker_that_waits_is_no_failure_of_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "WINDOW", 1)
    script = """
import threading

working = False

def init():
    note("init")
    threading.Timer(0.1, lambda: working or os._exit(1)).start()

def run(mini_batch):
    global working
    working = True
    if name(mini_batch) == "00" and "again" not in notes():
        wait_until(lambda: notes().count("init") > 7)
        note("again")
        os._exit(1)
    working = False
    return mini_batch
"""
    names = [f"{number:02}" for number in range(20)]
    run = score(tmp_path, script, names, max_concurrency_per_instance=2, retry_settings={"max_retries": 9})
    assert run.code == 0
    assert len(run.rows) == 20


# --- the executor


@pytest.mark.parametrize("hang", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)"])
@pytest.mark.parametrize("where", ["init", "run"])
def test_nothing_is_left_over_of_a_killed_executor_whatever_its_workers_do(
    tmp_path: Path, hang: str, where: str
) -> None:
    script = f"""
import ctypes

def init():
    hang("init")

def run(mini_batch):
    hang("run")

def hang(where):
    if where == "{where}":
        note(f"child {{subprocess.Popen(['sleep', '60']).pid}}")
        note(f"worker {{os.getpid()}}")
        {hang}
"""
    with scoring(tmp_path, script, 5, instance_count=2) as job:
        wait_until(lambda: len(read_notes(tmp_path)) == 4)
        processes = [int(line.split()[1]) for line in read_notes(tmp_path)]
        assert all(map(is_alive, processes))
        job.kill()
        wait_until(lambda: not any(map(is_alive, processes)))


# --- input and output


def run_after(preparation: str, folder: Path, *arguments: str) -> Run:
    """The command line in a process that has changed its own limits first."""
    begin, go_on = "import ctypes, os, resource, sys", "os.execv(sys.argv[1], sys.argv[1:])"
    start = f"{begin}\n{preparation}\n{go_on}"
    command_line = [sys.executable, "-c", start, *command(folder), *arguments]
    job = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return Run(job.returncode, folder, job.stdout, job.stderr)


# Root loses its right to pass over the permissions of files: PR_CAPBSET_DROP of CAP_DAC_OVERRIDE and
# CAP_DAC_READ_SEARCH. Anyone else has none, and changes nothing.
UNPRIVILEGED = """
if sys.platform == "linux":
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
"""


# Leaves out what it cannot read, as the scripts of this repository do.
READS = """
def run(mini_batch):
    rows = []
    for path in mini_batch:
        try:
            open(path).close()
        except OSError as error:
            logging.warning("%s: left out: %s", path, error)
        else:
            rows.append(os.path.basename(path))
    return rows
"""


def test_a_file_that_may_not_be_read_has_failed_and_a_folder_is_an_error(tmp_path: Path) -> None:
    write_deployment(tmp_path, READS, NAMES, mini_batch_size=BATCH)
    for name in NAMES[::7]:
        (tmp_path / "data" / name).chmod(0)
    run = run_after(UNPRIVILEGED, tmp_path)
    assert list(run.failed) == NAMES[::7]
    assert all("Permission denied" in reason for reason in run.failed.values())
    assert run.rows == [name for name in NAMES if name not in run.failed]
    (tmp_path / "data" / "closed").mkdir(mode=0)
    closed = run_after(UNPRIVILEGED, tmp_path, "--overwrite")
    assert (closed.code, closed.summary) == (2, run.summary), "the earlier results stay"
    assert "data/closed: cannot be read: Permission denied\n" in closed.stderr


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [("", ["--output", "{}/new"]), ("output", []), ("output/score", []), ("output/failed.csv", ["--resume"])],
)
def test_an_output_that_cannot_be_written_is_an_error(
    tmp_path: Path, closed: str, arguments: list[str]
) -> None:
    write_deployment(tmp_path, "def run(mini_batch): return mini_batch", 3)
    (tmp_path / "output" / "score").mkdir(parents=True)
    if "--resume" in arguments:
        score(tmp_path, "def run(mini_batch): return mini_batch[1:]", 3, error_threshold=0)
    (tmp_path / closed).chmod(0o555)
    run = run_after(UNPRIVILEGED, tmp_path, *(argument.format(tmp_path) for argument in arguments))
    (tmp_path / closed).chmod(0o755)
    assert run.code == 2
    assert "\nerror: " in run.stderr
    assert ": cannot be written: [Errno 13] Permission denied: " in run.stderr
    assert run.stderr.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in run.stderr


def test_a_folder_that_changes_while_it_is_scored_gives_the_files_it_had(tmp_path: Path) -> None:
    changes = """
    if mini_batch[0].endswith("/000.jpg"):
        for number in range(300, 600):
            path = f"{os.path.dirname(mini_batch[0])}/{number}.jpg"
            os.rename(path, path.replace("/data/", "/data/new "))
            if number % 3 == 0:
                os.mkdir(path)
            if number % 3 == 1:
                os.symlink(path, path)
"""
    script = READS.replace("    rows = []\n", changes + "    rows = []\n")
    write_deployment(tmp_path, script, NAMES, mini_batch_size=BATCH)
    run = run_command(tmp_path)
    assert run.rows == NAMES[:300]
    assert list(run.failed) == NAMES[300:]
    found = [run.failed[name].rpartition("[Errno ")[2].partition(":")[0] for name in NAMES[300:303]]
    assert found == [
        "21] Is a directory",
        f"{errno.ELOOP}] {os.strerror(errno.ELOOP)}",
        "2] No such file or directory",
    ]


def test_a_folder_that_changes_while_it_is_listed_gives_each_file_that_stays_once(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(2000):
        (data / str(number % 20)).mkdir(parents=True, exist_ok=True)
        (data / str(number % 20) / f"{number}.jpg").touch()
    staying = {str(path) for path in data.rglob("*.jpg")}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for number in range(50):
                (data / f"passing {number}" / "within").mkdir(parents=True)
                (data / f"passing {number}" / "within" / "passing").touch()
            for number in range(50):
                shutil.rmtree(data / f"passing {number}")

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(20):
            with (tmp_path / "listing").open("w+", encoding="ascii") as lines:
                count, _ = listing.list_input_files(data, lines)
                lines.seek(0)
                found = [json.loads(line) for line in lines]
            assert len(found) == len(set(found)) == count
            assert {path for path in found if path.endswith(".jpg")} == staying
    finally:
        stop.set()
        changing.join()


def test_pipes_devices_and_loops_are_never_opened(tmp_path: Path) -> None:
    write_deployment(tmp_path, READS, 2)
    data = tmp_path / "data"
    os.mkfifo(data / "pipe")
    for name, target in {
        "pipe.jpg": "pipe",
        "zero.jpg": "/dev/zero",
        "loop": ".",
        "loop.jpg": "loop.jpg",
    }.items():
        (data / name).symlink_to(target)
    run = run_command(tmp_path)
    assert (run.code, run.rows) == (0, ["0.jpg", "1.jpg"])
    assert run.stderr.count(": not a file, left out\n") == 5


FRAME = """
import pandas

def run(mini_batch):
    return pandas.DataFrame({"file": map(os.path.basename, mini_batch), "class": 7, "probability": 0.5})
"""
ODD_NAMES = [
    *("-n.jpg", "--data", " lead and trail ", 'say "hi".jpg', '"', "it's.jpg", "two\nlines.jpg", "a\rreturn"),
    *("both\r\n.jpg", "tab\t.jpg", "back\\slash.jpg", "comma, dot.jpg", "#.jpg", "%d %s.jpg", "\u2028.jpg"),
    *("\x0c\x1b\x7f.jpg", "\u00fc\U0001f600.jpg", "n" * 251 + ".jpg", "\u00fc" * 125 + ".jpg"),
]


def test_any_name_in_unicode_comes_back_when_the_rows_are_read_as_the_article_does(tmp_path: Path) -> None:
    folder = tmp_path / "data" / ("d" * 200)  # every path is longer than 300 characters
    folder.mkdir(parents=True)
    for name in ODD_NAMES:
        (folder / name).touch()
    run = score(tmp_path, FRAME, 0, mini_batch_size=5)
    columns = ["file", "class", "probability"]
    path = tmp_path / "output" / "score" / "predictions.csv"
    predictions = pd.read_csv(path, header=None, names=columns, sep=" ")
    assert list(predictions["file"]) == sorted(ODD_NAMES)
    assert set(predictions["class"]) == {7}
    assert run.summary["rows"] == len(ODD_NAMES)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no names that are not UTF-8")
def test_a_name_that_is_not_unicode_comes_back_as_its_bytes(tmp_path: Path) -> None:
    names = [b"r\xe9sum\xe9.jpg", b"\xff \n", b"\xc3"]
    run = score(tmp_path, FRAME, map(os.fsdecode, names), mini_batch_size=5)
    columns = ["file", "class", "probability"]
    predictions = pd.read_csv(
        run.folder / "output" / "score" / "predictions.csv",
        header=None,
        names=columns,
        sep=" ",
        encoding_errors="surrogateescape",
    )
    assert sorted(map(os.fsencode, predictions["file"])) == sorted(names)
