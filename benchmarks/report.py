"""The tables and the plot of a run: results.md and results.png."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from benchmarks.contenders import MEMORY, RATE, SECONDS, Contender
from benchmarks.targets import BOTH, Comparison, compare

PACKAGES = ("tensorflow", "keras", "numpy", "pillow", "onnxruntime", "tf2onnx", "openvino", "ray")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")  # of the CPU, that matter here
OURS, THEIRS, BOUND = "#0067b8", "#a6a6a6", "#d9d9d9"


def write(folder: Path, contenders: list[Contender], photos: str, rounds: int) -> None:
    comparisons, missing = compare(contenders)
    text = [
        "# Measured by `make bench`",
        "",
        f"{time.strftime('%Y-%m-%d')}, on {machine()}. {versions()}.",
        "",
        f"Photos: {photos}.",
        "",
        f"Rounds: {rounds}. In each every contender ran once, and each round began with another one. "
        "A ratio is the median of the rounds' own ratios.",
        "",
        "![Images a second by contender](results.png)",
        "",
        "## Targets",
        "",
        *targets_table(comparisons),
        "",
        *[f"- Not measured: {line}" for line in missing],
    ]
    for model in [*BOTH, ""]:
        measured = [one for one in contenders if one.model == model]
        if measured:
            text += ["", f"## {model or 'The rest'}", "", *contenders_table(measured)]
    left_out = [one for one in contenders if one.left_out]
    text += ["", *[f"- {full_name(one)} was left out: {one.left_out}" for one in left_out]]
    (folder / "results.md").write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    plot(folder / "results.png", contenders)


def full_name(contender: Contender) -> str:
    return contender.name + f" ({contender.model})" * bool(contender.model)


def targets_table(comparisons: list[Comparison]) -> list[str]:
    lines = [
        "| what | against | quantity | ours: min / median / max | theirs: the same "
        "| ratio: min / median / max | target | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in comparisons:
        target = one.target
        sign = "at most" if target.at_most else "at least"
        times = "x" if one.peers else " a second"
        cells = [
            full_name(one.ours),
            one.against,
            "files a second"
            if target.ours.startswith("no-op") and target.quantity == RATE
            else target.quantity,
            spread(one.ours.values(target.quantity)),
            spread(one.theirs),
            spread(one.ratios, 2) if one.peers else "-",
            f"{sign} {target.bound:,}{times}",
            "yes" if one.met else "**no**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def contenders_table(contenders: list[Contender]) -> list[str]:
    lines = [
        "| contender | settings | images or files a second: min / median / max | seconds, whole | memory, MB "
        "| same class as by-file | largest difference of probability |",
        "|---|---|---|---|---|---|---|",
    ]
    reference = next((one for one in contenders if one.name == "by-file"), None)
    for one in contenders:
        if not one.rounds:
            continue
        cells = [one.name, one.settings, *(spread(one.values(what)) for what in (RATE, SECONDS))]
        cells += [f"{median(one.values(MEMORY)):,.0f}" if one.values(MEMORY) else "-"]
        cells += agreement(one, reference) if reference else ["-", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def agreement(one: Contender, reference: Contender) -> list[str]:
    """How many of the files that both scored got the same class; and over these the largest difference."""
    both = [
        (one.predictions[f], reference.predictions[f]) for f in one.predictions.keys() & reference.predictions
    ]
    if not both:
        return ["-", "-"]
    same = [abs(mine[1] - other[1]) for mine, other in both if mine[0] == other[0]]
    return [f"{len(same)} of {len(both)}", f"{max(same):.4f}" if same else "-"]


def spread(values: list[float], digits: int | None = None) -> str:
    """Lowest, median and highest, with digits that suit their size."""
    if not values:
        return "-"
    if digits is None:
        digits = 0 if median(values) >= 1000 else 1 if median(values) >= 10 else 2
    return " / ".join(f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))


def machine() -> str:
    """What the speed depends on, without the machine's name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text, flags = platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        values = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        values = {key.strip(): value.strip() for key, value in values.items()}
        text, flags = values.get("model name", text), set(values.get("flags", "").split())
    named = [flag for flag in FLAGS if flag in flags]
    return f"{cores} cores of {text}" + f" ({', '.join(named)})" * bool(named) + f", {platform.system()}"


def versions() -> str:
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def plot(path: Path, contenders: list[Contender]) -> None:
    """Images a second of each contender of each model, the slowest and the fastest round as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ("24 megapixels, by-file", "24 megapixels, naive", "reading alone, 2 workers")
    groups = {
        model: [
            one for one in contenders if one.model == model and one.values(RATE) and one.name not in names
        ]
        for model in BOTH
    }
    groups = {model: sorted(group, key=rate) for model, group in groups.items() if group}
    heights = [max(2, len(group)) for group in groups.values()] or [1]
    figure, axes = pyplot.subplots(
        max(1, len(groups)), 1, figsize=(9, 0.9 + 0.34 * sum(heights) + 0.8 * len(heights)), squeeze=False,
        height_ratios=heights, layout="constrained",
    )  # fmt: skip
    for axis, (model, group) in zip(axes[:, 0], groups.items()):
        medians = [rate(one) for one in group]
        below = [middle - min(one.values(RATE)) for middle, one in zip(medians, group)]
        above = [max(one.values(RATE)) - middle for middle, one in zip(medians, group)]
        axis.barh(
            [one.name for one in group],
            medians,
            xerr=[below, above],
            color=[colour(one) for one in group],
            error_kw={"ecolor": "#404040", "elinewidth": 1, "capsize": 2.5},
        )
        edge = max(middle + more for middle, more in zip(medians, above))
        for row, (middle, more) in enumerate(zip(medians, above)):
            figure_text = f"{middle:.0f}" if middle >= 30 else f"{middle:.1f}"
            axis.text(middle + more + edge * 0.01, row, figure_text, va="center", fontsize=9)
        axis.set_xlim(0, edge * 1.1)
        axis.set_title(f"{model}: images a second", loc="left", fontsize=11)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in (OURS, THEIRS, BOUND)]
    labels = ["these deployments", "what one would use instead", "their model alone, on tensors in memory"]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def rate(contender: Contender) -> float:
    return median(contender.values(RATE))


def colour(contender: Contender) -> str:
    if contender.name.startswith("by-"):
        return OURS
    return BOUND if "alone" in contender.name else THEIRS
