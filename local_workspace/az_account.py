"""The verbs of `az` beside `az ml`: who is signed in, the defaults, the versions. No SDK is imported.

They read what the real az keeps in AZURE_CONFIG_DIR: `azureProfile.json` and `config`.
"""

import json
import os
import platform
from datetime import datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from knack.config import CLIConfig
from knack.util import CLIError

MANAGEMENT = (
    "https://management.core.windows.net/"  # the audience of a token, unless --resource names another
)


def config_folder() -> Path:
    return Path(os.environ.get("AZURE_CONFIG_DIR", Path.home() / ".azure"))


def config() -> CLIConfig:
    return CLIConfig(str(config_folder()), "AZURE")


def account_show() -> dict[str, Any]:
    """Show the subscription that is in use."""
    profile = config_folder() / "azureProfile.json"
    subscriptions = (
        json.loads(profile.read_text(encoding="utf-8-sig"))["subscriptions"] if profile.exists() else []
    )
    for subscription in subscriptions:
        if subscription.get("isDefault"):
            return subscription
    raise CLIError("Please run 'az login' to setup account.")


def account_get_access_token(
    resource: str | None = None, scope: list[str] | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """Get a token for a client of the workspace."""
    from azure.identity import DefaultAzureCredential  # a fifth of a second that the other verbs do not pay

    account = account_show()
    scopes = scope or [f"{resource or MANAGEMENT}/.default".replace("//.default", "/.default")]
    token = DefaultAzureCredential().get_token(*scopes)
    return {
        "accessToken": token.token,
        "expiresOn": str(datetime.fromtimestamp(token.expires_on)),
        "expires_on": token.expires_on,
        "subscription": account["id"],
        "tenant": tenant or account["tenantId"],
        "tokenType": "Bearer",
    }


def configure(defaults: list[str] | None = None, list_defaults: bool = False) -> list[dict[str, str]] | None:
    """Set or list the values that flags have when they are not given, such as the workspace."""
    settings = config()
    if list_defaults:
        return settings.items(settings.defaults_section_name)
    if not defaults:
        raise CLIError("usage error: --defaults NAME=VALUE ... or --list-defaults")
    for default in defaults:
        name, equals, value = default.partition("=")
        if not equals:
            raise CLIError("usage error: --defaults STRING=STRING STRING=STRING ...")
        settings.set_value(settings.defaults_section_name, name, value)
    return None


def extension_list() -> list[dict[str, Any]]:
    """List the extensions: `ml`, which is azure-ai-ml itself here."""
    return [
        {
            "experimental": False,
            "extensionType": "local workspace",
            "name": "ml",
            "path": str(Path(__file__).parent),
            "preview": False,
            "version": installed_version("azure-ai-ml"),
        }
    ]


def extension_show(name: str) -> dict[str, Any]:
    """Show an extension."""
    for extension in extension_list():
        if extension["name"] == name:
            return extension
    raise CLIError(f"The extension {name} is not installed.")


def version() -> dict[str, Any]:
    """Show the versions of az and of its extensions."""
    return {
        "azure-cli": "local workspace",
        "extensions": {extension["name"]: extension["version"] for extension in extension_list()},
        "knack": installed_version("knack"),
        "python": platform.python_version(),
    }
