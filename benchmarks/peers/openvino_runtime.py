"""OpenVINO over the SavedModel, with its THROUGHPUT hint and asynchronous requests."""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openvino
from openvino.preprocess import PrePostProcessor
from photo import read_photo
from protocol import answer, requests

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("precision", choices=["f32", "bf16"])
parser.add_argument("--batch", type=int, help="images of each request")
parser.add_argument("--decoders", type=int, help="threads that read photos")
arguments = parser.parse_args()
batch = arguments.batch

model = openvino.convert_model(arguments.model)
model.reshape([batch, 224, 224, 3])
graph = PrePostProcessor(model)  # takes uint8; / 255 is done in the graph
graph.input().tensor().set_element_type(openvino.Type.u8)
graph.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
hints = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": arguments.precision}
compiled = openvino.compile_model(graph.build(), "CPU", hints)
queue = openvino.AsyncInferQueue(compiled)  # of as many requests as the hint leads to


def keep(request: openvino.InferRequest, place: tuple[np.ndarray, int]) -> None:
    scores, start = place
    scores[start : start + batch] = request.get_output_tensor().data[: len(scores) - start]


queue.set_callback(keep)
for paths in requests():
    begin = time.perf_counter()
    scores = np.empty((len(paths), *compiled.output().shape[1:]), np.float32)
    with ThreadPoolExecutor(arguments.decoders) as readers:
        photos = readers.map(read_photo, paths)
        for start in range(0, len(paths), batch):
            images = np.zeros((batch, 224, 224, 3), np.uint8)
            for position, photo in zip(range(min(batch, len(paths) - start)), photos):
                images[position] = photo
            queue.start_async(images, (scores, start))  # waits for a free request
        queue.wait_all()
    answer(scores, time.perf_counter() - begin)
