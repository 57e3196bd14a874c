"""Bodies that are almost right are refused where they enter: 400, and the field is named."""

import asyncio
from typing import Any

import pytest
from conftest import SCOPE, Served
from deployed import SCRIPT, invoke, make_deployment, wait_for
from starlette.requests import Request

from local_workspace import routes
from local_workspace.bodies import seconds
from local_workspace.dispatch import Server
from local_workspace.invoke import place_of
from local_workspace.store import Store
from local_workspace.tokens import Keys
from local_workspace.workspace import MANAGEMENT_HOST, Workspace

URI = "azureml://datastores/workspaceblobstore/paths"
NO_NAMES = [
    5,
    1.5,
    True,
    ["x"],
    {},
    "",
    ".",
    "..",
    "a/b",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "n" * 300,
    "\u00e9" * 128,
]
BAD_SETTINGS: list[tuple[str, Any]] = [
    *(("outputFileName", value) for value in NO_NAMES),
    *(("miniBatchSize", value) for value in (0, -1, 2**31, 1.0, "5", True, [], {})),
    *(("errorThreshold", value) for value in (-2, 2**31, 0.5, "1", False)),
    *(("retrySettings", value) for value in (5, "x", [])),
    *(("retrySettings.maxRetries", value) for value in (-1, 2**31, "3", 1.5, True)),
    *(
        ("retrySettings.timeout", value)
        for value in (30, "30", "PT", "PT0S", "P99999999D", "PT1e9S", "PT\u0663S", "-PT1S")
    ),
]
BAD_INVOCATIONS = [
    *BAD_SETTINGS,
    *(("name", value) for value in (5, ["x"], {}, "a\0b")),
    *(("compute", value) for value in ("cluster", 5)),
    *(("compute.instanceCount", value) for value in (0, -1, 1.5, "2", True)),
    *(("inputData", value) for value in (5, "x", [], {"x": 5}, {"x": None}, {"x": []})),
    *(("inputData.UriFolder.uri", value) for value in (5, ["x"], {}, "a\0b")),
    *(("inputData.UriFolder.jobInputType", value) for value in (5, {})),
    *(("outputData", value) for value in (5, "x", {"score": 5})),
    *(("outputData.score.uri", value) for value in (5, {}, "a\0")),
    *(("outputData.score.jobOutputType", value) for value in (5, [])),
    *(("properties", value) for value in (5, "x", [])),
]
BAD_DEPLOYMENTS = [
    *BAD_SETTINGS,
    *(("maxConcurrencyPerInstance", value) for value in (0, "1", 1.5, True)),
    *(("outputAction", value) for value in (5, "", "append", "AppendRows", [])),
    *(("loggingLevel", value) for value in (5, "", "loud", {})),
    *(("resources", value) for value in (5, "x", [])),
    *(("resources.instanceCount", value) for value in (0, "1", 2.5)),
    *(("environmentVariables", value) for value in (5, [], {"A": 5}, {"A": None}, {"A": "\0"})),
    *(("model", value) for value in (5, "x", [])),
    *(("model.assetId", value) for value in (5, {}, "a\0")),
    *(("codeConfiguration", value) for value in (5, "x", [])),
    *(("codeConfiguration.scoringScript", value) for value in (5, None, "", "a\0.py", "a\n.py")),
    *(("environmentId", value) for value in (5, {})),
    *(("compute", value) for value in (5, {})),
    *(("description", value) for value in (5, {})),
    *(("properties", value) for value in (5, "x")),
]
BAD_OTHERS: list[tuple[str, Any, str]] = [
    ("computes/cc", {"properties": None}, "properties"),
    ("computes/cc", {}, "properties"),
    ("computes/cc", {"properties": {"computeType": 5}}, "properties.computeType"),
    ("computes/cc", {"properties": {"computeType": "AmlCompute"}, "tags": ["x"]}, "tags"),
    ("computes/cc", {"properties": {"computeType": "AmlCompute"}, "tags": {"x": 5}}, "tags.x"),
    ("computes/cc", {"properties": {"computeType": "AmlCompute"}, "location": 5}, "location"),
    ("models/m/versions/1", {}, "properties"),
    ("models/m/versions/1", {"properties": {}}, "properties.modelUri"),
    ("models/m/versions/1", {"properties": {"modelUri": 5}}, "properties.modelUri"),
    ("models/m/versions/1", {"properties": {"modelUri": "u", "flavors": 5}}, "properties.flavors"),
    ("codes/m/versions/1", {"properties": {"codeUri": "u", "properties": "x"}}, "properties.properties"),
    ("data/m/versions/1", {"properties": {"dataUri": "u"}}, "properties.dataType"),
    ("data/m/versions/1", {"properties": {"dataUri": "\0", "dataType": "uri_file"}}, "properties.dataUri"),
    ("environments/m/versions/1", {"properties": {"isArchived": "no"}}, "properties.isArchived"),
    ("environments/m/versions/1", {"properties": [5]}, "properties"),
    ("batchEndpoints/strict-one", {"properties": {"defaults": "main"}}, "properties.defaults"),
    ("batchEndpoints/strict-one", {"properties": {"defaults": {"deploymentName": 5}}}, "deploymentName"),
    ("batchEndpoints/strict-one", {"tags": 5}, "tags"),
]  # fmt: skip


def refused(answer: Any, field: str) -> None:
    assert answer.status_code == 400, answer.text
    assert field in answer.json()["error"]["message"]


def within(place: str, value: Any) -> dict[str, Any]:
    """`a.b` and a value -> {"a": {"b": value}}."""
    for name in reversed(place.split(".")):
        value = {name: value}
    return value


@pytest.fixture(scope="module")
def strict(served: Served) -> Served:
    assert make_deployment(served, "validated", SCRIPT.replace("{WORD}", "7")).ok
    return served


def names_of_jobs(served: Served) -> list[str]:
    return [job["name"] for job in served.call("GET", f"{SCOPE}/jobs").json()["value"]]


@pytest.mark.parametrize(("field", "value"), BAD_INVOCATIONS, ids=str)
def test_an_invoke_names_the_field(strict: Served, field: str, value: Any) -> None:
    before = names_of_jobs(strict)
    refused(invoke(strict, "validated", **within(field, value)), f"properties.{field}")
    assert names_of_jobs(strict) == before


@pytest.mark.parametrize(("field", "value"), BAD_DEPLOYMENTS, ids=str)
def test_a_deployment_names_the_field(strict: Served, field: str, value: Any) -> None:
    body = {"location": "local", "properties": within(field, value)}
    path = f"{SCOPE}/batchEndpoints/validated/deployments/other"
    refused(strict.call("PUT", path, json=body), f"properties.{field}")
    assert strict.call("GET", path).status_code == 404


@pytest.mark.parametrize(("path", "body", "field"), BAD_OTHERS, ids=str)
def test_every_other_body_names_the_field(strict: Served, path: str, body: Any, field: str) -> None:
    refused(strict.call("PUT", f"{SCOPE}/{path}", json=body), field)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (f"/history/v1.0{SCOPE}/rundata", {}, "runId"),
        (f"/history/v1.0{SCOPE}/rundata", {"runId": ["x"]}, "runId"),
        (f"/data/v1.0{SCOPE}/dataversion/batchGetResolvedUris", {"values": "x"}, "values"),
        (f"/data/v1.0{SCOPE}/dataversion/batchGetResolvedUris", {"values": [5]}, "values.0"),
    ],
)
def test_so_do_the_bodies_of_the_data_plane(strict: Served, path: str, body: Any, field: str) -> None:
    refused(strict.call("POST", path, host="api", json=body), field)


def test_null_is_as_good_as_a_field_that_is_not_there(strict: Served) -> None:
    """The SDK sends many."""
    nothing = dict.fromkeys(
        ["miniBatchSize", "errorThreshold", "outputFileName", "retrySettings", "outputData"]
    )
    nothing |= {"compute": {"instanceCount": None}, "properties": None}
    job = invoke(strict, "validated", **nothing)
    assert job.status_code == 201
    retry = {"retrySettings": {"maxRetries": None, "timeout": "PT5S"}}
    again = invoke(strict, "validated", **retry)
    for one in (job, again):
        assert wait_for(strict, one.json()["name"], "Completed", "Failed")["status"] == "Completed"


@pytest.mark.parametrize("path", ["a%0Ab/x.csv", "%ff/x.csv"])
def test_a_place_that_no_blob_can_have_is_refused(strict: Served, path: str) -> None:
    address = f"https://localworkspace.blob.azureml.test/workspaceblobstore/{path}"
    given = {"outputData": {"score": {"jobOutputType": "UriFile", "uri": address}}}
    assert invoke(strict, "validated", **given).status_code == 400


@pytest.mark.parametrize("uri", [f"{URI}/", f"{URI}/a/..", f"{URI}/{'n' * 300}"])
def test_an_output_that_is_no_file_is_refused(strict: Served, uri: str) -> None:
    given = {"outputData": {"score": {"jobOutputType": "UriFile", "uri": uri}}}
    refused(invoke(strict, "validated", **given), "outputData")


def test_an_output_at_the_top_of_a_datastore_is_a_file_there(strict: Served) -> None:
    given = {"outputData": {"score": {"jobOutputType": "UriFile", "uri": f"{URI}/top.csv"}}}
    job = invoke(strict, "validated", **given).json()["name"]
    assert wait_for(strict, job, "Completed", "Failed")["status"] == "Completed"
    sas = strict.call("POST", f"{SCOPE}/datastores/workspaceblobstore/listSecrets").json()["sasToken"]
    address = f"https://localworkspace.blob.azureml.test/workspaceblobstore/top.csv?{sas}"
    assert strict.session.get(address).status_code == 200


# A mistake of the server is told as one


@pytest.mark.parametrize("mistake", [KeyError("x"), TypeError("x"), AttributeError("x"), ValueError("x")])
def test_a_mistake_of_the_server_is_not_put_down_to_the_client(
    own: Any, mistake: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(own)
    server = Server(Workspace(store, Keys(), None, ""), own / "access.log")

    def fail(call: Any) -> None:
        raise mistake

    monkeypatch.setattr(routes, "find", lambda *_: (fail, {}))
    monkeypatch.setattr(server, "_authorise", lambda *_: None)
    scope = {"type": "http", "method": "PUT", "scheme": "https", "path": "/", "raw_path": b"/"}
    scope |= {"headers": [(b"host", MANAGEMENT_HOST.encode())], "query_string": b""}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    answer = asyncio.run(server._answer(Request(scope, receive)))
    assert answer.status_code == 500 and b"does not have the form" not in answer.body
    server.close()
    store.close()
    assert f"{type(mistake).__name__}: " in (own / "access.log").read_text()


# Small parts


def test_durations_are_read() -> None:
    assert [seconds(text) for text in ("PT5M", "PT30S", "P1DT1H", "PT0.5S")] == [300, 30, 90000, 1]


def test_places_are_read() -> None:
    place = {"container": "workspaceblobstore", "path": "a/b"}
    scope = "subscriptions/s/resourcegroups/g/workspaces/w"
    for start in ("azureml://", "azureml:/", f"azureml://{scope}/"):
        assert place_of(f"{start}datastores/workspaceblobstore/paths/a/b/") == place
    assert place_of("https://localworkspace.blob.azureml.test/c/a%20b") == {"container": "c", "path": "a b"}
