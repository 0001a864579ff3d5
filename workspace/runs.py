"""The runs of a workspace as rows, and every change of their state as one guarded statement.

App and worker both write here, at any moment and from several processes, so each change names the states it may
start from: a run that was cancelled cannot be begun, one that is done cannot be cancelled.

    waiting -> running -> done | failed | parked | interrupted        waiting, running -> cancelled
    failed, parked, interrupted, cancelled -> waiting (a retry)
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from workspace.schema import runs
from workspace.store import Store

State = Literal["waiting", "running", "done", "failed", "cancelled", "interrupted", "parked"]
Row = Mapping[str, Any]

OPEN: tuple[State, ...] = ("waiting", "running")
RETRIABLE: tuple[State, ...] = ("failed", "cancelled", "interrupted", "parked")
MAXIMAL_CRASHES = 3  # of the child, before a run is parked
MAXIMAL_DEATHS = 5  # of the worker under one run, before somebody has to ask for it again

PARKED = (
    f"The process that ran this died {MAXIMAL_CRASHES} times, so it is parked; look at the log "
    "(often the memory did not suffice: choose fewer examples) and retry."
)
INTERRUPTED = f"The worker ended {MAXIMAL_DEATHS} times while this ran; retry, and it goes on from what it has saved."


def workflow_id(row: Row) -> str:
    """Name the workflow of a run's current round."""
    return f"{row['id']}.{row['round']}"


def is_whole(folder: Path) -> bool:
    """Tell whether a run has finished: its result.json is written last, and atomically."""
    return (folder / "result.json").is_file()


def add(store: Store, *, id: str, payload: Mapping[str, Any], **columns: Any) -> bool:
    """Add a run that waits, unless there is one with this id; tell whether it was added."""
    now = time.time()
    text = json.dumps(dict(payload), ensure_ascii=False, allow_nan=False)
    fresh = {"state": "waiting", "round": 1, "attempts": 0, "crashes": 0, "created": now, "queued": now}
    if is_whole(store.folder(id)):  # the database was lost or replaced, the result was not
        fresh |= {"state": "done", "ended": now}
    statement = insert(runs).values(id=id, payload=text, **columns, **fresh)
    return store.write(statement.on_conflict_do_nothing()) == 1


def get(store: Store, id: str) -> Row | None:
    """Return the row of a run."""
    rows = store.read(sa.select(runs).where(runs.c.id == id))
    return rows[0] if rows else None


def newest(store: Store, limit: int) -> list[Row]:
    """Return the rows of the newest runs."""
    return list(store.read(sa.select(runs).order_by(runs.c.created.desc()).limit(limit)))


def unfinished(store: Store) -> list[Row]:
    """Return the rows that wait or run, in the order in which the lanes take them."""
    order = (runs.c.priority, runs.c.queued, runs.c.id)
    return list(store.read(sa.select(runs).where(runs.c.state.in_(OPEN)).order_by(*order)))


def again(store: Store, id: str) -> bool:
    """Let a run that ended without a result wait again, in a new round; tell whether it may."""
    fresh: dict[str, Any] = {"state": "waiting", "round": runs.c.round + 1, "attempts": 0, "crashes": 0}
    times: dict[str, Any] = {"queued": time.time(), "error": None, "started": None, "ended": None}
    return _change(store, id, RETRIABLE, **fresh, **times)


def cancel(store: Store, id: str) -> bool:
    """Mark a run as cancelled; the worker ends its process."""
    return _change(store, id, OPEN, state="cancelled", ended=time.time())


def is_current(store: Store, id: str, round: int) -> bool:
    """Tell whether this round of the run may go on (False once it is cancelled or retried)."""
    row = get(store, id)
    return row is not None and row["round"] == round and row["state"] == "running"


def begin(store: Store, id: str, round: int) -> bool:
    """Count an attempt and mark the run as running, durably, before anything is run; False: do not run it."""
    row = get(store, id)
    if row is None or row["round"] != round or row["state"] not in OPEN:
        return False
    if is_whole(store.folder(id)):
        end(store, id, round, "done")
        return False
    if row["crashes"] >= MAXIMAL_CRASHES:
        end(store, id, round, "parked", PARKED)
        return False
    if row["attempts"] - row["crashes"] >= MAXIMAL_DEATHS:
        end(store, id, round, "interrupted", INTERRUPTED)
        return False
    started = sa.func.coalesce(runs.c.started, time.time())
    return _change(store, id, OPEN, round, state="running", attempts=runs.c.attempts + 1, started=started, error=None)


def crashed(store: Store, id: str, round: int) -> None:
    """Count a death of the child under this run."""
    _change(store, id, OPEN, round, crashes=runs.c.crashes + 1)


def put_back(store: Store, id: str, round: int) -> None:
    """Let a run wait again that the worker interrupts by stopping in good order: this attempt does not count."""
    _change(store, id, ("running",), round, state="waiting", attempts=runs.c.attempts - 1)


def resume(store: Store) -> int:
    """Let every run wait again that a worker left when it died (its attempt counts); only for one that is alone."""
    return store.write(sa.update(runs).where(runs.c.state == "running").values(state="waiting"))


def end(store: Store, id: str, round: int, state: State, error: str | None = None) -> None:
    """Record how a round ended; a finished result counts even when it was cancelled in the same moment."""
    since: tuple[State, ...] = (*OPEN, "cancelled") if state == "done" else OPEN
    _change(store, id, since, round, state=state, error=error, ended=time.time())


def _change(store: Store, id: str, since: tuple[State, ...], in_round: int | None = None, **values: Any) -> bool:
    which = [runs.c.id == id, runs.c.state.in_(since)]
    if in_round is not None:
        which.append(runs.c.round == in_round)
    return store.write(sa.update(runs).where(*which).values(**values)) == 1
