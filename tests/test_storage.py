"""The same calls of azure-storage-blob to our storage and to Azurite, so that ours cannot drift.

Azurite comes from npm into a cached folder, where Node is present.
"""

import base64
import os
from itertools import chain

import pytest
from accounts import SMALL, Account, ours
from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from azure.storage.blob import (
    ContainerClient,
)
from conftest import SCOPE, Served

NAMES = ["a.txt", "a/b.txt", "a/b/c d.txt", "ä/100%+&?#.txt", "a/../up.txt", "z=1.txt"]


def test_a_container_is_created_once(account: Account, container: ContainerClient) -> None:
    assert container.exists()
    with pytest.raises(ResourceExistsError) as raised:
        container.create_container()
    assert raised.value.error_code == "ContainerAlreadyExists"
    other = account.service().get_container_client("not-there")
    assert not other.exists()
    with pytest.raises(ResourceNotFoundError) as missing:
        list(other.list_blobs())
    assert missing.value.error_code == "ContainerNotFound"


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, 5 * SMALL + 7])
def test_content_comes_back_as_it_was(container: ContainerClient, size: int) -> None:
    content = os.urandom(size)
    blob = container.upload_blob("photo.JPEG", content)
    properties = blob.get_blob_properties()
    assert (properties.size, properties.blob_type) == (size, "BlockBlob")
    assert blob.download_blob(validate_content=True).readall() == content
    if size > 10:
        assert blob.download_blob(offset=3, length=5).readall() == content[3:8]


def test_names_are_kept_and_listed_in_order(container: ContainerClient) -> None:
    for name in NAMES:
        container.upload_blob(name, name.encode())
    listed = [blob.name for blob in container.list_blobs()]
    assert sorted(listed) == sorted([*NAMES[:4], "up.txt", "z=1.txt"])  # the client resolves `..` itself
    assert listed == sorted(listed)
    pages = [[blob.name for blob in page] for page in container.list_blobs(results_per_page=2).by_page()]
    assert [len(page) for page in pages] == [2, 2, 2] and list(chain(*pages)) == listed
    for name in listed:
        assert container.get_blob_client(name).exists()


def test_folders_are_walked(container: ContainerClient) -> None:
    for name in ("data/a.txt", "data/dogs/b.txt", "data/dogs/c.txt", "data.txt", "other/d.txt"):
        container.upload_blob(name, b"x")
    assert {one.name for one in container.walk_blobs()} == {"data.txt", "data/", "other/"}
    assert {one.name for one in container.walk_blobs("data/")} == {"data/a.txt", "data/dogs/"}
    assert [one.name for one in container.list_blobs("data/d")] == ["data/dogs/b.txt", "data/dogs/c.txt"]
    paged = [one.name for one in container.walk_blobs(results_per_page=1)]
    assert sorted(paged) == ["data.txt", "data/", "other/"]


def test_metadata_is_set_and_listed(container: ContainerClient) -> None:
    blob = container.upload_blob("a.txt", b"x", metadata={"name": "first"})
    blob.set_blob_metadata({"upload_confirmed": "True", "version": "1"})
    assert blob.get_blob_properties().metadata == {"upload_confirmed": "True", "version": "1"}
    (listed,) = container.list_blobs(include="metadata")
    assert (listed.metadata, listed.size) == ({"upload_confirmed": "True", "version": "1"}, 1)
    (plain,) = container.list_blobs()
    assert not plain.metadata


@pytest.mark.parametrize("size", [1, 3 * SMALL])
def test_a_blob_is_overwritten_only_when_asked(container: ContainerClient, size: int) -> None:
    container.upload_blob("a.txt", b"first" * size)
    with pytest.raises(ResourceExistsError) as raised:
        container.upload_blob("a.txt", b"second" * size)
    assert raised.value.error_code == "BlobAlreadyExists"
    container.upload_blob("a.txt", b"third" * size, overwrite=True)
    assert container.download_blob("a.txt").readall() == b"third" * size


def test_what_is_deleted_or_was_never_there_is_not_found(container: ContainerClient) -> None:
    container.upload_blob("a.txt", b"x")
    container.delete_blob("a.txt")
    for call in (container.delete_blob, container.download_blob):
        with pytest.raises(ResourceNotFoundError) as raised:
            call("a.txt")
        assert raised.value.error_code == "BlobNotFound"
    with pytest.raises(ResourceNotFoundError):
        container.get_blob_client("a.txt").get_blob_properties()


def test_a_wrong_digest_is_refused(container: ContainerClient) -> None:
    blob = container.get_blob_client("a.txt")
    blob.upload_blob(b"x", validate_content=True)
    with pytest.raises(HttpResponseError) as raised:
        blob.upload_blob(b"x", overwrite=True, headers={"Content-MD5": base64.b64encode(b"0" * 16).decode()})
    assert raised.value.error_code == "Md5Mismatch"


def test_an_unknown_block_is_refused(container: ContainerClient) -> None:
    with pytest.raises(HttpResponseError) as raised:
        container.get_blob_client("a.txt").commit_block_list(["never sent"])
    assert raised.value.error_code == "InvalidBlockList"


def test_a_wrong_signature_is_refused(account: Account, container: ContainerClient) -> None:
    container.upload_blob("a.txt", b"x")
    forged = account.sas.replace("sig=", "sig=x")
    with pytest.raises(HttpResponseError) as raised:
        account.service(forged).get_blob_client(container.container_name, "a.txt").download_blob()
    assert raised.value.status_code == 403


def test_a_signature_for_one_container_or_for_reading_allows_no_more(served: Served) -> None:
    """Ours only: what a code upload gets, and what a log's address carries."""
    upload = served.call("POST", f"{SCOPE}/codes/x/versions/1/startPendingUpload", json={}).json()
    address = upload["blobReferenceForConsumption"]["credential"]["sasUri"]
    signature = address.partition("?")[2]
    other = f"https://localworkspace.blob.azureml.test/workspaceblobstore/x?{signature}"
    assert served.session.put(other, data=b"x").status_code == 403
    assert served.session.put(address.replace("?", "/driver.py?"), data=b"x").status_code == 201
    assert served.session.delete(address.replace("?", "/driver.py?")).status_code == 403


@pytest.mark.parametrize("query", ["comp=appendblock", "comp=lease", "restype=account&comp=properties"])
def test_an_operation_that_is_not_here_changes_nothing(served: Served, query: str) -> None:
    account = ours(served)
    address = f"{account.url}/workspaceblobstore/kept.txt?{account.sas}"
    served.session.put(address, data=b"kept", headers={"x-ms-blob-type": "BlockBlob"})
    assert served.session.put(f"{address}&{query}", data=b"other").status_code == 501
    assert served.session.get(address).content == b"kept"
