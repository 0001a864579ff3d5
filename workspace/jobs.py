"""The queue, as the browser side sees it: enqueue, status, list, cancel, retry, log, worker_alive. No torch here.

What is asked is a `JobSpec`; its id is a hash of task and payload, so that asking twice is asking once. `Jobs` is the
only port to the engine: rows in the store say how each run stands, DBOS (queue.db) hands them to the worker.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.exc import SQLAlchemyError

from probes.specs import fingerprint
from workspace import queue, runs
from workspace.runs import State
from workspace.store import Store

Lane = Literal["device", "bench"]

LANES: Mapping[str, Lane] = {
    "gate": "device",
    "analysis": "device",
    "cross_check": "device",
    "merge": "device",
    "specification": "device",
    "example": "device",
    "inspect": "bench",
    "compare": "bench",
    "preview": "bench",
    "import": "bench",
    "render": "bench",
}
PRIORITIES: Mapping[str, int] = {"gate": 1, "inspect": 1, "compare": 1, "preview": 1, "import": 2}
USUAL_PRIORITY = 5  # less comes first in its lane
HEARTBEAT = "worker.json"  # touched by the worker every second
HEARTBEAT_SECONDS = 5.0  # silent for longer: the worker is not running
LOG_BYTES = 1 << 18

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobSpec:
    """Say what is to be done: a task of `workspace.tasks` and its payload (JSON); the title is for people only."""

    task: str
    payload: Mapping[str, Any]
    title: str

    @property
    def id(self) -> str:
        """Return the id of the run: the same question has the same id."""
        return fingerprint({"task": self.task, "payload": dict(self.payload)})[:24]

    @property
    def lane(self) -> Lane:
        """Return the lane in which it runs; ValueError when there is no such task."""
        return _lane(self.task, LANES)


@dataclass(frozen=True)
class Job:
    """Say how a run stands. Times are seconds since 1970 (UTC)."""

    id: str
    task: str
    title: str
    lane: Lane
    state: State
    position: int | None  # 1 = next in its lane; None unless it waits
    share: float  # done, in [0, 1]
    doing: str
    seconds_left: float | None
    error: str | None  # one or two sentences for the user
    attempts: int
    created: float
    started: float | None
    ended: float | None
    payload: Mapping[str, Any]

    @property
    def is_open(self) -> bool:
        """Tell whether it still waits or runs."""
        return self.state in runs.OPEN

    @property
    def can_retry(self) -> bool:
        """Tell whether it ended without a result, so that it may be asked again."""
        return self.state in runs.RETRIABLE


class Jobs:
    """The port to the engine; cheap to make, safe to share between threads."""

    def __init__(self, store: Store, lanes: Mapping[str, Lane] = LANES) -> None:
        self.store = store
        self.lanes = lanes

    @property
    def _queue(self) -> queue.Queue:
        return queue.queue_of(self.store.root)

    def enqueue(self, spec: JobSpec) -> Job:
        """Ask for a run; the same question again returns the run that there is, whatever its state."""
        columns = {"task": spec.task, "title": spec.title, "lane": _lane(spec.task, self.lanes)}
        priority = PRIORITIES.get(spec.task, USUAL_PRIORITY)
        if runs.add(self.store, id=spec.id, payload=spec.payload, priority=priority, **columns):
            self._hand_over(spec.id)
        return self._known(spec.id)

    def retry(self, id: str) -> Job:
        """Ask again for a run that failed, was cancelled, interrupted or parked; it goes on from what it has saved."""
        if runs.again(self.store, id):
            self._hand_over(id)
        return self._known(id)

    def cancel(self, id: str) -> None:
        """End a run that waits or runs; its process is gone within two seconds."""
        row = runs.get(self.store, id)
        if row is None or not runs.cancel(self.store, id):
            return
        try:
            self._queue.cancel(runs.workflow_id(row))
        except SQLAlchemyError:  # the worker sees the state of the run all the same
            _log.exception("The queue did not take the cancellation of %s", id)

    def status(self, id: str) -> Job | None:
        """Return how a run stands, or None when there is none with this id."""
        row = runs.get(self.store, id)
        return None if row is None else self._jobs([row])[0]

    def list(self, limit: int = 100) -> list[Job]:
        """Return the newest runs, newest first."""
        return [*self._jobs(runs.newest(self.store, limit))]

    def log(self, id: str) -> str:
        """Return the end of what a run has written, "" before it began."""
        try:
            with (self.store.folder(id) / "log.txt").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def worker_alive(self) -> bool:
        """Tell whether a worker serves this workspace (it gives a sign every second)."""
        try:
            silent = time.time() - (self.store.root / HEARTBEAT).stat().st_mtime
        except FileNotFoundError:
            return False
        return silent < HEARTBEAT_SECONDS

    def _hand_over(self, id: str) -> None:
        row = runs.get(self.store, id)
        if row is None or row["state"] != "waiting":
            return
        try:
            self._queue.put(row)
        except SQLAlchemyError:  # the worker looks for rows that wait and are in no queue
            _log.exception("The queue did not take %s; the worker will fetch it", id)

    def _known(self, id: str) -> Job:
        job = self.status(id)
        if job is None:
            raise ValueError(f"there is no run {id!r}")
        return job

    def _jobs(self, rows: Sequence[runs.Row]) -> Sequence[Job]:
        waits = any(row["state"] == "waiting" for row in rows)
        positions = _positions(runs.unfinished(self.store)) if waits else {}
        return [_job(row, positions.get(row["id"]), self.store.folder(row["id"])) for row in rows]


def _lane(task: str, lanes: Mapping[str, Lane]) -> Lane:
    if task not in lanes:
        raise ValueError(f"there is no task {task!r}; there are {', '.join(sorted(lanes))}")
    return lanes[task]


def _positions(rows: Sequence[runs.Row]) -> dict[str, int]:
    seen: dict[str, int] = {}
    places: dict[str, int] = {}
    for row in rows:
        if row["state"] == "waiting":
            seen[row["lane"]] = places[row["id"]] = seen.get(row["lane"], 0) + 1
    return places


def _job(row: runs.Row, position: int | None, folder: Path) -> Job:
    names = ("id", "task", "title", "lane", "error", "attempts", "created", "started", "ended")
    about = {name: row[name] for name in names} | {"payload": json.loads(row["payload"])}
    state, share, doing, left = row["state"], 0.0, "", None
    if state != "done" and runs.is_whole(folder):
        state, position = "done", None  # whoever should have said so was killed before
        about["error"] = None
        about["ended"] = (folder / "result.json").stat().st_mtime
    if state == "running":
        share, doing, left = _progress(folder)
    if state == "done":
        share = 1.0
    return Job(**about, state=state, position=position, share=share, doing=doing, seconds_left=left)


def _progress(folder: Path) -> tuple[float, str, float | None]:
    try:
        value = json.loads((folder / "progress.json").read_text())
        left = value["seconds_left"]
        if left is not None:
            left -= max(0.0, time.time() - value["at"])
            left = left if left > 0 else None  # it takes longer than was thought: nobody knows how much
        return float(value["share"]), str(value["doing"]), left
    except FileNotFoundError:
        return 0.0, "Starting", None
