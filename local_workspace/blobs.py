"""Blobs of storage: write them at once or in blocks, read, describe and delete them.

Bodies go straight to disk. What is read is one version of the blob, whatever is written meanwhile.
"""

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from local_workspace import conditions
from local_workspace.errors import ServiceError
from local_workspace.files import open_regular
from local_workspace.storage import API_VERSION, allow, answer, check_container, date, etag, header
from local_workspace.store import Blob, name_problem
from local_workspace.workspace import Call

RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")
METADATA_NAME = re.compile(
    r"[a-z_][a-z0-9_]*"
)  # of a header, hence in lower case; Azure wants identifiers too
CHUNK = 1 << 20  # bytes
MAX_BODY = 5000 << 20  # bytes in one Put Blob or Put Block, Azure's number
MAX_LIST = 16 << 20  # bytes in a list of blocks


def _metadata(call: Call) -> dict[str, str]:
    prefix = "x-ms-meta-"
    names = [name for name in call.request.headers if name.startswith(prefix)]
    metadata = {name[len(prefix) :]: header(call, name) for name in names}
    if not all(METADATA_NAME.fullmatch(name) for name in metadata):
        raise ServiceError(
            400, "InvalidMetadata", "The specified metadata is invalid: names are identifiers."
        )
    return metadata


def _blob(call: Call) -> Blob:
    blob = call.store.blob(call.names["container"], call.names["blob"])
    if blob is None:
        raise _not_found(call)
    return blob


def _not_found(call: Call) -> ServiceError:
    check_container(call)
    return ServiceError(404, "BlobNotFound", "The specified blob does not exist.")


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


# Writing


def _properties(call: Call) -> dict[str, Any]:
    return {
        "content_type": header(call, "x-ms-blob-content-type") or "application/octet-stream",
        "content_md5": header(call, "x-ms-blob-content-md5"),
        "metadata": _metadata(call),
    }


def _check_name(call: Call) -> None:
    """The container is there, and the blob is one that can be."""
    check_container(call)
    if name_problem(call.names["blob"]):
        raise ServiceError(
            400, "InvalidResourceName", "The specified resource name contains invalid characters."
        )
    if call.request.headers.get("x-ms-blob-type", "BlockBlob") != "BlockBlob":
        raise ServiceError(501, "NotImplemented", "The local workspace keeps block blobs only.")
    if "x-ms-copy-source" in call.request.headers:
        raise ServiceError(501, "NotImplemented", "The local workspace does not copy blobs.")


def _check_write(call: Call) -> None:
    """The conditions hold. `If-None-Match: *` is the SDK's `overwrite=False`."""
    headers = call.request.headers
    blob = call.store.blob(call.names["container"], call.names["blob"])
    state = blob.path.stat() if blob else None
    if blob and headers.get("if-none-match", "").strip() == "*":
        raise ServiceError(409, "BlobAlreadyExists", "The specified blob already exists.")
    conditions.check_write(
        headers, etag(blob, state) if blob and state else None, state.st_mtime if state else 0
    )


async def put_blob(call: Call) -> Response:
    allow(call, "cw")
    _check_name(call)
    _check_write(call)
    properties, path = _properties(call), call.store.new_file()
    content_md5 = await _receive(call, path)
    properties["content_md5"] = properties["content_md5"] or content_md5
    return _store(call, path, properties, content_md5)


def _store(call: Call, path: Path, properties: dict[str, Any], received_md5: str) -> Response:
    try:
        _check_write(call)  # again: another client may have been quicker
        blob = call.store.put_blob(call.names["container"], call.names["blob"], path, properties)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    state = blob.path.stat()
    return answer(201, etag=etag(blob, state), last_modified=date(state), content_md5=received_md5)


async def put_block(call: Call) -> Response:
    """A block waits for its list under a name of its own, and is there whole or not at all."""
    allow(call, "cw")
    _check_name(call)
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
    _check_name(call)
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
    try:
        with path.open("wb") as target:
            for block in blocks:
                with block.open("rb") as source:
                    shutil.copyfileobj(source, target, CHUNK)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        for folder in {block.parent for block in blocks}:
            shutil.rmtree(folder)


async def set_metadata(call: Call) -> Response:
    allow(call, "w")
    blob = _blob(call)
    properties = blob.properties | {"metadata": _metadata(call)}
    _check_write(call)
    call.store.set_blob_properties(call.names["container"], blob, properties)
    blob = _blob(call)
    state = blob.path.stat()
    return answer(200, etag=etag(blob, state), last_modified=date(state))


async def delete_blob(call: Call) -> Response:
    allow(call, "d")
    _blob(call)
    _check_write(call)
    call.store.delete_blob(call.names["container"], call.names["blob"])
    return answer(202)


# Reading


async def get_blob(call: Call) -> Response:
    """The blob or a range of it. A log that still grows is read up to the size it has now."""
    allow(call, "r")
    blob = _blob(call)
    try:
        file = open_regular(blob.path, links=False)
    except OSError:  # what a job has left may be gone, or no file any more
        raise _not_found(call) from None
    try:
        return _answer(call, blob, file)
    except BaseException:
        file.close()
        raise


def _answer(call: Call, blob: Blob, file: IO[bytes]) -> Response:
    state = os.fstat(file.fileno())
    conditions.check_read(call.request.headers, etag(blob, state), state.st_mtime)
    size = state.st_size
    first, last, status = 0, size - 1, 200
    asked = call.request.headers.get("x-ms-range") or call.request.headers.get("range")
    match = RANGE.fullmatch(asked) if asked else None
    if match:
        first, last, status = int(match[1]), min(int(match[2] or size - 1), size - 1), 206
        if not first <= last < size:
            raise ServiceError(416, "InvalidRange", "The range specified is invalid for the current size.")
    headers = _blob_headers(blob, state) | {"content-length": str(last - first + 1)}
    if status == 206:
        headers["content-range"] = f"bytes {first}-{last}/{size}"
        headers["x-ms-blob-content-md5"] = headers.pop("content-md5", "")
    if call.request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers)
    return StreamingResponse(_read(file, first, last - first + 1), status, headers)


def _read(file: IO[bytes], first: int, length: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        while length > 0 and (chunk := file.read(min(CHUNK, length))):
            length -= len(chunk)
            yield chunk


def _blob_headers(blob: Blob, state: os.stat_result) -> dict[str, str]:
    headers = {
        "x-ms-version": API_VERSION,
        "x-ms-blob-type": "BlockBlob",
        "etag": etag(blob, state),
        "last-modified": date(state),
        "content-type": blob.properties.get("content_type", "application/octet-stream"),
        "accept-ranges": "bytes",
    }
    if content_md5 := blob.properties.get("content_md5"):
        headers["content-md5"] = content_md5
    metadata = blob.properties.get("metadata", {})
    return headers | {f"x-ms-meta-{name}": value for name, value in metadata.items()}
