"""Small things of the operating system: to die with one's parent, to lock a file, to end a process and its kin.

Written for Linux. Elsewhere a child still ends when its standard input does, which a parent's death brings about.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

MARK = "THEODOLITE_CHILD"  # in the environment of every process a worker starts: <workspace>:<lane>
STARTER = "THEODOLITE_PARENT"  # in the environment: the process without which this one is not wanted
PACE = 5  # niceness of the children: pages stay quick while they compute
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when the thread that started it ends; leave at once if it already has."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def die_with_starter() -> None:
    """Do so with the process that THEODOLITE_PARENT names: the command that started this one, if one did."""
    parent = os.environ.pop(STARTER, None)
    if parent:
        die_with_parent(int(parent))


def be_expendable() -> None:
    """Leave no core dump, yield to the pages, and be the first that the kernel ends when memory runs out."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(PACE)
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("500")


def lock(path: Path, seconds: float = 0.0) -> int | None:
    """Take a lock that lasts as long as this process; return None if another holds it for all these seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(handle)
                return None
            time.sleep(0.05)
        else:
            return handle


@contextlib.contextmanager
def locked(path: Path, seconds: float = 60.0) -> Iterator[None]:
    """Hold a lock; raise TimeoutError when another does for all these seconds."""
    handle = lock(path, seconds)
    if handle is None:
        raise TimeoutError(f"another process has held {path} for {seconds:g} s")
    try:
        yield
    finally:
        os.close(handle)


def mark_of(root: Path, lane: str = "") -> str:
    """Return the mark of the processes that a workspace's worker starts for a lane (of all lanes: its beginning)."""
    return f"{root}:{lane}"


def kill_marked(mark: str) -> list[int]:
    """Kill every process that carries a mark which begins so, whoever its parent is; return their ids."""
    wanted = f"{MARK}={mark}".encode()
    found = [pid for pid in _processes() if any(each.startswith(wanted) for each in _environment(pid))]
    for pid in found:
        _kill(pid)
    return found


def kill_group(pid: int) -> None:
    """Kill a process and the group that it leads; it is no matter when they have gone."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        _kill(pid)


def visible_devices(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the CUDA_VISIBLE_DEVICES that make a device ("auto", "cpu", "cuda:1") the only one; else ValueError."""
    name = "CUDA_VISIBLE_DEVICES"
    if device == "auto":
        return {}
    if device == "cpu":
        return {name: ""}
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise ValueError(f"the device is {device!r}; give auto, cpu, cuda or cuda:0")
    index = int(number or "0")
    given = [each for each in environment.get(name, "").split(",") if each]
    if not given:
        return {name: str(index)}
    if index >= len(given):
        raise ValueError(f"the device is {device!r}, but {name} names only {len(given)}")
    return {name: given[index]}


def _processes() -> list[int]:
    folder = Path("/proc")
    own = os.getpid()
    names = (each.name for each in folder.iterdir()) if folder.is_dir() else iter(())
    return [int(name) for name in names if name.isdigit() and int(name) != own]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has gone, or is another user's
        return []


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
