"""Step 4 of the workbench: the loss, and the gate: is this the model, and are these the data, one thinks they are?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from analyzers import catalogue
from probes.specs import LOSS_TITLES, LOSSES, LossName
from ui import bench as benches
from ui import timeline
from ui.bench import Bench
from ui.progress import ask, ask_all
from ui.questions import name_of
from ui.ready import Ready, usual_loss
from ui.shell import ROOT, RUN
from ui.state import heeding, key_for
from ui.text import as_text, number, percent, with_error

VERDICTS = {"agrees": st.success, "differs": st.error, "at chance": st.error}


def choose_loss(id: str, bench: Bench) -> LossName:
    """Draw the choice of the loss; return the one in use."""
    now = bench.loss or usual_loss(bench)
    own = now == "operator" or (bench.model is not None and bench.model.source == "operator")
    losses = (*LOSSES, "operator") if own else LOSSES
    key = key_for("bench-loss", now)
    st.selectbox(
        "Loss",
        losses,
        index=losses.index(now),
        key=key,
        format_func=lambda each: LOSS_TITLES[each],
        on_change=heeding(key, now, lambda each: benches.put(id, loss=each)),
        help="Mean over the examples; for language models over the predicted tokens, padding left out.",
    )
    return now


def draw(id: str, bench: Bench, ready: Ready | None) -> None:
    """Draw the step: loss, verdict on the first checkpoint (of a training run the last), on request on the others."""
    with st.container(border=True, key="step-gate"):
        st.subheader("4 · Loss and gate", anchor=False)
        choose_loss(id, bench)
        if ready is None:
            st.caption("The gate opens once checkpoint, model and data are there: it compares the accuracy here with "
                       "the one the checkpoint stores, or with chance.")  # fmt: skip
            return
        line = timeline.of(bench, ready.checkpoints)
        main = ready.checkpoints[0] if line.unit == "position" else line.checkpoints[-1]
        found = ask(ready.gate(main), "gate")
        if found:
            verdict(found, name_of(main))
        if len(ready.checkpoints) > 1:
            _others(ready, tuple(each for each in line.checkpoints if each != main))
        if found:
            _onward(id)


def sentence(found: Mapping[str, Any]) -> None:
    """Say the gate's verdict in one sentence."""
    VERDICTS.get(found["verdict"], st.info)(as_text(found["sentence"]), icon=_icon(found["verdict"]))


def verdict(found: Mapping[str, Any], name: str) -> None:
    """Say the gate's verdict loudly, with loss and accuracy and their standard errors."""
    say = VERDICTS.get(found["verdict"], st.info)
    say(f"**{as_text(name)}** · {as_text(found['sentence'])}", icon=_icon(found["verdict"]))
    cells = st.columns(4)
    cells[0].metric("Loss", with_error(found.get("loss"), found.get("loss_stderr")), border=True)
    cells[1].metric("Accuracy", accuracy(found), border=True)
    cells[2].metric("By chance", percent(found.get("chance")), border=True)
    cells[3].metric("Examples", number(found.get("examples")), border=True)


def accuracy(found: Mapping[str, Any]) -> str:
    """Write the accuracy and its standard error in percent."""
    value, error = found.get("accuracy"), found.get("accuracy_stderr")
    if not isinstance(value, float | int):
        return "–"
    return f"{100 * value:.2f} ± {100 * error:.2f} %" if isinstance(error, float | int) else percent(value)


def _icon(verdict: str) -> str:
    icons = {"agrees": ":material/check_circle:", "differs": ":material/error:", "at chance": ":material/error:"}
    return icons.get(verdict, ":material/info:")


def _others(ready: Ready, others: tuple[str, ...]) -> None:
    label = "Judge the other checkpoint too" if len(others) == 1 else f"Judge the other {len(others)} checkpoints too"
    if st.toggle(label, key="gate-others", persist_state="session"):
        answers = ask_all([ready.gate(each) for each in others], "gate-others")
        if rows := [_row(sha256, each) for sha256, each in zip(others, answers, strict=True) if each]:
            st.dataframe(pd.DataFrame(rows), hide_index=True, alt="The gate's verdict on the other checkpoints")


def _row(sha256: str, found: Mapping[str, Any]) -> dict[str, Any]:
    loss = with_error(found.get("loss"), found.get("loss_stderr"))
    head = {"Checkpoint": name_of(sha256), "Verdict": found["verdict"]}
    return {**head, "Loss": loss, "Accuracy": accuracy(found), "What it means": found["sentence"]}


def _onward(id: str) -> None:
    row = st.container(horizontal=True)
    pages = {f"pages/{name}.py": analyzer.title for name, analyzer in catalogue().items()}
    for page, title in {**pages, RUN: "The whole run"}.items():
        if (ROOT / page).is_file():
            row.page_link(page, label=f"Go on: {title}", icon=":material/arrow_forward:", query_params={"bench": id})
