"""The photos that rows name: the right one or none, small and upright; and how `show` draws them."""

import os
from pathlib import Path

import pytest
from PIL import Image

from local_workspace import pictures
from local_workspace.__main__ import main
from local_workspace.errors import UserError
from local_workspace.pictures import find_photos, small_picture

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)
BATCHES = "mini_batch,files,rows,failed_files\r\n"


def photo(path: Path, colour: tuple[int, int, int] = RED) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (240, 180), colour).save(path, "PNG")
    return str(path)


# --- which photo


def test_a_photo_is_found_by_its_name_or_path(tmp_path: Path) -> None:
    a, b = photo(tmp_path / "a" / "1.png"), photo(tmp_path / "b" / "2.png")
    files = ("1.png", "b/2.png", a, "3.png", "x/1.png", "", "..", "/etc/passwd", "../a/1.png")
    assert find_photos(tmp_path, files) == [[a], [b], [a], [], [], [], [], [], []]


def test_a_name_in_two_folders_is_told_apart_by_its_mini_batch_or_not_at_all(tmp_path: Path) -> None:
    a, b, c = (photo(tmp_path / folder / "same.png") for folder in "abc")
    files = ("same.png", "same.png", "same.png")
    every = [a, b, c]
    assert find_photos(tmp_path, files) == [every, every, every]
    assert find_photos(tmp_path, files, ((1, 1), (1, 1), (1, 1))) == [[a], [b], [c]]
    assert find_photos(tmp_path, files[:2], ((1, 1), (1, 0), (1, 1))) == [[a], [c]], "b has failed"
    assert find_photos(tmp_path, files, ((2, 2), (1, 1))) == [[a, b], [a, b], [c]], "the order in one is open"
    for batches in (((1, 1), (1, 1)), ((1, 1),) * 4):
        assert find_photos(tmp_path, files, batches) == [every] * 3, "not the input that was scored"


def test_an_input_of_too_many_files_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second file of the name may be among those that were not looked at."""
    for name in "abc":
        photo(tmp_path / name)
    monkeypatch.setattr(pictures, "SEARCHED", 2)
    with pytest.raises(UserError, match="more than 2 files"):
        find_photos(tmp_path, ("a",))


# --- the picture


def test_a_small_picture_is_the_whole_photo_in_rgb(tmp_path: Path) -> None:
    for mode, colour, expected in (
        ("RGB", RED, RED),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("I;16", 32768, (128, 128, 128)),
        ("L", 7, (7, 7, 7)),
    ):
        Image.new(mode, (600, 400), colour).save(tmp_path / "photo.png")
        picture = small_picture(tmp_path / "photo.png", (240, 180))
        assert picture is not None
        assert (picture.mode, picture.size, picture.getpixel((9, 9))) == ("RGB", (240, 160), expected), mode


def test_what_is_no_photo_has_no_picture(tmp_path: Path) -> None:
    """A named pipe would wait for ever."""
    (tmp_path / "text.jpg").write_text("no photo")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("text.jpg", "pipe.jpg", "folder.jpg", "missing.jpg", "a\0b", "x" * 300):
        assert small_picture(tmp_path / name, (240, 180)) is None


# --- what `show` draws


def show(folder: Path, rows: str, *arguments: str) -> int:
    (folder / "output" / "score").mkdir(parents=True, exist_ok=True)
    (folder / "output" / "score" / "predictions.csv").write_text(rows)
    return main(["show", str(folder / "output"), "--data", str(folder / "data"), *arguments])


def drawn(folder: Path) -> list[tuple[int, ...]]:
    """The colours near the corners of the photos in the first line of the sheet."""
    with Image.open(folder / "output" / "predictions.png") as sheet:
        return [sheet.getpixel((x, 12)) for x in range(12, sheet.width - 12, 256)]


def test_show_draws_no_photo_where_it_cannot_be_told_which(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photo(tmp_path / "data" / "a" / "same.png", BLUE)
    photo(tmp_path / "data" / "b" / "same.png", GREEN)
    rows = "same.png 1 0.5\nsame.png 2 0.5\n"
    assert show(tmp_path, rows) == 0
    assert drawn(tmp_path) == [(255, 255, 255)] * 2
    assert "warning: no picture of same.png: ambiguous: 2 such files" in capsys.readouterr().err
    journal = tmp_path / "output" / "logs" / "sys" / "job_report" / "processed_mini-batches.csv"
    journal.parent.mkdir(parents=True)
    journal.write_text(f"{BATCHES}0,1,1,0\r\n1,1,1,0\r\n")
    assert show(tmp_path, rows) == 0
    assert drawn(tmp_path) == [BLUE, GREEN]
    assert "warning" not in capsys.readouterr().err
    journal.write_text(f"{BATCHES}1,1,1,0\r\n0,1,1,0\r\n")  # a job that failed writes what it has
    assert show(tmp_path, rows) == 0
    assert drawn(tmp_path) == [(255, 255, 255)] * 2


def test_show_goes_on_where_there_is_no_photo(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo(tmp_path / "data" / "1.png")
    (tmp_path / "data" / "2.png").write_text("no photo")
    os.mkfifo(tmp_path / "data" / "4.png")
    assert show(tmp_path, "1.png 1 0.5\n2.png 2 0.5\n3.png 3 0.5\n4.png 3 0.5\n") == 0
    assert drawn(tmp_path) == [RED, (255, 255, 255)]
    said = capsys.readouterr().err
    assert "no picture of 2.png: no photo that can be read" in said
    assert "no picture of 3.png: no such file" in said
    assert "1.png:" not in said


def test_show_prints_any_name_and_number(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    rows = "1,1e300,caf\udce9 \x1b[31m,\udcff.png\n".encode("utf-8", "surrogateescape")
    (tmp_path / "output" / "score").mkdir(parents=True)
    (tmp_path / "output" / "score" / "rows.txt").write_bytes(rows)
    assert main(["show", str(tmp_path / "output"), "--data", str(tmp_path / "data")]) == 0
    out = capsys.readouterr().out
    assert "\\udcff.png" in out and "caf\\udce9 \\x1b[31m" in out and "1e+300" in out and "\x1b" not in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--most", "0"], "--most 0: expected a whole number from 1 to 1000"),
        (["--most", "-1"], "--most -1: expected"),
        (["--most", "100000"], "--most 100000: expected"),
        (["--data", "missing"], "missing: no such folder, expected the photos that were scored"),
        (["--model", "missing"], "missing: no such model"),
        (["--labels", "missing"], "missing: the labels cannot be read: No such file"),
    ],
)
def test_show_refuses_what_it_cannot_do(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photo(tmp_path / "data" / "1.png")
    assert show(tmp_path, "1.png 1 0.5\n", *arguments) == 2
    assert problem in capsys.readouterr().err


def test_show_says_where_the_sheet_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo(tmp_path / "data" / "1.png")
    (tmp_path / "output" / "predictions.png").mkdir(parents=True)
    assert show(tmp_path, "1.png 1 0.5\n") == 2
    assert "predictions.png: cannot be written: Is a directory" in capsys.readouterr().err
