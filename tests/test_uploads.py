"""Uploads: what arrives is what was sent, whatever breaks on the way; and nothing unasked comes in."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.server import Server, serve
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


# The real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve(tmp_path_factory.mktemp("served"))


def call(
    server: Server, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    fields = {"Origin": server.url, **{key.replace("_", "-"): value for key, value in headers.items()}}
    fields = {key: value for key, value in fields.items() if value != "absent"}
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body, fields)
        reply = connection.getresponse()
        return reply.status, _body(reply.read()), dict(reply.getheaders())
    finally:
        connection.close()


def _body(content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except ValueError:
        return {"text": content.decode(errors="replace")}


def token_for(server: Server, subject: str) -> str:
    store = open_store(server.workspace)
    try:
        return Uploads(store).token(subject)
    finally:
        store.close()


def test_the_route_takes_chunks_and_refuses_what_was_not_asked_for(server: Server) -> None:
    token = token_for(server, "checkpoint/bench1")
    about = {"name": "w.pt", "bytes": 10, "mark": "1"}
    status, here, _ = call(server, "POST", "/upload", about, X_Upload_Token=token)
    assert (status, here["offset"]) == (200, 0)
    path = f"/upload/{here['id']}?offset="
    assert call(server, "PUT", path + "0", b"01234", X_Upload_Token=token)[0] == 200
    status, reply, _ = call(server, "PUT", path + "0", b"01234", X_Upload_Token=token)
    assert (status, reply["offset"]) == (409, 5)
    for headers in ({}, {"X_Upload_Token": "forged"}, {"X_Upload_Token": token_for(server, "checkpoint/other")}):
        assert call(server, "PUT", path + "5", b"56789", **headers)[0] == 403
    for origin in ("http://evil.example", "absent", "null"):
        assert call(server, "PUT", path + "5", b"56789", X_Upload_Token=token, Origin=origin)[0] == 403
    status, reply, _ = call(server, "PUT", path + "5", b"56789", X_Upload_Token=token)
    assert reply["sha256"] == hashlib.sha256(b"0123456789").hexdigest()
    store = open_store(server.workspace)
    assert (store.bench("bench1") or {})["checkpoints"] == [reply["sha256"]]
    store.close()


def test_every_answer_has_the_security_headers(server: Server) -> None:
    for path in ("/", "/upload/none", "/health", "/_stcore/health"):
        headers = {key.lower(): value for key, value in call(server, "GET", path)[2].items()}
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_a_foreign_host_name_and_unused_doors_are_refused(server: Server) -> None:
    assert call(server, "GET", "/", Host="evil.example")[0] == 421
    assert call(server, "GET", "/", Host=f"localhost:{server.port}")[0] == 200
    assert call(server, "PUT", "/_stcore/upload_file/a/b", b"x")[0] == 403
    assert call(server, "GET", "/_stcore/metrics")[0] == 403
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    foreign = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert call(server, "GET", "/_stcore/stream", **upgrade, **key, **foreign)[0] == 403


def test_a_large_file_does_not_pass_through_the_memory_of_the_app(server: Server) -> None:
    token, total, chunk = token_for(server, "checkpoint/bench2"), 300 << 20, 8 << 20
    piece = os.urandom(1 << 20) * (chunk >> 20)
    call(server, "GET", "/health")
    before = peak_kilobytes(server)
    _, here, _ = call(server, "POST", "/upload", {"name": "big", "bytes": total, "mark": "1"}, X_Upload_Token=token)
    digest, offset = hashlib.sha256(), 0
    while offset < total:
        body = piece[: min(chunk, total - offset)]
        digest.update(body)
        path = f"/upload/{here['id']}?offset={offset}"
        status, reply, _ = call(server, "PUT", path, body, X_Upload_Token=token)
        assert status == 200, reply
        offset = reply["offset"]
    assert reply["sha256"] == digest.hexdigest()
    assert peak_kilobytes(server) - before < 40 * 1024


def peak_kilobytes(server: Server) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found
    return int(found[1])
