"""JSON that is almost right, and what is not there."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from attacked import (
    FUZZ,
    Target,
    ask,
    is_safe,
)
from conftest import SCOPE
from deployed import invoke
from hypothesis import given
from hypothesis import strategies as st

from local_workspace import routes
from local_workspace.workspace import API_HOST, BLOB_HOST, MANAGEMENT_HOST

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
