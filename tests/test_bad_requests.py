"""What no client of Azure sends, to every route, over real sockets: nothing is told, nothing breaks."""

import copy
import http.client
import json
import os
import re
import select
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import jwt
import pytest
from conftest import SCOPE, Served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_local_workspace import SCRIPT, invoke, make_deployment, upload, wait_for

from local_workspace import arm, page, routes
from local_workspace.tokens import Keys
from local_workspace.workspace import API_HOST, BLOB_HOST, MANAGEMENT_HOST, SAMPLES_HOST

MARKER = "only the owner may read this"
# The same examples each time, so that the suite passes or fails for what changed. More, by hand:
# EXAMPLES=20000 python -m pytest tests/test_bad_requests.py
MOST = int(os.environ.get("EXAMPLES", "150"))
FUZZ = settings(
    max_examples=MOST,
    derandomize="EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Target(NamedTuple):
    served: Served
    token: str
    sas: str
    key: str  # `key=...`, of the pages
    port: int
    page_port: int
    proxy_port: int


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    content: bytes


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A workspace of its own that holds something of everything; afterwards, what must not have happened."""
    folder = tmp_path_factory.mktemp("attacked")
    state = folder / "some" / "levels" / "down" / "state"
    state.parent.mkdir(parents=True)
    (folder / "beside.txt").write_text("not part of the state")
    before = outside(folder, state)
    served = Served(state)
    make_deployment(served, "guarded", SCRIPT.replace("{path} {WORD}", "tench.JPEG 7 0.5"))
    upload(served, "workspaceblobstore", "secret.txt", MARKER.encode())
    served.put("data/secret/versions/1", dataType="uri_file", dataUri=MARKER)
    assert invoke(served, "guarded", name="scored").status_code == 201
    assert wait_for(served, "scored", "Completed", "Failed")["status"] == "Completed"
    sas = served.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()["sasToken"]
    pages, proxy = (urlsplit(served.environment[name]) for name in ("LOCAL_WORKSPACE_PAGE", "HTTPS_PROXY"))
    port = urlsplit(served.identity[0]).port
    yield Target(served, served.token(), sas, pages.query, port, pages.port, proxy.port)
    assert served.session.get(f"https://{BLOB_HOST}/workspaceblobstore/secret.txt?{sas}").text == MARKER
    assert served.stop() == 0
    assert "Traceback" not in served.log.read_text()
    assert not re.search(r"^[\d:]{8} 500 ", (state / "access.log").read_text(), re.MULTILINE)
    assert "\x1b" not in served.log.read_text() + (state / "access.log").read_text()  # a terminal shows them
    assert outside(folder, state) == before


def outside(folder: Path, state: Path) -> dict[Path, bytes]:
    """Every file and folder around the state folder; the server's log beside it is the test's own."""
    paths = [path for path in folder.rglob("*") if state not in [path, *path.parents]]
    return {path: path.read_bytes() if path.is_file() else b"" for path in paths if path.suffix != ".log"}


def ask(
    target: Target,
    method: str,
    host: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
) -> Answer:
    """One request over a connection of its own, straight to the port: the path arrives as it is written."""
    if host == routes.PAGE:
        connection = http.client.HTTPConnection("127.0.0.1", target.page_port, timeout=60)
    else:
        context = ssl.create_default_context(cafile=target.served.session.verify)
        context.check_hostname = False  # the port answers for all hosts
        connection = http.client.HTTPSConnection("127.0.0.1", target.port, timeout=60, context=context)
    shown = {routes.PAGE: "127.0.0.1", routes.LOOPBACK: "localhost"}.get(host, host)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in ({"Host": shown, "Content-Length": str(len(body))} | (headers or {})).items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def raw(target: Target, sent: bytes) -> bytes:
    """Bytes as they are, to the port of the pages, which is the workspace's server without TLS."""
    return all_of(socket.create_connection(("127.0.0.1", target.page_port), timeout=60), sent)


def all_of(connection: socket.socket, sent: bytes) -> bytes:
    """What comes back until the server closes, or has nothing more to say."""
    received = b""
    with connection, suppress(OSError):  # it has closed already
        connection.sendall(sent)
        while select.select([connection], [], [], 2)[0] and (chunk := connection.recv(1 << 16)):
            received += chunk
    return received


def is_safe(answer: Answer) -> bool:
    """Not a failure of the server. 501 is its word for what it does not do."""
    return answer.status < 500 or answer.status == 501


# Without the secret of the run

EXAMPLE = {
    "/datastores/{name}": "/datastores/workspaceblobstore",
    "/computes/{name}": "/computes/cluster",
    "/codes/{name}": "/codes/guarded",
    "{kind:asset}/{name}": "data/secret",
    "{kind:asset}": "data",
    "{container}/{blob:path}": "workspaceblobstore/secret.txt",
    "{container}": "workspaceblobstore",
    "{endpoint}": "guarded",
    "{deployment}": "main",
    "{version}": "1",
    "{job}": "scored",
    "{run}": "scored",
    "{row}": "0",
    "{subscription}": "test_subscription",
    "{group}": "group",
    "{workspace}": "shop",
    "{location}": "local",
    "{operation}": "0",
}
PUBLIC = (*routes.PUBLIC, routes.downloads.get_model, routes.downloads.get_images)
GUARDED = [line for line in routes.TABLE if line[3] not in PUBLIC]


def example(path: str) -> str:
    for name, value in EXAMPLE.items():
        path = path.replace(name, value)
    assert "{" not in path, "a new route: say what its names stand for in EXAMPLE"
    return path


def forged_tokens(token: str) -> list[str]:
    claims = jwt.decode(token, options={"verify_signature": False})
    head, body, signature = token.split(".")
    return [
        token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB"),
        f"{head}.{body}.",
        f"{head}..{signature}",
        jwt.encode(claims, "", "none"),
        jwt.encode(claims, "a guess that is long enough for HS256", "HS256"),
        Keys().access_token("r")["access_token"],  # of another run
        "\xff",
        "",
    ]


def wrong_secrets(target: Target, host: str) -> list[tuple[str, dict[str, str]]]:
    """What to add to the query, and headers, that must not be let in."""
    if host == routes.PAGE:
        keys = (
            "",
            "key=",
            "key=x",
            f"key={Keys().page_key}",
            f"{target.key}x",
            target.key.upper(),
            "key=%ff",
        )
        return [(key, {}) for key in keys]
    if host == routes.LOOPBACK:
        wrong = ("", "x", "\xff", target.served.identity[1][:-1], Keys().identity_header)
        return [("", {"X-Identity-Header": one}) for one in wrong] + [("", {})]
    if host == BLOB_HOST:
        sas = target.sas
        parts = dict(part.split("=", 1) for part in sas.split("&"))
        changed = [
            {"se": "2999-01-01T00%3A00%3A00Z"},
            {"sp": "rwdlacx"},
            {"sr": "c"},
            {"sig": ""},
            {"sig": "%ff"},
        ]
        queries = ["&".join(f"{k}={v}" for k, v in (parts | change).items()) for change in changed]
        queries += ["", Keys().sas("rwdlac"), Keys().sas("rwdlac", "workspaceblobstore")]
        return [(query, {}) for query in queries] + [("", {"Authorization": f"Bearer {target.token}"})]
    wrong = [f"Bearer {token}" for token in forged_tokens(target.token)]
    wrong += [f"Basic {target.token}", target.token, f"Bearer  {target.token} x", "SharedKey a:b"]
    return [("", {"Authorization": one}) for one in wrong] + [("", {}), (target.sas, {}), (target.key, {})]


@pytest.mark.parametrize("line", GUARDED, ids=lambda line: f"{line[0]} {line[1]} {line[2]}"[:90])
def test_no_route_answers_without_the_secret_of_the_run(target: Target, line: Any) -> None:
    method, host, path, _ = line
    path, _, query = example(path).partition("?")
    for secret, headers in wrong_secrets(target, host):
        asked = f"{path}?{'&'.join(filter(None, [query, secret]))}"
        answer = ask(
            target, method, host, asked, headers, b"{}" if host in (API_HOST, MANAGEMENT_HOST) else b""
        )
        assert answer.status in (401, 403), (asked, headers, answer)
        told = answer.content.decode("latin-1") + str(answer.headers)
        assert not re.search(f"{MARKER}|secret\\.txt|scored|guarded|cluster", told)


def test_what_is_answered_to_everybody_is_this_and_no_more(target: Target) -> None:
    """A new public route has to be put here, and so has a reason."""
    assert set(routes.PUBLIC) == {arm.get_metadata, arm.get_discovery, page.get_icon}
    for host, path in ((MANAGEMENT_HOST, "/metadata/endpoints"), (API_HOST, "/discovery")):
        answer = ask(target, "GET", host, path)
        assert answer.status == 200 and target.key.partition("=")[2] not in answer.content.decode()


def test_the_same_routes_answer_with_it(target: Target) -> None:
    """So the refusals above were for the secret."""
    secret = {BLOB_HOST: target.sas, routes.PAGE: target.key}
    headers = {"Authorization": f"Bearer {target.token}", "X-Identity-Header": target.served.identity[1]}
    for method, host, path, _ in GUARDED:
        if method in ("GET", "HEAD") and "operation" not in path:
            path, _, query = example(path).partition("?")
            asked = f"{path}?{query}&{secret.get(host, '')}"
            assert ask(target, method, host, asked, headers).status == 200, asked


def test_what_has_expired_is_refused() -> None:
    keys = Keys()
    claims = jwt.decode(keys.access_token("r")["access_token"], options={"verify_signature": False})
    old = jwt.encode(claims | {"exp": claims["iat"] - 1}, keys._secret, "HS256")
    assert not keys.accepts_token(f"Bearer {old}")
    query = {"sp": "r", "se": "2020-01-01T00:00:00Z", "sig": keys._sign("", "r", "2020-01-01T00:00:00Z")}
    assert not keys.accepts_sas(query, "c", "r")
    later = query | {"se": "2999-01-01T00:00:00Z", "sig": keys._sign("", "r", "2999-01-01T00:00:00Z")}
    assert keys.accepts_sas(later, "c", "r")


def test_a_token_is_good_although_the_clock_was_set_back() -> None:
    keys = Keys()
    claims = jwt.decode(keys.access_token("r")["access_token"], options={"verify_signature": False})
    ahead = {name: value + 3600 for name, value in claims.items() if name in ("iat", "nbf", "exp")}
    assert keys.accepts_token(f"Bearer {jwt.encode(claims | ahead, keys._secret, 'HS256')}")


# Other names of this machine: a page of another site may lead its visitor's browser here

STRANGERS = [
    "attacker.example.com",
    "attacker.example.com:{port}",
    "localhost.attacker.example.com",
    "127.0.0.1.nip.io",
    "management.azureml.test.attacker.example.com",
    "localhost.",
    "127.0.0.1.",
    "127.1",
    "2130706433",
    "0.0.0.0",
    "[::1]",
    "[",
    "[::1",
    "user@127.0.0.1",
    "127.0.0.1:80:80",
    "127.0.0.1:x",
    "127.0.0.1/",
    "127.0.0.1, attacker.example.com",
    "",
    " ",
    "\xe4",
]


@pytest.mark.parametrize("host", STRANGERS)
def test_another_host_name_is_not_let_in(target: Target, host: str) -> None:
    """Although the request has the secret."""
    secrets = {"X-Identity-Header": target.served.identity[1], "Authorization": f"Bearer {target.token}"}
    for at, path, port in (
        (routes.PAGE, f"/jobs/scored?{target.key}", target.page_port),
        (routes.LOOPBACK, "/msi/token?resource=r", target.port),
        (MANAGEMENT_HOST, f"{SCOPE}/data/secret/versions/1", target.port),
        (BLOB_HOST, f"/workspaceblobstore/secret.txt?{target.sas}", target.port),
    ):
        answer = ask(target, "GET", at, path, secrets | {"Host": host.format(port=port)})
        assert answer.status in (400, 403, 501), answer
        assert MARKER.encode() not in answer.content and b"access_token" not in answer.content


def test_no_other_site_may_read_an_answer(target: Target) -> None:
    """No CORS, whatever the origin; and a browser asks first with OPTIONS, which is refused."""
    for method, host, path, _ in routes.TABLE:
        path, _, query = example(path).partition("?")
        secret = {BLOB_HOST: target.sas, routes.PAGE: target.key}.get(host, "")
        headers = {"Origin": "https://attacker.example.com", "Access-Control-Request-Method": method}
        headers["Authorization"] = f"Bearer {target.token}"
        answer = ask(target, "OPTIONS", host, f"{path}?{query}&{secret}", headers)
        assert answer.status == 501 and not any("access-control" in name for name in answer.headers)


def test_every_answer_for_a_browser_is_inert_and_kept_nowhere(target: Target) -> None:
    paths = [example(path) for _, host, path, _ in routes.TABLE if host == routes.PAGE]
    assert len(paths) >= 4
    for path in [*paths, "/nothing", "/jobs/none", "/jobs/scored/pictures/99"]:
        for query in ("", target.key):
            answer = ask(target, "GET", routes.PAGE, f"{path}?{query}")
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
            assert "script-src" not in policy and "form-action 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-store"
            assert "set-cookie" not in answer.headers


# Names, headers and queries that nobody means well

NASTY = [
    *("..", ".", "../../../../beside.txt", "%2e%2e", "..%2f..%2fbeside.txt", "..%5c..%5cbeside.txt"),
    *(
        "%2e%2e%2f%2e%2e%2fbeside.txt",
        "%252e%252e%252fbeside.txt",
        "%c0%ae%c0%ae/beside.txt",
        "..;/beside.txt",
    ),
    *("/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "C:%5cx", "%00", "a%00b", "%0d%0aX-Injected:%20yes"),
    *(
        "%ff%fe",
        "%ed%a0%80",
        "%ef%bf%bf",
        "%1b[2J",
        "%0a",
        "%7f",
        "%e2%80%ae",
        "%",
        "%zz",
        "a" * 300,
        "b" * 5000,
    ),
    *(
        "x'%20OR%201=1--",
        '"',
        "<script>",
        "$(id)",
        "`id`",
        "{}",
        "%s%n",
        "con",
        "-rf",
        "~root",
        "+",
        "*",
        "[",
        "\\",
    ),
    *("%f0%9f%92%a9", "%d9%a1", "1e999", "-1", "NaN", "null", "9" * 400),
]
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


# JSON that is almost right

VALID: list[tuple[str, str, str, dict[str, Any]]] = [
    (
        "PUT",
        MANAGEMENT_HOST,
        f"{SCOPE}/computes/fuzzed",
        {"properties": {"computeType": "AmlCompute", "tags": {}}},
    ),
    (
        "PUT",
        MANAGEMENT_HOST,
        f"{SCOPE}/models/fuzzed/versions/1",
        {
            "properties": {
                "modelUri": "azureml://datastores/workspaceblobstore/paths/m",
                "modelType": "custom_model",
            }
        },
    ),
    (
        "PUT",
        MANAGEMENT_HOST,
        f"{SCOPE}/codes/fuzzed/versions/1",
        {"properties": {"codeUri": f"https://{BLOB_HOST}/c/d", "properties": {"hash_sha256": "0"}}},
    ),
    (
        "PUT",
        MANAGEMENT_HOST,
        f"{SCOPE}/data/fuzzed/versions/1",
        {
            "properties": {
                "dataType": "uri_folder",
                "dataUri": "azureml://datastores/workspaceblobstore/paths/photos",
            }
        },
    ),
    ("PUT", MANAGEMENT_HOST, f"{SCOPE}/environments/fuzzed/versions/1", {"properties": {"image": "python"}}),
    (
        "PUT",
        MANAGEMENT_HOST,
        f"{SCOPE}/batchEndpoints/fuzzed",
        {"properties": {"defaults": {"deploymentName": None}, "authMode": "AADToken"}, "tags": {}},
    ),
    (
        "PUT",
        MANAGEMENT_HOST,
        f"{SCOPE}/batchEndpoints/guarded/deployments/fuzzed",
        {
            "properties": {
                "model": {"referenceType": "Id", "assetId": f"{SCOPE}/models/guarded/versions/1"},
                "environmentId": f"{SCOPE}/environments/guarded/versions/1",
                "codeConfiguration": {
                    "codeId": f"{SCOPE}/codes/guarded/versions/1",
                    "scoringScript": "driver.py",
                },
                "compute": f"{SCOPE}/computes/cluster",
                "miniBatchSize": 5,
                "errorThreshold": -1,
                "maxConcurrencyPerInstance": 1,
                "outputAction": "AppendRow",
                "outputFileName": "predictions.csv",
                "loggingLevel": "Info",
                "retrySettings": {"maxRetries": 3, "timeout": "PT30S"},
                "resources": {"instanceCount": 1},
                "environmentVariables": {"A": "b"},
            }
        },
    ),
    (
        "POST",
        API_HOST,
        f"{SCOPE}/batchEndpoints/guarded/jobs",
        {
            "properties": {
                "name": "scored",  # exists: nothing is started unless the name changes
                "inputData": {
                    "x": {
                        "jobInputType": "UriFolder",
                        "uri": "azureml://datastores/workspaceblobstore/paths/no-such-files",
                    }
                },
                "outputData": {
                    "score": {
                        "jobOutputType": "UriFile",
                        "uri": "azureml://datastores/workspaceblobstore/paths/out.csv",
                    }
                },
                "miniBatchSize": 3,
                "retrySettings": {"maxRetries": 1, "timeout": "PT5S"},
                "compute": {"instanceCount": 1},
                "properties": {"experimentName": "e"},
            }
        },
    ),
    (
        "POST",
        MANAGEMENT_HOST,
        f"{SCOPE}/codes/fuzzed/versions/1/startPendingUpload",
        {"pendingUploadId": "x"},
    ),
    ("POST", MANAGEMENT_HOST, f"{SCOPE}/datastores/workspaceblobstore/listSecrets", {"x": {}}),
    ("POST", API_HOST, f"/history/v1.0{SCOPE}/rundata", {"runId": "scored", "selectRunMetadata": True}),
    ("POST", API_HOST, f"/data/v1.0{SCOPE}/dataversion/batchGetResolvedUris", {"values": ["x"]}),
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
INNER = LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(st.text(max_size=5), LEAVES, max_size=3)
ODD = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            0,
            -1,
            2**31,
            2**63,
            10**100,
            1.5,
            -0.0,
            1e308,
            "",
            " ",
            "x" * 5000,
            "\0",
            "\r\n",
            "é\U0001f4a9",
        ),
        *(
            [],
            [[]],
            {},
            {"": ""},
            {"a": {"a": {"a": {}}}},
            [None],
            "../../x",
            "https://[",
            "https://[::1",
            "azureml://",
        ),
        *(
            "PT",
            "P",
            "PT" + "9" * 400 + "S",
            "PT1e9S",
            "PT٣S",
            "-PT1S",
            "PT0S",
            "NaN",
            "http://169.254.169.254/",
        ),
        f"https://{BLOB_HOST}",
        f"https://{BLOB_HOST}//",
        f"https://{BLOB_HOST}/../../x",
        "azureml://datastores/workspaceblobstore/paths/../../../x",
        "azureml://datastores/nowhere/paths/x",
        f"{SCOPE}/models/guarded/versions/1",
    ]
) | st.one_of(LEAVES, st.lists(LEAVES, max_size=3), st.dictionaries(st.text(max_size=5), INNER, max_size=3))
LISTS = [
    (MANAGEMENT_HOST, f"{SCOPE}/{kind}")
    for kind in ("computes", "models", "codes", "environments", "data", "batchEndpoints", "jobs")
]
LISTS += [(MANAGEMENT_HOST, f"{SCOPE}/codes/x/versions?hash=0"), (MANAGEMENT_HOST, f"{SCOPE}/data/fuzzed")]
LISTS += [(MANAGEMENT_HOST, f"{SCOPE}/batchEndpoints/guarded/deployments")]
LISTS += [(API_HOST, f"/mferp/managementfrontend{SCOPE}/batchEndpoints/guarded/jobs")]


def places(body: Any, start: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield start
    inner = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in inner:
        yield from places(value, (*start, key))


def exchanged(body: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    body = copy.deepcopy(body)
    inner = body
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return body


@st.composite
def almost_right(draw: st.DrawFn) -> tuple[str, str, str, Any]:
    method, host, path, body = draw(st.sampled_from(VALID))
    return method, host, path, exchanged(body, draw(st.sampled_from(list(places(body)))), draw(ODD))


@FUZZ
@given(asked=almost_right())
def test_no_value_in_a_body_is_a_failure_then_or_when_it_is_read(target: Target, asked: Any) -> None:
    method, host, path, body = asked
    headers = {"Authorization": f"Bearer {target.token}", "Content-Type": "application/json"}
    answer = ask(target, method, host, path, headers, json.dumps(body).encode())
    assert is_safe(answer), answer
    if method == "PUT" and answer.status < 300:
        assert ask(target, "GET", host, path, headers).status == 200
        if "/deployments/" in path:
            header = headers | {"azureml-model-deployment": "fuzzed"}
            again = ask(target, "POST", API_HOST, VALID[7][2], header, json.dumps(VALID[7][3]).encode())
            assert is_safe(again), again


def test_after_all_that_every_list_can_be_read(target: Target) -> None:
    headers = {"Authorization": f"Bearer {target.token}"}
    for host, path in LISTS:
        assert ask(target, "GET", host, path, headers).status in (200, 404), path
    assert ask(target, "GET", routes.PAGE, f"/?{target.key}").status == 200
    for job in target.served.call("GET", f"{SCOPE}/jobs").json()["value"]:
        assert ask(target, "GET", routes.PAGE, f"/jobs/{job['name']}?{target.key}").status == 200


MISSING = [
    ("GET", MANAGEMENT_HOST, f"{SCOPE}/computes/gone"),
    ("GET", MANAGEMENT_HOST, f"{SCOPE}/datastores/gone"),
    ("GET", MANAGEMENT_HOST, f"{SCOPE}/data/gone"),
    ("GET", MANAGEMENT_HOST, f"{SCOPE}/batchEndpoints/guarded/deployments/gone"),
    ("GET", MANAGEMENT_HOST, f"{SCOPE}/jobs/gone"),
    ("POST", MANAGEMENT_HOST, f"{SCOPE}/jobs/gone/cancel"),
    ("GET", MANAGEMENT_HOST, f"{routes.AT.replace('{subscription}', 's')}/mfeOperationsStatus/gone"),
    ("GET", API_HOST, f"/history/v1.0{SCOPE}/runs/gone"),
    ("POST", API_HOST, f"{SCOPE}/batchEndpoints/gone/jobs"),
]


@pytest.mark.parametrize("asked", MISSING, ids=lambda asked: f"{asked[0]} {asked[2].rpartition('/shop')[2]}")
def test_what_is_not_there_is_not_found(target: Target, asked: tuple[str, str, str]) -> None:
    assert ask(target, *asked, {"Authorization": f"Bearer {target.token}"}).status == 404


def test_a_compute_is_deleted_once(target: Target) -> None:
    headers, path = {"Authorization": f"Bearer {target.token}"}, f"{SCOPE}/computes/passing"
    assert target.served.put("computes/passing", computeType="AmlCompute").status_code == 201
    assert [ask(target, "DELETE", MANAGEMENT_HOST, path, headers).status for _ in range(2)] == [202, 204]
    deployment = f"{SCOPE}/batchEndpoints/guarded/deployments/gone"
    assert ask(target, "DELETE", MANAGEMENT_HOST, deployment, headers).status == 204


@pytest.mark.parametrize(
    "uri", [f"https://{BLOB_HOST}/elsewhere/x", "azureml://datastores/gone/paths/x", "https://example.com/x"]
)
def test_an_output_outside_the_datastores_is_refused(target: Target, uri: str) -> None:
    given = {"outputData": {"score": {"jobOutputType": "UriFile", "uri": uri}}}
    assert invoke(target.served, "guarded", **given).status_code == 400


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


# The wire

SMUGGLED = "GET /workspaceblobstore/secret.txt?{sas} HTTP/1.1\r\nHost: " + BLOB_HOST + "\r\n\r\n"
AT = "Host: " + BLOB_HOST + "\r\n"
LINES = [
    "",
    "\r\n",
    "GET\r\n\r\n",
    "GET /\r\n\r\n",
    "GET / HTTP/9.9\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "\x16\x03\x01\x02\x00\x01",
    "\0" * 100,
    f"GET / HTTP/1.1\r\n{AT}{AT}\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    f"GET / HTTP/1.1\r\n{AT} folded: yes\r\n\r\n",
    f"GET / HTTP/1.1\n{AT}\n\n",
    f"GET /\x01 HTTP/1.1\r\n{AT}\r\n",
    f"GET /\xff HTTP/1.1\r\n{AT}\r\n",
    f"GET / HTTP/1.1\r\n{AT}no colon\r\n\r\n",
    f"GET / HTTP/1.1\r\n{AT}a\0b: c\r\n\r\n",
    f"GET / HTTP/1.1\r\n{AT}a: \0\r\n\r\n",
    f"GET / HTTP/1.1\r\n{AT}a : b\r\n\r\n",
    f"GET /{'x' * 200_000} HTTP/1.1\r\n{AT}\r\n",
    f"GET / HTTP/1.1\r\n{AT}{'x: y' * 50_000}\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Content-Length: -1\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Content-Length: 0x10\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Content-Length: {'9' * 5000}\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    f"PUT / HTTP/1.1\r\n{AT}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    f"GET http://attacker.example.com/ HTTP/1.1\r\n{AT}\r\n",
    "CONNECT attacker.example.com:443 HTTP/1.1\r\nHost: attacker.example.com:443\r\n\r\n",
]
# What a proxy and a server might take for different requests: the second must not be answered.
SPLIT = [
    "POST /x HTTP/1.1\r\n" + AT + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\n" + AT + "Content-Length: 0\r\nContent-Length: 10\r\n\r\n",
    "POST /x HTTP/1.1\r\n" + AT + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\n" + AT + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "POST /x HTTP/1.1\r\n"
    + AT
    + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "GET /x HTTP/1.1\r\n" + AT + "X: y\r\n\r\r\n",
]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_what_is_no_request_is_refused(target: Target, number: int) -> None:
    received = raw(target, LINES[number].encode("latin-1") + b"\r\n")
    assert not received or re.match(rb"HTTP/1.1 (4\d\d|501) ", received), received[:200]
    assert MARKER.encode() not in received


@pytest.mark.parametrize("number", range(len(SPLIT)))
def test_no_second_request_is_smuggled_behind_a_first(target: Target, number: int) -> None:
    """Through the proxy, as a client comes. The same two, told apart as they should be, are both answered."""
    second = SMUGGLED.format(sas=target.sas)
    received = through_proxy(target, SPLIT[number] + second)
    assert MARKER not in received and received.count("HTTP/1.1 ") <= 1, received
    clean = through_proxy(target, f"GET /x HTTP/1.1\r\n{AT}\r\n" + second)
    assert clean.count("HTTP/1.1 ") == 2 and MARKER in clean


def through_proxy(target: Target, sent: str) -> str:
    connection = socket.create_connection(("127.0.0.1", target.proxy_port), timeout=60)
    connection.sendall(f"CONNECT {BLOB_HOST}:443 HTTP/1.1\r\n\r\n".encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    context = ssl.create_default_context(cafile=target.served.session.verify)
    connection = context.wrap_socket(connection, server_hostname=BLOB_HOST)
    sent = sent.removesuffix("\r\n") + "Connection: close\r\n\r\n"
    return all_of(connection, sent.encode("latin-1")).decode("latin-1")


# The proxy

OURS = (MANAGEMENT_HOST, API_HOST, BLOB_HOST, SAMPLES_HOST)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[socket.socket]:
    """A server on this machine that is no part of the workspace."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def proxied(target: Target, sent: bytes) -> bytes:
    return all_of(socket.create_connection(("127.0.0.1", target.proxy_port), timeout=60), sent)


def was_reached(listener: socket.socket) -> bool:
    return bool(select.select([listener], [], [], 0)[0])


def test_the_proxy_leads_nowhere_else(target: Target, elsewhere: socket.socket) -> None:
    port = elsewhere.getsockname()[1]
    hosts = [
        *(
            "127.0.0.1",
            "localhost",
            "LOCALHOST",
            "localhost.",
            "[::1]",
            "::1",
            "[::ffff:127.0.0.1]",
            "0.0.0.0",
            "0",
        ),
        *(
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "127.1",
            "%31%32%37.0.0.1",
            "user@127.0.0.1",
            "127.0.0.1\0",
        ),
        *(
            f"{MANAGEMENT_HOST}@127.0.0.1",
            f"127.0.0.1#{MANAGEMENT_HOST}",
            f"127.0.0.1?.{MANAGEMENT_HOST}",
            "",
        ),
        *(
            f"127.0.0.1/.{MANAGEMENT_HOST}",
            f"127.0.0.1\\.{MANAGEMENT_HOST}",
            "notazureml.test",
            "azureml.test.",
        ),
        *("azureml.test.example.com", "xazuremlexampledata.blob.core.windows.net", "blob.core.windows.net"),
        *(
            "login.microsoftonline.com",
            "management.azure.com",
            "169.254.169.254",
            "example.com",
            "example.com.",
        ),
    ]
    targets = [f"{host}:{at}" for host in hosts for at in (port, 443)]
    targets += [f"{MANAGEMENT_HOST}:{at}" for at in (port, 80, 22, "0443", "443@x", "", "-443", "4430")]
    targets += [*hosts, MANAGEMENT_HOST, "", ":443", ":" * 50]
    lines = [f"CONNECT {one} HTTP/1.1" for one in targets]
    lines += [f"connect {MANAGEMENT_HOST}:443 HTTP/1.1", f"CONNECT  {MANAGEMENT_HOST}:443 HTTP/1.1"]
    lines += [f"{method} http://127.0.0.1:{port}/ HTTP/1.1" for method in ("GET", "POST", "OPTIONS", "BREW")]
    lines += [
        f"GET http://{MANAGEMENT_HOST}/ HTTP/1.1",
        "GET / HTTP/1.1",
        f"GET //127.0.0.1:{port}/ HTTP/1.1",
        "\x1b[2J",
    ]
    for line in lines:
        answer = proxied(target, f"{line}\r\nHost: {MANAGEMENT_HOST}\r\n\r\n".encode("latin-1"))
        assert answer.startswith(b"HTTP/1.1 403 "), (line, answer)
    assert not was_reached(elsewhere)
    assert "\x1b" not in target.served.log.read_text()  # it is a person's terminal


@FUZZ
@given(line=st.binary(max_size=300) | st.text(max_size=80).map(lambda text: f"CONNECT {text}".encode()))
def test_no_line_to_the_proxy_opens_a_way(target: Target, elsewhere: socket.socket, line: bytes) -> None:
    answer = proxied(target, line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ") or not answer, answer
    assert not was_reached(elsewhere)


def test_the_proxy_knows_its_own_hosts_by_any_case(target: Target) -> None:
    for host in (*OURS, MANAGEMENT_HOST.upper()):
        with socket.create_connection(("127.0.0.1", target.proxy_port), timeout=60) as connection:
            connection.sendall(f"CONNECT {host}:443 HTTP/1.1\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_head_without_end_is_hung_up_on(target: Target) -> None:
    assert proxied(target, b"CONNECT " + b"x" * 200_000) == b""


# Much, and slow


def test_what_is_refused_is_told_a_bounded_number_of_times(tmp_path: Path) -> None:
    served = Served(tmp_path / "state")
    port = urlsplit(served.environment["HTTPS_PROXY"]).port
    for number in range(1100):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"CONNECT host{number}.example.com:443 HTTP/1.1\r\n\r\n".encode())
            assert connection.recv(20).startswith(b"HTTP/1.1 403")
    assert served.stop() == 0
    told = served.log.read_text()
    assert told.count("refused host") == 1000 and "refused others" in told and "others (100)" in told


def memory(process: int) -> int:
    """Bytes of a process that are in memory now."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read in /proc")
def test_a_huge_body_is_refused_or_goes_to_disk(target: Target) -> None:
    served, chunk, chunks = target.served, b"x" * (1 << 20), 256
    before = memory(served.process.pid)
    put = served.session.put(
        f"https://{BLOB_HOST}/workspaceblobstore/huge?{target.sas}", data=(chunk for _ in range(chunks))
    )
    assert put.status_code == 201
    assert memory(served.process.pid) - before < 64 << 20
    size = served.session.head(f"https://{BLOB_HOST}/workspaceblobstore/huge?{target.sas}")
    assert size.headers["content-length"] == str(chunks << 20)
    path, headers = f"{SCOPE}/computes/huge", {"Authorization": f"Bearer {target.token}"}
    headers["Content-Length"] = str(chunks << 20)
    with suppress(BrokenPipeError, ConnectionResetError):  # it need not read all before it answers
        assert ask(target, "PUT", MANAGEMENT_HOST, path, headers, chunk * 8).status == 413
    assert memory(served.process.pid) - before < 96 << 20
    served.session.delete(f"https://{BLOB_HOST}/workspaceblobstore/huge?{target.sas}")


def test_a_body_that_never_comes_whole_leaves_nothing(target: Target) -> None:
    head = f"PUT /workspaceblobstore/half?{target.sas} HTTP/1.1\r\n{AT}Content-Length: {10**15}\r\n\r\n"
    context = ssl.create_default_context(cafile=target.served.session.verify)
    with socket.create_connection(("127.0.0.1", target.port)) as connection:
        tls = context.wrap_socket(connection, server_hostname="localhost")
        tls.sendall(head.encode() + b"x" * 100_000)
        tls.close()
    address = f"https://{BLOB_HOST}/workspaceblobstore/half?{target.sas}"
    assert target.served.session.get(address).status_code == 404


def test_connections_that_say_nothing_do_not_keep_others_waiting(target: Target) -> None:
    ports = (target.port, target.page_port, target.proxy_port)
    idle = [socket.create_connection(("127.0.0.1", port)) for port in ports for _ in range(60)]
    for number, connection in enumerate(idle):
        if number % 2:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: 12")
    try:
        address = f"https://{BLOB_HOST}/workspaceblobstore/secret.txt?{target.sas}"
        assert target.served.session.get(address, timeout=60).text == MARKER
        assert ask(target, "GET", routes.PAGE, f"/?{target.key}").status == 200
    finally:
        for connection in idle:
            connection.close()
