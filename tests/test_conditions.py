"""If-Match, If-None-Match and their dates: what azure-storage-blob makes of our answers, and of Azurite's."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from accounts import SMALL, ours
from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceModifiedError
from azure.storage.blob import BlobClient, ContainerClient
from conftest import Served

from local_workspace import storage
from local_workspace.store import Blob

SAME, OTHER = MatchConditions.IfNotModified, MatchConditions.IfModified
HOUR = timedelta(hours=1)


def etag(blob: BlobClient) -> str:
    return blob.get_blob_properties().etag


def not_met(call: Callable[[], Any]) -> None:
    with pytest.raises(ResourceModifiedError) as raised:
        call()
    assert (raised.value.status_code, raised.value.error_code) == (412, "ConditionNotMet")


def not_modified(call: Callable[[], Any]) -> None:
    with pytest.raises(HttpResponseError) as raised:  # the client has two classes for it
        call()
    assert (raised.value.status_code, raised.value.error_code) == (304, "ConditionNotMet")


def test_a_download_in_ranges_never_mixes_two_versions(container: ContainerClient) -> None:
    blob = container.upload_blob("a", b"1" * 4 * SMALL)
    download = blob.download_blob()  # the first range
    container.upload_blob("a", b"2" * 4 * SMALL, overwrite=True)
    not_met(download.readall)
    assert blob.download_blob().readall() == b"2" * 4 * SMALL


@pytest.mark.parametrize("size", [1, 3 * SMALL], ids=["at once", "in blocks"])
def test_a_blob_is_overwritten_only_while_it_is_the_one_that_was_read(
    container: ContainerClient, size: int
) -> None:
    blob = container.upload_blob("a", b"1" * size)
    read = etag(blob)
    blob.upload_blob(b"2" * size, overwrite=True, etag=read, match_condition=SAME)
    not_met(lambda: blob.upload_blob(b"3" * size, overwrite=True, etag=read, match_condition=SAME))
    assert blob.download_blob().readall() == b"2" * size
    not_met(lambda: blob.upload_blob(b"4" * size, overwrite=True, etag=etag(blob), match_condition=OTHER))
    blob.upload_blob(b"5" * size, overwrite=True, etag=read, match_condition=OTHER)
    assert blob.download_blob().readall() == b"5" * size


def test_all_that_changes_a_blob_takes_a_condition(container: ContainerClient) -> None:
    blob = container.upload_blob("a", b"1", metadata={"of": "first"})
    read = etag(blob)
    blob.set_blob_metadata({"of": "second"}, etag=read, match_condition=SAME)
    assert etag(blob) != read  # metadata is a part of the version
    not_met(lambda: blob.set_blob_metadata({"of": "third"}, etag=read, match_condition=SAME))
    not_met(lambda: blob.delete_blob(etag=read, match_condition=SAME))
    assert blob.get_blob_properties().metadata == {"of": "second"}
    blob.delete_blob(etag=etag(blob), match_condition=SAME)
    assert not blob.exists()


def test_what_has_not_changed_is_not_read_again(container: ContainerClient) -> None:
    blob = container.upload_blob("a", b"content")
    read = etag(blob)
    for call in (blob.download_blob, blob.get_blob_properties):
        not_modified(lambda call=call: call(etag=read, match_condition=OTHER))
        call(etag=read, match_condition=SAME)
        not_met(lambda call=call: call(etag='"0x0"', match_condition=SAME))
    assert blob.download_blob(etag='"0x0"', match_condition=OTHER).readall() == b"content"


def test_dates_are_conditions_too(container: ContainerClient) -> None:
    blob = container.upload_blob("a", b"content")
    written = blob.get_blob_properties().last_modified
    for call in (blob.download_blob, blob.get_blob_properties):
        for since in (written, written + HOUR):
            not_modified(lambda call=call, since=since: call(if_modified_since=since))
            call(if_unmodified_since=since)
        call(if_modified_since=written - HOUR)
        not_met(lambda call=call: call(if_unmodified_since=written - HOUR))
    not_met(lambda: blob.upload_blob(b"x", overwrite=True, if_unmodified_since=written - HOUR))
    not_met(lambda: blob.upload_blob(b"x", overwrite=True, if_modified_since=written))
    not_met(lambda: blob.delete_blob(if_unmodified_since=written - HOUR))
    assert blob.download_blob().readall() == b"content"
    blob.upload_blob(b"y", overwrite=True, if_unmodified_since=written)
    blob.delete_blob(if_modified_since=written - HOUR)


def test_reading_takes_several_conditions_and_writing_a_pair(container: ContainerClient) -> None:
    blob = container.upload_blob("a", b"content")
    written, read = blob.get_blob_properties().last_modified, etag(blob)
    # of If-None-Match and If-Modified-Since one is enough
    blob.download_blob(etag=read, match_condition=OTHER, if_modified_since=written - HOUR)
    not_modified(lambda: blob.download_blob(etag=read, match_condition=OTHER, if_modified_since=written))
    not_met(lambda: blob.download_blob(etag=read, match_condition=SAME, if_unmodified_since=written - HOUR))
    # the ETag decides, whatever the date beside it is
    blob.set_blob_metadata({}, etag=read, match_condition=SAME, if_unmodified_since=written - HOUR)
    with pytest.raises(HttpResponseError) as raised:
        blob.set_blob_metadata({}, etag=read, match_condition=SAME, if_modified_since=written)
    assert (raised.value.status_code, raised.value.error_code) == (
        400,
        "MultipleConditionHeadersNotSupported",
    )


def test_every_write_is_another_version(container: ContainerClient) -> None:
    """Also of one size, and within one tick of the file system's clock."""
    blob = container.get_blob_client("a")
    tags = [blob.upload_blob(bytes([number]) * 8, overwrite=True)["etag"] for number in range(60)]
    assert len(set(tags)) == 60


# Ours only: where Azurite does otherwise, or has no word for it


def test_a_condition_on_what_is_not_there(served: Served) -> None:
    with ours(served).service() as service:
        blob = service.get_blob_client("workspaceblobstore", "condition-none")
        for condition in (
            {"etag": '"0x0"', "match_condition": SAME},
            {"match_condition": MatchConditions.IfPresent},
        ):
            not_met(lambda condition=condition: blob.upload_blob(b"x", overwrite=True, **condition))
        assert not blob.exists()
        blob.upload_blob(b"x", etag='"0x0"', match_condition=OTHER, overwrite=True)
        blob.delete_blob()


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"If-None-Match": "*"}, 400, "UnsatisfiableCondition"),
        ({"If-Match": "*"}, 200, None),
        ({"If-Match": '"0x0", *'}, 200, None),
        ({"If-Match": "0x0,0x1"}, 412, "ConditionNotMet"),
        ({"If-Modified-Since": "yesterday"}, 400, "InvalidHeaderValue"),
        ({"If-Unmodified-Since": "Mon, 32 Foo 2026 00:00:00 GMT"}, 400, "InvalidHeaderValue"),
        ({"If-Modified-Since": "Mon, 01 Jan 2001 00:00:00 GMT"}, 200, None),
        ({"If-Modified-Since": "Fri, 31 Dec 9999 23:59:59 GMT"}, 304, "ConditionNotMet"),
    ],
)
def test_conditions_as_they_may_be_written(
    served: Served, headers: dict[str, str], status: int, code: str | None
) -> None:
    account = ours(served)
    address = f"{account.url}/workspaceblobstore/condition?{account.sas}"
    assert served.session.put(address, data=b"content").status_code == 201
    for method in ("GET", "HEAD"):
        answer = served.session.request(method, address, headers=headers)
        assert (answer.status_code, answer.headers.get("x-ms-error-code")) == (status, code)
    assert served.session.get(address).content == b"content"


def test_a_date_is_compared_in_whole_seconds_as_it_is_told(served: Served) -> None:
    account = ours(served)
    address = f"{account.url}/workspaceblobstore/condition-date?{account.sas}"
    told = served.session.put(address, data=b"content").headers["last-modified"]
    assert served.session.get(address, headers={"If-Modified-Since": told}).status_code == 304
    assert served.session.get(address, headers={"If-Unmodified-Since": told}).status_code == 200
    now = datetime.now(timezone.utc)
    assert abs(datetime.strptime(told, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=timezone.utc) - now) < HOUR


def test_a_version_is_told_by_more_than_its_size_and_time(tmp_path: Path) -> None:
    """What is sent in blocks has no digest, and a clock ticks every few milliseconds."""
    state = tmp_path.stat()
    blobs = [Blob("a", tmp_path / name, {"metadata": {"of": of}}) for name in "xy" for of in "12"]
    assert len({storage.etag(blob, state) for blob in blobs}) == 4
    assert re.fullmatch('"0x[0-9A-F]{15}"', storage.etag(blobs[0], state))
