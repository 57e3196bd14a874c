"""Where a worker's time goes, for `score --profile`: measured inside the worker.

worker.py loads this file by its path, and only for a profile; like worker.py it imports nothing of this
package. A scoring script is profiled as it is: its stages are told from the Python functions that each
thread is in, looked at every INTERVAL, and from TensorFlow's own trace of its operations, in the first
WINDOW seconds of run().
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

INTERVAL = 0.005  # seconds
WINDOW = 3.0  # seconds; TensorFlow takes as long again to write a trace down
# Functions by the module's path and the beginning of their name; that of the innermost call counts.
FUNCTIONS = (
    ("/tensorflow/python/data/ops/iterator_ops.py", "", "wait"),
    ("/tensorflow/python/data/", "", "other"),
    ("/tensorflow/python/", "read_file", "read"),
    ("/tensorflow/python/", "decode_", "decode"),
    ("/tensorflow/python/ops/image_ops", "resize", "resize"),
    ("/PIL/ImageFile.py", "load", "decode"),
    ("/PIL/Image.py", "open", "read"),
    ("/PIL/Image.py", "resize", "resize"),
    ("/PIL/Image.py", "reduce", "resize"),
    ("/PIL/Image.py", "thumbnail", "resize"),
    ("/skimage/transform/", "", "resize"),
    ("/pathlib", "read_bytes", "read"),
)
# Where no such function is called: by package, or module of the standard library.
PACKAGES = {
    **dict.fromkeys(("PIL", "cv2", "imageio", "skimage"), "decode"),
    **dict.fromkeys(("tensorflow", "keras", "tf_keras", "torch", "onnxruntime", "openvino"), "model"),
    **dict.fromkeys(("sklearn", "xgboost", "lightgbm", "mlflow"), "model"),
    "pandas": "rows",
    **dict.fromkeys(("concurrent", "threading.py", "queue.py"), "wait"),
}
OPERATIONS = {  # of TensorFlow, by the beginning of their names
    "ReadFile": "read",
    "Decode": "decode",
    "ExtractJpegShape": "decode",
    "Resize": "resize",
    "ScaleAndTranslate": "resize",
    **dict.fromkeys(("Conv", "_FusedConv", "_MklNativeFused", "_MklNativeConv", "Depthwise"), "model"),
    **dict.fromkeys(("MatMul", "_FusedMatMul", "_MklNativeMatMul", "BatchMatMul", "Einsum"), "model"),
}


class Profiler:
    """Measures one worker: make one, `watch` the script's run(), follow its `waits`, then `write`."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)  # of the scoring script
        self.main = threading.get_ident()
        self.begin = time.perf_counter()
        self.queue = self.run = self.overhead = 0.0  # seconds
        self.files = 0
        self.window = 0.0  # seconds of run() that have been looked at
        self.script: Counter[str] = Counter()  # seconds of the thread that calls run(), by stage
        self.threads: Counter[str] = Counter()  # of the script's other threads
        self.operations: Counter[str] = Counter()  # of TensorFlow's threads
        self.lines: Counter[str] = Counter()  # of the thread that calls run(), by line of the script
        self.running = threading.Event()
        self.trace: tempfile.TemporaryDirectory | None = None

    def waits(self, mini_batches: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
        """The same mini-batches; measures how long each is waited for."""
        self.start()
        while True:
            since = time.perf_counter()
            mini_batch = next(mini_batches, None)
            self.queue += time.perf_counter() - since
            if mini_batch is None:
                return
            yield mini_batch
            if self.window > WINDOW:
                self.stop_trace()

    def watch(self, run: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
        def watched(paths: list[str]) -> Any:
            since = time.perf_counter()
            self.running.set()
            try:
                return run(paths)
            finally:
                self.running.clear()
                self.run += time.perf_counter() - since
                self.files += len(paths)

        return watched

    def start(self) -> None:
        if "tensorflow" in sys.modules:
            profiler = sys.modules["tensorflow"].profiler.experimental
            self.trace = tempfile.TemporaryDirectory()
            profiler.start(self.trace.name, profiler.ProfilerOptions(2, 0, 0))  # the host's operations only
        threading.Thread(target=self.sample, daemon=True).start()
        self.begin = time.perf_counter()

    def sample(self) -> None:
        """Adds up what each thread is doing while run() runs."""
        me = threading.get_ident()
        while self.window < WINDOW:
            self.running.wait()
            since = time.perf_counter()
            time.sleep(INTERVAL)
            passed = time.perf_counter() - since
            if not self.running.is_set():
                continue
            self.window += passed
            for thread, frame in sys._current_frames().items():
                calls, line = outwards(frame, self.folder)
                if thread == self.main:
                    self.script[stage(calls)] += passed
                    self.lines[line] += passed
                elif thread != me:
                    self.threads[stage(calls)] += passed

    def stop_trace(self) -> None:
        """Reads TensorFlow's trace: the seconds of its operations that ran in threads of its own."""
        if not self.trace:
            return
        since = time.perf_counter()
        sys.modules["tensorflow"].profiler.experimental.stop()
        from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

        for path in Path(self.trace.name).rglob("*.xplane.pb"):
            for plane in XSpace.FromString(path.read_bytes()).planes:
                for line in plane.lines:
                    if line.name.startswith("tf_"):
                        for event in line.events:
                            name = plane.event_metadata[event.metadata_id].name.rpartition(":")[2]
                            if found := stage_of_operation(name):
                                self.operations[found] += event.duration_ps / 1e12
        self.trace.cleanup()
        self.trace = None
        self.overhead += time.perf_counter() - since

    def write(self, path: Path) -> None:
        """Writes what was measured, as JSON: seconds, of the whole job and of the window."""
        seconds = time.perf_counter() - self.begin - self.overhead
        self.stop_trace()
        measured = {
            "files": self.files,
            "seconds": seconds,
            "queue": self.queue,
            "run": self.run,
            "window": self.window,
            "script": self.script,
            "threads": self.threads,
            "operations": self.operations,
            "lines": self.lines,
        }
        path.write_text(json.dumps(measured), "utf-8")


def outwards(frame: FrameType | None, folder: str) -> tuple[list[tuple[str, str]], str]:
    """The calls (path, function) from `frame` out to the scoring script, and the script's line."""
    calls = []
    while frame:
        path = frame.f_code.co_filename
        if path.startswith(folder + os.sep) and "/site-packages/" not in path:
            return calls, f"{os.path.relpath(path, folder)}:{frame.f_lineno}"
        calls.append((path, frame.f_code.co_name))
        frame = frame.f_back
    return calls, ""


def stage(calls: list[tuple[str, str]]) -> str:
    for path, name in calls:
        for module, beginning, found in FUNCTIONS:
            if module in path and name.startswith(beginning):
                return found
    parts = (part for path, _ in calls for part in reversed(path.split("/")))
    return next((PACKAGES[part] for part in parts if part in PACKAGES), "other")


def stage_of_operation(name: str) -> str | None:
    return next((found for beginning, found in OPERATIONS.items() if name.startswith(beginning)), None)
