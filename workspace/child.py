"""The process that imports torch and does the work: `python -m workspace.child`, started by the worker only.

Orders come on standard input, one JSON object a line ({"id", "task", "title", "payload", "attempt"}). Reports go out
on a descriptor of its own: {"ready"} or {"broken"} once, then {"ended", "state", "error", "leave"}. What a task prints
goes to the log of its run. The process stays for the next order, unless an error may have left it unfit for it.
"""

from __future__ import annotations

import argparse
import errno
import faulthandler
import importlib
import json
import os
import platform
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from analyzers._base import write_atomically
from probes.errors import ProbeError
from workspace import process
from workspace.runs import is_whole
from workspace.store import Store
from workspace.task import Task
from workspace.tick import FileTick

OUT_OF_MEMORY = 77  # exit status of a process that ran out of memory
LANE_LOCK_SECONDS = 20.0
LONGEST_ERROR = 4000  # characters; the log has all of it
NAMED_IN_LOGS = ("torch", "numpy", "transformers")

_CPU_OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|failed to allocate", re.IGNORECASE)


@dataclass(frozen=True)
class Ending:
    """Say how an order ended; leave: this process should take no other."""

    state: str
    error: str | None = None
    leave: bool = False
    status: int = 0


def main(arguments: list[str] | None = None) -> int:
    """Serve a lane until standard input ends."""
    given = _arguments(arguments)
    process.die_with_parent(given.parent)
    process.be_expendable()
    os.set_inheritable(given.report, False)
    orders: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(_own_input(), orders), daemon=True).start()
    if process.lock(given.workspace / "locks" / f"{given.lane}.lock", LANE_LOCK_SECONDS) is None:
        print(f"another process still works in the lane {given.lane}", file=sys.stderr)
        return 1
    try:
        module, store = _warm(given.tasks), Store(given.workspace)
    except Exception as error:  # noqa: BLE001 (the boundary: the worker's log gets all of it, the user a sentence)
        traceback.print_exc()
        _say(given.report, {"broken": f"The process for this cannot start ({_kind(error)}); see the worker's log."})
        return 1
    _say(given.report, {"ready": os.getpid()})
    while True:
        order = orders.get()
        ending = _carry_out(order, store, module)
        sentence = None if ending.error is None else ending.error[:LONGEST_ERROR]
        about = {"state": ending.state, "error": sentence, "leave": ending.leave}
        _say(given.report, {"ended": order["id"], **about})
        if ending.leave:
            return ending.status


def _carry_out(order: Mapping[str, Any], store: Store, module: ModuleType) -> Ending:
    folder = store.folder(order["id"])
    folder.mkdir(parents=True, exist_ok=True)
    with _log_into(folder / "log.txt"):
        _note(f"begins: {order['task']}, attempt {order['attempt']}, process {os.getpid()}; {_versions()}")
        began = time.monotonic()
        ending = _attempt(order, module, store, folder)
        _note(f"ends after {time.monotonic() - began:.1f} s: {ending.error or ending.state}")
    _tidy()
    return ending


def _attempt(order: Mapping[str, Any], module: ModuleType, store: Store, folder: Path) -> Ending:
    spec = {name: order[name] for name in ("task", "payload", "title")}
    try:
        write_atomically(folder / "spec.json", json.dumps(spec, indent=1, ensure_ascii=False).encode())
        task: Task = module.TASKS[order["task"]]
        with FileTick(folder, store.root / "shared") as tick:
            task.run(order["payload"], store, folder, tick)
    except ProbeError as error:
        traceback.print_exc()
        return Ending("failed", str(error))
    except Exception as error:  # noqa: BLE001 (the boundary: whatever a task raises becomes a sentence)
        traceback.print_exc()
        return _unexpected(error)
    if not is_whole(folder):
        return Ending("failed", "It ended without a result, which is a mistake of ours; see the log.")
    return Ending("done")


def _unexpected(error: Exception) -> Ending:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Ending("failed", "The disk of the workspace is full; make room and retry.")
    if type(error).__name__ == "OutOfMemoryError":
        where, instead = "the GPU", "choose fewer examples or a smaller micro-batch, or run on the CPU"
    elif isinstance(error, MemoryError) or _CPU_OUT_OF_MEMORY.search(str(error)):
        where, instead = "this machine", "choose fewer examples or a smaller micro-batch"
    else:
        return Ending("failed", f"It stopped with an unexpected error ({_kind(error)}); see the log.", leave=True)
    return Ending("failed", f"The memory of {where} did not suffice; {instead}.", leave=True, status=OUT_OF_MEMORY)


def _kind(error: Exception) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()


def _warm(name: str) -> ModuleType:
    module = importlib.import_module(name)
    for each in getattr(module, "WARM", ("torch",)):
        importlib.import_module(each)
    return module


def _own_input() -> TextIO:
    """Take standard input away from the tasks: a library that asks a question there gets no answer, and no order."""
    own = os.fdopen(os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return own


def _listen(source: TextIO, orders: queue.SimpleQueue[Mapping[str, Any]]) -> None:
    for line in source:
        orders.put(json.loads(line))
    os._exit(0)  # the worker has gone; where the kernel does not say so, this does


def _say(report: int, message: Mapping[str, Any]) -> None:
    os.write(report, (json.dumps(message) + "\n").encode())


@contextmanager
def _log_into(path: Path) -> Iterator[None]:
    """Let all that is printed, by C code too, go to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(1), os.dup(2)]
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for standard, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, standard)
            os.close(kept)
        os.close(log)


def _note(text: str) -> None:
    print(f"[{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}] {text}", file=sys.stderr, flush=True)


def _versions() -> str:
    return ", ".join([f"python {platform.python_version()}", *(f"{each} {_version(each)}" for each in NAMED_IN_LOGS)])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _tidy() -> None:
    import gc

    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workspace.child", description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--lane", required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--report", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
