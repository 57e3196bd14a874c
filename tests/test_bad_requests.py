"""Names, headers and queries that nobody means well: nothing breaks, nothing gets out of the state folder."""

import json
import re
from typing import Any
from urllib.parse import quote

import pytest
from attacked import FUZZ, MARKER, NASTY, Target, ask, example, is_safe
from conftest import SCOPE
from deployed import SCRIPT, invoke, make_deployment, wait_for
from hypothesis import given
from hypothesis import strategies as st

from local_workspace import routes
from local_workspace.workspace import BLOB_HOST, MANAGEMENT_HOST, SAMPLES_HOST

NAMES = st.sampled_from(NASTY) | st.text(max_size=40).map(lambda text: quote(text, safe="", errors="replace"))
WORDS = st.sampled_from(
    [
        *NASTY,
        "",
        "0",
        "1",
        "container",
        "list",
        "block",
        "blocklist",
        "metadata",
        "metadata,tags",
        "5000",
        "/",
        "a",
    ]
)
QUERY_NAMES = [
    *(
        "restype",
        "comp",
        "prefix",
        "marker",
        "maxresults",
        "delimiter",
        "include",
        "blockid",
        "timeout",
        "sig",
    ),
    *("sp", "se", "sr", "$top", "$skip", "hash", "isDefault", "api-version", "key", "resource"),
]
HEADERS = [
    *("range", "x-ms-range", "content-md5", "if-none-match", "x-ms-blob-type", "x-ms-blob-content-type"),
    *("x-ms-blob-content-md5", "x-ms-copy-source", "x-ms-meta-a", "x-ms-meta-a!b", "content-type", "expect"),
    *("azureml-model-deployment", "content-encoding", "x-forwarded-host", "x-http-method-override", "cookie"),
    *("x-forwarded-proto", "forwarded", "upgrade", "connection", "accept-encoding", "origin"),
]
VALUES = st.sampled_from(
    [
        *("bytes=0-", "bytes=5-3", "bytes=-5", "bytes=0-99999999999999999999", "bytes=0-1,3-4", "bytes=a-b"),
        *(
            "bytes=99999999999999999999-",
            "items=0-1",
            "*",
            "AAAA",
            "100-continue",
            "websocket",
            "h2c",
            "gzip",
        ),
        *(
            "AppendBlob",
            "close",
            "text/html; charset=\xff",
            "\x80",
            "a\tb",
            "",
            "x" * 3000,
            "https://x.example.com",
        ),
    ]
)
METHODS = st.sampled_from(
    ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW", "get"]
)
PLACES = st.sampled_from([line[:3] for line in routes.TABLE if line[1] != SAMPLES_HOST])
BODIES = st.binary(max_size=200) | st.sampled_from(
    [
        *(
            b"{",
            b"[]",
            b"null",
            b'""',
            b"1",
            b"NaN",
            b'{"a": NaN}',
            b'{"a": 1e999}',
            b'{"a": -Infinity}',
            b"\xff",
        ),
        *(b'{"properties": "\\ud800"}', b'{"\\udfff": 1}', b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}", b"{}" * 2),
        *(b'{"a":' * 100_000, b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", "{}".encode("utf-16"), b"\0"),
        *(
            b"<BlockList><Latest>x</Latest></BlockList>",
            b"<a" * 1000,
            b"<?xml version='1.0' encoding='x'?><a/>",
        ),
        *(b"<?xml version='1.0' encoding='utf-32'?><a/>", b"<a>" * 50_000),
        b'<!DOCTYPE b [<!ENTITY a "' + b"x" * 10_000 + b'">]><b>' + b"<c>" + b"&a;" * 9_000 + b"</c></b>",
        b'<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]><b><c>&a;</c></b>',
    ]
)


@st.composite
def requests_of_a_stranger(draw: st.DrawFn) -> tuple[str, str, str, dict[str, str], bytes]:
    """A line of the table, some of its names exchanged, with more query and headers."""
    method, host, path = draw(PLACES)
    path, _, query = path.partition("?")
    kept = draw(st.booleans())
    path = example(path) if kept else re.sub("{[^}]+}", lambda _: draw(NAMES), path)
    path += "/" + draw(NAMES) if draw(st.integers(0, 4)) == 0 else ""
    more = draw(st.dictionaries(st.sampled_from(QUERY_NAMES), WORDS, max_size=3))
    query = "&".join([query, *(f"{name}={value}" for name, value in more.items())])
    headers = draw(st.dictionaries(st.sampled_from(HEADERS), VALUES, max_size=3))
    method = draw(METHODS) if draw(st.integers(0, 4)) == 0 else method
    return method, host, f"{path}?{query}", headers, draw(BODIES)


@FUZZ
@given(asked=requests_of_a_stranger())
def test_no_request_with_the_secret_is_a_failure_of_the_server(target: Target, asked: Any) -> None:
    method, host, path, headers, body = asked
    if method in ("DELETE", "PUT", "POST") and re.search("guarded|secret|cancel", path):
        path = path.replace("guarded", "other").replace("secret", "other")  # the other tests look for these
    secret = {BLOB_HOST: target.sas, routes.PAGE: target.key}.get(host, "")
    headers = headers | {
        "Authorization": f"Bearer {target.token}",
        "X-Identity-Header": target.served.identity[1],
    }
    answer = ask(target, method, host, f"{path}&{secret}".replace(" ", "%20"), headers, body)
    assert is_safe(answer), answer
    assert "x-injected" not in answer.headers


@FUZZ
@given(asked=requests_of_a_stranger())
def test_no_request_without_the_secret_is_told_anything(target: Target, asked: Any) -> None:
    method, host, path, headers, body = asked
    answer = ask(target, method, host, path.replace(" ", "%20"), headers, body)
    assert answer.status in (400, 401, 403, 404, 413, 501) or host == routes.PAGE or "/msi" not in path
    assert is_safe(answer) and MARKER.encode() not in answer.content


@pytest.mark.parametrize("name", [name for name in NASTY if " " not in name])
def test_a_blob_of_any_name_lies_in_the_state_folder_and_comes_back(target: Target, name: str) -> None:
    """Or is refused; what is around the state folder is compared when all is done."""
    for container in ("workspaceblobstore", name):
        path = f"/{container}/{name}?{target.sas}"
        put = ask(target, "PUT", BLOB_HOST, path, {"x-ms-blob-type": "BlockBlob"}, b"content")
        assert put.status in (201, 400, 404, 501), put
        if put.status == 201:
            assert ask(target, "GET", BLOB_HOST, path).content == b"content"
            assert ask(target, "DELETE", BLOB_HOST, path).status == 202


def test_a_job_stages_files_of_any_name_inside_its_own_folder(target: Target) -> None:
    make_deployment(target.served, "nasty", SCRIPT.replace("{WORD}", "7"))
    for number, name in enumerate([*NASTY, "c" * 200]):
        folder = "too-long" if len(name) >= 300 else f"nasty-data/{number}"
        path = f"/workspaceblobstore/{folder}/{name}?{target.sas}"
        ask(target, "PUT", BLOB_HOST, path, {"x-ms-blob-type": "BlockBlob"}, b"content")
    listing = f"/workspaceblobstore?restype=container&comp=list&prefix=nasty-data/&{target.sas}"
    names = re.findall("<Name>", ask(target, "GET", BLOB_HOST, listing).content.decode())
    details = score(target, "nasty-data")
    assert details["status"] == "Completed", details
    staged = [path for path in (target.served.state / "jobs").glob("*/data/**/*") if path.is_file()]
    nasty = [path for path in staged if path.read_bytes() == b"content"]
    assert len(nasty) == len(names) > 30
    failed = score(target, "too-long")  # than a file's name can be
    assert failed["status"] == "Failed" and "File name too long" in failed["error"]["error"]["message"]


def score(target: Target, folder: str) -> dict[str, Any]:
    uri = f"azureml://datastores/workspaceblobstore/paths/{folder}"
    given = {"inputData": {"x": {"jobInputType": "UriFolder", "uri": uri}}}
    job = invoke(target.served, "nasty", **given).json()["name"]
    return wait_for(target.served, job, "Completed", "Failed")


# Ranges, metadata, lists of blocks


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=5-9", 206, b"56789"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=8-", 206, b"89"),
        ("bytes=10-", 416, None),
        ("bytes=5-3", 416, None),
        ("bytes=" + "9" * 4000 + "-", 200, b"0123456789"),
        ("bytes=-3", 200, b"0123456789"),
        ("bytes=0-1,3-4", 200, b"0123456789"),
        ("bytes=\xb2-\xb3", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_a_range_is_answered_or_ignored(
    target: Target, asked: str, status: int, content: bytes | None
) -> None:
    path = f"/workspaceblobstore/ten?{target.sas}"
    ask(target, "PUT", BLOB_HOST, path, body=b"0123456789")
    answer = ask(target, "GET", BLOB_HOST, path, {"Range": asked})
    assert answer.status == status
    assert content is None or answer.content == content


def test_metadata_that_no_listing_could_show_is_refused(target: Target) -> None:
    path = f"/workspaceblobstore/described?{target.sas}"
    for name in ("a!b", "1a", "a.b", "a-b"):
        assert ask(target, "PUT", BLOB_HOST, path, {f"x-ms-meta-{name}": "v"}).status == 400
    assert ask(target, "PUT", BLOB_HOST, path, {"x-ms-meta-good": "<&>\xff"}).status == 201
    listing = (
        f"/workspaceblobstore?restype=container&comp=list&include=metadata&prefix=described&{target.sas}"
    )
    assert b"<good>&lt;&amp;&gt;\xc3\xbf</good>" in ask(target, "GET", BLOB_HOST, listing).content


@pytest.mark.parametrize("number", ["0", "-1", "9" * 5000, "٣", "1.5", "x", ""])
def test_a_number_in_a_query_that_is_none_is_as_none_at_all(target: Target, number: str) -> None:
    listing = f"/workspaceblobstore?restype=container&comp=list&maxresults={quote(number)}&{target.sas}"
    assert ask(target, "GET", BLOB_HOST, listing).status == 200
    headers = {"Authorization": f"Bearer {target.token}"}
    path = f"{SCOPE}/data/secret/versions?$top={quote(number)}"
    assert len(json.loads(ask(target, "GET", MANAGEMENT_HOST, path, headers).content)["value"]) == 1
