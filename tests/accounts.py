"""Storage as azure-storage-blob sees it: ours, or Azurite."""

from dataclasses import dataclass

from azure.storage.blob import BlobServiceClient
from conftest import SCOPE, Served

SMALL = 64 << 10  # bytes: larger bodies are sent in blocks, larger blobs are read in ranges


@dataclass
class Account:
    url: str
    sas: str
    options: dict[str, object]

    def service(self, sas: str | None = None) -> BlobServiceClient:
        sizes = {"max_single_put_size": SMALL, "max_block_size": SMALL}
        sizes |= {"max_single_get_size": SMALL, "max_chunk_get_size": SMALL}
        credential = self.sas if sas is None else sas
        return BlobServiceClient(self.url, credential=credential, retry_total=0, **sizes, **self.options)


def ours(served: Served) -> Account:
    secrets = served.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()
    options = {"proxies": dict(served.session.proxies), "connection_verify": served.session.verify}
    return Account("https://localworkspace.blob.azureml.test", secrets["sasToken"], options)
