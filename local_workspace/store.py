"""Resources (JSON) and blobs (files) of a workspace in one state folder. Knows no HTTP.

SQLite holds the resources and the names of the blobs; a blob's content is a file under a name that the store
chose. So no name that a client sends ever becomes a path, a write is there whole or not at all, and the
state survives `kill -9`.
"""

import errno
import fcntl
import json
import os
import re
import shlex
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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
NO_NAME = re.compile(
    r"[\x00-\x1f\ud800-\udfff\ufffe\uffff]"
)  # XML, in which names are listed, has none of these
MAX_NAME = 1024  # characters of a blob's name, Azure's number
AT_ONCE = 1000  # blobs that are read of the index
FULL = {"database or disk is full": errno.ENOSPC, "disk I/O error": errno.EIO}  # SQLite's words for it
SCHEMA = 1  # of the tables and of what lies in them: it grows when an older state folder cannot be read
# Everything that a workspace writes into its state folder; `samples/` may hold a user's own files too.
CONTENT = (
    *(DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "lock", "blobs", "incoming", "jobs"),
    *("samples/embedded", "access.log", ".gitignore"),
)


def is_state_folder(folder: Path) -> bool:
    try:
        return (folder / DATABASE).is_file()
    except OSError as error:
        raise UserError(
            f"the state folder {folder} cannot be read: {error.strerror}", "name another with --state DIR"
        ) from None


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


def name_problem(name: str) -> str:
    """Why no blob can have this name; "" where one can."""
    if len(name) > MAX_NAME:
        return f"its name is longer than {MAX_NAME} characters"
    if found := NO_NAME.search(name):
        is_byte = "\udc80" <= found[0] <= "\udcff"  # how Python tells a name that is not UTF-8
        return "its name is not UTF-8" if is_byte else "its name has a control character"
    return ""


class Store:
    def __init__(self, folder: Path) -> None:
        """Open the state folder, which nobody else may have open. It is its owner's alone."""
        self.folder = folder.resolve()
        self._blobs = self.folder / "blobs"
        self._incoming = self.folder / "incoming"
        self._lock = threading.Lock()
        try:
            self._open()
        except OSError as error:
            problem = f"cannot be used: {error.strerror}: {error.filename}"
            raise UserError(
                f"the state folder {self.folder} {problem}", "name another with --state DIR"
            ) from None

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._lock_file = lock(self.folder)
        try:
            self._database = _open_database(self.folder)
            self._blobs.mkdir(exist_ok=True)
            shutil.rmtree(self._incoming, ignore_errors=True)  # uploads that a killed server left half done
            self._incoming.mkdir()
        except (OSError, UserError):
            self._lock_file.close()
            raise

    def close(self) -> None:
        self._database.close()
        self._lock_file.close()

    def _rows(self, statement: str, *values: str | int) -> list[tuple[Any, ...]]:
        with self._lock, _disk_errors(self.folder):
            return self._database.execute(statement, values).fetchall()

    def _change(self, statement: str, *values: str) -> bool:
        """Whether the statement changed anything."""
        with self._lock, _disk_errors(self.folder):
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
        content.chmod(0o444)  # jobs get copies: a scoring script cannot change what was uploaded
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

    def set_blob_properties(self, container: str, blob: Blob, properties: dict[str, Any]) -> None:
        statement = "UPDATE blobs SET properties = ? WHERE container = ? AND name = ?"
        self._change(statement, json.dumps(properties), container, blob.name)
        os.utime(blob.path)  # it was modified, as its date tells

    def blob(self, container: str, name: str) -> Blob | None:
        statement = "SELECT name, file, properties FROM blobs WHERE container = ? AND name = ?"
        rows = self._rows(statement, container, name)
        blob = self._blob(*rows[0]) if rows else None
        return blob if blob and blob.path.is_file() else None  # a person may have deleted a job's folder

    def blobs(self, container: str, prefix: str = "", start: str = "") -> Iterator[Blob]:
        """Blobs in the order of their names, from the name `start` on."""
        while rows := self.blobs_from(container, max(prefix, start)):
            for blob in rows:
                if not blob.name.startswith(prefix):
                    return
                if blob.path.is_file():  # a person may have deleted a job's folder
                    yield blob
            start = rows[-1].name + "\0"  # the next name that there can be

    def blobs_from(self, container: str, start: str) -> list[Blob]:
        """The next blobs, as many as are read at once: the index leads there, however many there are."""
        statement = (
            "SELECT name, file, properties FROM blobs WHERE container = ? AND name >= ? ORDER BY name LIMIT ?"
        )
        return [self._blob(*row) for row in self._rows(statement, container, start, AT_ONCE)]

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


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full disk is an OSError, whoever meets it."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if str(error) not in FULL:
            raise
        raise OSError(FULL[str(error)], str(error), str(folder / DATABASE)) from None


def _open_database(folder: Path) -> sqlite3.Connection:
    """The database of a new folder, or of one that this version can read."""
    database = None
    try:
        database = sqlite3.connect(folder / DATABASE, check_same_thread=False, isolation_level=None)
        (found,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0:
            found = SCHEMA
            create = f"BEGIN; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT"
            database.executescript(f"PRAGMA journal_mode = WAL; {create}")
        database.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.DatabaseError as error:
        if database:
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
