"""Resources (JSON) and blobs (files) of a workspace in one state folder. Knows no HTTP.

SQLite holds the resources and the names of the blobs; a blob's content is a file under a name that the store
chose. So no name that a client sends ever becomes a path, a write is there whole or not at all, and the
state survives `kill -9`.
"""

import fcntl
import json
import os
import shlex
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_workspace.errors import UserError

TABLES = """
CREATE TABLE resources (
    kind TEXT, key TEXT COLLATE NOCASE, value TEXT NOT NULL, PRIMARY KEY (kind, key)
);
CREATE TABLE containers (name TEXT PRIMARY KEY);
CREATE TABLE blobs (
    container TEXT, name TEXT, file TEXT NOT NULL, properties TEXT NOT NULL, PRIMARY KEY (container, name)
);
"""


DATABASE = "state.sqlite"
SCHEMA = 1  # of the tables and of what lies in them: it grows when an older state folder cannot be read
# Everything that a workspace writes into its state folder; `samples/` may hold a user's own files too.
CONTENT = (
    *(DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "lock", "blobs", "incoming", "jobs"),
    *("samples/embedded", "access.log", ".gitignore"),
)


def is_state_folder(folder: Path) -> bool:
    return (folder / DATABASE).is_file()


@dataclass(frozen=True)
class Blob:
    name: str
    path: Path
    properties: dict[str, Any]  # content_type, content_md5, metadata

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def modified(self) -> float:
        return self.path.stat().st_mtime


def local_path(folder: Path, name: str) -> Path:
    """The file for a blob or resource name below `folder`: no name leads out of it.

    The only place where a client's name becomes a path. A segment that means something else in a path
    (empty, `.`, `..`) or cannot be in one (NUL) is percent-encoded; all others arrive as they are.
    """
    return folder.joinpath(*(_file_name(segment) for segment in name.split("/")))


def _file_name(segment: str) -> str:
    if segment in ("", ".", ".."):
        return "%2E" * len(segment) or "%"
    return segment.replace("\0", "%00")


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them: a thousand photos cost no time and no space."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


class Store:
    def __init__(self, folder: Path) -> None:
        """Open the state folder, which nobody else may have open. It is its owner's alone."""
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._blobs = self.folder / "blobs"
        self._incoming = self.folder / "incoming"
        self._lock_file = lock(self.folder)
        self._lock = threading.Lock()
        try:
            self._database = _open_database(self.folder)
        except UserError:
            self._lock_file.close()
            raise
        self._blobs.mkdir(exist_ok=True)
        shutil.rmtree(self._incoming, ignore_errors=True)  # uploads that a killed server left half done
        self._incoming.mkdir()

    def close(self) -> None:
        self._database.close()
        self._lock_file.close()

    def _rows(self, statement: str, *values: str | int) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def _change(self, statement: str, *values: str) -> bool:
        """Whether the statement changed anything."""
        with self._lock:
            return self._database.execute(statement, values).rowcount > 0

    # Resources: a kind ("models"), a key that ignores case as ARM does ("imagenet-classifier/1"), a dict.

    def put(self, kind: str, key: str, value: dict[str, Any]) -> None:
        statement = (
            "INSERT INTO resources VALUES (?, ?, ?)"
            " ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value"
        )
        self._change(statement, kind, key, json.dumps(value))

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        rows = self._rows("SELECT value FROM resources WHERE kind = ? AND key = ?", kind, key)
        return json.loads(rows[0][0]) if rows else None

    def items(self, kind: str, prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
        """Keys that start with `prefix` and their values, in the order in which they were first put."""
        rows = self._rows("SELECT key, value FROM resources WHERE kind = ? ORDER BY rowid", kind)
        return [(key, json.loads(value)) for key, value in rows if key.lower().startswith(prefix.lower())]

    def resources(self, kind: str, prefix: str = "") -> list[dict[str, Any]]:
        return [value for _, value in self.items(kind, prefix)]

    def delete(self, kind: str, key: str) -> bool:
        return self._change("DELETE FROM resources WHERE kind = ? AND key = ?", kind, key)

    def kinds(self) -> list[str]:
        return [kind for (kind,) in self._rows("SELECT DISTINCT kind FROM resources ORDER BY kind")]

    # Blobs: a container, a name, a file.

    def create_container(self, name: str) -> bool:
        """False when it is there already."""
        return self._change("INSERT OR IGNORE INTO containers VALUES (?)", name)

    def has_container(self, name: str) -> bool:
        return bool(self._rows("SELECT 1 FROM containers WHERE name = ?", name))

    def containers(self) -> list[str]:
        return [name for (name,) in self._rows("SELECT name FROM containers ORDER BY name")]

    def new_file(self) -> Path:
        """Where to write content before `put_blob` takes it over."""
        return self._incoming / uuid.uuid4().hex

    def put_blob(self, container: str, name: str, content: Path, properties: dict[str, Any]) -> Blob:
        """Take `content` over as the blob; what was there is replaced at once, as a whole."""
        content.chmod(0o444)  # jobs get hard links: a scoring script must not change what was uploaded
        target = self._blobs / content.name
        content.replace(target)
        replaced = self.blob(container, name)
        self.publish(container, name, target, properties)
        self._drop_content(replaced)
        return Blob(name, target, properties)

    def publish(self, container: str, name: str, path: Path, properties: dict[str, Any]) -> None:
        """Make a file of the state folder a blob where it lies: a growing log, the output of a job."""
        file = path.relative_to(self.folder).as_posix()
        statement = (
            "INSERT INTO blobs VALUES (?, ?, ?, ?) ON CONFLICT (container, name)"
            " DO UPDATE SET file = excluded.file, properties = excluded.properties"
        )
        self._change(statement, container, name, file, json.dumps(properties))

    def set_blob_properties(self, container: str, name: str, properties: dict[str, Any]) -> None:
        statement = "UPDATE blobs SET properties = ? WHERE container = ? AND name = ?"
        self._change(statement, json.dumps(properties), container, name)

    def blob(self, container: str, name: str) -> Blob | None:
        statement = "SELECT name, file, properties FROM blobs WHERE container = ? AND name = ?"
        rows = self._rows(statement, container, name)
        blob = self._blob(*rows[0]) if rows else None
        return blob if blob and blob.path.is_file() else None  # a person may have deleted a job's folder

    def blobs(self, container: str, prefix: str = "", after: str = "") -> Iterator[Blob]:
        """Blobs in the order of their names, from `after` on."""
        statement = (
            "SELECT name, file, properties FROM blobs"
            " WHERE container = ? AND name > ? AND substr(name, 1, ?) = ? ORDER BY name"
        )
        for row in self._rows(statement, container, after, len(prefix), prefix):
            blob = self._blob(*row)
            if blob.path.is_file():
                yield blob

    def delete_blob(self, container: str, name: str) -> bool:
        deleted = self.blob(container, name)
        self._change("DELETE FROM blobs WHERE container = ? AND name = ?", container, name)
        self._drop_content(deleted)
        return deleted is not None

    def _blob(self, name: str, file: str, properties: str) -> Blob:
        return Blob(name, self.folder / file, json.loads(properties))

    def _drop_content(self, blob: Blob | None) -> None:
        if blob is not None and blob.path.parent == self._blobs:
            blob.path.unlink(missing_ok=True)

    def stage(self, container: str, path: str, folder: Path, *, keep_name: bool = False) -> list[Path]:
        """Put the blob `path`, or every blob below it, into `folder`; the files that came of it.

        With `keep_name` the last name of `path` stays: `folder/model/...` for `.../model`.
        """
        single = self.blob(container, path)
        prefix = path.rstrip("/") + "/" if path.strip("/") else ""
        found = [single] if single else list(self.blobs(container, prefix))
        start = path.rstrip("/").rfind("/") + 1 if single or keep_name else len(prefix)
        targets = [local_path(folder, blob.name[start:]) for blob in found]
        for blob, target in zip(found, targets, strict=True):
            link_or_copy(blob.path, target)
        return targets


def _open_database(folder: Path) -> sqlite3.Connection:
    """The database of a new folder, or of one that this version can read."""
    database = sqlite3.connect(folder / DATABASE, check_same_thread=False, isolation_level=None)
    try:
        (found,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0:
            found = SCHEMA
            create = f"BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT"
            database.executescript(f"PRAGMA journal_mode = WAL; {create}")
        database.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.DatabaseError as error:
        database.close()
        raise _unreadable(folder, f"cannot be read: {DATABASE}: {error}") from None
    if found != SCHEMA:
        database.close()
        age = "a newer" if found > SCHEMA else "an older"
        raise _unreadable(folder, f"was written by {age} version: schema {found}, expected {SCHEMA}")
    return database


def _unreadable(folder: Path, problem: str) -> UserError:
    delete = f"python -m local_workspace state --state {shlex.quote(str(folder))} delete"
    return UserError(f"the state folder {folder} {problem}", f"name another with --state DIR, or {delete}")


def lock(folder: Path) -> Any:
    """Hold the state folder for this process; the system lets go of it however the process ends."""
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        hint = "wait for it to end, or give this one its own folder: --state FOLDER"
        raise UserError(f"{folder} is in use by another local workspace", hint) from None
    return file
