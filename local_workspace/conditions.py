"""Conditions on a call to a blob: If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since.

As https://learn.microsoft.com/rest/api/storageservices/specifying-conditional-headers-for-blob-service-operations
has them; where it says nothing, as Azurite does.
"""

from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime

from local_workspace.errors import ServiceError

NAMES = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
# Of these two may come together when a blob is written; no others.
PAIRS = ({"if-match", "if-unmodified-since"}, {"if-none-match", "if-modified-since"})


def check_read(headers: Mapping[str, str], etag: str, modified: float) -> None:
    """For a blob that is there. All have to hold; of the two that may answer 304, one is enough."""
    if headers.get("if-none-match", "").strip() == "*":
        message = "The request includes an unsatisfiable condition for this operation."
        raise ServiceError(400, "UnsatisfiableCondition", message)
    held = _held(headers, etag, modified)
    if not (held.get("if-match", True) and held.get("if-unmodified-since", True)):
        raise _not_met(412)
    news = [held[name] for name in ("if-none-match", "if-modified-since") if name in held]
    if news and not any(news):
        raise _not_met(304)


def check_write(headers: Mapping[str, str], etag: str | None, modified: float = 0) -> None:
    """`etag` is None where there is no blob yet. An ETag decides alone, whatever the date beside it is."""
    given = {name for name in NAMES if name in headers}
    tags = [_tags(headers[name]) for name in ("if-match", "if-none-match") if name in headers]
    if any(len(several) > 1 for several in tags) or (len(given) > 1 and given not in PAIRS):
        message = "Multiple condition headers are not supported."
        raise ServiceError(400, "MultipleConditionHeadersNotSupported", message)
    if etag is None:
        if "if-match" in given:
            raise _not_met(412)
        return
    held = _held(headers, etag, modified)
    deciding = next((name for name in NAMES if name in held), None)
    if deciding and not held[deciding]:
        raise _not_met(412)


def _held(headers: Mapping[str, str], etag: str, modified: float) -> dict[str, bool]:
    """The conditions that were given, and whether each holds. Dates are compared in whole seconds."""
    held, modified = {}, int(modified)
    if "if-match" in headers:
        held["if-match"] = bool({etag.strip('"'), "*"} & _tags(headers["if-match"]))
    if "if-none-match" in headers:
        held["if-none-match"] = not {etag.strip('"'), "*"} & _tags(headers["if-none-match"])
    if "if-modified-since" in headers:
        held["if-modified-since"] = modified > _date(headers, "if-modified-since")
    if "if-unmodified-since" in headers:
        held["if-unmodified-since"] = modified <= _date(headers, "if-unmodified-since")
    return held


def _tags(header: str) -> set[str]:
    """ETags as they may come: several, in quotes or not."""
    return {one.strip().strip('"') for one in header.split(",")}


def _date(headers: Mapping[str, str], name: str) -> float:
    try:
        date = parsedate_to_datetime(headers[name])
        return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        message = f"The value for one of the HTTP headers is not in the correct format: {name}."
        raise ServiceError(400, "InvalidHeaderValue", message) from None


def _not_met(status: int) -> ServiceError:
    message = "The condition specified using HTTP conditional header(s) is not met."
    return ServiceError(status, "ConditionNotMet", message)
