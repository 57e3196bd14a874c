"""One setting of a sweep: values of a deployment's keys, and what was measured with them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from local_workspace.deployment import Deployment


@dataclass
class Setting:
    """One combination of values, and what was measured of it: a figure for each round."""

    values: dict[str, str]  # key of the deployment: value
    deployment: Deployment  # with these values
    files: int
    speeds: list[float] = field(default_factory=list)  # images a second
    memories: list[int] = field(default_factory=list)  # MB, of all workers together, at their peaks
    agreement: float | None = None  # share of the files with the class that the first setting gives them
    top_1: float | None = None
    cause: str = ""  # why it has no figures

    @property
    def name(self) -> str:
        return ", ".join(f"{short(key)} {value}" for key, value in self.values.items())

    @property
    def mini_batches(self) -> int:
        return -(-self.files // self.deployment.mini_batch_size)

    @property
    def workers(self) -> int:
        return min(self.deployment.workers, self.mini_batches)

    @property
    def speed(self) -> float:
        return statistics.median(self.speeds)

    @property
    def memory(self) -> int:
        return max(self.memories)


def short(key: str) -> str:
    return key.rpartition(".")[2]


def changes(values: dict[str, str]) -> list[str]:
    """`values` as --set takes them."""
    return [f"{key}={value}" for key, value in values.items()]
