"""What the README names is there, and its commands are commands."""

import re
import shlex
from pathlib import Path

import pytest

from local_workspace import __main__ as command_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|console)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line.removeprefix("$ "), comments=True)
    for block in BLOCKS
    for line in block.splitlines()
    if line.removeprefix("$ ").startswith(("make ", "python -m ", "az ", "./"))
]
VERBS = [command[3:] for command in COMMANDS if command[:3] == ["python", "-m", "local_workspace"]]


def test_there_are_commands() -> None:
    assert [command for command in COMMANDS if command[0] == "make"][:2] == [
        ["make", "run"],
        ["make", "test"],
    ]
    assert len(VERBS) >= 3


@pytest.mark.parametrize("command", [command for command in COMMANDS if command[0] == "make"], ids=" ".join)
def test_a_make_target_exists(command: list[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command[1] in targets


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_command_of_the_local_workspace_parses(verb: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything up to the verb's own work, which is taken out."""
    done = []
    monkeypatch.setattr(f"local_workspace.{verb[0]}.{verb[0]}", lambda arguments: done.append(verb) or 0)
    assert command_line.main(verb) == 0
    assert done


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_a_link_leads_to_a_file(path: str) -> None:
    assert (ROOT / path).is_file()


def test_the_files_in_the_table_are_there() -> None:
    table = README[README.index("## The files") : README.index("### Settings of the scoring scripts")]
    names = re.findall(r"`([\w./-]+)`", "\n".join(line.split(" | ")[0] for line in table.splitlines()))
    assert len(names) >= 9
    assert all((ROOT / name).exists() for name in names), names


def test_the_settings_are_those_of_the_scripts() -> None:
    scripts = "".join(path.read_text() for path in ROOT.glob("code/score-by-*/*.py"))
    table = README[README.index("| variable |") : README.index("Both scripts take")]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == sorted(
        set(re.findall(r'environ.get\("(\w+)"', scripts))
    )
