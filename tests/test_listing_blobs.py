"""Listings of storage: from an index, off the event loop, always XML."""

import asyncio
import threading
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pytest
from attacked import Target, ask
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from local_workspace import containers
from local_workspace.store import AT_ONCE, Store, name_problem
from local_workspace.workspace import BLOB_HOST

MANY = 30_000


class Counting(Store):
    """Counts how often the index is asked."""

    asked = 0

    def blobs_from(self, container: str, start: str) -> list[Any]:
        self.asked += 1
        return super().blobs_from(container, start)


def filled(folder: Path, names: list[str]) -> Counting:
    """A store with a blob of each name, all with the content of one file."""
    store = Counting(folder)
    store.create_container("c")
    path = store.new_file()
    path.write_bytes(b"x")
    rows = [("c", name, path.relative_to(store.folder).as_posix(), "{}") for name in names]
    store._database.execute("BEGIN")
    store._database.executemany("INSERT INTO blobs VALUES (?, ?, ?, ?)", rows)
    store._database.execute("COMMIT")
    return store


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Any:
    names = [f"data/{number:06d}.JPEG" for number in range(MANY)] + ["zoo/a", "zoo/b"]
    store = filled(tmp_path_factory.mktemp("many") / "state", names)
    yield store
    store.close()


def listed(store: Store, prefix: str, delimiter: str, size: int) -> list[list[str]]:
    """The pages of a listing."""
    marker, pages = "", []
    while True:
        entries = containers.page(store, "c", prefix, delimiter, marker, size + 1)
        pages.append([entry.name for entry in entries[:size]])
        if len(entries) <= size:
            return pages
        marker = entries[size].name


def test_a_page_costs_what_is_on_it_however_many_blobs_there_are(many: Counting) -> None:
    for marker in ("", "data/015000.JPEG", "data/029000.JPEG"):
        many.asked = 0
        assert len(containers.page(many, "c", "data/", "", marker, 500)) == 500
        assert many.asked == 1
    many.asked = 0
    pages = listed(many, "", "", 5000)
    assert list(chain(*pages)) == [f"data/{number:06d}.JPEG" for number in range(MANY)] + ["zoo/a", "zoo/b"]
    assert many.asked <= 1.2 * MANY / AT_ONCE + len(pages)


def test_a_folder_is_told_without_reading_what_is_in_it(many: Counting) -> None:
    many.asked = 0
    assert listed(many, "", "/", 5000) == [["data/", "zoo/"]]
    assert many.asked <= 3
    assert listed(many, "zoo/", "/", 1) == [["zoo/a"], ["zoo/b"]]
    assert listed(many, "none", "/", 5) == [[]]


NAMES = st.lists(st.text("ab/\u00e9\ud7ff\U0010ffff", min_size=1, max_size=6), max_size=30, unique=True)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    names=NAMES,
    prefix=st.sampled_from(["", "a", "a/", "/", "\U0010ffff", "\ud7ff"]),
    delimiter=st.sampled_from(["", "/", "ab", "\U0010ffff", "\ud7ff"]),
    size=st.integers(1, 4),
)
def test_pages_together_are_the_listing(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], prefix: str, delimiter: str, size: int
) -> None:
    """Of any names, prefix and delimiter; worked out here in the plainest way."""
    expected = []
    for name in sorted(name for name in names if name.startswith(prefix)):
        end = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = name if end < 0 else name[: end + len(delimiter)]
        if entry not in expected:
            expected.append(entry)
    store = filled(tmp_path_factory.mktemp("some") / "state", names)
    pages = listed(store, prefix, delimiter, size)
    store.close()
    assert list(chain(*pages)) == expected
    assert all(len(page) == size for page in pages[:-1])


def test_a_listing_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on only once something else has run in the event loop meanwhile."""
    store, ran = filled(tmp_path / "state", ["a"]), threading.Event()
    read = store.blobs_from

    def wait(*place: str) -> list[Any]:
        assert ran.wait(60), "the event loop was held up"
        return read(*place)

    monkeypatch.setattr(store, "blobs_from", wait)
    monkeypatch.setattr(containers, "allow", lambda *_: None)
    call = SimpleNamespace(
        request=SimpleNamespace(query_params=QueryParams()), names={"container": "c"}, store=store
    )

    async def both() -> bytes:
        listing = asyncio.ensure_future(containers.list_blobs(call))
        await asyncio.sleep(0)
        ran.set()
        return (await listing).body

    assert b"<Name>a</Name>" in asyncio.run(both())
    store.close()


# What no XML could say is not let in


def put(target: Target, name: str, headers: dict[str, str] | None = None) -> int:
    path = f"/workspaceblobstore/{name}?{target.sas}"
    return ask(target, "PUT", BLOB_HOST, path, headers, b"content").status


@pytest.mark.parametrize("name", [f"%{number:02x}" for number in range(32)] + ["%ef%bf%be", "%ef%bf%bf"])
def test_a_name_with_a_control_character_is_refused(target: Target, name: str) -> None:
    assert put(target, f"xml/a{name}b") == 400


@pytest.mark.parametrize("name", ["%ff", "%fe", "%ed%a0%80", "%c0%ae", "a%80b"])
def test_a_name_that_is_not_utf_8_is_refused(target: Target, name: str) -> None:
    """Two of them would be one blob, with U+FFFD in its name."""
    assert put(target, f"xml/{name}") == 400
    for method in ("GET", "HEAD", "DELETE"):
        assert ask(target, method, BLOB_HOST, f"/workspaceblobstore/xml/{name}?{target.sas}").status == 400


@pytest.mark.parametrize("header", ["x-ms-meta-a", "x-ms-blob-content-type", "x-ms-blob-content-md5"])
@pytest.mark.parametrize("character", ["\x01", "\x08", "\x0b", "\x1b", "\x1f", "\x7f"])
def test_a_header_with_a_control_character_is_refused(target: Target, header: str, character: str) -> None:
    assert put(target, "xml/header", {header: f"a{character}b"}) == 400
    block = f"xml/header?comp=blocklist&{target.sas}"
    answer = ask(
        target, "PUT", BLOB_HOST, f"/workspaceblobstore/{block}", {header: f"a{character}b"}, b"<BlockList/>"
    )
    assert answer.status == 400


def test_all_that_is_let_in_is_listed_as_xml(target: Target) -> None:
    given = ["\x7f", "\x80", "\x9f", "\u2028", "\ufffd", "\U0001f4a9", "]]>", "<&>'\"", " ", "\ufeff"]
    for name in given:
        headers = {"x-ms-meta-a": "<&>\xff ]]>", "x-ms-blob-content-type": 'a/b; c="<\xe9>"'}
        assert put(target, quote(f"listed/{name}"), headers) == 201
    listing = f"/workspaceblobstore?restype=container&comp=list&include=metadata&prefix=listed/&{target.sas}"
    root = ElementTree.fromstring(ask(target, "GET", BLOB_HOST, listing).content)  # noqa: S314  # our own
    assert [name.text for name in root.iter("Name")] == sorted(f"listed/{name}" for name in given)
    assert {value.text for value in root.iter("a")} == {"<&>\xff ]]>"}


@pytest.mark.parametrize("query", ["prefix=%01", "delimiter=%02", "marker=%03"])
def test_a_listing_of_what_cannot_be_is_refused(target: Target, query: str) -> None:
    listing = f"/workspaceblobstore?restype=container&comp=list&{query}&{target.sas}"
    assert ask(target, "GET", BLOB_HOST, listing).status == 400


def test_an_error_is_xml_whatever_was_asked(target: Target) -> None:
    answer = ask(target, "PUT", BLOB_HOST, f"/c/%01%1b%3c?comp=lease&{target.sas}")
    assert answer.status == 501
    ElementTree.fromstring(answer.content)  # noqa: S314  # our own


def test_why_a_name_is_none_is_told() -> None:
    assert name_problem("a" * 1024) == name_problem("\u00e9 \U0001f4a9") == ""
    assert "1024" in name_problem("a" * 1025)
    assert "UTF-8" in name_problem("a\udcff")
    assert "control" in name_problem("a\nb") and "control" in name_problem("\ud800")
