"""Ray Data: `map_batches` reads the photos, and `map_batches` over actors scores them."""

import argparse
import logging
import time

import numpy as np
import ray
from photo import read_photo
from protocol import answer, requests

parser = argparse.ArgumentParser()
parser.add_argument("model", help="an .onnx file for ONNX Runtime, a SavedModel for OpenVINO")
parser.add_argument("--actors", type=int, help="which share two threads")
parser.add_argument("--batch", type=int, help="images of each call")
arguments = parser.parse_args()
THREADS = 2 // arguments.actors  # of an actor


def read(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"path": batch["item"], "image": np.stack([read_photo(path) for path in batch["item"]])}


class OnnxRuntime:
    def __init__(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(
            arguments.model, options, providers=["CPUExecutionProvider"]
        )
        self.name = self.session.get_inputs()[0].name

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = batch["image"].astype(np.float32) / 255
        return {"path": batch["path"], "scores": self.session.run(None, {self.name: images})[0]}


class OpenVino:
    def __init__(self) -> None:
        import openvino

        options = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
        self.model = openvino.compile_model(openvino.convert_model(arguments.model), "CPU", options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        images = batch["image"].astype(np.float32) / 255
        return {"path": batch["path"], "scores": self.model(images)[0]}


for paths in requests():
    # Started for each run: its own processes would take time from the others while it waits.
    ray.init(num_cpus=2 + arguments.actors, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().wait_for_min_actors_s = 600  # all of them, before the first image
    blocks = max(2, len(paths) // arguments.batch)
    photos = ray.data.from_items(paths, override_num_blocks=blocks).map_batches(
        read, batch_size=arguments.batch
    )
    scored = photos.map_batches(
        OnnxRuntime if arguments.model.endswith(".onnx") else OpenVino,
        batch_size=arguments.batch,
        compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        num_cpus=1,
    )
    times, found = [], {}
    for block in scored.iter_batches(batch_size=None, prefetch_batches=0):
        times.append((time.perf_counter(), len(block["path"])))
        found.update(zip(block["path"], block["scores"]))
    # Steady: once each actor, which start anew with every run, has done a block.
    begin, steady = times[arguments.actors - 1][0], sum(images for _, images in times[arguments.actors :])
    answer(np.stack([found[path] for path in paths]), times[-1][0] - begin, steady)
    ray.shutdown()
