"""What is no answer costs at most its mini-batch an attempt, whatever a scoring script writes to the pipe."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from score_runs import score

from local_workspace.answer import READ_SIZE, Answer, Answers, NoAnswerError, Raised, Rows
from local_workspace.worker import INIT, LONGEST_ANSWER, encode

GOOD = {"rows": 1, "text": "a row\n", "failed": [["/data/1.jpg", "broken"]]}


@pytest.fixture
def pipe() -> Iterator[tuple[Answers, int]]:
    reading, writing = os.pipe()
    yield Answers(reading), writing
    os.close(reading)
    os.close(writing)


def test_an_answer_is_read_once_it_is_whole(pipe: tuple[Answers, int]) -> None:
    answers, writing = pipe
    raised = {"error": "E", "traceback": "T", "fails_job": False}
    for order, values, said in ((INIT, raised, Raised(**raised)), (77, GOOD, Rows(**GOOD))):
        *begin, last = (bytes([byte]) for byte in encode(order, values))
        for byte in begin:
            os.write(writing, byte)
            assert answers.receive() is None
        os.write(writing, last)
        assert answers.receive() == Answer(order, said)


def test_endless_bytes_are_no_answer_as_soon_as_that_shows(pipe: tuple[Answers, int]) -> None:
    answers, writing = pipe
    endless = threading.Thread(target=os.write, args=(writing, b"x" * READ_SIZE))
    endless.start()
    endless.join()
    with pytest.raises(NoAnswerError):
        answers.receive()


def framed(body: bytes) -> bytes:
    return b"0 %d\n%b" % (len(body), body)


def with_values(**values: object) -> bytes:
    return framed(json.dumps({**GOOD, **values}).encode())


BAD = {
    "a key too many": with_values(more=1),
    "a key too few": framed(b'{"rows": 0, "text": ""}'),
    "another key": framed(b'{"error": "E", "traceback": "T", "fails_jobs": true}'),
    "a list": framed(b"[]"),
    "a text": framed(b'"error"'),
    "no JSON": framed(b"{"),
    "not UTF-8": framed(b'{"rows": 0, "text": "\xff", "failed": []}'),
    "levels without end": framed(b"[" * 100_000),
    "rows that are true": with_values(rows=True),
    "rows below 0": with_values(rows=-1),
    "half a row": with_values(rows=0.5),
    "more rows than lines": with_values(rows=2),
    "rows without end": with_values(rows=10**4000, text=""),
    "no text": with_values(text=None),
    "failed files in a mapping": with_values(failed={}),
    "a failed file without a reason": with_values(failed=[["/data/1.jpg"]]),
    "a failed file that is a text": with_values(failed=["ab"]),
    "a reason that is none": with_values(failed=[["/data/1.jpg", None]]),
    "an error that is none": framed(b'{"error": null, "traceback": "T", "fails_job": false}'),
    "an error that fails the job perhaps": framed(b'{"error": "E", "traceback": "T", "fails_job": 1}'),
    "too long": b"0 %d\n" % (LONGEST_ANSWER + 1),
    "no length": b"0\n",
    "a length of 0": b"0 0\n",
    "a length below 0": b"0 -5\n",
    "a length in Arabic": "0 \u0665\n".encode(),
    "no order": b"x 2\n{}",
    "one that goes on": with_values() + b"\n",
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_answer_is_not_taken_for_one(case: str, pipe: tuple[Answers, int]) -> None:
    answers, writing = pipe
    writer = threading.Thread(target=os.write, args=(writing, BAD[case]))
    writer.start()
    with pytest.raises(NoAnswerError):
        while answers.receive() is None:
            pass
    writer.join()


SCRIPT = """
ANSWERS = int(sys.argv[sys.argv.index("--answers") + 1])

def forge(body):
    os.write(ANSWERS, b"%d %d\\n%b" % (OFFSET, len(body), body))
    time.sleep(60)

def run(mini_batch):
    if name(mini_batch) == "1.jpg":
        STRIKE
    return mini_batch
"""


@pytest.mark.parametrize(
    "strike",
    [
        """forge(b'{"rows": 0, "text": "", "failed": [], "seconds": 1}')""",
        """forge(b'{"rows": 1000000000, "text": "", "failed": []}')""",
        """forge(b'{"rows": 0, "text": "", "failed": [["a", "b"], ["c", "d"]]}')""",
        "while True: os.write(ANSWERS, b'x' * (1 << 16))",
        "while True: os.write(ANSWERS, b'\\n')",
    ],
)
def test_it_is_the_fault_of_the_worker_and_costs_an_attempt(tmp_path: Path, strike: str) -> None:
    line = len(json.dumps(str(tmp_path / "data" / "0.jpg"))) + 1
    script = SCRIPT.replace("STRIKE", strike).replace("OFFSET", str(line))
    run = score(tmp_path, script, 3, retry_settings={"max_retries": 2, "timeout": 60})
    assert run.code == 0
    assert run.failed == {
        "1.jpg": "the worker ended during run(): stopped, since what came on its pipe is no answer"
    }
    assert [row["attempts"] for row in run.processed] == ["1", "2", "1"]
    assert run.summary["rows"] == 2


def test_rows_that_are_too_long_for_an_answer_fail_with_the_setting_that_decides() -> None:
    sent = encode(5, {"rows": 1, "text": "x" * LONGEST_ANSWER, "failed": []})
    assert len(sent) < 1000
    header, _, body = sent.partition(b"\n")
    assert header == b"5 %d" % len(body)
    assert json.loads(body)["error"].endswith("at most 268,435,456: lower settings.mini_batch_size")
