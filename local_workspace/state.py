"""`state list|export|delete`: what a local workspace has kept in its state folder."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from local_workspace.errors import UserError
from local_workspace.files import local_path
from local_workspace.job_files import stage
from local_workspace.serve import add_state_argument
from local_workspace.store import CONTENT, Store, is_state_folder, lock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_state_argument(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="print the resources and the size of the blobs")
    export = actions.add_parser("export", help="write resources (JSON) and blobs (files) under their names")
    export.add_argument("folder", type=Path, metavar="DIR")
    actions.add_parser("delete", help="delete the state folder")


def state(arguments: argparse.Namespace) -> int:
    folder = arguments.state.resolve()
    if not is_state_folder(folder):
        raise UserError(f"{folder} is no state folder of a local workspace", "name one with --state DIR")
    if arguments.action == "delete":  # also one that this version cannot read
        try:
            with lock(folder):
                delete_state(folder)
        except OSError as error:
            message = f"the state folder {folder} cannot be deleted: {error.strerror}: {error.filename}"
            raise UserError(message, "it may be another user's: name another with --state DIR") from None
        return 0
    store = Store(folder)  # refuses a folder that is in use
    try:
        if arguments.action == "list":
            print_state(store)
        if arguments.action == "export":
            export_state(store, arguments.folder)
    finally:
        store.close()
    return 0


def print_state(store: Store) -> None:
    """One line a resource or container, for a person and for `grep`."""
    for kind in store.kinds():
        for key, value in store.items(kind):
            print(kind, key, value.get("status", ""))
    for container in store.containers():
        blobs = list(store.blobs(container))
        size = sum(blob.size for blob in blobs if blob.path.is_file())
        print("container", container, f"{len(blobs)} blobs, {size / 1e6:.1f} MB")


def export_state(store: Store, folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty", "export into a new folder")
    for kind in store.kinds():
        for key, value in store.items(kind):
            path = local_path(folder / "resources" / kind, key + ".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    for container in store.containers():
        _, problems = stage(store, {"container": container, "path": ""}, folder / "blobs" / container)
        for name, problem in problems:
            print(f"error: {container}/{name} is left out: {problem}", file=sys.stderr)


def delete_state(folder: Path) -> None:
    """Delete what workspaces have written; the folder too, where nothing else is in it."""
    for name in CONTENT:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in (folder / "samples", folder):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
