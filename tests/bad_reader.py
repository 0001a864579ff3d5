"""The throw-away process with a reader that does what the file says: what a mistake in a reader might let a file do."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from workspace import examiner


def loop() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(600)


def allocate() -> None:
    kept = []
    while True:
        kept.append(bytearray(2**26))


def segfault() -> None:
    ctypes.string_at(0)


def connect() -> None:
    socket.create_connection(("127.0.0.1", int(os.environ["THEODOLITE_MAX_PORT"])), 2).sendall(b"secret")


def execute() -> None:
    subprocess.run(["/bin/sh", "-c", f"touch {os.environ['THEODOLITE_MAX_CANARY']}"])


def write_outside() -> None:
    Path(os.environ["THEODOLITE_MAX_CANARY"]).touch()


def read_outside() -> None:
    Path("/etc/passwd").read_bytes()


def kill_parent() -> None:
    os.kill(os.getppid(), 9)


def leave() -> None:
    os._exit(7)


def abort() -> None:
    os.abort()


def killed() -> None:
    os.kill(os.getpid(), 9)


def nonsense() -> None:
    print("[1, 2", flush=True)
    time.sleep(600)


def flood() -> None:
    while True:
        sys.stdout.write("x" * 2**20)


def mistake() -> None:
    {}["x" * 10]


def deep() -> None:
    deep()


def fill() -> None:
    import tempfile

    with (Path(tempfile.gettempdir()) / "left").open("wb") as file:
        while True:
            file.write(b"0" * 2**20)


def misread(path: Path, *_: object) -> None:
    """Do what the file says."""
    globals()[path.read_text()]()


if __name__ == "__main__":
    examiner.open_contents = misread
    sys.exit(examiner.main())
