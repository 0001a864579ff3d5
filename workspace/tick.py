"""How a running task reports, keeps its own checkpoints and shows results so far: files in its run's folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from analyzers._base import Arrays, Result
from workspace.kept import Kept

SECONDS_BETWEEN = 0.25  # at least, between two writes of progress.json
SHARE_TO_JUDGE_BY = 0.02  # of the work, before its rate says anything about the time left


class FileTick:
    """Write progress.json as often as it is good for the reader, and state/<key>.npz as often as the task saves.

    A context: within it a thread writes the newest report every quarter of a second, so reporting costs nothing.
    """

    def __init__(self, folder: Path, shared: Path | None = None) -> None:
        self._folder, self._state = folder, Kept(folder / "state")
        self._shared = None if shared is None else Kept(shared)
        self._share, self._doing = 0.0, "Starting"
        self._left: float | None = None
        self._first: tuple[float, float] | None = None  # when the first report came, and its share
        self._changed = False
        self._shown = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="progress", daemon=True)

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        """Report the share done (it never falls within one attempt), what is being done, and the time left if known."""
        now = time.monotonic()
        with self._lock:
            share = min(1.0, float(share)) if math.isfinite(share) else 0.0
            self._share, self._doing, self._changed = max(self._share, share), doing, True
            self._first = self._first or (now, self._share)
            self._left = self._by_rate(now) if seconds_left is None else float(seconds_left)

    def save(self, key: str, arrays: Arrays) -> None:
        """Keep arrays under a key, atomically: a kill leaves the old ones or the new ones."""
        self._state.save(key, arrays)

    def load(self, key: str) -> Arrays | None:
        """Return what was saved under a key, in this attempt or an earlier one; None when there is nothing whole."""
        return self._state.load(key)

    def share(self, key: str, arrays: Arrays) -> None:
        """Keep arrays for all runs of the workspace, until there are too many; nothing without a workspace."""
        if self._shared is not None:
            self._shared.save(key, arrays)

    def shared(self, key: str) -> Arrays | None:
        """Return what a run of the workspace shared under this key; None when there is nothing whole."""
        return None if self._shared is None else self._shared.load(key)

    def show(self, result: Result) -> None:
        """Save a result so far into partial/<number>, whole before it is there; older ones but one go."""
        self._shown += 1
        place = self._folder / "partial" / f"{self._shown:06d}"
        shutil.rmtree(place, ignore_errors=True)
        result.save(place)
        for old in sorted(place.parent.iterdir())[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def __enter__(self) -> FileTick:
        shutil.rmtree(self._folder / "partial", ignore_errors=True)  # of an earlier attempt
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._shared is not None:
            self._shared.trim()
        shutil.rmtree(self._folder / "partial", ignore_errors=True)

    def _by_rate(self, now: float) -> float | None:
        since, share = self._first or (now, self._share)
        if self._share - share < SHARE_TO_JUDGE_BY:
            return None
        return (now - since) / (self._share - share) * (1.0 - self._share)

    def _write_on(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN):
            self._write()
        self._write()

    def _write(self) -> None:
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            value = {"share": self._share, "doing": self._doing, "seconds_left": self._left, "at": time.time()}
        try:
            _replace(self._folder / "progress.json", value)
        except OSError as error:  # a full disk: the task itself will say so when it matters
            print(f"the progress could not be written ({error})", file=sys.stderr)


def _replace(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)  # whole for every reader; not synced, since a report need not outlive the machine


def partial_folder(folder: Path) -> Path | None:
    """Return where the newest result so far of a run lies, or None."""
    found = sorted((folder / "partial").glob("*/result.json"))
    return found[-1].parent if found else None
