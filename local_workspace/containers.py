"""Containers of storage: create one, look for it, list its blobs."""

import os
import re
from typing import NamedTuple
from xml.etree import ElementTree

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from local_workspace.errors import ServiceError
from local_workspace.storage import API_VERSION, allow, answer, check_container, date, etag
from local_workspace.store import NO_NAME, Blob, Store
from local_workspace.workspace import BLOB_HOST, Call, whole_number

CONTAINER_NAME = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
PAGE = 5000  # blobs in one answer, Azure's number


class Entry(NamedTuple):
    """A line of a listing: a blob, or a folder of blobs, which has a name only."""

    name: str
    blob: Blob | None = None
    state: os.stat_result | None = None


async def create_container(call: Call) -> Response:
    allow(call, "cw")
    name = call.names["container"]
    if not CONTAINER_NAME.fullmatch(name):
        raise ServiceError(
            400, "InvalidResourceName", "The specified resource name contains invalid characters."
        )
    if not call.store.create_container(name):
        raise ServiceError(409, "ContainerAlreadyExists", "The specified container already exists.")
    return answer(201)


async def get_container(call: Call) -> Response:
    allow(call, "rl")
    check_container(call)
    return answer(200)


async def list_blobs(call: Call) -> Response:
    """A page of blobs, or of blobs and the folders beneath a prefix where a delimiter is given."""
    allow(call, "l")
    check_container(call)
    query = call.request.query_params
    for name in ("prefix", "delimiter", "marker"):
        if NO_NAME.search(query.get(name, "")):
            raise ServiceError(400, "InvalidQueryParameterValue", f"The {name} contains invalid characters.")
    content = await run_in_threadpool(_listing, call)
    return Response(content, media_type="application/xml", headers={"x-ms-version": API_VERSION})


def _listing(call: Call) -> bytes:
    query, container = call.request.query_params, call.names["container"]
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    limit = min(whole_number(query.get("maxresults", ""), PAGE), PAGE)
    entries = page(call.store, container, prefix, delimiter, query.get("marker", ""), limit + 1)
    root = ElementTree.Element("EnumerationResults")
    root.set("ServiceEndpoint", f"https://{BLOB_HOST}/")
    root.set("ContainerName", container)
    ElementTree.SubElement(root, "Prefix").text = prefix
    ElementTree.SubElement(root, "MaxResults").text = str(limit)  # the client asks for the next page by it
    blobs = ElementTree.SubElement(root, "Blobs")
    for entry in entries[:limit]:
        _add_entry(blobs, entry, "metadata" in query.get("include", ""))
    ElementTree.SubElement(root, "NextMarker").text = entries[limit].name if len(entries) > limit else ""
    return b'<?xml version="1.0" encoding="utf-8"?>' + ElementTree.tostring(root, encoding="utf-8")


def page(store: Store, container: str, prefix: str, delimiter: str, marker: str, limit: int) -> list[Entry]:
    """At most `limit` entries from the name `marker` on, a folder once; what is in a folder is not read."""
    entries: list[Entry] = []
    start = max(prefix, marker)
    while rows := store.blobs_from(container, start):
        for blob in rows:
            if len(entries) == limit or not blob.name.startswith(prefix):
                return entries
            if blob.name < start:  # in the folder before
                continue
            try:
                state = blob.path.stat()
            except OSError:  # a person may have deleted a job's folder
                continue
            end = blob.name.find(delimiter, len(prefix)) if delimiter else -1
            folder = blob.name[: end + len(delimiter)] if end >= 0 else ""
            entries.append(Entry(folder) if folder else Entry(blob.name, blob, state))
            start = after_all(folder) if folder else blob.name
        start = max(start, rows[-1].name + "\0")  # the next name that there can be
    return entries


def after_all(prefix: str) -> str:
    """The first name after all that begin with `prefix`."""
    last = ord(prefix[-1]) + 1
    if last > 0x10FFFF:
        return after_all(prefix[:-1]) if prefix[:-1] else prefix + prefix[-1] * 2000  # longer than any name
    return prefix[:-1] + chr(0xE000 if last == 0xD800 else last)


def _add_entry(parent: ElementTree.Element, entry: Entry, with_metadata: bool) -> None:
    if entry.blob is None or entry.state is None:
        folder = ElementTree.SubElement(parent, "BlobPrefix")
        ElementTree.SubElement(folder, "Name").text = entry.name
        return
    element = ElementTree.SubElement(parent, "Blob")
    ElementTree.SubElement(element, "Name").text = entry.name
    properties = ElementTree.SubElement(element, "Properties")
    values = {
        "Last-Modified": date(entry.state),
        "Etag": etag(entry.blob, entry.state).strip('"'),
        "Content-Length": str(entry.state.st_size),
        "Content-Type": entry.blob.properties.get("content_type", ""),
        "Content-MD5": entry.blob.properties.get("content_md5", ""),
        "BlobType": "BlockBlob",
    }
    for name, value in values.items():
        ElementTree.SubElement(properties, name).text = value
    if with_metadata:
        metadata = ElementTree.SubElement(element, "Metadata")
        for name, value in entry.blob.properties.get("metadata", {}).items():
            ElementTree.SubElement(metadata, name).text = value
