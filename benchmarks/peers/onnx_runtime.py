"""ONNX Runtime over the model that tf2onnx wrote; threads read the photos, others run the session."""

import argparse
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnxruntime
from photo import read_photo
from protocol import answer, requests

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--runs", type=int, help="calls of the session at a time")
parser.add_argument("--threads", type=int, help="of each call")
parser.add_argument("--batch", type=int, help="images of each call")
arguments = parser.parse_args()

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = arguments.threads
session = onnxruntime.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name


def score(photos: list[Future]) -> np.ndarray:
    images = np.stack([photo.result() for photo in photos]).astype(np.float32) / 255
    return session.run(None, {name: images})[0]


for paths in requests():
    begin = time.perf_counter()
    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(arguments.runs) as runs:
        photos = [readers.submit(read_photo, path) for path in paths]
        batches = [photos[i : i + arguments.batch] for i in range(0, len(photos), arguments.batch)]
        scores = np.concatenate(list(runs.map(score, batches)))
    answer(scores, time.perf_counter() - begin)
