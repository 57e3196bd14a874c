"""The README's section "Your own model and photos": its commands, one after another, and what they print."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import own_model
import pytest
from scoring import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README[README.index("## Your own model and photos") : README.index("## The files")]
(BLOCK,) = re.findall(r"```console\n(.*?)```", SECTION, re.DOTALL)
FILES = ["code", "environment", "deploy-and-run.sh", "deploy-and-run-checks.sh", "endpoint.yml"]
FILES += ["deployment-by-file.yml", "deployment-by-batch.yml", "imagenet-sample-unlabeled.yml"]


def commands() -> list[tuple[str, list[str]]]:
    """Each command, and the lines that the README shows of what it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in BLOCK.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(" ".join(line.split()))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's files, with a model, labels and photos of somebody's own in model/ and data/."""
    folder = tmp_path_factory.mktemp("own")
    for name in FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    own_model.write_model(folder / "model")
    own_model.write_photos(folder / "data", folder / "truth.csv")
    return folder


def test_the_commands_print_what_the_readme_shows(folder: Path) -> None:
    before = contents(folder)
    assert len(commands()) == 4
    for command, shown in commands():
        words = shlex.split(command)
        words[0] = sys.executable
        run = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=900)
        assert run.returncode == 0, run.stderr[-3000:]
        printed = [" ".join(line.split()) for line in f"{run.stderr}\n{run.stdout}".splitlines()]
        for line in shown:
            assert line == "..." or line in printed, f"{command}: {line!r} in\n" + "\n".join(printed)
    assert contents(folder) == before, "what the user brought is as it was"
    both = [
        folder / place / "named-outputs/score/predictions.csv" for place in (".", "outputs/high-throughput")
    ]
    rows = [path.read_text().split() for path in both]
    assert rows[0][1::3] == rows[1][1::3] == ["0", "0", "1", "1", "2", "2", "3", "3", "4", "4"]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [*folder.glob("model/*"), *folder.glob("data/*"), folder / "truth.csv"]
    return {str(path): path.read_bytes() for path in paths}


def test_the_log_has_the_line_that_the_readme_quotes(folder: Path) -> None:
    quoted = re.search(r"`(takes float32 .*?)`", SECTION)[1]
    logs = folder / "outputs" / "imagenet-classifier-resnetv2-ht" / "logs"
    assert any(quoted in path.read_text() for path in logs.rglob("*") if path.is_file())
