"""Whatever happens, each file ends as a row or as a failure with a reason, and the job ends.

Each fault is real, and strikes at the first, a middle and the last of 300 mini-batches. The command line is a
process of its own, which has to end.
"""

import sys
from pathlib import Path

import pytest
from score_runs import Run, is_alive, read_notes, run_command, score, scoring, wait_until, write_deployment

from local_workspace import executor, job_logs

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce RLIMIT_AS")
NAMES = [f"{number:03}.jpg" for number in range(600)]
BATCH = 2
STRUCK = (0, 151, 299)  # mini-batches
SCRIPT = f"""
import ctypes, locale, resource, shutil

STRUCK = {STRUCK}
ANSWERS = int(sys.argv[sys.argv.index("--answers") + 1])
OTHER = b'{{"rows": 1, "text": "of another mini-batch", "failed": []}}'
FORGED = b"999999 %d\\n%b" % (len(OTHER), OTHER)
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
        ("os.closerange(0, 256)", GONE.replace("run()", "the writing of its rows")),
        ("os.fork() and os._exit(0); time.sleep(60)", GONE + "exit code 0"),  # the child holds the pipe open
        ("os.write(ANSWERS, FORGED); time.sleep(60)", GONE + "stopped, since what came on its pipe is no"),
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
    assert max(path.stat().st_size for path in logs) <= job_logs.LONGEST_LOG + len(job_logs.SHORTENED)
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
