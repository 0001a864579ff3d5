"""Pins: kept durably, listed newest first, taken off without being lost; older workspaces gain the table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from probes.errors import DataError
from workspace.pins import LONGEST, pin, pinned, unpin
from workspace.store import Store, open_store

RUN, OTHER = "0" * 24, "1" * 24


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path / "w")
    yield store
    store.close()


def test_pins_survive_reopening_and_are_listed_newest_first(store: Store) -> None:
    first = pin(store, RUN, "maps", {"opacity": 0.5, "case": 3}, "  <b>the seven</b> \n")
    second = pin(store, OTHER, "curves", {}, "")
    again = open_store(store.root)
    assert pinned(again) == [second, first]
    assert pinned(again, RUN) == [first]
    assert first.sentence == "<b>the seven</b>" and first.view == {"opacity": 0.5, "case": 3}
    again.close()


def test_a_pin_that_is_taken_off_keeps_its_row_and_its_number_is_not_used_again(store: Store) -> None:
    first = pin(store, RUN, "maps", {}, "one")
    assert unpin(store, first.id) and not unpin(store, first.id)
    assert pinned(store) == []
    assert pin(store, RUN, "maps", {}, "two").id > first.id
    connection = sqlite3.connect(store.root / "theodolite.db")
    assert connection.execute("SELECT sentence, removed IS NULL FROM pins ORDER BY id").fetchall() == [
        ("one", 0),
        ("two", 1),
    ]
    connection.close()


def test_what_cannot_be_pinned_is_refused_in_words(store: Store) -> None:
    with pytest.raises(DataError, match=f"has {LONGEST + 1} characters; give {LONGEST}"):
        pin(store, RUN, "maps", {}, "x" * (LONGEST + 1))
    with pytest.raises(ValueError, match="no run's id"):
        pin(store, "../up", "maps", {}, "")
    with pytest.raises(ValueError, match="JSON compliant"):
        pin(store, RUN, "maps", {"opacity": float("nan")}, "")
    assert pinned(store) == []


def test_a_workspace_of_the_first_schema_gains_the_table_and_loses_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "old")
    kept = store.add_bytes(b"1", "one")
    store.close()
    connection = sqlite3.connect(tmp_path / "old" / "theodolite.db")
    connection.execute("DROP TABLE pins")
    connection.execute("PRAGMA user_version=1")
    connection.commit()
    connection.close()
    again = open_store(tmp_path / "old")
    assert again.file(kept.sha256) == kept
    assert pin(again, RUN, "maps", {}, "new").id == 1
    again.close()
