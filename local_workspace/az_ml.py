"""What the verbs of `az ml` share: the client, the flags as the SDK takes them, how entities are printed."""

import contextlib
import logging
import re
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

from azure.ai.ml import MLClient
from azure.ai.ml._restclient.arm_ml_service import models as rest_models
from azure.identity import DefaultAzureCredential

from local_workspace.az_account import account_show

Printed = dict[str, Any]

# The SDK warns of classes of its own that its own code uses.
logging.getLogger("azure.ai.ml._utils._experimental").setLevel(logging.ERROR)


def open_workspace(arguments: dict[str, Any]) -> MLClient:
    """Take the workspace's names out of a command's arguments, and return its client."""
    return MLClient(
        DefaultAzureCredential(),
        subscription_id=arguments.pop("subscription") or account_show()["id"],
        resource_group_name=arguments.pop("resource_group_name"),
        workspace_name=arguments.pop("workspace_name"),
    )


def source(file: str | None) -> str | StringIO:
    """What the SDK's loaders read: the file, or an empty one that the flags fill."""
    return file or StringIO("{}")


def overrides(changes: Iterable[str] | None = None, **flags: Any) -> list[dict[str, Any]]:
    """The flags that were given, then `--set a.b=c`, which wins: the form the SDK's loaders take."""
    given = [{name: value} for name, value in flags.items() if value is not None]
    return given + [{name: value} for name, value in map(split_change, changes or [])]


def split_change(change: str) -> tuple[str, str]:
    name, equals, value = change.partition("=")
    if not (name and equals):
        raise ValueError(f"'{change}' is not of the form property=value, which --set takes.")
    return name, value


def set_property(target: Any, path: str, value: Any) -> None:
    """`defaults.deployment_name=blue` on an entity: attributes and dictionaries, a dot a level."""
    name, _, rest = path.partition(".")
    fields = target if isinstance(target, dict) else vars(target)
    if not isinstance(target, dict) and not hasattr(target, name):
        raise ValueError(f"Couldn't find '{name}' in '{path}'. Available: {', '.join(sorted(fields))}")
    if rest:
        below = target.get(name) if isinstance(target, dict) else getattr(target, name)
        value, leaf = below if below is not None else {}, value
        set_property(value, rest, leaf)
    if isinstance(target, dict):
        target[name] = value
    else:
        setattr(target, name, value)


def without_progress() -> contextlib.redirect_stdout:
    """The SDK prints a dot for each poll to stdout, where only the answer belongs."""
    return contextlib.redirect_stdout(StringIO())


def wire_value(value: Any) -> Any:
    """The SDK dumps some enum members by their Python name; the service and the real CLI say `Completed`."""
    if isinstance(value, dict):
        return {str(key): wire_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [wire_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    enum_name, _, member = value.partition(".") if isinstance(value, str) else ("", "", "")
    member_of_enum = getattr(getattr(rest_models, enum_name, None), member, None) if member else None
    return getattr(member_of_enum, "value", value)


def printed(entity: Any) -> Printed:
    """An entity as the real CLI prints it: wire values, a plain id, and the resource group beside it."""
    fields = wire_value(entity._to_dict())
    fields["id"] = str(fields.get("id") or entity.id or "").removeprefix("azureml:") or None
    resource_group = re.search("/resourceGroups/([^/]+)", fields["id"] or "", re.IGNORECASE)
    if resource_group:
        fields["resourceGroup"] = resource_group[1]
    return fields
