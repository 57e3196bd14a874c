"""Reads a model batch deployment: the YAML that `az ml batch-deployment create --file` takes.

The schema is that of azure-ai-ml 1.35.2; the defaults are the service's, since the client sends none
(Microsoft's reference-yaml-deployment-batch).
"""

from __future__ import annotations

import os
import reprlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from local_workspace.errors import UserError

DESCRIPTIVE = {"$schema", "name", "id", "endpoint_name", "description", "tags", "properties", "type"}
NOT_HONOURED = {
    "environment": "the workers run in this Python",
    "compute": "the workers run on this machine",
}
SETTINGS = {
    *("mini_batch_size", "max_concurrency_per_instance", "output_action", "output_file_name"),
    *("retry_settings", "error_threshold", "logging_level", "environment_variables"),
}
# Of `resources` the client knows these too.
RESOURCES = {"instance_type", "locations", "shm_size", "max_instance_count", "docker_args", "properties"}
ROOT = {*DESCRIPTIVE, *NOT_HONOURED, "model", "code_configuration", "resources"}
# Beside `settings` the client accepts these too, and ignores them there.
IGNORED = {"error_threshold", "environment_variables"}

OUTPUT_ACTIONS = ("append_row", "summary_only")
LOGGING_LEVELS = ("info", "warning", "debug")
# What a deployment without a scoring script runs: Azure makes one for an MLflow model.
MLFLOW_DRIVER = Path(__file__).parent / "mlflow_driver" / "batch_driver.py"
# Where the model is looked for, beside the YAML, when nothing else says so.
MODEL, MLFLOW_MODEL = "model", "mlflow-model"
MOST = 2**31 - 1  # the service's integers have 32 bits
LONGEST_NAME = 255  # bytes, of a file
MOST_ALIASES = 20  # of one YAML: with many, a few lines of it can become a value of gigabytes


@dataclass(frozen=True)
class Deployment:
    """What decides how a deployment scores its input. Every default is the service's."""

    name: str
    code: Path  # a folder
    scoring_script: str  # a file in it
    model: Path | None = None  # None: the YAML names a registered model
    instance_count: int = 1
    max_concurrency_per_instance: int = 1
    mini_batch_size: int = 10  # files
    max_retries: int = 3
    timeout: int = 30  # seconds, of one run()
    error_threshold: int = -1  # failed files; -1 ignores them all
    output_action: str = "append_row"
    output_file_name: str = "predictions.csv"
    logging_level: str = "info"
    environment_variables: dict[str, str] = field(default_factory=dict)

    @property
    def is_mlflow(self) -> bool:
        return self.code == MLFLOW_DRIVER.parent

    @property
    def workers(self) -> int:
        return self.instance_count * self.max_concurrency_per_instance

    @property
    def attempts(self) -> int:
        """How often a mini-batch is tried at most: the executor counts the first try as a retry."""
        return max(1, self.max_retries)


class Loader(yaml.SafeLoader):
    """The loader of yaml.safe_load(), with a limit on aliases."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.aliases > MOST_ALIASES:
            raise ValueError(f"more than {MOST_ALIASES} aliases")
        return super().compose_node(parent, index)


class Section:
    """One mapping of the YAML, which knows its place for the errors."""

    def __init__(self, path: Path, prefix: str, values: Any) -> None:
        self.path, self.prefix, self.values = path, prefix, values
        if not isinstance(values, dict):
            raise UserError(f"{path}: {prefix.rstrip('.') or 'it'} is {shown(values)}, expected a mapping")

    def section(self, key: str) -> Section:
        return Section(self.path, f"{self.prefix}{key}.", self.values.get(key, {}))

    def check_keys(self, allowed: set[str]) -> None:
        for key in self.values:
            if key not in allowed:
                expected = ", ".join(sorted(allowed))
                raise UserError(f"{self.path}: unknown key {self.place(key)}, expected one of: {expected}")

    def integer(self, key: str, default: int, least: int) -> int:
        value = self.values.get(key, default)
        if isinstance(value, str):
            with suppress(ValueError):
                value = int(value)  # as the client does
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            self.refuse(key, f"a whole number from {least} to {MOST}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or not value:
            self.refuse(key, "a text")
        return value

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or value.lower() not in allowed:  # as the client does
            self.refuse(key, f"one of: {', '.join(allowed)}")
        return value.lower()

    def file_name(self, key: str, default: str | None = None) -> str:
        name = self.text(key, default)
        plain = Path(name).name == name != ".."
        if not plain or not is_encodable(name) or len(name.encode()) > LONGEST_NAME:
            self.refuse(key, "the name of a file, without a folder")
        return name

    def place(self, key: Any) -> str:
        return self.prefix + (key if isinstance(key, str) else shown(key))

    def refuse(self, key: str, expected: str) -> None:
        found = shown(self.values[key]) if key in self.values else "missing"
        raise UserError(f"{self.path}: {self.place(key)} is {found}, expected {expected}")


def shown(value: Any) -> str:
    """repr() of `value`, cut short."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 2, 200, 200
    try:
        return brief.repr(value)
    except ValueError:  # Python prints no numbers of more than 4300 digits; YAML has them in hexadecimal
        return "a number of thousands of digits"


def read_deployment(path: Path, changes: list[str]) -> tuple[Deployment, list[str]]:
    """The deployment in the YAML file `path`, and a warning for each key that has no effect here.

    `changes` are assignments as `az ml ... --set` takes them: "settings.mini_batch_size=20".
    Raises UserError, which names the file, the key, what it holds and what was expected.
    """
    root = Section(path, "", read_yaml(path))
    for change in changes:
        assign(root, change)
    if str(root.values.get("type", "model")).lower() != "model":
        root.refuse("type", "model: pipeline component deployments cannot be scored here")
    # Without `type` it is the older schema, where all that is now under `settings` stood at the root.
    older = "type" not in root.values and "settings" not in root.values
    settings = root if older else root.section("settings")
    root.check_keys(ROOT | SETTINGS if older else ROOT | IGNORED | {"settings"})
    root.section("resources").check_keys({"instance_count", *RESOURCES})
    if not older:
        settings.check_keys(SETTINGS | {"instance_count"})
    return parse(root, settings), warnings(root, older)


def parse(root: Section, settings: Section) -> Deployment:
    code, script = scoring_script(root)
    retry = settings.section("retry_settings")
    retry.check_keys({"max_retries", "timeout"})
    return Deployment(
        name=root.file_name("name").lower(),  # as the client does
        code=code,
        scoring_script=script,
        model=model_path(root),
        instance_count=instance_count(root, settings),
        max_concurrency_per_instance=settings.integer("max_concurrency_per_instance", 1, least=1),
        mini_batch_size=settings.integer("mini_batch_size", 10, least=1),
        max_retries=retry.integer("max_retries", 3, least=0),
        timeout=retry.integer("timeout", 30, least=1),
        error_threshold=settings.integer("error_threshold", -1, least=-1),
        output_action=settings.choice("output_action", "append_row", OUTPUT_ACTIONS),
        output_file_name=settings.file_name("output_file_name", "predictions.csv"),
        logging_level=settings.choice("logging_level", "info", LOGGING_LEVELS),
        environment_variables=environment_variables(settings),
    )


def scoring_script(root: Section) -> tuple[Path, str]:
    """The folder of the scoring script and its name in it; ours if there is none, for an MLflow model."""
    if "code_configuration" not in root.values:
        return MLFLOW_DRIVER.parent, MLFLOW_DRIVER.name
    code = root.section("code_configuration")
    code.check_keys({"code", "scoring_script"})
    folder, script = root.path.parent / code.text("code"), code.text("scoring_script")
    if not os.path.isfile(folder / script):  # False for any text that cannot be a path, too
        raise UserError(
            f"{root.path}: no scoring script {script!r} in {folder}",
            "code_configuration.code is a folder beside the YAML, scoring_script a file in it",
        )
    return folder.resolve(), script


def instance_count(root: Section, settings: Section) -> int:
    """It may stand in either place, but the client refuses a deployment that has both."""
    if "instance_count" not in settings.values:
        return root.section("resources").integer("instance_count", 1, least=1)
    if "resources" in root.values:
        settings.refuse("instance_count", "it under `resources` only")
    return settings.integer("instance_count", 1, least=1)


def model_path(root: Section) -> Path | None:
    """The folder or file of an inline model; None for a registered one (azureml:NAME@latest, ...)."""
    model = root.values.get("model")
    if isinstance(model, dict):
        path = root.section("model").text("path")
        return None if is_remote(path) else root.path.parent / path
    if model is not None and not (isinstance(model, str) and is_remote(model)):
        root.refuse("model", "azureml:NAME@latest, azureml:NAME:VERSION or a mapping with path")
    return None


def is_remote(path: str) -> bool:
    return "://" in path or path.startswith("azureml:")


def environment_variables(settings: Section) -> dict[str, str]:
    section = settings.section("environment_variables")
    for name, value in section.values.items():
        if not isinstance(name, str) or not isinstance(value, str):
            section.refuse(name, "a text: put it in quotes")
        if not name or "=" in name or not is_encodable(name) or not is_encodable(value):
            section.refuse(name, "a name and a text that an environment can hold")
    return dict(section.values)


def is_encodable(text: str) -> bool:
    """Whether the operating system takes `text` as a name or a variable."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, by a YAML escape
        return False


def warnings(root: Section, older: bool) -> list[str]:
    """What the deployment says that has no effect here, or in Azure."""
    found = [f"{key} is not used here: {why}" for key, why in NOT_HONOURED.items() if key in root.values]
    resources = sorted(RESOURCES & root.section("resources").values.keys())
    found += [f"resources.{key} is not used here: {NOT_HONOURED['compute']}" for key in resources]
    if "model" in root.values and not model_path(root):
        folder = MLFLOW_MODEL if "code_configuration" not in root.values else MODEL
        found.append(f"model is not fetched: --model or {folder}/ beside the YAML is used")
    if not older:
        misplaced = sorted(IGNORED & root.values.keys())
        found += [
            f"{key} beside `settings` is ignored, by Azure too: put it under `settings`" for key in misplaced
        ]
    return found


def read_yaml(path: Path) -> Any:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected a deployment's YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, place: str) -> Any:
    try:
        return yaml.load(text, Loader)  # noqa: S506  # nosec B506
    except Exception as error:  # the parser lets through what a wrong value raises: a KeyError for `!!bool x`
        raise UserError(f"{place}: not readable as YAML: {' '.join(str(error).split())}") from None


def assign(root: Section, change: str) -> None:
    """Carries out "settings.mini_batch_size=20" on the mapping `root`."""
    name, equals, text = change.partition("=")
    *sections, key = name.split(".")
    if not equals or not key:
        raise UserError(f"--set {change}: expected KEY=VALUE", "such as --set settings.mini_batch_size=20")
    values = root.values
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {change}: {section} in {root.path} holds {shown(values)}, not a mapping")
    values[key] = text if "environment_variables" in sections else parse_yaml(text, f"--set {change}")
