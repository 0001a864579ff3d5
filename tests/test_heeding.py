"""Widgets that begin with a value: what a browser tells of one that is gone changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from ui import state


@pytest.mark.parametrize("now", ["cross_entropy", None, "", 3])
def test_only_other_values_than_the_first_are_acted_on(monkeypatch: pytest.MonkeyPatch, now: Any) -> None:
    told: list[Any] = []
    held = {"loss": now}
    monkeypatch.setattr(state.st, "session_state", held)
    changed = state.heeding("loss", now, told.append)
    changed()
    assert told == []
    held["loss"] = "mse"
    changed()
    assert told == ["mse"]
