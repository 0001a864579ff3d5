"""Start the throw-away process that opens a file, bound its time, hear what it says, and put its death into words."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from probes.errors import RefusedCheckpoint
from probes.formats.contents import printable
from workspace import process
from workspace.isolation import Bounds

Tick = Callable[[float, str], None]

ROOT = Path(__file__).resolve().parents[1]
MODULE = "workspace.examiner"
ANSWER_BYTES = 2**28  # more than that is no answer
MOST_WRITTEN = 2**31  # bytes of a file, or so many times what was read:
GROWTH = 40
BASE_MEMORY = 2**31
MEMORY_PER_BYTE = 3  # of the file: the largest tensor as it is read, and once more rearranged
BASE_MAPPED = 2**33  # the interpreter and its libraries are mapped, too
BASE_SECONDS = 60
BYTES_PER_SECOND = 10**7  # the slowest that reading may be: quantised blocks on a busy machine
_KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", process.MARK)
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGSYS")


@dataclass(frozen=True)
class Order:
    """What is to be examined: a file or folder, what its owner calls it, and a folder of our own for what is written.

    admit: write the copy to <home>/new; else only say what the file holds, that of the set `weights`, after a look at
    every value if `full` (None: up to 1 GiB). sha256: what the file must hash to, "" when that is not known.
    """

    path: Path
    name: str
    home: Path
    admit: bool = False
    weights: str = ""
    full: bool | None = None
    sha256: str = ""


def bounds_for(size: int, *, reads_all: bool) -> tuple[Bounds, int]:
    """Return the bounds for a file of so many bytes, and the seconds on the clock.

    Both grow with the file, so that a small one cannot take much. THEODOLITE_MAX_MEMORY (bytes) and
    THEODOLITE_MAX_SECONDS set other ones.
    """
    memory = min(_set("MEMORY") or _physical_memory() * 3 // 4, BASE_MEMORY + MEMORY_PER_BYTE * size)
    seconds = _set("SECONDS") or BASE_SECONDS + (size // BYTES_PER_SECOND if reads_all else 0)
    written = max(MOST_WRITTEN, GROWTH * size)
    return Bounds(memory, BASE_MAPPED + 4 * size, seconds, written), seconds


def carry_out(order: Order, size: int, tick: Tick) -> dict[str, Any]:
    """Have an order carried out in a process of its own; return its answer, or raise RefusedCheckpoint.

    size: bytes of the file. tick: is told how far it is. The process is gone when this returns, however it returns.
    """
    bounds, seconds = bounds_for(size, reads_all=order.admit or order.full is not False)
    name = printable(order.name, 200)
    paths = {"path": str(order.path.resolve()), "home": str(order.home.resolve())}
    told = {**asdict(order), **paths, "bounds": asdict(bounds), "parent": os.getpid()}
    with _started(json.dumps(told).encode()) as running:
        for message in _messages(running, time.monotonic() + seconds):
            if message is None:
                raise RefusedCheckpoint(_too_long(name, seconds))
            if "share" in message:
                tick(float(message["share"]), str(message["doing"]))
            elif "answer" in message:
                return dict(message["answer"])
            else:
                if "trace" in message and process.MARK in os.environ:  # a worker's child, whose stderr is a log
                    print(message["trace"], file=sys.stderr)
                raise RefusedCheckpoint(str(message.get("refused", f"The process that read {name} spoke nonsense.")))
        status = running.wait()
    raise RefusedCheckpoint(_death(name, status, seconds))


@contextlib.contextmanager
def _started(order: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """Start the process and give it its order; afterwards it is killed, with all that it may have started."""
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    command = [sys.executable, "-B", "-m", MODULE]
    running = subprocess.Popen(
        command, cwd=ROOT, env=_environment(), stdin=pipe, stdout=pipe, stderr=nothing, start_new_session=True
    )
    try:
        if running.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                running.stdin.write(order)
                running.stdin.close()
        yield running
    finally:
        process.kill_group(running.pid)
        running.wait()
        for each in (running.stdin, running.stdout):
            if each is not None:
                with contextlib.suppress(BrokenPipeError):
                    each.close()


def _environment() -> dict[str, str]:
    """Return what the process needs to know: the limits, but none of our secrets."""
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("THEODOLITE_MAX_")}
    return {**kept, **dict.fromkeys(_ONE_THREAD, "1")}


def _messages(running: subprocess.Popen[bytes], until: float) -> Iterator[dict[str, Any] | None]:
    """Yield what the process says, a JSON object a line, until it ends; None when the time is over."""
    if running.stdout is None:
        return
    heard, handle = bytearray(), running.stdout.fileno()
    with selectors.DefaultSelector() as ready:
        ready.register(handle, selectors.EVENT_READ)
        while True:
            if not ready.select(max(0.0, until - time.monotonic())):
                yield None
                return
            piece = os.read(handle, 1 << 16)
            if not piece:
                return
            heard += piece
            *lines, rest = heard.split(b"\n") if b"\n" in piece else (heard,)
            heard = bytearray(rest)
            if len(heard) > ANSWER_BYTES:
                lines = [*lines, heard]
            for line in lines:
                yield _message(bytes(line))


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {}


def _too_long(name: str, seconds: int) -> str:
    return (
        f"{name} took longer than {seconds} s to read and was stopped; nothing of it was kept. It is damaged, made to "
        "stall its reader, or needs more time (THEODOLITE_MAX_SECONDS)."
    )


def _death(name: str, status: int, seconds: int) -> str:
    """Say why a process ended without an answer."""
    by = signal.Signals(-status).name if -status in set(signal.Signals) else ""
    if by == "SIGXCPU":
        return _too_long(name, seconds)
    if by == "SIGKILL":
        return f"The system ended the process that read {name}, as it does when memory runs out. Nothing was kept."
    if by in _CRASHES:
        return f"{name} crashed the process that read it ({by}); nothing of it was kept. Do not trust this file."
    return f"The process that read {name} ended without an answer (status {status}); try it again."


def _set(name: str) -> int:
    text = os.environ.get(f"THEODOLITE_MAX_{name}", "")
    return int(text) if text.isdecimal() else 0


def _physical_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
