"""The contenders, each with its settings, and what they need before the first round."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import azurite, photos
from benchmarks.contenders import PEERS, RATE, ROOT, Contender, LeftOut, command, deployment, no_op, process
from benchmarks.targets import LITE0, RESNET
from local_workspace import samples

BY_FILE, BY_BATCH = "deployment-by-file.yml", "deployment-by-batch.yml"
BF16 = "settings.environment_variables.MIXED_PRECISION=1"
# The fastest by `sweep` where a single image is too small to be shared between cores.
ONE_THREAD = "settings.environment_variables.TF_NUM_INTRAOP_THREADS=1"
MODELS = {"lite0": LITE0, "resnet101v2": RESNET}
FOLDERS = {LITE0: "model", RESNET: "resnet101v2"}
COMPARED_SIZES = (128, 64, 10)  # of mini-batches
# And where 16 images at once are more than the processor's cache holds.
EIGHT = "settings.environment_variables.DEVICE_BATCH_SIZE=8"
# Images that a contender scores in a round: some seconds' worth.
BY_BATCH_IMAGES = {LITE0: 1024, RESNET: 128}
PEER_IMAGES = {LITE0: 768, RESNET: 96}
BY_FILE_IMAGES = {LITE0: 256, RESNET: 60}
NAIVE_IMAGES = {LITE0: 60, RESNET: 24}
NAIVE_BATCH_IMAGES = {LITE0: 256, RESNET: 60}
LARGE_IMAGES, NAIVE_LARGE_IMAGES = 40, 12
UPLOADS, FEW_FILES, MANY_FILES = 1000, 100_000, 1_000_000
WARM_UP = 32  # images
# Settings of the peers that are tried, as their scripts take them.
TRIAL_IMAGES = {LITE0: 192, RESNET: 32}
ONNX_RUNTIME = [
    *("--runs 2 --threads 1 --batch 1", "--runs 2 --threads 1 --batch 4", "--runs 2 --threads 1 --batch 16"),
    "--runs 1 --threads 2 --batch 16",
]
OPENVINO = [
    "--batch 1 --decoders 1",
    "--batch 1 --decoders 2",
    "--batch 4 --decoders 2",
    "--batch 16 --decoders 2",
]
RAY = ["--actors 2 --batch 16", "--actors 1 --batch 16"]


class Inputs:
    """What is scored. Models and photos are kept in `work` for the next run, all else is `temporary`."""

    def __init__(
        self, data: Path | None, work: Path, temporary: Path, most: int | None, before: Path | None = None
    ) -> None:
        self.work, self.temporary, self.most, self.before = work, temporary, most, before
        self.photos, self.photos_are = (
            photos.photos_in(data) if data else photos.embedded_photos(work / "photos")
        )
        self.laid_out: dict[Path, list[str]] = {}

    def count(self, wanted: int) -> int:
        return min(wanted, self.most or wanted)

    def images(self, wanted: int) -> tuple[Path, list[str]]:
        """A folder of photos, and their paths."""
        folder = self.temporary / f"photos-{self.count(wanted)}"
        if folder not in self.laid_out:
            self.laid_out[folder] = photos.lay_out(self.photos, self.count(wanted), folder)
        return folder, self.laid_out[folder]

    def model(self, name: str) -> Path:
        return self.work / FOLDERS[name]

    def onnx(self, name: str) -> Path:
        return self.work / f"{FOLDERS[name]}.onnx"


def scoring_contenders(inputs: Inputs, model: str) -> list[Contender]:
    """All that score photos with one of the two models."""
    prepare = lambda: make_model(inputs, model)  # noqa: E731
    lineup = [*our_contenders(inputs, model, prepare), *naive_contenders(inputs, model, prepare)]
    lineup += peer_contenders(inputs, model, prepare)
    if inputs.before:
        lineup += before_contenders(inputs, model, inputs.before, prepare)
    return lineup + (large_contenders(inputs, model, prepare) if model == LITE0 else [])


def our_contenders(inputs: Inputs, model: str, prepare: Callable[[], None]) -> list[Contender]:
    """The deployments as their YAML has them, but for the workers, the precision and one size.

    A mini-batch is at most an eighth of the images, so that both workers have several.
    """
    by_file, _ = inputs.images(BY_FILE_IMAGES[model])
    by_batch, paths = inputs.images(BY_BATCH_IMAGES[model])
    size = max(1, min(128, len(paths) // 8))
    code = "code_configuration.code=benchmarks/"
    model_alone, reading_alone = f"{code}model_alone", f"{code}reading_alone"

    def ours(name: str, yaml: str, workers: int, *settings: str) -> Contender:
        data = by_file if yaml == BY_FILE else by_batch
        changes = [f"resources.instance_count={workers}", *settings]
        changes += [f"settings.mini_batch_size={size}"] if yaml == BY_BATCH else []
        output = inputs.temporary / f"output {model} {name}"
        said = [f"{workers} worker{'s' * (workers > 1)}"]
        said += [change.rpartition(".")[2] for change in changes[1:] if not change.startswith(code)]
        measure = deployment(yaml, inputs.model(model), data, output, *changes)
        return Contender(name, model, ", ".join(said), measure, prepare=prepare)

    threads = [ONE_THREAD] if model == LITE0 else []
    at_once = [EIGHT] if model == LITE0 else []
    return [
        ours("by-file", BY_FILE, 1, *threads),
        ours("by-file, bf16", BY_FILE, 1, BF16, *threads),
        ours("by-batch", BY_BATCH, 1),
        ours("by-batch, 2 workers", BY_BATCH, 2, *at_once),
        ours("by-batch, 2 workers, bf16", BY_BATCH, 2, BF16, *at_once),
        ours("model alone, 2 workers", BY_BATCH, 2, model_alone, *at_once),
        ours("model alone, 2 workers, bf16", BY_BATCH, 2, model_alone, BF16, *at_once),
        ours("reading alone, 2 workers", BY_BATCH, 2, reading_alone),
    ]


def before_contenders(
    inputs: Inputs, model: str, before: Path, prepare: Callable[[], None]
) -> list[Contender]:
    """These scoring scripts and those of another checkout, in one executor, at several mini-batches."""
    lineup = []
    for kind, size, yaml, images, workers in (
        ("by-file", 10, BY_FILE, BY_FILE_IMAGES, 1),
        *(("by-batch", size, BY_BATCH, BY_BATCH_IMAGES, 2) for size in COMPARED_SIZES),
    ):
        data, _ = inputs.images(max(images[model], 6 * size))  # several mini-batches for each worker
        for whose, root in (("", ROOT), (", before", before)):
            name = f"{kind} at {size}{whose}"
            changes = [
                f"resources.instance_count={workers}",
                f"settings.mini_batch_size={size}",
                f"code_configuration.code={root.absolute()}/code/score-{kind}",
            ]
            output = inputs.temporary / f"output {model} {name}"
            measure = deployment(yaml, inputs.model(model), data, output, *changes)
            said = f"{workers} worker{'s' * (workers > 1)}, mini-batches of {size}"
            lineup.append(Contender(name, model, said, measure, prepare=prepare))
    return lineup


def naive_contenders(inputs: Inputs, model: str, prepare: Callable[[], None]) -> list[Contender]:
    folder = inputs.model(model)
    _, few = inputs.images(NAIVE_IMAGES[model])
    _, more = inputs.images(NAIVE_BATCH_IMAGES[model])
    by_file, end_by_file = process([sys.executable, PEERS / "naive_by_file.py", folder], few, few[:4])
    script = [sys.executable, PEERS / "naive_by_batch.py", folder]
    ten, end_ten = process([*script, 10], more, more[:10])
    all_of_it, end_all = process([*script, 128], more, more[:128])
    return [
        Contender("naive by-file", model, "Pillow, model.predict", by_file, (), prepare, end_by_file),
        Contender("naive by-batch", model, "mini-batches of 10, as the article", ten, (), prepare, end_ten),
        Contender("naive by-batch, 128", model, "mini-batches of 128", all_of_it, (), prepare, end_all),
    ]


def peer_contenders(inputs: Inputs, model: str, prepare: Callable[[], None]) -> list[Contender]:
    """Each at the fastest of several settings, which are tried before the first round."""
    _, paths = inputs.images(PEER_IMAGES[model])
    folder, onnx = inputs.model(model), inputs.onnx(model)

    def peer(name: str, packages: str, settings: list[str], script: str, *arguments: str | Path) -> Contender:
        warm = script != "ray_data.py"  # which starts its processes anew each time
        trial = paths[: TRIAL_IMAGES[model]] if warm else paths
        tries = []
        for one in settings:
            start = [sys.executable, PEERS / script, *arguments, *one.split()]
            measured = process(start, paths, paths[:WARM_UP] if warm else None)
            tries.append((one, *measured, process(start, trial, paths[:WARM_UP] if warm else None)))
        contender = Contender(name, model, "", lambda contender: {}, tuple(packages.split()))

        def prepare_peer() -> None:
            prepare()
            if onnx in arguments:
                make_onnx(folder, onnx)
            use_fastest(contender, tries * (2 if warm else 1))

        contender.prepare = prepare_peer
        return contender

    return [
        peer("ONNX Runtime", "onnxruntime tf2onnx", ONNX_RUNTIME, "onnx_runtime.py", onnx),
        peer("OpenVINO", "openvino", OPENVINO, "openvino_runtime.py", folder, "f32"),
        peer("OpenVINO, bf16", "openvino", OPENVINO, "openvino_runtime.py", folder, "bf16"),
        peer("Ray Data + ONNX Runtime", "ray onnxruntime tf2onnx", RAY, "ray_data.py", onnx),
        peer("Ray Data + OpenVINO", "ray openvino", RAY, "ray_data.py", folder),
    ]


def use_fastest(contender: Contender, tries: list[tuple]) -> None:
    """Measures each of the `tries`, in turn, and gives `contender` the settings with the best rate."""
    rates: dict[str, float] = {}
    try:
        for settings, _, _, (measure, _) in tries:
            rates[settings] = max(rates.get(settings, 0), measure(contender)[RATE])
    finally:
        for _, _, _, (_, end) in tries:
            end()
    contender.settings, contender.measure, contender.end, _ = max(tries, key=lambda one: rates[one[0]])
    tried = ", ".join(f"{settings}: {rate:.0f}" for settings, rate in rates.items())
    print(f"{contender.name} ({contender.model}): tried {tried}", file=sys.stderr, flush=True)


def large_contenders(inputs: Inputs, model: str, prepare: Callable[[], None]) -> list[Contender]:
    many, few = inputs.count(LARGE_IMAGES), inputs.count(NAIVE_LARGE_IMAGES)
    data = inputs.temporary / "large"
    paths: list[str] = []  # filled before the first round

    def prepare_large() -> None:
        prepare()
        if not paths:
            laid_out = photos.lay_out(photos.write_large(inputs.photos, inputs.work / "large"), many, data)
            paths.extend(laid_out[:few])

    output = inputs.temporary / "output large"
    ours = deployment(BY_FILE, inputs.model(model), data, output, "resources.instance_count=1")
    naive, end = process([sys.executable, PEERS / "naive_by_file.py", inputs.model(model)], paths, paths)
    return [
        Contender("24 megapixels, by-file", model, "1 worker", ours, (), prepare_large),
        Contender("24 megapixels, naive", model, "Pillow, model.predict", naive, (), prepare_large, end),
    ]


def other_contenders(inputs: Inputs) -> list[Contender]:
    return [*no_op_contenders(inputs), *start_contenders(inputs), *workspace_contenders(inputs)]


def no_op_contenders(inputs: Inputs) -> list[Contender]:
    """`few` files lie in one folder of the `many`."""
    few, many = inputs.count(FEW_FILES), inputs.count(MANY_FILES)
    data = inputs.temporary / "empty"

    def prepare() -> None:
        if not data.exists():
            photos.write_empty(few, data / "few")
            photos.write_empty(many - few, data / "rest")

    outputs = [inputs.temporary / "output no-op few", inputs.temporary / "output no-op many"]
    said = "2 workers, settings.mini_batch_size=10"
    return [
        Contender("no-op, 100,000 files", "", said, no_op(data / "few", few, outputs[0]), (), prepare),
        Contender("no-op, 1,000,000 files", "", said, no_op(data, many, outputs[1]), (), prepare),
    ]


def start_contenders(inputs: Inputs) -> list[Contender]:
    one, _ = inputs.images(1)
    output = inputs.temporary / "output start"
    ours = deployment(BY_FILE, inputs.model(LITE0), one, output, "resources.instance_count=1")
    prepare = lambda: make_model(inputs, LITE0)  # noqa: E731
    tensorflow = command(sys.executable, "-c", "import tensorflow")
    return [
        Contender("cold start to the first row", "", "score, by-file, 1 worker, 1 photo", ours, (), prepare),
        Contender("import tensorflow", "", "python -c 'import tensorflow'", tensorflow),
    ]


def workspace_contenders(inputs: Inputs) -> list[Contender]:
    """Uploads and `az` calls; each of the two processes has a local workspace around it."""
    _, paths = inputs.images(UPLOADS)
    run = [sys.executable, "-m", "local_workspace", "run", "--state"]
    upload = ["--", sys.executable, ROOT / "benchmarks" / "upload.py"]
    ours, end_ours = process([*run, inputs.temporary / "state upload", *upload], paths, paths[:20])
    az_calls = ["--", sys.executable, ROOT / "benchmarks" / "az_calls.py"]
    az, end_az = process([*run, inputs.temporary / "state az", *az_calls], "call", "call")
    sdk = command(sys.executable, "-c", "from azure.ai.ml import MLClient")
    storage: list = []  # the process of Azurite, and its address

    def prepare() -> None:
        storage.extend(azurite.start(inputs.temporary / "azurite"))

    def theirs(contender: Contender) -> dict[str, float]:
        if len(storage) == 2:
            storage.extend(process(upload[1:], paths, paths[:20], STORAGE=storage[1]))
        return storage[2](contender)

    def end_theirs() -> None:
        for end in storage[3:]:
            end()
        for server in storage[:1]:
            server.kill()  # a polite end waits until the client's idle connections are closed
            server.wait()

    client = f"azure-storage-blob, {len(paths)} photos, the threads of azure-ai-ml"
    return [
        Contender("upload of 1000 photos", "", client, ours, ("azure.storage.blob",), end=end_ours),
        Contender(
            *("upload of 1000 photos, Azurite", "", client, theirs, ("azure.storage.blob",)),
            prepare=prepare,
            end=end_theirs,
        ),
        Contender("az call", "", "az ml model list", az, end=end_az),
        Contender("import of the SDK", "", "python -c 'from azure.ai.ml import MLClient'", sdk),
    ]


# --- models


def make_model(inputs: Inputs, name: str) -> None:
    target = inputs.model(name)
    if target.is_dir():
        return
    inputs.work.mkdir(parents=True, exist_ok=True)
    if name == LITE0:
        samples.prepare(inputs.work)
        return
    photos.embedded_photos(inputs.work / "photos")
    partial = target.with_name(f"{target.name}.partial")
    run_quietly(ROOT / "benchmarks" / "resnet101v2.py", inputs.work / "photos", partial)
    partial.rename(target)


def make_onnx(model: Path, target: Path) -> None:
    if not target.is_file():
        partial = target.with_name(f"partial-{target.name}")
        run_quietly("-m", "tf2onnx.convert", "--saved-model", model, "--output", partial, "--opset", "18")
        partial.rename(target)


def run_quietly(*arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise LeftOut(f"{' '.join(map(str, arguments))} failed: {done.stderr.strip()[-200:]}")
