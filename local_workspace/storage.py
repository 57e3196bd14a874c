"""The blob operations that the SDK uses, on the host `<account>.blob.azureml.test`.

As https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api has them; every call needs a
shared access signature. Bodies go straight to disk.
"""

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from local_workspace.errors import ServiceError
from local_workspace.store import Blob
from local_workspace.workspace import BLOB_HOST, Call, whole_number

API_VERSION = "2025-01-05"
CONTAINER_NAME = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")
METADATA_NAME = re.compile(
    r"[a-z_][a-z0-9_]*"
)  # of a header, hence in lower case; Azure wants identifiers too
NO_NAME = re.compile(r"[\x00-\x1f\ufffe\uffff]")  # XML, in which names are listed, has no such characters
CHUNK = 1 << 20  # bytes
MAX_BODY = 5000 << 20  # bytes in one Put Blob or Put Block, Azure's number
MAX_LIST = 16 << 20  # bytes in a list of blocks
MAX_NAME = 1024  # characters
PAGE = 5000  # blobs in one answer, Azure's number


def allow(call: Call, permission: str) -> None:
    """Refuse a call whose signature does not cover this container and this kind of work."""
    query, container = call.request.query_params, call.names["container"]
    if "sig" not in query:
        raise ServiceError(401, "NoAuthenticationInformation", "The request has no shared access signature.")
    if not any(call.workspace.keys.accepts_sas(query, container, one) for one in permission):
        message = "The shared access signature is wrong, has expired or does not allow this."
        raise ServiceError(403, "AuthenticationFailed", message)


def answer(status: int, **headers: str) -> Response:
    """An answer without a body; header names are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status_code=status, headers={"x-ms-version": API_VERSION, **named})


def _etag(blob: Blob) -> str:
    state = blob.path.stat()
    return f'"0x{state.st_mtime_ns:X}{state.st_size:X}"'


def _date(blob: Blob) -> str:
    return formatdate(blob.modified, usegmt=True)


def _metadata(call: Call) -> dict[str, str]:
    prefix = "x-ms-meta-"
    headers = call.request.headers.items()
    metadata = {name[len(prefix) :]: value for name, value in headers if name.startswith(prefix)}
    if not all(METADATA_NAME.fullmatch(name) for name in metadata):
        raise ServiceError(
            400, "InvalidMetadata", "The specified metadata is invalid: names are identifiers."
        )
    return metadata


def _blob(call: Call) -> Blob:
    container, name = call.names["container"], call.names["blob"]
    blob = call.store.blob(container, name)
    if blob is None:
        _check_container(call)
        raise ServiceError(404, "BlobNotFound", "The specified blob does not exist.")
    return blob


def _check_container(call: Call) -> None:
    if not call.store.has_container(call.names["container"]):
        raise ServiceError(404, "ContainerNotFound", "The specified container does not exist.")


async def _receive(call: Call, path: Path, limit: int = MAX_BODY) -> str:
    """Write the body to `path`; its MD5 in base64, checked against Content-MD5 where the client sent one.

    The answer's Content-MD5 has to be that of the REQUEST's body: the client compares the two.
    """
    try:
        received = await _write_body(call, path, limit)
        if call.request.headers.get("content-md5", received) != received:
            raise ServiceError(400, "Md5Mismatch", "The MD5 value of the request does not match its body.")
    except BaseException:  # also a client that has gone
        path.unlink(missing_ok=True)
        raise
    return received


async def _write_body(call: Call, path: Path, limit: int) -> str:
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with path.open("wb") as file:
        async for chunk in call.request.stream():
            size += len(chunk)
            if size > limit:
                raise ServiceError(413, "RequestBodyTooLarge", "The request body is too large.")
            file.write(chunk)
            digest.update(chunk)
    return base64.b64encode(digest.digest()).decode()


# Containers


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
    _check_container(call)
    return answer(200)


async def list_blobs(call: Call) -> Response:
    """A page of blobs, or of blobs and the folders beneath a prefix where a delimiter is given."""
    allow(call, "l")
    _check_container(call)
    query = call.request.query_params
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    if NO_NAME.search(prefix):
        raise ServiceError(400, "InvalidQueryParameterValue", "The prefix contains invalid characters.")
    limit = min(whole_number(query.get("maxresults", ""), PAGE), PAGE)
    found = call.store.blobs(call.names["container"], prefix, query.get("marker", ""))
    entries, marker = _page(found, prefix, delimiter, limit)
    root = ElementTree.Element("EnumerationResults")
    root.set("ServiceEndpoint", f"https://{BLOB_HOST}/")
    root.set("ContainerName", call.names["container"])
    ElementTree.SubElement(root, "Prefix").text = prefix
    ElementTree.SubElement(root, "MaxResults").text = str(limit)  # the client asks for the next page by it
    blobs = ElementTree.SubElement(root, "Blobs")
    for entry in entries:
        _add_entry(blobs, entry, "metadata" in query.get("include", ""))
    ElementTree.SubElement(root, "NextMarker").text = marker
    content = b'<?xml version="1.0" encoding="utf-8"?>' + ElementTree.tostring(root, encoding="utf-8")
    return Response(content, media_type="application/xml", headers={"x-ms-version": API_VERSION})


def _page(found: Iterator[Blob], prefix: str, delimiter: str, limit: int) -> tuple[list[Blob | str], str]:
    """Entries of one answer, a folder once; and the name after which the next answer starts."""
    entries: list[Blob | str] = []
    last = ""
    for blob in found:
        end = blob.name.find(delimiter, len(prefix)) if delimiter else -1
        entry = blob if end < 0 else blob.name[: end + len(delimiter)]
        if isinstance(entry, str) and entries and entries[-1] == entry:
            last = blob.name
            continue
        if len(entries) == limit:
            return entries, last
        entries.append(entry)
        last = blob.name
    return entries, ""


def _add_entry(parent: ElementTree.Element, entry: Blob | str, with_metadata: bool) -> None:
    if isinstance(entry, str):
        folder = ElementTree.SubElement(parent, "BlobPrefix")
        ElementTree.SubElement(folder, "Name").text = entry
        return
    element = ElementTree.SubElement(parent, "Blob")
    ElementTree.SubElement(element, "Name").text = entry.name
    properties = ElementTree.SubElement(element, "Properties")
    values = {
        "Last-Modified": _date(entry),
        "Etag": _etag(entry).strip('"'),
        "Content-Length": str(entry.size),
        "Content-Type": entry.properties.get("content_type", ""),
        "Content-MD5": entry.properties.get("content_md5", ""),
        "BlobType": "BlockBlob",
    }
    for name, value in values.items():
        ElementTree.SubElement(properties, name).text = value
    if with_metadata:
        metadata = ElementTree.SubElement(element, "Metadata")
        for name, value in entry.properties.get("metadata", {}).items():
            ElementTree.SubElement(metadata, name).text = value


# Blobs


def _properties(call: Call) -> dict[str, Any]:
    headers = call.request.headers
    return {
        "content_type": headers.get("x-ms-blob-content-type") or "application/octet-stream",
        "content_md5": headers.get("x-ms-blob-content-md5", ""),
        "metadata": _metadata(call),
    }


def _check_write(call: Call) -> None:
    """The container is there, the name is one, and `If-None-Match: *` (the SDK's `overwrite=False`) holds."""
    _check_container(call)
    name = call.names["blob"]
    if len(name) > MAX_NAME or NO_NAME.search(name):
        raise ServiceError(
            400, "InvalidResourceName", "The specified resource name contains invalid characters."
        )
    if call.request.headers.get("x-ms-blob-type", "BlockBlob") != "BlockBlob":
        raise ServiceError(501, "NotImplemented", "The local workspace keeps block blobs only.")
    if "x-ms-copy-source" in call.request.headers:
        raise ServiceError(501, "NotImplemented", "The local workspace does not copy blobs.")
    _check_overwrite(call)


def _check_overwrite(call: Call) -> None:
    exists = call.store.blob(call.names["container"], call.names["blob"]) is not None
    if exists and call.request.headers.get("if-none-match") == "*":
        raise ServiceError(409, "BlobAlreadyExists", "The specified blob already exists.")


async def put_blob(call: Call) -> Response:
    allow(call, "cw")
    _check_write(call)
    properties, path = _properties(call), call.store.new_file()
    content_md5 = await _receive(call, path)
    properties["content_md5"] = properties["content_md5"] or content_md5
    return _store(call, path, properties, content_md5)


def _store(call: Call, path: Path, properties: dict[str, Any], received_md5: str) -> Response:
    try:
        _check_overwrite(call)  # again: another client may have been quicker
    except ServiceError:
        path.unlink()
        raise
    blob = call.store.put_blob(call.names["container"], call.names["blob"], path, properties)
    return answer(201, etag=_etag(blob), last_modified=_date(blob), content_md5=received_md5)


async def put_block(call: Call) -> Response:
    """A block waits for its list under a name of its own, and is there whole or not at all."""
    allow(call, "cw")
    _check_write(call)
    path = call.store.new_file()
    received_md5 = await _receive(call, path)
    folder = _blocks(call)
    folder.mkdir(exist_ok=True)
    path.replace(folder / _file_of(call.request.query_params.get("blockid", "")))
    return answer(201, content_md5=received_md5)


def _blocks(call: Call) -> Path:
    """The folder of the blocks that wait for the list of this blob; both are named by a digest."""
    return call.store.new_file().with_name(_file_of(f"{call.names['container']}/{call.names['blob']}"))


def _file_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


async def put_block_list(call: Call) -> Response:
    """Make a blob of the blocks that are named. The others stay, unlike in Azure: they may be another
    client's, which uploads the same blob just now.
    """
    allow(call, "cw")
    _check_write(call)
    properties, listing = _properties(call), call.store.new_file()
    received_md5 = await _receive(call, listing, MAX_LIST)
    blocks = _take_blocks(call, _block_ids(listing))
    path = call.store.new_file()
    await run_in_threadpool(_join, blocks, path)
    return _store(call, path, properties, received_md5)


def _take_blocks(call: Call, block_ids: list[str]) -> list[Path]:
    """The blocks in order, moved out of the way of another list that names them."""
    waiting = [_blocks(call) / _file_of(block_id) for block_id in block_ids]
    if not all(block.is_file() for block in waiting):
        raise ServiceError(400, "InvalidBlockList", "The specified block list is invalid.")
    taken = call.store.new_file()
    taken.mkdir()
    for block in set(waiting):
        block.rename(taken / block.name)
    return [taken / block.name for block in waiting]


def _block_ids(listing: Path) -> list[str]:
    try:
        # Expat bounds what entities become, and reads no file that they name.
        root = ElementTree.parse(listing).getroot()  # noqa: S314  # nosec B314
        return [element.text or "" for element in root]
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: its encoding
        raise ServiceError(
            400, "InvalidXmlDocument", f"The list of blocks is not valid XML: {error}"
        ) from None
    finally:
        listing.unlink()


def _join(blocks: list[Path], path: Path) -> None:
    with path.open("wb") as target:
        for block in blocks:
            with block.open("rb") as source:
                shutil.copyfileobj(source, target, CHUNK)
    for folder in {block.parent for block in blocks}:
        shutil.rmtree(folder)


async def set_metadata(call: Call) -> Response:
    allow(call, "w")
    blob = _blob(call)
    call.store.set_blob_properties(
        call.names["container"], blob.name, blob.properties | {"metadata": _metadata(call)}
    )
    return answer(200, etag=_etag(blob), last_modified=_date(blob))


async def delete_blob(call: Call) -> Response:
    allow(call, "d")
    _blob(call)
    call.store.delete_blob(call.names["container"], call.names["blob"])
    return answer(202)


async def get_blob(call: Call) -> Response:
    """The blob or a range of it. A log that still grows is read up to the size it has now."""
    allow(call, "r")
    blob = _blob(call)
    size = blob.size
    first, last, status = 0, size - 1, 200
    asked = call.request.headers.get("x-ms-range") or call.request.headers.get("range")
    match = RANGE.fullmatch(asked) if asked else None
    if match:
        first, last, status = int(match[1]), min(int(match[2] or size - 1), size - 1), 206
        if not first <= last < size:
            raise ServiceError(416, "InvalidRange", "The range specified is invalid for the current size.")
    headers = _blob_headers(blob) | {"content-length": str(last - first + 1)}
    if status == 206:
        headers["content-range"] = f"bytes {first}-{last}/{size}"
        headers["x-ms-blob-content-md5"] = headers.pop("content-md5", "")
    if call.request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_read(blob.path, first, last - first + 1), status, headers)


def _read(path: Path, first: int, length: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            length -= len(chunk)
            yield chunk


def _blob_headers(blob: Blob) -> dict[str, str]:
    headers = {
        "x-ms-version": API_VERSION,
        "x-ms-blob-type": "BlockBlob",
        "etag": _etag(blob),
        "last-modified": _date(blob),
        "content-type": blob.properties.get("content_type", "application/octet-stream"),
        "accept-ranges": "bytes",
    }
    if content_md5 := blob.properties.get("content_md5"):
        headers["content-md5"] = content_md5
    metadata = blob.properties.get("metadata", {})
    return headers | {f"x-ms-meta-{name}": value for name, value in metadata.items()}
