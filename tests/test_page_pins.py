"""Pinning a figure of a finished run, and the page of what is pinned."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_page_results import charts, finished, folder  # noqa: F401
from tests.test_pages import page, store  # noqa: F401
from tests.test_text import HOSTILE
from ui.text import as_text
from workspace.pins import LONGEST, pin, pinned
from workspace.store import Store


def test_a_figure_is_pinned_as_it_is_looked_at_with_its_sentence(store: Store, folder: Path) -> None:  # noqa: F811
    job = finished(store, "layer_rotation", folder)
    test = page("layer_rotation.py", run=job.id)
    next(each for each in test.toggle if each.label.startswith("Draw the random walk")).set_value(True).run()
    drawn = charts(test)[0]
    test.text_input(key="pin-sentence-rotation").set_value("The first layer <b>hardly</b> turns.").run()
    test.button(key="pin-now-rotation").click().run()
    assert not test.exception
    (kept,) = pinned(store)
    assert (kept.run, kept.figure, kept.view) == (job.id, "rotation", {"null": True})
    assert kept.sentence == "The first layer <b>hardly</b> turns."
    shown = page("reviews.py")
    assert any(as_text(kept.sentence) in each.value for each in shown.markdown)
    assert charts(shown)[0]["data"] == drawn["data"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_sentence_stays_text(store: Store, folder: Path, text: str) -> None:  # noqa: F811
    job = finished(store, "layer_rotation", folder)
    text = text[:LONGEST]
    pin(store, job.id, "rotation", {}, text)
    test = page("reviews.py")
    assert not test.exception
    assert any(as_text(text.strip()) in each.value for each in test.markdown)


def test_what_can_no_longer_be_drawn_is_said(store: Store, folder: Path) -> None:  # noqa: F811
    job = finished(store, "layer_rotation", folder)
    pin(store, job.id, "no_such_figure", {}, "one")
    pin(store, "f" * 24, "rotation", {}, "two")
    said = " ".join(each.value for each in page("reviews.py").warning)
    assert "no longer has this figure" in said and "is no longer in the workspace" in said


def test_a_figure_is_taken_off(store: Store, folder: Path) -> None:  # noqa: F811
    job = finished(store, "layer_rotation", folder)
    kept = pin(store, job.id, "rotation", {}, "one")
    test = page("reviews.py")
    test.button(key=f"unpin-{kept.id}").click().run()
    assert not test.exception and pinned(store) == []
    assert any("Nothing is pinned yet" in each.value for each in test.info)
