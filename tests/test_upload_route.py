"""The route of uploads, on the real server: chunks come in, foreigners do not, memory stays small."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.server import Server, serve
from workspace.store import open_store
from workspace.uploads import Uploads


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


def test_all_who_ask_first_get_the_same_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages, the route and the sweep begin at the same moment; what one of them begins the others must know."""
    from ui import state

    monkeypatch.setenv("THEODOLITE_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(state, "Uploads", lambda store: (time.sleep(0.05), Uploads(store))[1])
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: id(state.uploads()), range(8)))) == 1
