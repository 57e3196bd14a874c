"""The images of the by-batch scoring script, read one after another and not scored."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

SCRIPT = Path(__file__).parents[2] / "code" / "score-by-batch" / "batch_driver.py"
sys.path.insert(0, str(SCRIPT.parent))
spec = importlib.util.spec_from_file_location("by_batch", SCRIPT)
by_batch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(by_batch)


def init() -> None:
    images = SimpleNamespace(shape=(224, 224, 3), mode="RGB")  # those of both models
    by_batch.classifier = SimpleNamespace(images=images)


def run(mini_batch: list[str]) -> list[str]:
    for path in mini_batch:
        by_batch.read_image(path)
    return mini_batch
