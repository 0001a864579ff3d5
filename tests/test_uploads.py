"""Uploads: what arrives is what was sent, whatever breaks on the way; and nothing unasked comes in."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from workspace import uploads as module
from workspace.store import Store, open_store
from workspace.uploads import Limits, UploadError, Uploads, allowed_path, file_name

T = TypeVar("T")
CONTENT = bytes(range(256)) * 9000  # 2.3 MB: more than two pieces


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "workspace")
    yield opened
    opened.close()


def run(work: Awaitable[T]) -> T:
    async def whole() -> T:
        return await work

    return asyncio.run(whole())


async def stream(content: bytes, step: int = 65536, break_at: int | None = None) -> AsyncIterator[bytes]:
    for at in range(0, len(content), step):
        if break_at is not None and at >= break_at:
            raise ConnectionResetError("the browser went away")
        yield content[at : at + step]


def start(uploads: Uploads, subject: str = "one", **about: Any) -> tuple[str, dict[str, Any]]:
    token = uploads.token(subject)
    return token, run(uploads.begin(token, {"name": "w.pt", "bytes": len(CONTENT), "mark": "m", **about}))


def test_chunks_become_the_file(store: Store) -> None:
    uploads = Uploads(store)
    token, here = start(uploads)
    half = 1_000_001
    first = run(uploads.receive(token, here["id"], 0, stream(CONTENT[:half])))
    assert first == {"id": here["id"], "offset": half}
    last = run(uploads.receive(token, here["id"], half, stream(CONTENT[half:])))
    assert last["done"] and last["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert store.path_of(last["sha256"]).read_bytes() == CONTENT
    assert not list(uploads.folder.iterdir())


def test_same_bytes_are_stored_once(store: Store) -> None:
    uploads = Uploads(store)
    for name in ("a.pt", "b.pt"):
        token, here = start(uploads, name=name)
        run(uploads.receive(token, here["id"], 0, stream(CONTENT)))
    assert len(store.files()) == 1
    assert sum(path.is_file() for path in (store.root / "objects").rglob("*")) == 1


def test_a_broken_connection_is_taken_up_where_it_broke(store: Store) -> None:
    uploads = Uploads(store)
    token, here = start(uploads)
    with pytest.raises(ConnectionResetError):
        run(uploads.receive(token, here["id"], 0, stream(CONTENT, break_at=1_500_000)))
    restarted = Uploads(store)  # a new process knows the part from the disk alone
    token, again = start(restarted)
    assert again["id"] == here["id"] and 1_400_000 < again["offset"] < 1_600_000
    assert again["crc32"] == zlib.crc32(CONTENT[: again["offset"]])
    with pytest.raises(UploadError, match="goes on at byte") as refused:
        run(restarted.receive(token, again["id"], 0, stream(CONTENT)))
    assert refused.value.status == 409 and refused.value.about == {"offset": again["offset"]}
    done = run(restarted.receive(token, again["id"], again["offset"], stream(CONTENT[again["offset"] :])))
    assert done["sha256"] == hashlib.sha256(CONTENT).hexdigest()


def test_a_fresh_start_drops_what_was_there(store: Store) -> None:
    uploads = Uploads(store)
    token, here = start(uploads)
    run(uploads.receive(token, here["id"], 0, stream(CONTENT[:70000])))
    assert start(uploads)[1]["offset"] == 70000
    assert start(uploads, fresh=True)[1]["offset"] == 0


def test_two_senders_of_one_upload_cannot_mix(store: Store) -> None:
    uploads = Uploads(store)
    token, here = start(uploads)

    async def both() -> list[Any]:
        sends = (uploads.receive(token, here["id"], 0, stream(CONTENT)) for _ in range(2))
        return await asyncio.gather(*sends, return_exceptions=True)

    outcomes = run(both())
    refused = [each for each in outcomes if isinstance(each, UploadError)]
    assert [each.status for each in refused] in ([423], [404])
    assert store.files()[0].sha256 == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("token", ["", "forged", "eyJ.forged.too", "one"])
def test_a_forged_token_is_refused(store: Store, token: str) -> None:
    with pytest.raises(UploadError) as refused:
        run(Uploads(store).begin(token, {"name": "w.pt", "bytes": 3}))
    assert refused.value.status == 403


def test_a_token_of_another_page_or_purpose_is_refused(store: Store) -> None:
    uploads = Uploads(store)
    _, here = start(uploads, "one")
    for token in (uploads.token("two"), uploads._tokens.issue("share", "one")):
        with pytest.raises(UploadError) as refused:
            run(uploads.receive(token, here["id"], 0, stream(CONTENT)))
        assert refused.value.status == 403


def test_a_token_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(store)
    token = uploads.token("one")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + module.TOKEN_SECONDS + 2)
    with pytest.raises(UploadError, match="open for too long"):
        run(uploads.begin(token, {"name": "w.pt", "bytes": 3}))


def test_declared_and_actual_bytes_are_bounded(store: Store) -> None:
    uploads = Uploads(store, Limits(file=1000, total=2500))
    with pytest.raises(UploadError, match=r"w\.pt has 2\.3 MB; one file may have 1\.0 kB here") as refused:
        start(uploads)
    assert refused.value.status == 413
    token, here = start(uploads, bytes=900)
    with pytest.raises(UploadError, match="longer than the 900 bytes") as refused:
        run(uploads.receive(token, here["id"], 0, stream(bytes(901), step=300)))
    assert refused.value.status == 413 and store.files() == []
    start(uploads, name="second", bytes=1000)
    with pytest.raises(UploadError, match="only 600 bytes are left"):
        start(uploads, name="third", bytes=700)


@pytest.mark.parametrize("size", [0, -1, None, "12", True, 1.5])
def test_an_impossible_size_is_refused(store: Store, size: object) -> None:
    with pytest.raises(UploadError) as refused:
        start(Uploads(store), bytes=size)
    assert refused.value.status == 400


def test_the_number_of_unfinished_uploads_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_PARTS", 2)
    uploads = Uploads(store)
    token, first = start(uploads, name="a")
    start(uploads, name="b")
    with pytest.raises(UploadError, match="2 uploads are unfinished"):
        start(uploads, name="c")
    uploads.cancel(token, first["id"])
    start(uploads, name="c")


def test_unfinished_parts_expire_and_others_stay(store: Store) -> None:
    uploads = Uploads(store)
    token, old = start(uploads, name="old")
    _, young = start(uploads, name="young")
    for path in uploads.folder.glob(f"{old['id']}*"):
        os.utime(path, (1, 1))
    assert uploads.sweep() == 1
    assert {path.stem for path in uploads.folder.iterdir()} == {young["id"]}
    with pytest.raises(UploadError) as refused:
        run(uploads.receive(token, old["id"], 0, stream(CONTENT)))
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\models\\a.pt", "a.pt"),
        ("a\0b\nc.pt", "abc.pt"),
        ("..", "file"),
        ("", "file"),
        ("<img src=x>.pt", "<img src=x>.pt"),
        ("x" * 300 + ".pt", "x" * 197 + ".pt"),
    ],
)
def test_a_name_is_only_a_name(given: str, kept: str) -> None:
    assert file_name(given) == kept


def test_paths_stay_below_the_allowed_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, outside = tmp_path / "models", tmp_path / "models-private"
    (root / "sub").mkdir(parents=True)
    outside.mkdir()
    (root / "sub" / "a.pt").write_text("a")
    (outside / "b.pt").write_text("b")
    (root / "in").symlink_to(root / "sub")
    (root / "out").symlink_to(outside)
    (root / "out.pt").symlink_to(outside / "b.pt")
    (root / "loop").symlink_to(root / "loop")
    monkeypatch.setenv("THEODOLITE_ROOTS", os.pathsep.join([str(root), str(tmp_path / "nowhere")]))
    for fine in (root / "sub" / "a.pt", "sub/a.pt", root / "in" / "a.pt", f"{root}/sub/../sub/a.pt"):
        assert allowed_path(str(fine)) == root / "sub" / "a.pt"
    assert allowed_path(str(root / "sub")) == root / "sub"
    bad = (outside / "b.pt", "../models-private/b.pt", root / "out" / "b.pt", root / "out.pt", "/etc/passwd")
    for escape in (*bad, root / "nothing" / ".." / ".." / "models-private" / "b.pt", "/no/such/file"):
        with pytest.raises(UploadError, match="not below a folder") as refused:
            allowed_path(str(escape))
        assert refused.value.status == 403
    for missing in ("sub/none.pt", root / "loop", "", "a\0b"):
        with pytest.raises(UploadError) as refused:
            allowed_path(str(missing))
        assert refused.value.status in (403, 404)


def test_no_folder_is_open_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THEODOLITE_ROOTS", raising=False)
    with pytest.raises(UploadError, match="THEODOLITE_ROOTS"):
        allowed_path("/etc/hostname")


def test_what_others_do_meanwhile_stops_no_upload(store: Store) -> None:
    """A declaration may be torn by a power cut; checkpoints are admitted and other uploads end while one begins."""
    uploads = Uploads(store)
    (uploads.folder / f"{'0' * 32}.json").write_text('{"id": "00')
    stop = threading.Event()

    def busy() -> None:
        home, other = store.root / "admitted" / ".tmp-1", uploads.folder / f"{'1' * 32}.json"
        while not stop.is_set():
            home.mkdir()
            (home / "new").touch()
            other.write_text('{"id": "1", "bytes": 1}')
            shutil.rmtree(home)
            other.unlink()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for number in range(1000):
            uploads._check_room("w.pt", 10, but=str(number))
    finally:
        stop.set()
        thread.join()
