"""The listing of the input files, and its mini-batches."""

import json
import random
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_workspace import listing
from local_workspace.errors import UserError
from local_workspace.listing import MiniBatch, read_paths, split_into_mini_batches

# What a path can be: any text, with a surrogate for each byte that is not UTF-8.
PATHS = st.text(
    st.characters(exclude_categories=["Cs"]) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
)


def list_input_files(data: Path, path: Path, **options: bool) -> tuple[int, list[str]]:
    with path.open("w", encoding="ascii") as lines:
        return listing.list_input_files(data, lines, **options)


def read_all(path: Path, size: int = 7) -> list[str]:
    return [name for batch in split_into_mini_batches(path, size) for name in read_paths(path, batch)]


def test_nested_folders_are_walked_and_all_paths_sorted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    names = ["b/x/y/1.jpg", "b/2.jpg", "a.jpg", "a/1.jpg", "B/1.jpg", ".hidden/.file", "10.jpg", "9.jpg"]
    for name in names:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    (data / "empty").mkdir()
    assert list_input_files(data, tmp_path / "listing") == (len(names), [])
    assert read_all(tmp_path / "listing") == sorted(str(data / name) for name in names)


def test_subfolders_are_left_out_and_named_when_they_are_not_to_be_walked(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "b" / "c").mkdir(parents=True)
    for name in ("2.jpg", "1.jpg", "b/3.jpg"):
        (data / name).touch()
    found = list_input_files(data, tmp_path / "listing", subfolders=False)
    assert found == (2, [str(data / "b")])
    assert read_all(tmp_path / "listing") == [str(data / "1.jpg"), str(data / "2.jpg")]


def test_a_single_file_is_listed_alone(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").touch()
    assert list_input_files(tmp_path / "1.jpg", tmp_path / "listing") == (1, [])
    assert read_all(tmp_path / "listing") == [str(tmp_path / "1.jpg")]


def test_links_are_followed_to_files_alone_and_the_rest_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "folder").mkdir(parents=True)
    (data / "folder" / "1.jpg").touch()
    links = {"a": "folder/1.jpg", "folder/up": "..", "itself": "itself", "nowhere": "gone"}
    for name, target in links.items():
        (data / name).symlink_to(target)
    count, left_out = list_input_files(data, tmp_path / "listing")
    assert count == 2
    assert left_out == [str(data / name) for name in ("folder/up", "itself", "nowhere")]


def test_folders_may_be_nested_deeper_than_files_may_be_open(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for _ in range(300):
        folder.mkdir()
        folder /= "d"
    folder.touch()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (250, limits[1]))
    try:
        assert list_input_files(tmp_path / "data", tmp_path / "listing") == (1, [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_is_neither_file_nor_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="null: cannot be read: Not a directory"):
        list_input_files(Path("/dev/null"), tmp_path / "listing")


@pytest.fixture(scope="module")
def small_runs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "SORTED_AT_ONCE", 3)
        yield


@settings(deadline=None)  # the machine may be busy
@given(st.lists(PATHS))
def test_sorting_on_disk_is_sorting(small_runs: None, paths: list[str]) -> None:
    with ExitStack() as open_runs:
        assert list(listing.sort_on_disk(iter(paths), open_runs)) == sorted(paths)


def test_sorting_holds_no_more_than_two_runs_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SORTED_AT_ONCE", 5_000)
    numbers = random.Random(1).sample(range(100_000), 50_000)
    with ExitStack() as open_runs:
        tracemalloc.start()
        try:
            in_order = listing.sort_on_disk((f"{number:0100}" for number in numbers), open_runs)
            assert sum(1 for _ in in_order) == 50_000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 3_000_000, "a run has 0.75 MB, all of them 7.5 MB"


@settings(deadline=None)  # the machine may be busy
@given(st.lists(PATHS), st.integers(1, 9))
def test_mini_batches_hold_every_path_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "listing"
    with path.open("w", encoding="ascii") as lines:
        lines.writelines(json.dumps(name) + "\n" for name in paths)
    mini_batches = list(split_into_mini_batches(path, size))
    assert [batch.number for batch in mini_batches] == list(range(-(-len(paths) // size)))
    assert all(batch.files == size for batch in mini_batches[:-1])
    assert [name for batch in mini_batches for name in read_paths(path, batch)] == paths


def test_a_mini_batch_says_where_its_lines_begin(tmp_path: Path) -> None:
    path = tmp_path / "listing"
    path.write_text('"a"\n"\\u00fc"\n"c"\n', "ascii")
    assert list(split_into_mini_batches(path, 2)) == [MiniBatch(0, 0, 2), MiniBatch(1, 13, 1)]
    assert read_paths(path, MiniBatch(1, 4, 2)) == ["\u00fc", "c"]
