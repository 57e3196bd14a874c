"""What is compared with what, and by how much one should lead: the rows of the table.

A ratio is the median of the ratios of each round, in which both were measured shortly one after the other:
what else the machine did in a round then touches both.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from benchmarks.contenders import MEMORY, RATE, SECONDS, Contender

LITE0, RESNET = "EfficientNet-Lite0", "ResNet101V2"
FP32_PEERS = ("ONNX Runtime", "OpenVINO", "Ray Data + ONNX Runtime", "Ray Data + OpenVINO")


@dataclass(frozen=True)
class Target:
    """`ours` is to be at least (at most, for AT_MOST) `bound` times the best of `peers`.

    TOGETHER: times what the peers would do one after the other on the same cores, 1 / (1/a + 1/b): no
    deployment can read its images and score them faster than that.
    """

    ours: str
    peers: tuple[str, ...]
    quantity: str
    bound: float
    at_most: bool = False
    together: bool = False
    models: tuple[str, ...] = ("",)


BOTH = (LITE0, RESNET)
READING = "reading alone, 2 workers"
# What bfloat16 gains depends on the processor, so it is compared with its own bound only.
TARGETS = (
    Target("by-file", ("naive by-file",), RATE, 6, models=(LITE0,)),
    Target("by-file", ("naive by-file",), RATE, 2, models=(RESNET,)),
    Target("by-batch", ("naive by-batch",), RATE, 2, models=(LITE0,)),
    Target("by-batch", ("naive by-batch",), RATE, 1.2, models=(RESNET,)),
    Target("by-batch, 2 workers", FP32_PEERS, RATE, 1, models=(LITE0,)),
    Target("by-batch, 2 workers", FP32_PEERS, RATE, 0.9, models=(RESNET,)),
    Target("by-batch, 2 workers", ("model alone, 2 workers", READING), RATE, 0.9, together=True, models=BOTH),
    Target(
        *("by-batch, 2 workers, bf16", ("model alone, 2 workers, bf16", READING), RATE, 0.85),
        together=True,
        models=BOTH,
    ),
    Target("by-file", ("naive by-file",), MEMORY, 1.05, at_most=True, models=(RESNET,)),
    Target("by-batch", ("naive by-batch",), MEMORY, 1.1, at_most=True, models=(RESNET,)),
    *(
        Target(name, (f"{name}, before",), quantity, bound, at_most=quantity == MEMORY, models=BOTH)
        for name in ("by-file at 10", "by-batch at 128", "by-batch at 64", "by-batch at 10")
        for quantity, bound in ((RATE, 0.97), (MEMORY, 1.03))
    ),
    Target("24 megapixels, by-file", ("24 megapixels, naive",), RATE, 8, models=(LITE0,)),
    Target("no-op, 1,000,000 files", (), RATE, 100_000),
    Target("no-op, 1,000,000 files", ("no-op, 100,000 files",), MEMORY, 1.1, at_most=True),
    Target("cold start to the first row", ("import tensorflow",), SECONDS, 1.4, at_most=True),
    Target("upload of 1000 photos", ("upload of 1000 photos, Azurite",), SECONDS, 1),
    Target("az call", ("import of the SDK",), SECONDS, 15),
)


@dataclass(frozen=True)
class Comparison:
    """A target and what was measured; there is no peer where the bound is a figure of its own."""

    target: Target
    ours: Contender
    peers: list[Contender]  # the best one, or all of them together
    ratios: list[float]

    @property
    def against(self) -> str:
        return " and ".join(peer.name for peer in self.peers) or "-"

    @property
    def theirs(self) -> list[float]:
        return theirs(self.peers, self.target.quantity)

    @property
    def ratio(self) -> float:
        return median(self.ratios)

    @property
    def met(self) -> bool:
        if self.target.at_most:
            return self.ratio <= self.target.bound
        return self.ratio >= self.target.bound


def compare(contenders: list[Contender]) -> tuple[list[Comparison], list[str]]:
    """The rows for all that was measured, and a line for each target of which only one side was."""
    found = {(one.name, one.model): one for one in contenders}
    comparisons, missing = [], []
    for target in TARGETS:
        for model in target.models:
            ours = found.get((target.ours, model))
            peers = [found[name, model] for name in target.peers if (name, model) in found]
            peers = [peer for peer in peers if peer.values(target.quantity)]
            enough = len(peers) == len(target.peers) if target.together else bool(peers) or not target.peers
            if not ours or not ours.values(target.quantity) or not enough:
                if ours or any((name, model) in found for name in target.peers):
                    versus = (" and " if target.together else " or ").join(target.peers) or "a figure"
                    missing.append(f"{target.ours} against {versus}" + f" ({model})" * bool(model))
                continue
            if not target.together:
                peers = [best(peers, target.quantity)] if peers else []
            comparisons.append(Comparison(target, ours, peers, paired(target, ours, peers)))
    return comparisons, missing


def best(peers: list[Contender], quantity: str) -> Contender:
    """The peer with the best median: the highest rate, else the lowest figure."""
    sign = 1 if quantity == RATE else -1
    return max(peers, key=lambda peer: sign * median(peer.values(quantity)))


def paired(target: Target, ours: Contender, peers: list[Contender]) -> list[float]:
    """The ratio of each round: above 1 is better for us, but for AT_MOST, where it is below 1."""
    values = ours.values(target.quantity)
    if not peers:
        return values
    pairs = zip(values, theirs(peers, target.quantity))
    if target.quantity == SECONDS and not target.at_most:
        return [other / mine for mine, other in pairs]
    return [mine / other for mine, other in pairs]


def theirs(peers: list[Contender], quantity: str) -> list[float]:
    """The figure of each round: that of the only peer, or the rate of all peers one after the other."""
    if len(peers) < 2:
        return [value for peer in peers for value in peer.values(quantity)]
    return [1 / sum(1 / rate for rate in rates) for rates in zip(*(peer.values(quantity) for peer in peers))]
