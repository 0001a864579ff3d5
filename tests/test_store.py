"""The store: what is kept is kept whole, once, and under no name of the user's choosing."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from probes.errors import DataError, ProbeError
from workspace import process
from workspace.store import STALE_SECONDS, Store, open_store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def store(tmp_path: Path):
    store = open_store(tmp_path / "workspace")
    yield store
    store.close()


def _objects(store: Store) -> list[Path]:
    return [path for path in (store.root / "objects").rglob("*") if path.is_file()]


def test_a_file_is_kept_by_its_content(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model.pt"
    source.write_bytes(b"weights")
    kept = store.add_file(source, "model.pt")
    assert kept.sha256 == hashlib.sha256(b"weights").hexdigest()
    assert (kept.name, kept.bytes) == ("model.pt", 7)
    assert store.path_of(kept.sha256).read_bytes() == b"weights"
    assert source.exists()
    assert store.file(kept.sha256) == kept
    assert store.file("0" * 64) is None


def test_the_same_bytes_are_kept_once_under_the_last_name(store: Store) -> None:
    first = store.add_bytes(b"same", "a.npz")
    second = store.add_bytes(b"same", "b.npz")
    assert first.sha256 == second.sha256
    assert len(_objects(store)) == 1
    assert [each.name for each in store.files()] == ["b.npz"]
    assert second.created == first.created


def test_files_are_listed_newest_first(store: Store) -> None:
    names = ["one", "two", "three"]
    for name in names:
        store.add_bytes(name.encode(), name)
    assert [each.name for each in store.files()] == names[::-1]


def test_a_moved_file_is_gone_from_where_it_lay(store: Store) -> None:
    part = store.root / "uploads" / "part"
    part.write_bytes(b"x" * 3_000_000)
    inode = part.stat().st_ino
    kept = store.add_file(part, "big", move=True)
    assert not part.exists()
    assert store.path_of(kept.sha256).stat().st_ino == inode  # renamed, not copied


def test_a_link_is_followed_once_and_never_kept_as_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"real")
    link = store.root / "uploads" / "link"
    link.symlink_to(tmp_path / "real")
    path = store.path_of(store.add_file(link, "l", move=True).sha256)
    assert not path.is_symlink()
    (tmp_path / "real").write_bytes(b"changed")
    assert path.read_bytes() == b"real"


def test_damaged_content_is_refused_and_nothing_is_left(store: Store) -> None:
    part = store.root / "uploads" / "part"
    part.write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"m\.pt arrived damaged"):
        store.add_file(part, "m.pt", sha256="0" * 64)
    assert _objects(store) == []
    assert store.files() == []


def test_uploading_again_mends_a_rotten_copy(store: Store) -> None:
    kept = store.add_bytes(b"good", "m")
    path = store.path_of(kept.sha256)
    path.chmod(0o644)
    path.write_bytes(b"rotn")
    store.add_bytes(b"good", "m")
    assert path.read_bytes() == b"good"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "ab", "A" * 64, "g" * 64, "0" * 64 + "\n", "/" + "0" * 63])
def test_what_is_no_hash_is_no_path(store: Store, text: str) -> None:
    with pytest.raises(ValueError, match="no sha256"):
        store.path_of(text)
    assert store.file(text) is None


@pytest.mark.parametrize("text", ["", "../x", "a" * 23, "A" * 24, "a" * 24 + "/..", "a" * 24 + "\n"])
def test_what_is_no_id_is_no_folder(store: Store, text: str) -> None:
    with pytest.raises(ValueError, match="no run's id"):
        store.folder(text)


def test_a_hash_that_is_not_kept_is_said_in_words(store: Store) -> None:
    with pytest.raises(DataError, match="no longer in the workspace"):
        store.path_of("0" * 64)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/cron.d/x", "x"),
        ("C:\\models\\a.pt", "a.pt"),
        ("a\nb\x00c\u202e.pt", "a�b�c�.pt"),
        ("", "unnamed"),
        ("dir/", "unnamed"),
        ("é" * 300, "é" * 255),
    ],
)
def test_names_become_plain_text(store: Store, given: str, kept: str) -> None:
    assert store.add_bytes(b"1", given).name == kept


def test_a_failed_write_leaves_the_old_state(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store.add_bytes(b"old", "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.add_bytes(b"new", "new")
    monkeypatch.undo()
    assert [path.name for path in _objects(store)] == [kept.sha256]
    assert [each.name for each in store.files()] == ["old"]
    assert store.add_bytes(b"new", "new").bytes == 3


def test_the_sweep_takes_stale_temporary_files_only(store: Store) -> None:
    stale = store.root / "objects" / ".1-ab.tmp"
    inner = store.folder("a" * 24) / "state" / ".count.npz.7.tmp"
    fresh = store.root / "objects" / ".2-cd.tmp"
    kept = store.path_of(store.add_bytes(b"kept", "kept").sha256)
    for path in (stale, inner, fresh, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path is not kept:
            path.write_bytes(b"")
    for path in (stale, inner, kept):
        os.utime(path, (0, path.stat().st_mtime - STALE_SECONDS - 10))
    assert store.sweep() == 2
    assert fresh.exists()
    assert kept.exists()


def test_benches_are_saved_and_read(store: Store) -> None:
    assert store.bench("b1") is None
    store.save_bench("b1", {"files": ["x"], "name": "größe"})
    store.save_bench("b1", {"files": ["y"]})
    assert store.bench("b1") == {"files": ["y"]}
    with pytest.raises(ValueError, match="no bench's id"):
        store.save_bench("../b", {})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.save_bench("b2", {"x": float("nan")})


def test_the_database_is_in_wal_mode_and_survives_reopening(store: Store) -> None:
    kept = store.add_bytes(b"1", "one")
    connection = sqlite3.connect(store.root / "theodolite.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    again = open_store(store.root)
    assert again.file(kept.sha256) == kept
    again.close()


def test_a_newer_workspace_is_refused_in_words(store: Store) -> None:
    connection = sqlite3.connect(store.root / "theodolite.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(ProbeError, match=r"made by a newer Theodolite \(its schema is 99"):
        open_store(store.root)


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THEODOLITE_WORKSPACE", str(tmp_path / "w"))
    store = open_store()
    assert store.root == tmp_path / "w"
    store.close()


WRITER = """
import sys, pathlib
from workspace import process
from workspace.store import open_store
store = open_store(pathlib.Path(sys.argv[1]))
for n in range(40):
    store.add_bytes(f"{n}".encode(), f"{sys.argv[2]}-{n}")
    store.save_bench("shared", {"by": sys.argv[2], "n": n})
    store.files()
"""


def test_several_processes_open_and_write_at_once(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", WRITER, str(tmp_path / "w")]
    running = [subprocess.Popen([*arguments, str(k)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for k in range(4)]
    failures = [process.communicate(timeout=60)[1] for process in running]
    assert failures == [""] * 4
    store = open_store(tmp_path / "w")
    assert len(store.files()) == len(_objects(store)) == 40
    bench = store.bench("shared")
    assert bench is not None
    assert bench["n"] == 39
    store.close()


KILLED = """
import sys, pathlib, os, threading, time, signal
from workspace import process
from workspace.store import open_store
store = open_store(pathlib.Path(sys.argv[1]))
threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGKILL)).start()
n = 0
while True:
    store.add_bytes(str(n).encode() * 200_000, str(n)); n += 1
"""


@pytest.mark.parametrize("after", ["0.02", "0.09", "0.2"])
def test_a_kill_leaves_whole_objects_only(tmp_path: Path, after: str) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "w"), after], cwd=ROOT, timeout=60)
    store = open_store(tmp_path / "w")
    for path in (store.root / "objects").glob("??/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    assert all(store.path_of(each.sha256).exists() for each in store.files())
    assert len(store.files()) > 0
    store.close()


def test_a_new_workspace_is_made_by_one_at_a_time(tmp_path: Path) -> None:
    """App and worker start together, and SQLite does not wait for one another where the journal is changed."""
    with ThreadPoolExecutor(1) as pool:
        with process.locked(tmp_path / "locks" / "schema.lock"):
            opened = pool.submit(open_store, tmp_path)
            with pytest.raises(TimeoutError):
                opened.result(0.5)
        opened.result(30).close()
    with (
        process.locked(tmp_path / "lock"),
        pytest.raises(TimeoutError, match="has held"),
        process.locked(tmp_path / "lock", 0.1),
    ):
        pass
