"""The checkpoints of a pair, and further ones beside it, as a form; what the gate says of each."""

from __future__ import annotations

import streamlit as st

from ui import timeline
from ui.bench import Bench
from ui.progress import ask
from ui.questions import name_of
from ui.ready import Laid, Ready
from ui.state import key_for
from ui.step_gate import sentence


def choose(roles: tuple[str, ...], bench: Bench, what: Laid, place: str) -> tuple[str, ...]:
    """Choose a checkpoint for each of the first two roles and any number for the third; () where there are too few."""
    line = timeline.of(bench, what.checkpoints)
    known = line.checkpoints
    if len(known) < 2:
        st.info("This needs two checkpoints with the same tensors. Lay another one on the bench.")
        return ()
    titles = dict(zip(known, line.labels, strict=True))
    written = lambda text: f"{titles.get(text, '')} · {name_of(text)}" if line.unit != "position" else name_of(text)
    left, right = st.columns(2)
    first = left.selectbox(roles[0], known, format_func=written, key=key_for(f"{place}-first", known))
    second = right.selectbox(
        roles[1], known, index=len(known) - 1, format_func=written, key=key_for(f"{place}-second", known)
    )
    with left:
        judged(what, first)
    with right:
        judged(what, second)
    others = [each for each in known if each not in (first, second)]
    more: list[str] = []
    if len(roles) > 2 and others:
        more = st.multiselect(
            roles[2], others, default=others, format_func=written, key=key_for(f"{place}-more", [first, second, *known])
        )
    if first == second:
        st.error("These are the same checkpoint; choose two different ones.")
        return ()
    return (first, second, *(each for each in known if each in more))


def judged(what: Laid, checkpoint: str) -> None:
    """Say the gate's verdict, where there is a model to judge."""
    if isinstance(what, Ready) and (verdict := ask(what.gate(checkpoint), "gate")):
        sentence(verdict)


def test_words(what: Ready) -> str:
    """Say which test data there are, as raw text."""
    if what.test is None:
        return "There are no test data on the bench; the curves will be those of the data alone. Step 3 takes some."
    return f"Test data: {', '.join(name_of(each) for each in what.test.files)}."
