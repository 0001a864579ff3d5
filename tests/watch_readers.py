"""Open files one after another, each in a process with little memory and little time, and say what came of it.

python -m watch_readers (inspect | careless) < lines of [name, path] > lines of what happened. "careless" opens them as
the libraries do that run what a file says: it shows that the canaries sing.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

SECONDS = 10
ADDRESS_SPACE = 2 << 30
SUSPICIOUS = (
    "pickle.find_class", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn",
    "subprocess.Popen", "pty.spawn", "socket.connect", "socket.bind", "socket.getaddrinfo", "webbrowser.open",
    "ctypes.dlopen", "shutil.copyfile", "sqlite3.connect", "urllib.Request", "os.kill", "os.symlink", "os.link",
)  # fmt: skip
NEVER = (
    "torch",
    "antigravity",
    "this",
    "webbrowser",
    "pty",
    "runpy",
    "joblib",
    "dill",
    "cloudpickle",
    "timeit",
    "cProfile",
)


def main(mode: str) -> None:
    """Answer for every line of stdin."""
    if mode == "careless":
        import torch

        torch.set_num_threads(1)
        work: Callable[[Path], dict[str, Any]] = careless
    else:
        import probes.checkpoint  # noqa: F401

        work = partial(looked_at, never=tuple(each for each in NEVER if each not in sys.modules))
    for line in sys.stdin:
        name, path = json.loads(line)
        print(json.dumps({"name": name, **alone(work, Path(path), mode != "careless")}), flush=True)


def alone(work: Callable[[Path], dict[str, Any]], path: Path, bounded: bool) -> dict[str, Any]:
    """Do the work in a forked process; report its death or delay as what came of it."""
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _confine(bounded)
        answer = json.dumps(work(path)).encode()
        while answer:
            answer = answer[os.write(writing, answer) :]
        atexit._run_exitfuncs()
        os._exit(0)
    os.close(writing)
    answer, late = b"", False
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, started + 2 * SECONDS - time.monotonic()))
        if not ready:
            late = True
            os.kill(child, signal.SIGKILL)
            break
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        answer += piece
    os.close(reading)
    _, status, usage = os.wait4(child, 0)
    about = {"seconds": usage.ru_utime + usage.ru_stime, "megabytes": usage.ru_maxrss >> 10}
    if answer and not late:
        return {**about, **json.loads(answer)}
    return {**about, "verdict": "hang" if late else "crash", "message": f"status {os.waitstatus_to_exitcode(status)}"}


def _confine(bounded: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, *(() if bounded else (2,))):
        os.dup2(null, stream)
    if bounded:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def looked_at(path: Path, never: tuple[str, ...]) -> dict[str, Any]:
    """Inspect a file and read all its tensors; list what no reader has any business doing."""
    from probes.checkpoint import inspect
    from probes.errors import RefusedCheckpoint

    seen: list[str] = []
    scratch = tempfile.gettempdir()
    watching = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching[0]:
            return
        if event in SUSPICIOUS:
            seen.append(event)
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes and not str(arguments[0]).startswith(scratch):
            seen.append(f"writes {arguments[0]}")

    sys.addaudithook(hook)
    try:
        found = inspect(path)
        tensors = [[each[0], list(each[1]), each[2]] for each in found]
        answer = {"verdict": found.verdict, "message": found.message, "tensors": tensors, "sha256": found.sha256}
    except RefusedCheckpoint as error:
        answer = {"verdict": "refused", "message": str(error)}
    except BaseException as error:  # noqa: BLE001  whatever it is, it should have been a refusal
        answer = {"verdict": "error", "message": f"{type(error).__name__}: {error}"[:300]}
    watching[0] = False
    return {**answer, "seen": seen + [each for each in never if each in sys.modules]}


def careless(path: Path) -> dict[str, Any]:
    """Open a file in every way that runs what it says."""
    import pickle

    import numpy as np
    import torch

    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        for opened in (
            lambda file=file: torch.load(file, weights_only=False),
            lambda file=file: pickle.loads(file.read_bytes()),
            lambda file=file: dict(np.load(file, allow_pickle=True)),
        ):
            with suppress(BaseException):
                opened()
    return {"verdict": "opened", "message": ""}


if __name__ == "__main__":
    main(sys.argv[1])
