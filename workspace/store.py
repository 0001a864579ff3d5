"""What outlives a browser tab: the database and the files of a workspace. No torch here.

A workspace is one folder: `theodolite.db` (stored files, benches, runs, pins), `objects/` (contents by sha256,
each kept once, in quarantine as far as checkpoints go), `admitted/<sha256>/` (what was read of checkpoints, made anew),
`runs/<id>/` (what a run wrote). App, worker, children and command line use it at the same time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from probes.errors import DataError
from workspace import process
from workspace.schema import benches, engine_of, files, migrate

ENVIRONMENT = "THEODOLITE_WORKSPACE"
DEFAULT_FOLDER = "workspace-data"
STALE_SECONDS = 3600.0  # a temporary file that nobody has written to for so long belongs to a dead process
BLOCK = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file kept by content; `name` is what its owner called it (text to show, never a path)."""

    sha256: str
    name: str
    bytes: int
    created: float  # seconds since 1970, UTC


class Store:
    """The workspace in one folder; safe to use from several threads and processes."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        for name in ("objects", "admitted", "runs", "uploads"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.engine = engine_of(self.root / "theodolite.db")
        with process.locked(self.root / "locks" / "schema.lock"):  # SQLite does not wait where the journal is changed
            migrate(self.engine, self.root)

    def close(self) -> None:
        """Give the database connections back."""
        self.engine.dispose()

    # Files

    def add_file(self, path: Path, name: str, *, move: bool = False, sha256: str | None = None) -> StoredFile:
        """Keep a file by its content: copied, or moved when it lies in this workspace and is no longer needed.

        sha256: what the content must hash to (DataError otherwise). The same bytes are kept once; the last name wins.
        """
        temporary = self._temporary()
        try:
            if move and not path.is_symlink():
                path.replace(temporary)
            else:
                shutil.copyfile(path, temporary)
            return self._keep(temporary, name, sha256)
        finally:
            temporary.unlink(missing_ok=True)

    def add_bytes(self, content: bytes, name: str) -> StoredFile:
        """Keep a content as a file."""
        temporary = self._temporary()
        try:
            temporary.write_bytes(content)
            return self._keep(temporary, name, None)
        finally:
            temporary.unlink(missing_ok=True)

    def path_of(self, sha256: str) -> Path:
        """Return where the content with this hash lies; ValueError when it is no hash, DataError when not kept."""
        path = self._object(sha256)
        if not path.is_file():
            raise DataError(f"The stored file {sha256[:12]}… is no longer in the workspace; upload it again.")
        return path

    def admitted(self, sha256: str) -> Path:
        """Return where the copy of a checkpoint lies that analyses read, or would lie; ValueError for no hash."""
        return self.root / "admitted" / self._object(sha256).name

    def admitted_bytes(self) -> int:
        """Sum up the copies of checkpoints."""
        return sum(_size(each) for each in _below(self.root / "admitted"))

    def file(self, sha256: str) -> StoredFile | None:
        """Return what is known of a stored file."""
        rows = self.read(sa.select(files).where(files.c.sha256 == sha256))
        return StoredFile(**rows[0]) if rows else None

    def files(self) -> list[StoredFile]:
        """List the stored files, newest first."""
        return [StoredFile(**row) for row in self.read(sa.select(files).order_by(files.c.created.desc()))]

    # Runs and benches

    def folder(self, run_id: str) -> Path:
        """Return the folder of a run (which may not exist yet); ValueError when this is no run's id."""
        if not re.fullmatch(r"[0-9a-f]{24}", run_id):
            raise ValueError(f"{run_id!r} is no run's id")
        return self.root / "runs" / run_id

    def bench(self, id: str) -> dict[str, Any] | None:
        """Return what was saved for a bench, or None."""
        rows = self.read(sa.select(benches.c.value).where(benches.c.id == id))
        return dict(json.loads(rows[0]["value"])) if rows else None

    def save_bench(self, id: str, value: Mapping[str, Any]) -> None:
        """Save what lies on a bench (JSON); the last one wins."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", id):
            raise ValueError(f"{id!r} is no bench's id")
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        row = insert(benches).values(id=id, value=text, changed=time.time())
        self.write(row.on_conflict_do_update(set_={"value": text, "changed": row.excluded.changed}))

    # The database, for the other modules of the workspace

    def read(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """Return the rows of a query; takes no lock."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def write(self, statement: sa.Insert | sa.Update | sa.Delete) -> int:
        """Carry out one statement durably; return how many rows it touched."""
        with self.engine.begin() as connection:
            return int(connection.execute(statement).rowcount)

    def sweep(self, now: float | None = None) -> int:
        """Remove temporary files that dead processes left; return how many."""
        before = (time.time() if now is None else now) - STALE_SECONDS
        found = (path for each in ("objects", "runs") for path in _below(self.root / each))
        stale = [path for path in found if path.name.startswith(".") and path.suffix == ".tmp"]
        return sum(_remove_if_older(path, before) for path in stale)

    def _temporary(self) -> Path:
        return self.root / "objects" / f".{os.getpid()}-{os.urandom(8).hex()}.tmp"

    def _object(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"{sha256!r} is no sha256")
        return self.root / "objects" / sha256[:2] / sha256

    def _keep(self, temporary: Path, name: str, expected: str | None) -> StoredFile:
        sha256, size = _hash_and_sync(temporary)
        if expected is not None and sha256 != expected:
            raise DataError(
                f"{_plain_name(name)} arrived damaged: its sha256 is {sha256[:12]}…, "
                f"not {expected[:12]}…; upload it again."
            )
        target = self._object(sha256)
        target.parent.mkdir(exist_ok=True)
        temporary.chmod(0o444)
        temporary.replace(target)  # also over an older copy, which this mends if it had rotted
        _sync_folder(target.parent)
        _sync_folder(target.parent.parent)
        stored = StoredFile(sha256, _plain_name(name), size, time.time())
        row = insert(files).values(sha256=sha256, name=stored.name, bytes=size, created=stored.created)
        self.write(row.on_conflict_do_update(set_={"name": stored.name}))
        return self.file(sha256) or stored


def open_store(root: Path | None = None) -> Store:
    """Open the workspace at `root`, else at THEODOLITE_WORKSPACE, else ./workspace-data; make it if need be."""
    return Store(root or Path(os.environ.get(ENVIRONMENT) or DEFAULT_FOLDER))


def _hash_and_sync(path: Path) -> tuple[str, int]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
        os.fsync(file.fileno())
        return digest.hexdigest(), file.tell()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain_name(name: str) -> str:
    last = re.split(r"[/\\]", name.strip())[-1]
    return "".join(each if each.isprintable() else "�" for each in last)[:255] or "unnamed"


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder; others may make and remove folders there meanwhile."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove_if_older(path: Path, before: float) -> bool:
    try:
        if path.stat().st_mtime >= before:
            return False
        path.unlink()
    except FileNotFoundError:  # its writer was quicker
        return False
    return True
