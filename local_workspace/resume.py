"""What a run keeps in `.job/` of its output folder, so that `--resume` can go on with it.

The listing, the settings that decide what is in the results, and while it runs the model as its workers see
it. The settings are written last: where they are, the listing is whole. How far the run came is in its
journal (journal.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from local_workspace.deployment import Deployment
from local_workspace.errors import UserError

FOLDER, SUMMARY = ".job", "summary.json"


def deciding_settings(deployment: Deployment, model: Path, data: Path) -> dict[str, Any]:
    """The settings without which a resumed run would give other rows, or the same ones elsewhere.

    Workers, attempts, timeouts, the threshold and the logging level may change.
    """
    return {
        "name": deployment.name,
        "code_configuration.code": str(deployment.code),
        "code_configuration.scoring_script": deployment.scoring_script,
        "settings.mini_batch_size": deployment.mini_batch_size,
        "settings.output_action": deployment.output_action,
        "settings.output_file_name": deployment.output_file_name,
        **{
            f"settings.environment_variables.{name}": value
            for name, value in deployment.environment_variables.items()
        },
        "the model": str(model),
        "the data": os.path.abspath(data),
    }


def read_run(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The run that `output` holds: its run_id, files and settings; None if there is none.

    Raises UserError where it is not the run that `settings` would give.
    """
    path = output / FOLDER / "run.json"
    try:
        run = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}", "--overwrite the run") from None
    earlier = run["settings"]
    for name in {**settings, **earlier}:
        if settings.get(name) != earlier.get(name):
            now, then = (describe(name, each) for each in (settings, earlier))
            raise UserError(
                f"{output}: cannot be resumed: {name} is {now}, and was {then}",
                "resume with what it was, or choose another --output, or --overwrite it",
            )
    return run


def describe(name: str, settings: dict[str, Any]) -> str:
    if name not in settings:
        return "not set"
    return "another text" if "environment_variables" in name else repr(settings[name])  # it may be a secret


@contextmanager
def new_folder(output: Path) -> Iterator[None]:
    """The folder `output`, which goes again where nothing has come into it."""
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it holds something
                output.rmdir()


@contextmanager
def working_folder(output: Path, listing: TextIO | None) -> Iterator[None]:
    """`.job/` with a new run's `listing`, or else as the run to resume has left it; without a model.

    Where a run ends before it has begun, for example since its model cannot be read, nothing of it stays.
    """
    folder = output / FOLDER
    try:
        if listing:
            remove(folder)
            folder.mkdir(mode=0o700)
            listing.seek(0)
            with (folder / "listing").open("w", encoding="ascii") as copy:
                shutil.copyfileobj(listing, copy)
        remove(folder / "model")  # of a run that was killed
        yield
    finally:
        remove(folder / "model")
        if not (folder / "run.json").exists():
            remove(folder)


def remove(path: Path) -> None:
    """A file, a link, a folder and all that is in it, or nothing."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def keep_run(output: Path, run_id: str, files: int, settings: dict[str, Any]) -> None:
    write_json(output / FOLDER / "run.json", {"run_id": run_id, "files": files, "settings": settings})


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is there as a whole, or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
    part.replace(path)


def is_completed(output: Path) -> bool:
    try:
        return json.loads((output / SUMMARY).read_text("utf-8"))["status"] == "Completed"
    except (OSError, ValueError):
        return False


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Refuses the `output` folder while another run writes to it."""
    folder = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise UserError(
            f"{output}: another run is writing to it", "wait for its end, or choose another --output"
        ) from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(folder)
