"""From quarantine into the store: every file is opened in a throw-away process first, and only its copy is read.

`examine` says what a file or folder holds. `admit` makes the copy of a stored file that analyses read, once:
`admitted/<sha256>/`, put there in one piece. Until then a file is bytes that nobody opens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probes.admitted import DamagedCopy, read_admitted, read_provenance
from probes.checkpoint import Checkpoint
from probes.errors import RefusedCheckpoint
from probes.formats.contents import printable
from workspace import process
from workspace.examination import Order, Tick, carry_out
from workspace.store import Store

SPARE_BYTES = 256 * 2**20  # that stay free on the disk
_PREFIX = ".tmp-"


def silent(share: float, doing: str) -> None:
    """Tell nobody."""


def examine(
    path: Path, name: str, *, weights: str = "", full: bool | None = None, tick: Tick = silent
) -> dict[str, Any]:
    """Say what a file or folder holds, found in a throw-away process; raise RefusedCheckpoint.

    weights: the set that is meant. full: check checksums and look at every value; None does so up to 1 GiB. Returns
    what `Checkpoint.describe` does, with "sha256" (None unless full), "checked" ("full", "structure") and "isolation".
    """
    if not path.exists():
        raise RefusedCheckpoint(f"{printable(name)} does not exist. Check the path.")
    with tempfile.TemporaryDirectory(prefix="theodolite-", ignore_cleanup_errors=True) as home:
        return carry_out(Order(path, name, Path(home), weights=weights, full=full), size_of(path), tick)


def admit(store: Store, sha256: str, tick: Tick = silent) -> Path:
    """Return the folder of the admitted copy of a stored file, made now if there is none that is whole.

    Raises RefusedCheckpoint for what cannot be read, DataError when the file is no longer stored. Two at once are
    harmless: the first to be ready wins.
    """
    folder = store.admitted(sha256)
    if not is_whole(folder):
        kept = store.file(sha256)
        name = kept.name if kept else f"{sha256[:12]}…"
        admit_file(store.path_of(sha256), name, folder, sha256=sha256, tick=tick)
    return folder


def read(store: Store, sha256: str, weights: str = "", tick: Tick = silent) -> Checkpoint:
    """Return a stored checkpoint, admitted if need be; a copy that has rotted is made anew from the upload."""
    kept = store.file(sha256)
    name = kept.name if kept else ""
    try:
        return read_admitted(admit(store, sha256, tick), weights, name=name)
    except DamagedCopy:
        _remove(store.admitted(sha256))
        return read_admitted(admit(store, sha256, tick), weights, name=name)


def admit_file(path: Path, name: str, folder: Path, *, sha256: str = "", tick: Tick = silent) -> None:
    """Make the admitted copy of a file or folder at `folder`, where none that is whole may be; raise RefusedCheckpoint.

    sha256: what the file must hash to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = size_of(path)
    if size + SPARE_BYTES > shutil.disk_usage(folder.parent).free:
        raise RefusedCheckpoint(
            f"The disk is too full for a copy of {printable(name)} ({size:,} bytes). Free some space first."
        )
    with _home(folder.parent) as home:
        carry_out(Order(path, name, home, admit=True, sha256=sha256), size, tick)
        _seal(home / "new", name)
        _put(home / "new", folder, home / "old")


def is_whole(folder: Path) -> bool:
    """Tell whether an admitted copy is there, of the present version, with all its files."""
    try:
        about = read_provenance(folder)
        parts = [*about["sets"], *([about["moments"]] if about["moments"] else [])]
        return all((folder / each["file"]).stat().st_size == each["bytes"] for each in parts)
    except (RefusedCheckpoint, OSError):
        return False


def sweep(store: Store) -> int:
    """Remove what admissions left whose process has gone; return how many there were."""
    swept = 0
    for lock in (store.root / "admitted").glob(f"{_PREFIX}*.lock"):
        handle = process.lock(lock)
        if handle is not None:
            _remove(lock.with_suffix(""))
            lock.unlink(missing_ok=True)
            os.close(handle)
            swept += 1
    return swept


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder (links are not followed)."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file() and not each.is_symlink()]
    return sum(each.stat().st_size for each in files)


@contextlib.contextmanager
def _home(parent: Path) -> Iterator[Path]:
    """Make a folder for one admission, beside its target, that `sweep` leaves alone as long as this process lives."""
    home = parent / f"{_PREFIX}{os.urandom(8).hex()}"
    lock = _lock_of(home)
    handle = process.lock(lock, 5.0)
    try:
        home.mkdir()
        yield home
    finally:
        _remove(home)
        lock.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _lock_of(home: Path) -> Path:
    return home.with_name(f"{home.name}.lock")


def _seal(new: Path, name: str) -> None:
    """Check that nothing but plain files was written, make them read-only, and let them reach the disk."""
    for each in new.iterdir():
        if each.is_symlink() or not each.is_file():
            raise RefusedCheckpoint(f"The copy of {name} is not what it should be ({each.name}). It is not used.")
        each.chmod(0o444)
        _sync(each)
    _sync(new)


def _put(new: Path, folder: Path, old: Path) -> None:
    """Put a copy in its place in one piece; where another process was quicker, leave that one."""
    try:
        new.rename(folder)
    except OSError:  # there is one
        if is_whole(folder):
            return
        folder.rename(old)
        new.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
