"""Without the secret of the run, or by another name of this machine: nothing is told."""

import re
from typing import Any

import jwt
import pytest
from attacked import GUARDED, MARKER, Target, ask, example
from conftest import SCOPE

from local_workspace import arm, page, routes
from local_workspace.tokens import Keys
from local_workspace.workspace import API_HOST, BLOB_HOST, MANAGEMENT_HOST


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
