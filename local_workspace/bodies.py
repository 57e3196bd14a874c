"""What the JSON body of each request has to be: checked where it enters, 400 that names the field.

The models say what is read of a body. All else in it is kept as the client sent it, and `null` is as good as
a field that is not there.
"""

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from local_workspace.deployment import LOGGING_LEVELS, LONGEST_NAME, MOST, OUTPUT_ACTIONS, shown
from local_workspace.workspace import bad_request

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
DURATION = re.compile(r"P(?:([0-9]+)D)?(?:T(?:([0-9]+)H)?(?:([0-9]+)M)?(?:([0-9]+(?:\.[0-9]+)?)S)?)?")
MOST_DURATION = 40  # characters


def seconds(duration: str) -> int:
    """`PT5M` -> 300: ARM writes durations in ISO 8601; the YAML has whole seconds."""
    match = DURATION.fullmatch(duration) if len(duration) <= MOST_DURATION else None
    if not match:
        raise ValueError("an ISO 8601 duration such as PT30S")
    days, hours, minutes, rest = (float(part or 0) for part in match.groups())
    return math.ceil(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError("a text without NUL")
    return value


def _line(value: str) -> str:
    if not value or CONTROL.search(value):
        raise ValueError("a text without control characters")
    return value


def is_file_name(name: str) -> bool:
    is_plain = name not in ("", ".", "..") and "/" not in name and not CONTROL.search(name)
    return is_plain and len(name.encode()) <= LONGEST_NAME


def _file_name(value: str) -> str:
    if not is_file_name(value):
        raise ValueError("the name of a file, without a folder")
    return value


def _timeout(value: str) -> str:
    if not 1 <= seconds(value) <= MOST:
        raise ValueError("an ISO 8601 duration of a second or more")
    return value


def _output_action(value: str) -> str:
    if output_action(value) not in OUTPUT_ACTIONS:
        raise ValueError("AppendRow or SummaryOnly")
    return value


def output_action(value: str) -> str:
    """`AppendRow` -> `append_row`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", value).lower()


def _logging_level(value: str) -> str:
    if value.lower() not in LOGGING_LEVELS:
        raise ValueError("Info, Warning or Debug")
    return value


def _variable(value: str) -> str:
    if not value or "=" in value or "\0" in value:
        raise ValueError("a name that an environment can hold")
    return value


Text = Annotated[str, AfterValidator(_text)]
FileName = Annotated[str, AfterValidator(_file_name)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Values = dict[str, Any]


class Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class Resource(Body):
    location: Text | None = None
    tags: dict[str, Text | None] | None = None


class Asset(Body):
    """What all versioned assets have."""

    description: Text | None = None
    tags: dict[str, Text | None] | None = None
    properties: Values | None = None
    isArchived: bool | None = None
    isAnonymous: bool | None = None


class Model(Asset):
    modelUri: Text
    modelType: Text | None = None
    flavors: Values | None = None


class Code(Asset):
    codeUri: Text


class Data(Asset):
    dataUri: Text
    dataType: Text


class ModelVersion(Body):
    properties: Model


class CodeVersion(Body):
    properties: Code


class DataVersion(Body):
    properties: Data


class EnvironmentVersion(Body):
    properties: Asset | None = None


class ComputeProperties(Body):
    computeType: Text
    properties: Values | None = None


class Compute(Resource):
    properties: ComputeProperties


class Defaults(Body):
    deploymentName: Text | None = None


class EndpointProperties(Body):
    authMode: Text | None = None
    description: Text | None = None
    properties: Values | None = None
    defaults: Defaults | None = None


class Endpoint(Resource):
    properties: EndpointProperties | None = None


class Retry(Body):
    maxRetries: Annotated[int, Field(ge=0, le=MOST)] | None = None
    timeout: Annotated[str, AfterValidator(_timeout)] | None = None


class Scoring(Body):
    """What a deployment says, and an invoke may change."""

    miniBatchSize: Count | None = None
    errorThreshold: Annotated[int, Field(ge=-1, le=MOST)] | None = None
    outputFileName: FileName | None = None
    retrySettings: Retry | None = None


class Instances(Body):
    instanceCount: Count | None = None


class ModelReference(Body):
    assetId: Text | None = None


class CodeConfiguration(Body):
    codeId: Text | None = None
    scoringScript: Annotated[str, AfterValidator(_line)]


class DeploymentProperties(Scoring):
    description: Text | None = None
    properties: Values | None = None
    model: ModelReference | None = None
    codeConfiguration: CodeConfiguration | None = None
    environmentId: Text | None = None
    compute: Text | None = None
    maxConcurrencyPerInstance: Count | None = None
    outputAction: Annotated[str, AfterValidator(_output_action)] | None = None
    loggingLevel: Annotated[str, AfterValidator(_logging_level)] | None = None
    environmentVariables: dict[Annotated[str, AfterValidator(_variable)], Text] | None = None
    resources: Instances | None = None


class Deployment(Resource):
    properties: DeploymentProperties | None = None


class JobInput(Body):
    jobInputType: Text | None = None
    uri: Text | None = None


class JobOutput(Body):
    jobOutputType: Text | None = None
    uri: Text | None = None


class JobProperties(Scoring):
    name: Text | None = None
    inputData: dict[str, JobInput] | None = None
    outputData: dict[str, JobOutput | None] | None = None
    compute: Instances | None = None
    properties: dict[str, Any] | None = None


class Invocation(Body):
    properties: JobProperties | None = None


class RunQuery(Body):
    runId: Text


class AssetIds(Body):
    values: list[Text] | None = None


def check(body: dict[str, Any], model: type[Body]) -> None:
    """Raises ServiceError: 400 with the field, what it holds and what was expected."""
    try:
        model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise bad_request(f"{field} is missing.") from None
        expected = first["msg"].removeprefix("Value error, ")
        raise bad_request(f"{field} is {shown(first['input'])}, expected: {expected}.") from None
