"""A deployment's YAML is read as the real client reads it, and refused with a message that helps."""

import json
import warnings
from pathlib import Path

import hypothesis
import pytest
from azure.ai.ml import load_batch_deployment
from azure.ai.ml.entities._load_functions import load_model_batch_deployment
from deployments import DEFAULTS, REQUIRED, ROOT, as_the_client_has_it, read, write
from hypothesis import strategies as st

from local_workspace.deployment import Deployment, read_deployment
from local_workspace.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "code").mkdir()
    (folder / "code" / "driver.py").touch()
    return folder


# --- agreement with the real client


@pytest.mark.parametrize(
    "name", ["deployment-by-file.yml", "deployment-by-batch.yml", "deployment-mlflow.yml"]
)
def test_the_repositorys_deployments_are_read_as_the_client_reads_them(name: str) -> None:
    deployment = read(ROOT / name)
    assert deployment == as_the_client_has_it(load_model_batch_deployment(ROOT / name), ROOT / name)
    assert deployment.timeout == 300


def optional(**fields: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=fields)


def number(least: int) -> st.SearchStrategy:
    """A number, or the text of one, which the client takes as well."""
    numbers = st.integers(least, 1000)
    return numbers | numbers.map(str) | numbers.map(" {} ".format)


def any_case(*words: str) -> st.SearchStrategy[str]:
    return st.sampled_from([form for word in words for form in (word, word.title(), word.upper())])


NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,30}", fullmatch=True)
SETTINGS = {
    "max_concurrency_per_instance": number(1),
    "output_action": any_case("append_row", "summary_only"),
    "output_file_name": NAMES,
    "retry_settings": optional(max_retries=number(0), timeout=number(1)),
    "error_threshold": number(-1),
    "logging_level": st.sampled_from(["info", "warning", "debug"]),
    "environment_variables": st.dictionaries(
        NAMES, st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    ),
}
ROOT_KEYS = {
    "model": st.sampled_from(
        ["azureml:resnet:1", "azureml://registries/r/models/m/versions/1", {"path": "code"}]
    ),
    "description": st.text(max_size=9),
    "tags": st.dictionaries(NAMES, NAMES),
}


@hypothesis.settings(deadline=None)  # the machine may be busy
@hypothesis.given(
    st.fixed_dictionaries({"name": NAMES}, optional=ROOT_KEYS),
    st.fixed_dictionaries({"mini_batch_size": number(1)}, optional=SETTINGS),
    optional(resources=optional(instance_count=number(1), shm_size=NAMES)) | st.just({"instance_count": 3}),
)
def test_any_deployment_is_read_as_the_client_reads_it(
    folder: Path, root: dict, settings: dict, instances: dict
) -> None:
    """Each setting given or left out; the number of instances in either of its two places."""
    resources = {key: value for key, value in instances.items() if key == "resources"}
    settings |= {key: value for key, value in instances.items() if key != "resources"}
    path = write(folder, REQUIRED | root | resources | {"settings": settings})
    assert read(path) == as_the_client_has_it(load_model_batch_deployment(path), path)


def test_a_deployment_without_settings_has_the_services_defaults(folder: Path) -> None:
    path = write(folder, {key: value for key, value in REQUIRED.items() if key != "settings"})
    deployment = read(path)
    assert deployment == as_the_client_has_it(load_model_batch_deployment(path), path)
    assert {name: getattr(deployment, name) for name in DEFAULTS} == DEFAULTS
    assert deployment == Deployment(deployment.name, deployment.code, deployment.scoring_script)


OLDER = {key: value for key, value in REQUIRED.items() if key not in ("type", "settings")}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "mini_batch_size": 7,
            "max_concurrency_per_instance": 2,
            "output_action": "summary_only",
            "output_file_name": "rows.csv",
            "retry_settings": {"max_retries": 5, "timeout": 60},
            "error_threshold": 9,
            "logging_level": "warning",
            "environment_variables": {"SIZE": "16"},
            "resources": {"instance_count": 3},
        },
    ],
)
def test_the_older_schema_without_type_has_its_settings_at_the_root(folder: Path, settings: dict) -> None:
    path = write(folder, OLDER | settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the client: this schema is deprecated
        loaded = load_batch_deployment(path)  # load_model_batch_deployment knows the newer schema only
    assert read(path) == as_the_client_has_it(loaded, path)
    assert not any("ignored" in warning for warning in read_deployment(path, [])[1])


# Refused by both. A key of None leaves the key of that name out.
REFUSED = {
    "unknown key": {"mini_batch": 5},
    "a setting beside settings": {"mini_batch_size": 5},
    "unknown setting": {"settings": {"mini_batch_size": 5, "timeout": 30}},
    "unknown retry setting": {"settings": {"mini_batch_size": 5, "retry_settings": {"retries": 1}}},
    "unknown resource": {"resources": {"instances": 2}},
    "unknown key of the code": {
        "code_configuration": {"code": "code", "scoring_script": "driver.py", "x": "y"}
    },
    "instances twice": {
        "settings": {"mini_batch_size": 5, "instance_count": 2},
        "resources": {"instance_count": 2},
    },
    "settings null": {"settings": None},
    "settings a number": {"settings": 0},
    "settings a list": {"settings": []},
    "resources null": {"resources": None},
    "retry_settings a list": {"settings": {"mini_batch_size": 5, "retry_settings": []}},
    "variables null": {"settings": {"mini_batch_size": 5, "environment_variables": None}},
    "a size that is true": {"settings": {"mini_batch_size": True}},
    "a size in words": {"settings": {"mini_batch_size": "ten"}},
    "a size that is null": {"settings": {"mini_batch_size": None}},
    "a file name that is a number": {"settings": {"mini_batch_size": 5, "output_file_name": 3}},
    "an unknown action": {"settings": {"mini_batch_size": 5, "output_action": "append_rows"}},
    "an unknown type": {"type": "pipelines"},
    "a name that is a number": {"name": 7},
    "a model that is a local path": {"model": "./model"},
    "a model that is a number": {"model": 5},
    "code null": {"code_configuration": None},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_what_the_client_refuses_is_refused(folder: Path, change: dict) -> None:
    path = write(folder, REQUIRED | change)
    with pytest.raises(Exception):  # noqa: B017 - the client has many kinds
        load_model_batch_deployment(path)
    with pytest.raises(UserError, match=r"deployment\.yml: "):
        read(path)


# --- what is refused, and how


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "pipeline"}, "type is 'pipeline', expected model: pipeline component deployments"),
        ({"mini_batch": 5}, "unknown key mini_batch, expected one of: $schema, code_configuration, "),
        (
            {"settings": {"mini_batch_size": 0}},
            "settings.mini_batch_size is 0, expected a whole number from 1 to",
        ),
        (
            {"settings": {"mini_batch_size": 2**31}},
            "settings.mini_batch_size is 2147483648, expected a whole",
        ),
        ({"settings": {"mini_batch_size": 9.5}}, "settings.mini_batch_size is 9.5, expected a whole number"),
        (
            {"settings": {"error_threshold": -2}},
            "settings.error_threshold is -2, expected a whole number from -1",
        ),
        ({"settings": {"retry_settings": {"max_retries": -1}}}, "retry_settings.max_retries is -1, expected"),
        (
            {"settings": {"logging_level": "loud"}},
            "logging_level is 'loud', expected one of: info, warning, debug",
        ),
        (
            {"settings": {"environment_variables": {"A": 1}}},
            "variables.A is 1, expected a text: put it in quotes",
        ),
        (
            {"settings": {"environment_variables": {"A=B": "c"}}},
            "A=B is 'c', expected a name and a text that",
        ),
        (
            {"settings": {"environment_variables": {"A": "\0"}}},
            "expected a name and a text that an environment",
        ),
        ({"settings": {"environment_variables": {"A": "\ud800"}}}, "expected a name and a text that an"),
        (
            {"settings": {"environment_variables": {"": "a"}}},
            "expected a name and a text that an environment",
        ),
        ({"settings": {"output_file_name": "../rows.csv"}}, "expected the name of a file, without a folder"),
        ({"settings": {"output_file_name": ".."}}, "expected the name of a file, without a folder"),
        ({"settings": {"output_file_name": "r" * 256}}, "expected the name of a file, without a folder"),
        ({"settings": {"output_file_name": "a\0b"}}, "expected the name of a file, without a folder"),
        ({"name": "/etc"}, "name is '/etc', expected the name of a file, without a folder"),
        ({"name": None}, "name is None, expected a text"),
        (
            {"code_configuration": {"code": "code", "scoring_script": "gone.py"}},
            "no scoring script 'gone.py' in ",
        ),
        ({"code_configuration": {"code": "code", "scoring_script": "x" * 999}}, "no scoring script 'xxxx"),
        (
            {"code_configuration": {"code": "a\0b", "scoring_script": "driver.py"}},
            "no scoring script 'driver.py'",
        ),
        (
            {"code_configuration": {"scoring_script": "driver.py"}},
            "code_configuration.code is missing, expected",
        ),
        ({"code_configuration": {}}, "code_configuration.code is missing, expected a text"),
        ({"model": {"name": "resnet"}}, "model.path is missing, expected a text"),
    ],
)
def test_an_error_names_the_key_what_it_holds_and_what_was_expected(
    folder: Path, change: dict, message: str
) -> None:
    path = write(folder, json.dumps(REQUIRED | change))
    with pytest.raises(UserError) as refused:
        read(path)
    assert refused.value.message.startswith(f"{path}: ")
    assert message in refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        "name:\ttab",
        "\tname: tab",
        "name: [",
        "name: 2026-13-45",
        "name: !!bool maybe",
        "name: !!timestamp today",
        "name: !!python/object/apply:os.system [false]",
        "name: " + "9" * 5000,
        "[" * 3000,
        "{[1]: 2}",
        "name: \0",
        "a: &a [*a]",
        "- name",
        "name",
        "5",
        "",
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(folder: Path, text: str) -> None:
    path = write(folder, text)
    with pytest.raises(UserError, match=r"deployment\.yml: (not readable as YAML: |unknown key|it is )."):
        read(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yml").write_bytes(b"name: r\xe9sum\xe9")
    for name, message in (
        ("gone.yml", "no such file, expected a deployment's YAML"),
        (".", "not readable as YAML: .*Is a directory"),
        ("latin.yml", "not readable as YAML: .*can't decode"),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path / name)


# --- --set


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ("settings.mini_batch_size=20", "mini_batch_size", 20),
        ("settings.retry_settings.timeout=5", "timeout", 5),
        ("resources.instance_count=4", "instance_count", 4),
        ("settings.environment_variables.SIZE=016", "environment_variables", {"SIZE": "016"}),
        ("settings.environment_variables.ARGS=--a=b: c", "environment_variables", {"ARGS": "--a=b: c"}),
        ("name=other", "name", "other"),
    ],
)
def test_set_changes_one_key_and_makes_the_mappings_above_it(
    folder: Path, change: str, name: str, value: object
) -> None:
    path = write(folder, REQUIRED)
    assert getattr(read(path, change), name) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("name", "--set name: expected KEY=VALUE"),
        ("=5", "--set =5: expected KEY=VALUE"),
        ("settings.=5", "--set settings.=5: expected KEY=VALUE"),
        ("name.first=5", "name in .* holds 'classifier', not a mapping"),
        ("settings.nonsense=5", "unknown key settings.nonsense"),
        ("settings.mini_batch_size=[", r"--set settings.mini_batch_size=\[: not readable as YAML"),
        ("settings.mini_batch_size=", "settings.mini_batch_size is None, expected a whole number"),
    ],
)
def test_a_wrong_set_is_refused(folder: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(write(folder, REQUIRED), change)


# --- the rest


def test_the_number_of_workers_and_attempts() -> None:
    deployment = Deployment("a", Path(), "b", instance_count=2, max_concurrency_per_instance=3, max_retries=0)
    assert (deployment.workers, deployment.attempts) == (6, 1)


def test_what_has_no_effect_is_warned_of_and_nothing_else(folder: Path) -> None:
    _, found = read_deployment(write(folder, REQUIRED | {"model": {"path": "code"}}), [])
    assert found == ["compute is not used here: the workers run on this machine"]
