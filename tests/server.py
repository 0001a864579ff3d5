"""The app as its users run it: a real server on a free port with a workspace of its own."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Server:
    """A running app."""

    url: str
    port: int
    workspace: Path
    process: subprocess.Popen[bytes]


def serve(workspace: Path, **environment: str) -> Iterator[Server]:
    """Start the app, yield it when it is healthy, and end it."""
    port = _free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless=true"]
    command += [f"--server.port={port}", "--server.address=127.0.0.1"]
    settings = {**os.environ, "THEODOLITE_WORKSPACE": str(workspace), **environment}
    log = (workspace / "app.log").open("wb")
    process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=log, stderr=subprocess.STDOUT)
    try:
        server = Server(f"http://127.0.0.1:{port}", port, workspace, process)
        _wait_until_healthy(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_until_healthy(server: Server, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        try:
            connection.request("GET", "/_stcore/health")
            if connection.getresponse().status == 200:
                return
        except (http.client.HTTPException, OSError):
            time.sleep(0.2)
        finally:
            connection.close()
    raise RuntimeError(f"the app did not start: {(server.workspace / 'app.log').read_text()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
