"""Tasks for the tests of the engine: each does one thing that a task may do, good or bad. No torch."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analyzers._base import Tick, write_atomically
from probes.errors import DataError
from workspace.store import Store
from workspace.task import Task

WARM = ()
LANES = {
    "count": "device",
    "quick": "device",
    "bench_quick": "bench",
    "crash": "device",
    "crash_once": "device",
    "refuse": "device",
    "break": "device",
    "memory": "device",
    "full": "device",
    "stuck": "device",
    "spawn": "device",
    "silent": "device",
    "finish_then_wait": "device",
    "leave": "device",
    "gate": "device",
}


def _write(folder: Path, value: Mapping[str, Any]) -> None:
    write_atomically(folder / "result.json", json.dumps(value).encode())


def _trace(folder: Path, text: str) -> None:
    with (folder / "trace.txt").open("a") as file:
        file.write(text + "\n")


def count(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Count to `steps`, a step every `seconds`, saving the count after each; hang at `holds` when first there."""
    saved = tick.load("count")
    begun_at = 0 if saved is None else int(saved["n"])
    _trace(folder, f"begun at {begun_at} by {os.getpid()}")
    for n in range(begun_at, payload["steps"]):
        time.sleep(payload["seconds"])
        tick.save("count", {"n": np.array(n + 1)})
        tick((n + 1) / payload["steps"], f"step {n + 1}")
        if n + 1 in payload.get("holds", ()):
            _trace(folder, f"holds at {n + 1}")
            time.sleep(600)
    _write(folder, {"counted": payload["steps"], "begun_at": begun_at, "pid": os.getpid()})


def quick(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Finish at once, telling the process and the environment."""
    _trace(folder, "ran")
    print("a word on standard output")
    subprocess.run(["echo", "a word from a program"], check=True)
    _write(folder, {"pid": os.getpid(), "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"), "at": time.time()})


def crash(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Kill this process, every time."""
    _trace(folder, "crashing")
    os.kill(os.getpid(), signal.SIGKILL)


def crash_once(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Kill this process the first time, finish the second."""
    if tick.load("been") is None:
        tick.save("been", {"here": np.array(1)})
        os.kill(os.getpid(), signal.SIGKILL)
    _write(folder, {"pid": os.getpid()})


def refuse(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Refuse in words until a file named `fixed` lies in the folder."""
    if (folder / "fixed").exists():
        return _write(folder, {})
    raise DataError("digits.csv has no column 'label' (found: a, b); name the column.")


def fail(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Stop with an error that nobody foresaw."""
    raise RuntimeError("secret inner words")


def memory(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Ask for more memory than there is."""
    np.zeros(1 << 60, dtype=np.uint8)


def full(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Meet a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def stuck(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Hang in C code that holds the interpreter's lock and heeds no signal that can be ignored."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _trace(folder, str(os.getpid()))
    re.match(r"(a|aa)+$", "a" * 200 + "b")


def spawn(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Start a program in a session of its own, as browsers do, and wait."""
    program = subprocess.Popen(["sleep", "600"], start_new_session=True)
    _trace(folder, f"{os.getpid()} {program.pid}")
    time.sleep(600)


def silent(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Return without a result."""


def finish_then_wait(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """Write the result and then linger, so that a test can kill between the two."""
    _trace(folder, "ran")
    _write(folder, {"pid": os.getpid()})
    time.sleep(payload["seconds"])


def leave(payload: Mapping[str, Any], store: Store, folder: Path, tick: Tick) -> None:
    """End the process the way a library may."""
    raise SystemExit(5)


TASKS = {
    "count": Task(count),
    "quick": Task(quick),
    "bench_quick": Task(quick),
    "gate": Task(quick),
    "crash": Task(crash),
    "crash_once": Task(crash_once),
    "refuse": Task(refuse),
    "break": Task(fail),
    "memory": Task(memory),
    "full": Task(full),
    "stuck": Task(stuck),
    "spawn": Task(spawn),
    "silent": Task(silent),
    "finish_then_wait": Task(finish_then_wait),
    "leave": Task(leave),
}
