"""Figures that were pinned: a run's figure as it was looked at, with the sentence that says what it shows."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from probes.errors import DataError
from workspace.schema import pins
from workspace.store import Store

LONGEST = 2000  # characters of a sentence


@dataclass(frozen=True)
class Pin:
    """One figure of one run. view: keywords of `Result.figures`; sentence: hostile text; created: seconds, UTC."""

    id: int
    run: str
    figure: str
    view: Mapping[str, Any]
    sentence: str
    created: float


def pin(store: Store, run: str, figure: str, view: Mapping[str, Any], sentence: str) -> Pin:
    """Keep a figure as it is looked at; raise DataError for a sentence that is too long, ValueError for no run's id."""
    store.folder(run)
    if len(sentence) > LONGEST:
        raise DataError(f"The sentence has {len(sentence)} characters; give {LONGEST} at most.")
    text = json.dumps(dict(view), sort_keys=True, ensure_ascii=False, allow_nan=False)
    now, sentence = time.time(), sentence.strip()
    row = sa.insert(pins).values(run=run, figure=figure, view=text, sentence=sentence, created=now)
    with store.engine.begin() as connection:
        key = connection.execute(row).inserted_primary_key
    if key is None:
        raise ValueError("the database gave the pin no number")
    return Pin(int(key[0]), run, figure, dict(view), sentence, now)


def pinned(store: Store, run: str | None = None) -> list[Pin]:
    """List what is pinned, of one run or of all, the newest first."""
    query = sa.select(pins).where(pins.c.removed.is_(None)).order_by(pins.c.id.desc())
    rows = store.read(query if run is None else query.where(pins.c.run == run))
    return [
        Pin(row["id"], row["run"], row["figure"], json.loads(row["view"]), row["sentence"], row["created"])
        for row in rows
    ]


def unpin(store: Store, id: int) -> bool:
    """Take a figure off the list (its row stays, with the time); tell whether it was on it."""
    change = sa.update(pins).where(pins.c.id == id, pins.c.removed.is_(None)).values(removed=time.time())
    return store.write(change) > 0
