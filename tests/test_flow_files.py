"""deploy-and-run.sh and the files that are there: downloads, the user's own model, photos and predictions."""

import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest
from flow_script import (  # noqa: F401  # make_...: fixtures
    ROOT,
    SCRIPTS,
    Run,
    commands,
    make_environment,
    make_folder,
    make_programs,
    make_run,
    write_program,
    write_zip,
)


def test_what_is_there_and_whole_is_not_downloaded_again(run: Run, folder: Path) -> None:
    assert run().returncode == 0
    assert not (folder / "wget-was-called").exists()


def test_a_broken_download_is_not_used_and_leaves_nothing(
    run: Run, folder: Path, programs: Path, environment: dict[str, str]
) -> None:
    (folder / "model.zip").write_bytes(b"half a zip")
    write_program(programs, "wget", '#!/usr/bin/env bash\necho "not a zip" > "$3"\n')
    result = run()
    assert result.returncode != 0
    assert "while downloading the model" in result.stderr
    assert not list(folder.glob("*.part"))
    assert not commands(environment, "ml")


def test_a_zip_with_a_link_is_refused(run: Run, folder: Path, environment: dict[str, str]) -> None:
    link = zipfile.ZipInfo("model/link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(folder / "model.zip", "a") as archive:
        archive.writestr(link, "/etc")
    result = run()
    assert result.returncode == 1
    assert "model/link" in result.stderr
    assert "error: model.zip holds links: see above\n\nhint: delete it and download it again" in result.stderr
    assert not (folder / "model").exists()
    assert not commands(environment, "ml")


def test_a_zip_writes_nowhere_but_in_its_own_folder(run: Run, folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.zip", "a") as archive:
        archive.writestr("endpoint.yml", "replaced")
        archive.writestr("model/../../outside", "outside")
    run()
    assert (folder / "endpoint.yml").read_bytes() == (ROOT / "endpoint.yml").read_bytes()
    assert not (folder.parent / "outside").exists()
    assert not (folder / "outside").exists()


def test_curl_does_where_there_is_no_wget(run: Run, folder: Path, programs: Path) -> None:
    (folder / "model.zip").rename(folder / "whole.zip")
    (programs / "wget").unlink()
    write_program(
        programs, "curl", '#!/usr/bin/env bash\nwhile [ "$1" != -o ]; do shift; done\ncp whole.zip "$2"\n'
    )
    assert run().returncode == 0
    assert zipfile.is_zipfile(folder / "model.zip")


# the user's own


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_files(folder: Path, contents: dict[str, str]) -> None:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def test_a_model_and_photos_that_are_there_are_used_as_they_are(run: Run, folder: Path) -> None:
    write_files(folder, {"model/mine.keras": "mine", "data/cats/1.jpg": "a cat"})
    before = files(folder / "model"), files(folder / "data")
    for zips in ("there", "gone"):
        result = run()
        assert (result.returncode, result.stderr) == (0, "")
        for name in ("model", "data"):
            assert f"\n{name}/ is there and is used as it is: nothing is downloaded\n" in result.stdout
        assert "\nmodel/ holds mine.keras\n" in result.stdout
        assert (files(folder / "model"), files(folder / "data")) == before, zips
        for archive in ("model.zip", "imagenet-1000.zip"):
            (folder / archive).unlink(missing_ok=True)
    assert not (folder / "wget-was-called").exists()


def test_what_the_first_run_unpacked_the_second_one_uses(run: Run, folder: Path) -> None:
    run()
    times = {
        path: path.stat().st_mtime_ns for name in ("model", "data") for path in (folder / name).iterdir()
    }
    assert "model/ is there" in run().stdout
    assert len(times) == 14
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("name", ["model", "data"])
@pytest.mark.parametrize("kind", ["empty", "file", "dangling link"])
def test_an_empty_folder_is_an_error_before_anything_is_made(
    name: str, kind: str, run: Run, folder: Path, environment: dict[str, str]
) -> None:
    if kind == "empty":
        (folder / name / "empty, too").mkdir(parents=True)
    elif kind == "file":
        (folder / name).write_text("mine", encoding="utf-8")
    else:
        (folder / name).symlink_to(folder / "nowhere")
    result = run()
    assert result.returncode == 2
    assert result.stderr.startswith(
        f"error: {name} is there, and is no folder with files in it\n\nhint: put "
    )
    assert not commands(environment, "ml")


def test_what_a_mac_adds_to_a_zip_is_left_out(run: Run, folder: Path) -> None:
    junk = ["__MACOSX/._a.jpg", "__MACOSX/photos/._a.jpg", "._b.jpg", "photos/._a.jpg", "photos/.DS_Store"]
    photos = dict.fromkeys(["photos/a.jpg", "photos/the others/b.jpg", "c.jpg"], "photo")
    write_zip(folder / "imagenet-1000.zip", photos | dict.fromkeys(junk, "junk"))
    with zipfile.ZipFile(folder / "model.zip", "a") as archive:
        for name in ("__MACOSX/model/._saved_model.pb", "model/._saved_model.pb", "model/.DS_Store"):
            archive.writestr(name, "junk")
    result = run()
    assert (result.returncode, result.stderr) == (0, "")
    assert set(files(folder / "data")) == set(photos)
    assert not (folder / "data/__MACOSX").exists()
    assert set(files(folder / "model")) == {"ImageNetLabels.txt", "saved_model.pb"}
    assert not (folder / "__MACOSX").exists()


def test_half_an_unpacked_folder_of_a_killed_run_is_begun_again(run: Run, folder: Path) -> None:
    write_files(folder, {"deploy-and-run.part/model/half": "half", "deploy-and-run.part/half.JPEG": "half"})
    assert run().returncode == 0
    assert set(files(folder / "model")) == {"ImageNetLabels.txt", "saved_model.pb"}
    assert len(files(folder / "data")) == 12
    assert not (folder / "deploy-and-run.part").exists()


def test_a_damaged_zip_leaves_no_folder(run: Run, folder: Path) -> None:
    whole = (folder / "model.zip").read_bytes()
    (folder / "model.zip").write_bytes(whole.replace(b"goldfish", b"goldfinc"))
    result = run()
    assert result.returncode != 0
    assert "Stopped with" in result.stderr and "while downloading the model" in result.stderr
    assert not (folder / "model").exists()
    assert not (folder / "deploy-and-run.part").exists()


@pytest.mark.parametrize("place", ["/named-outputs/score", "", "/score"])
def test_predictions_that_are_there_are_never_overwritten(
    place: str, run: Run, folder: Path, environment: dict[str, str]
) -> None:
    own = {
        "predictions.csv": "mine",
        "score/predictions.csv": "his",
        "outputs/high-throughput/predictions.csv": "hers",
    }
    write_files(folder, own)
    result = run(AZ_PLACE=place)
    assert result.returncode == 0
    assert "mine" not in result.stdout
    assert result.stdout.count("\n3 rows\n") == 2
    for name, text in own.items():
        moved = (folder / name).parent == Path(f"{folder}{place}")
        moved |= (folder / name).parent == Path(f"{folder}/outputs/high-throughput{place}")
        assert (folder / (name + ".1" * moved)).read_text() == text
        assert (f"The earlier {name} is now {name}.1\n" in result.stderr) == moved
    run(AZ_PLACE=place)
    run(AZ_PLACE=place, AZ_PREDICTIONS="other.JPEG 1 0.5\\n")
    assert len(list(folder.glob("**/predictions.csv.*"))) == result.stderr.count("The earlier") + 2
    assert not list(folder.glob("**/*.earlier"))


def test_predictions_set_aside_are_back_after_a_failed_download(run: Run, folder: Path) -> None:
    write_files(folder, {"predictions.csv": "mine", "named-outputs/score/predictions.csv.earlier": "killed"})
    assert run(AZ_PLACE="/somewhere/else").returncode == 1
    assert (folder / "predictions.csv").read_text() == "mine"
    assert (folder / "named-outputs/score/predictions.csv").read_text() == "killed"


# the model that stands in for the article's

STAND_IN = {"model/saved_model.pb": "small", "model/STAND-IN.txt": "A small model.\nsubscription: here\n"}


@pytest.mark.parametrize("unpacked", [True, False])
def test_a_stand_in_gets_the_article_s_name_in_its_own_subscription_only(
    unpacked: bool, run: Run, folder: Path, environment: dict[str, str]
) -> None:
    write_zip(folder / "model.zip", STAND_IN)
    if unpacked:
        write_files(folder, STAND_IN)
    refused = run(AZ_SUBSCRIPTION="another")
    assert refused.returncode == 2
    assert "    A small model.\n" in refused.stdout
    assert "was not made for this subscription: model/STAND-IN.txt\n\nhint: make clean" in refused.stderr
    assert not commands(environment, "ml")
    assert run(AZ_SUBSCRIPTION="here").returncode == 0
    assert commands(environment, "ml model create") == [
        "ml model create --name imagenet-classifier --path model"
    ]


def test_a_stand_in_is_registered_anywhere_by_a_name_that_is_given(run: Run, folder: Path) -> None:
    write_files(folder, STAND_IN)
    for name in ("small", "imagenet-classifier"):
        assert run(AZ_SUBSCRIPTION="another", MODEL_NAME=name).returncode == 0


# the labels of the model


def table(run: Run) -> list[str]:
    return run().stdout.partition("predictions.csv\n")[2].partition("\n\n")[0].splitlines()[1:]


@pytest.mark.parametrize("name", ["labels.txt", "ImageNetLabels.txt", "inner/labels.txt"])
def test_the_labels_are_those_in_the_model_s_folder(name: str, run: Run, folder: Path) -> None:
    write_files(
        folder, {"model/inner/saved_model.pb": "mine", f"model/{name}": "\ufeffash\r\nbirch\r\ncedar\r\n"}
    )
    assert [row.split()[-1] for row in table(run)] == ["cedar", "ash", "birch", "rows"]


def test_without_labels_the_table_shows_the_class(run: Run, folder: Path) -> None:
    write_files(folder, {"model/mine.keras": "mine"})
    assert [row.split("  ")[-1] for row in table(run)] == [
        *("class 2", "class 0", "class 1", "3 rows"),
        "no labels: model/ has no ImageNetLabels.txt and no labels.txt",
    ]


def test_labels_that_cannot_be_the_model_s_are_not_shown(run: Run, folder: Path) -> None:
    write_files(folder, {"model/mine.keras": "mine", "model/labels.txt": "ash\nbirch\n"})
    assert [row.split("  ")[-1] for row in table(run)] == [
        *("class 2", "class 0", "class 1", "3 rows"),
        "no labels: model/labels.txt has 2 lines, too few for class 2",
    ]


# other places


def test_a_path_with_spaces_and_cdpath(folder: Path, environment: dict[str, str], tmp_path: Path) -> None:
    elsewhere = tmp_path / "here and there" / "a sample"
    folder.rename(elsewhere.parent.mkdir() or elsewhere)
    (tmp_path / "decoy" / "a sample").mkdir(parents=True)
    result = subprocess.run(
        ["bash", "a sample/deploy-and-run.sh"],
        cwd=elsewhere.parent,
        env=environment | {"CDPATH": str(tmp_path / "decoy")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("\n== downloading the model\n")


def test_a_clone_that_git_is_told_to_write_with_crlf_works(
    folder: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    git = shutil.which("git")
    if not git:
        pytest.skip("git is not installed")
    shutil.copy(ROOT / ".gitattributes", folder)
    options = ["-c", "core.autocrlf=true", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([git, *options, *command], cwd=folder, check=True)
    subprocess.run([git, *options, "clone", "-q", folder, tmp_path / "clone"], check=True)
    for path in files(tmp_path / "clone"):
        assert (
            path.endswith(".zip")
            or path.startswith(".git/")
            or b"\r\n" not in (tmp_path / "clone" / path).read_bytes()
        )
    run = subprocess.run(["bash", "deploy-and-run.sh"], cwd=tmp_path / "clone", env=environment, timeout=300)
    assert run.returncode == 0
