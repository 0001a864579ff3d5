"""What is particular to the Hessian spectrum: its numbers, its view, comparing two runs, the cross-check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from analyzers import catalogue
from analyzers._base import Result
from analyzers._spectrum_figures import SMOOTHING
from probes.errors import ProbeError
from ui import panels
from ui.progress import ask
from ui.questions import cross_check, name_of
from ui.runs import history, title_of
from ui.state import jobs, result_of
from ui.step_gate import accuracy
from ui.text import as_list, as_text, number, with_error
from workspace.jobs import Job

ANALYZER = catalogue()["hessian_spectrum"]


def draw(job: Job, result: Result) -> None:
    """Draw a finished result."""
    panels.head(job)
    numbers(result.values)
    panels.caveats(result)
    smoothing = width()
    tables = dict(result.tables())
    view = {"smoothing": smoothing}
    panels.figures(job, result, result.figures(**view), tables, view)
    panels.card(result, "Hessian of what")
    panels.tables(tables)
    compare(job, result, smoothing)
    check(job)


def numbers(values: Mapping[str, Any]) -> None:
    """Draw the numbers, each with its error."""
    largest = max(zip(values["eigenvalues"], values["eigenvalue_residuals"], strict=True), default=None)
    smallest = min(zip(values["eigenvalues_min"], values["eigenvalues_min_residuals"], strict=True), default=None)
    cells = (
        ("Largest eigenvalue", with_error(*largest) if largest else "not converged"),
        ("Smallest eigenvalue", with_error(*smallest) if smallest else "–"),
        ("Trace", with_error(values.get("trace"), values.get("trace_stderr"))),
        ("Frobenius norm", with_error(values.get("frobenius_norm"), values.get("frobenius_norm_stderr"))),
        ("Negative mass", _percent(values.get("negative_mass"), values.get("negative_mass_stderr"))),
        ("Loss", with_error(values.get("loss"), values.get("loss_stderr"))),
        ("Accuracy", accuracy(values)),
        ("Hessian products", number(values.get("products"))),
    )
    for start in (0, 4):
        for (label, text), column in zip(cells[start : start + 4], st.columns(4), strict=True):
            column.metric(label, text, border=True, help=HELP.get(label))


HELP = {
    "Largest eigenvalue": "With the bound of its error, from the residual of its eigenvector.",
    "Smallest eigenvalue": "With the bound of its error, from the residual of its eigenvector.",
    "Trace": "The sum of all eigenvalues, estimated with random vectors; ± is the standard error.",
    "Frobenius norm": "The root of the sum of all squared eigenvalues; ± is the standard error.",
    "Negative mass": "The share of negative eigenvalues in the sum of all absolute values; ± is the standard error.",
    "Hessian products": "How often the Hessian was multiplied with a vector over all examples.",
}


def _percent(value: Any, error: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{100 * value:.3g} ± {100 * error:.2g} %" if isinstance(error, int | float) else f"{100 * value:.3g} %"


def width() -> float:
    """Draw the choice of the smoothing width, which changes the drawing only; return it as a share of the range."""
    widths = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
    chosen = st.select_slider(
        "Smoothing width of the density",
        widths,
        SMOOTHING if SMOOTHING in widths else widths[2],
        format_func=lambda width: f"{100 * width:g} % of the range",
        help="Only the drawing changes: a narrower width shows more detail and more noise.",
        key="smoothing",
        bind="query-params",
    )
    return float(chosen)


def compare(job: Job, result: Result, smoothing: float) -> None:
    """Draw this result over another one, when both are of the same thing."""
    others = {each.id: each for each in history(ANALYZER) if each.state == "done" and each.id != job.id}
    if not others:
        return
    with st.expander("Compare with another run", icon=":material/compare:"):
        chosen = st.selectbox(
            "Another run",
            list(others),
            index=None,
            format_func=lambda id: title_of(others[id]),
            key=f"compare-{job.id}",
            placeholder="Choose a finished run",
        )
        other = result_of(chosen, ANALYZER.name) if chosen else None
        if other is None:
            return
        try:
            drawn = result.overlay([other], smoothing=smoothing)
        except ProbeError as error:
            st.error(as_text(error))
            return
        data = {name: _both(result, other) for name in drawn}
        panels.figures(job, result, drawn, data, {"smoothing": smoothing, "over": [chosen]})
        st.dataframe(_side_by_side(result, other), hide_index=True, alt="Numbers of the two runs")


def _both(one: Result, two: Result) -> pd.DataFrame:
    frames = [each.tables()["spectral_density"].assign(checkpoint=_checkpoint(each)) for each in (one, two)]
    return pd.concat(frames, ignore_index=True)


def _side_by_side(one: Result, two: Result) -> pd.DataFrame:
    def column(result: Result) -> dict[str, str]:
        values = result.values
        return {
            "Largest eigenvalue": number(next(iter(values["eigenvalues"]), None)),
            "Trace": with_error(values.get("trace"), values.get("trace_stderr")),
            "Frobenius norm": with_error(values.get("frobenius_norm"), values.get("frobenius_norm_stderr")),
            "Negative mass": _percent(values.get("negative_mass"), values.get("negative_mass_stderr")),
            "Loss": with_error(values.get("loss"), values.get("loss_stderr")),
            "Accuracy": accuracy(values),
        }

    left, right = column(one), column(two)
    names = [_checkpoint(one), _checkpoint(two)]
    if names[0] == names[1]:
        names = [f"{names[0]} (this run)", f"{names[1]} (the other)"]
    rows = [{"Number": name, names[0]: left[name], names[1]: right[name]} for name in left]
    return pd.DataFrame(rows)


def _checkpoint(result: Result) -> str:
    about = result.card.get("checkpoint") or {}
    return str(about.get("name") or name_of(str(about.get("sha256", ""))))


def check(job: Job) -> None:
    """Offer PyHessian's eigenvalues and trace on the same batch, side by side with ours."""
    with st.expander("Cross-check with PyHessian", icon=":material/verified:"):
        st.caption(
            "Another library computes largest eigenvalues and trace on the same examples. Its density() is not asked: "
            "it calls torch.eig, which torch no longer has."
        )
        spec = cross_check(job.id)
        if jobs().status(spec.id) is None and not st.button("Cross-check with PyHessian", key="cross-check"):
            return
        found = ask(spec, "cross-check")
        if found:
            rows = [{_heading(name): _cell(value) for name, value in row.items()} for row in found["rows"]]
            st.dataframe(pd.DataFrame(rows), hide_index=True, alt="PyHessian beside this run")
            st.caption(as_list(found["notes"]))


def _heading(name: str) -> str:
    return name.replace("_", " ").capitalize().replace("Pyhessian", "PyHessian").replace("uncertainty", "±")


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else number(value, 6)
