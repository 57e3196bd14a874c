"""How a peer is asked: a line on stdin is a JSON list of paths to score, a line on stdout is the answer."""

import json
import os
import resource
import sys
from collections.abc import Iterator

import numpy as np

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a library prints must not get between the answers


def requests() -> Iterator[list[str]]:
    for line in sys.stdin:
        yield json.loads(line)


def answer(scores: np.ndarray, seconds: float, images: int | None = None) -> None:
    """Answers with the logits `scores` (files, classes), and the `seconds` that `images` of them took."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    rows = list(zip(scores.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()))
    send(rows=rows, rate=(len(scores) if images is None else images) / seconds, memory=peak_memory())


def peak_memory() -> float:
    """MB of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def send(**values: object) -> None:
    print(json.dumps(values), file=answers, flush=True)
