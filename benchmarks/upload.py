"""Uploads photos with azure-storage-blob, as azure-ai-ml does for a data asset: the same for both servers.

Inside `python -m local_workspace run` it finds the workspace by itself; else STORAGE is an address with a
signature, Azurite's.
"""

import json
import os
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import cpu_count
from pathlib import Path

from azure.storage.blob import ContainerClient

THREADS = 2 * cpu_count()  # azure-ai-ml 1.35: PROCESSES_PER_CORE of azure/ai/ml/_artifacts/_constants.py


def main() -> None:
    container = azurite() if "STORAGE" in os.environ else local_workspace()
    for line in sys.stdin:
        paths, folder = json.loads(line), uuid.uuid4()
        begin = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(lambda path, folder=folder: upload(container, path, f"{folder}/{path}"), paths))
        print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)


def upload(container: ContainerClient, path: str, name: str) -> None:
    with Path(path).open("rb") as data:
        container.upload_blob(name, data, overwrite=True, max_concurrency=16)


def local_workspace() -> ContainerClient:
    from azure.ai.ml import MLClient
    from azure.identity import ManagedIdentityCredential

    names = [
        os.environ[f"AZUREML_ARM_{name}"] for name in ("SUBSCRIPTION", "RESOURCEGROUP", "WORKSPACE_NAME")
    ]
    client = MLClient(ManagedIdentityCredential(), *names)
    store = client.datastores.get("workspaceblobstore", include_secrets=True)
    address = f"https://{store.account_name}.blob.{store.endpoint}/{store.container_name}"
    return ContainerClient.from_container_url(f"{address}?{store.credentials.sas_token.lstrip('?')}")


def azurite() -> ContainerClient:
    address, _, signature = os.environ["STORAGE"].partition("?")
    container = ContainerClient.from_container_url(f"{address}/photos?{signature}")
    container.create_container()
    return container


if __name__ == "__main__":
    main()
