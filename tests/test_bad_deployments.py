"""Whatever a deployment's YAML or --set holds is read as the client reads it, or refused with a message.

test_deployment.py has the settings one by one; here are strange YAML, and values and texts by hypothesis.
"""

import os
from pathlib import Path

import hypothesis
import pytest
import yaml
from azure.ai.ml.entities._load_functions import load_model_batch_deployment
from deployments import REQUIRED, ROOT, as_the_client_has_it, read, write
from hypothesis import strategies as st

from local_workspace.__main__ import main
from local_workspace.errors import UserError

CASES = int(os.environ.get("BAD_DEPLOYMENTS", "100"))  # of each property; thousands were tried by hand
several = hypothesis.settings(deadline=None, max_examples=CASES, derandomize=True)
LONGEST = 2000  # characters of a message, whatever it is about

BEFORE = yaml.safe_dump({key: value for key, value in REQUIRED.items() if key != "settings"})
AFTER = "settings:\n  mini_batch_size: 5\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "code").mkdir()
    (folder / "code" / "driver.py").touch()
    return folder


def levels(of: str) -> str:
    """Nine levels of lists or mappings, each of ten aliases of the level before: "billion laughs"."""
    names = "abcdefghi"
    lines = [f"  a: &a {'{k: v}' if of == '<<: ' else '[x]'}"]
    for name, before in zip(names[1:], names):
        aliases = f"[{', '.join([f'*{before}'] * 10)}]"
        lines.append(f"  {name}: &{name} {'{' + of + aliases + '}' if of else aliases}")
    return "\n".join(lines) + "\n"


READ = {
    "with a byte order mark": "\ufeff" + BEFORE + AFTER,
    "with CRLF": (BEFORE + AFTER).replace("\n", "\r\n"),
    "with an alias": BEFORE + "tags: &t {a: b}\nproperties: *t\n" + AFTER,
    "with a merge key": BEFORE + "settings:\n  <<: {mini_batch_size: 7}\n  error_threshold: 3\n",
    "with the same key twice": BEFORE + AFTER + "  mini_batch_size: 6\n",
    "with markers of the document": "---\n" + BEFORE + AFTER + "...\n",
    "with an octal number": BEFORE + "settings:\n  mini_batch_size: 010\n",
    "with a number in base 60": BEFORE + "settings:\n  mini_batch_size: 1:30\n",
    "with a number in hexadecimal": BEFORE + "settings:\n  mini_batch_size: 0x10\n",
    "with a number in Arabic": BEFORE + "settings:\n  mini_batch_size: '\u0665'\n",
    "with tags that hold themselves": BEFORE + "tags: &t {a: *t}\n" + AFTER,
    "with tags in 100 levels": BEFORE + "tags: " + "{a: " * 100 + "b" + "}" * 100 + "\n" + AFTER,
}


@pytest.mark.parametrize("text", READ.values(), ids=READ.keys())
def test_strange_yaml_is_read_as_the_client_reads_it(text: str, folder: Path) -> None:
    path = write(folder, text)
    assert read(path) == as_the_client_has_it(load_model_batch_deployment(path), path)


LAUGHS = "more than 20 aliases"
REFUSED = {
    "lists of lists": (
        BEFORE + "settings:\n  mini_batch_size:\n  " + levels("").replace("\n", "\n  "),
        LAUGHS,
    ),
    "mappings of mappings": (BEFORE + "tags:\n" + levels("a: ") + AFTER, LAUGHS),
    "merged mappings": (BEFORE + "tags:\n" + levels("<<: ") + AFTER, LAUGHS),
    "two documents": (BEFORE + AFTER + "---\n" + BEFORE + AFTER, "expected a single document"),
    "a tab": (BEFORE + "settings:\n\tmini_batch_size: 5\n", "cannot start any token"),
    "5000 levels": (BEFORE + "tags: " + "{a: " * 5000 + "b" + "}" * 5000 + "\n" + AFTER, "recursion depth"),
    "a huge number": (BEFORE + "settings:\n  mini_batch_size: 0x" + "f" * 5000, "a number of thousands of"),
    "a huge text": (BEFORE + "settings:\n  mini_batch_size: '" + "9" * 5000 + "'", "expected a whole number"),
    "infinity": (BEFORE + "settings:\n  mini_batch_size: .inf\n", "mini_batch_size is inf, expected a whole"),
    "no number": (
        BEFORE + "settings:\n  mini_batch_size: .nan\n",
        "mini_batch_size is nan, expected a",
    ),
    "an object": (BEFORE + "tags: !!python/object/apply:os.mkdir [pwned]\n" + AFTER, "could not determine a"),
    "a set": (BEFORE + "settings: !!set {mini_batch_size}\n", "settings is {'mini_batch_size'}, expected a"),
    "a key that is a date": (BEFORE + AFTER + "2026-01-01: a\n", "unknown key datetime.date(2026, 1, 1)"),
    "settings of themselves": (BEFORE + "settings: &s\n  retry_settings: *s\n", "unknown key settings.retry"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_strange_yaml_is_refused_briefly(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = REFUSED[case]
    monkeypatch.chdir(folder)
    assert main(["score", str(write(folder, text)), "--data", str(folder)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and message in shown
    assert len(shown) < LONGEST
    assert not (folder / "pwned").exists()


# --- made by hypothesis

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=4)
    | st.dates()
    | st.sampled_from(["5", "-1", "1e3", "0x10", "append_row", "info", "model", "code", "azureml:a:1", ".."])
)
VALUES = st.recursive(
    SCALARS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(SCALARS, values, max_size=3),
    max_leaves=6,
)
MARKS = "\t&*!|>-?:[]{}"
PLACES = [
    *(["name"], ["type"], ["model"], ["code_configuration"], ["settings"], ["resources"], ["unknown"]),
    *(["code_configuration", "code"], ["code_configuration", "scoring_script"], ["model", "path"]),
    *(["resources", "instance_count"], ["settings", "retry_settings"], ["settings", "environment_variables"]),
    *(["settings", key] for key in ("mini_batch_size", "max_concurrency_per_instance", "instance_count")),
    *(["settings", key] for key in ("output_action", "output_file_name", "error_threshold", "logging_level")),
    *(["settings", "retry_settings", key] for key in ("max_retries", "timeout")),
]


def put(values: object, place: list[str], value: object) -> object:
    """A copy of `values` with another `value` at that place."""
    if not place:
        return value
    values = values if isinstance(values, dict) else {}
    return {**values, place[0]: put(values.get(place[0]), place[1:], value)}


def outcome(path: Path, *changes: str) -> object:
    try:
        return read(path, *changes)
    except UserError as error:
        assert len(error.message) < LONGEST
        return None


@several
@hypothesis.given(st.sampled_from(PLACES), VALUES)
def test_any_value_anywhere_is_read_as_the_client_reads_it_or_refused(
    folder: Path, place: list[str], value: object
) -> None:
    path = write(folder, yaml.safe_dump(put(REQUIRED, place, value)))
    found = outcome(path)
    try:
        expected = load_model_batch_deployment(path)
    except Exception:  # the client has many kinds
        expected = None
    if found and expected:
        assert found == as_the_client_has_it(expected, path)
    elif found:  # the client looks for the model, score does so later; and the service has defaults
        assert place[0] == "model" or "mini_batch_size" not in (found_settings(path) or {})


def found_settings(path: Path) -> dict:
    return yaml.safe_load(path.read_text("utf-8")).get("settings")


@several
@hypothesis.given(
    st.sampled_from(["deployment-by-file.yml", "deployment-by-batch.yml"]),
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 9), st.text(max_size=3) | st.sampled_from(MARKS)),
        min_size=1,
        max_size=4,
    ),
)
def test_a_damaged_file_is_read_or_refused(
    folder: Path, name: str, damages: list[tuple[int, int, str]]
) -> None:
    text = (ROOT / name).read_text("utf-8")
    for start, length, new in damages:
        text = text[:start] + new + text[start + length :]
    (folder / "deployment.yml").write_bytes(text.encode("utf-8", "surrogatepass"))
    outcome(folder / "deployment.yml")


@several
@hypothesis.given(st.binary(max_size=60))
def test_a_file_of_any_bytes_is_refused(folder: Path, contents: bytes) -> None:
    (folder / "deployment.yml").write_bytes(contents)
    assert outcome(folder / "deployment.yml") is None


@several
@hypothesis.given(
    st.sampled_from([".".join(place) for place in PLACES]) | st.text(max_size=10),
    st.text(max_size=10) | VALUES.map(lambda value: yaml.safe_dump(value, default_flow_style=True)),
)
def test_any_change_on_the_command_line_is_made_or_refused(folder: Path, key: str, text: str) -> None:
    outcome(write(folder, REQUIRED), f"{key}={text}")
