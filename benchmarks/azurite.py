"""Azurite, Microsoft's storage emulator, from npm: what the local workspace's storage is measured against."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from benchmarks.contenders import LeftOut

AZURITE = "3.37.0"


def install() -> list[str]:
    """The command that starts it. npm is asked once; then the cached folder of the tests has it."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        raise LeftOut("Node and npm are not here, so there is no Azurite to compare with")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "imagenet-classifier-batch" / f"azurite-{AZURITE}"
    script = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not script.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", f"azurite@{AZURITE}"]
        if subprocess.run(command, capture_output=True, timeout=300).returncode:
            raise LeftOut("npm could not install Azurite")
    return [node, str(script)]


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The running server, which keeps its blobs in `folder`, and its address with a signature for all."""
    from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

    command = install()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    key = base64.b64encode(os.urandom(32)).decode()
    options = ["--location", str(folder), "--blobPort", str(port), "--skipApiVersionCheck", "--silent"]
    environment = os.environ | {"AZURITE_ACCOUNTS": f"account:{key}"}
    server = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.05)
    permissions = AccountSasPermissions.from_string("rwdlac")
    types = ResourceTypes(service=True, container=True, object=True)
    expiry = datetime.now(timezone.utc) + timedelta(hours=6)
    signature = generate_account_sas("account", key, types, permissions, expiry)
    return server, f"http://127.0.0.1:{port}/account?{signature}"
