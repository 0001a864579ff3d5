"""A finished attribution: the maps, what each is worth, words in colour, and what one may ask next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from analyzers._base import Analyzer, Result
from ui import attribution_again, attribution_words, key_numbers, panels, result_page, views
from ui.text import as_list
from workspace.jobs import Job

VERDICTS = {"ok": "✓ ok", "doubtful": "? doubtful", "invalid": "✗ invalid", "refused": "– refused"}
SANITY = {"pass": "✓ changes", "flagged": "✗ survives"}
COLUMNS = {  # of the table below the maps
    "completeness_error": "Completeness error",
    "insertion_auc": "Insertion",
    "random_insertion_auc": "Insertion, random",
    "deletion_auc": "Deletion",
    "random_deletion_auc": "Deletion, random",
    "infidelity": "Infidelity",
    "sensitivity_max": "Max-sensitivity",
}
HELP = {
    "completeness_error": "By how much the attributions miss the difference of the scores, as a share of it.",
    "insertion_auc": "Area under the score while the highest features come back first: higher is better.",
    "deletion_auc": "Area under the score while the highest features are taken away first: lower is better.",
    "random_insertion_auc": "The same in random order.",
    "random_deletion_auc": "The same in random order.",
    "infidelity": "Squared error of the score's change as the map predicts it: lower is better.",
    "sensitivity_max": "How far the map moves, relative to itself, when the example hardly does: lower is better.",
}


def draw(job: Job, result: Result, analyzer: type[Analyzer]) -> None:
    """Draw a finished attribution."""
    panels.head(job)
    attribution_again.changed(job, result)
    key_numbers.draw(analyzer.name, result.values)
    panels.caveats(result)
    view = views.choose(result)
    tables, drawn = dict(result.tables()), dict(result.figures(**view))
    first = {name: drawn.pop(name) for name in ("maps",) if name in drawn}
    panels.figures(job, result, first, tables, view)
    if result.values["kind"] in ("text", "language_model"):
        attribution_words.draw(result, shown(result.values, view), by_word=bool(view.get("words")))
    _worth(result, view)
    attribution_again.draw(job, result, analyzer)
    panels.figures(job, result, drawn, tables, view)
    panels.card(result, "Of what")
    panels.tables(tables)
    result_page.compare(job, result, analyzer)


def shown(values: Mapping[str, Any], view: Mapping[str, Any]) -> list[int]:
    """Return the numbers of the maps that a view shows."""
    fits = lambda name, value: view.get(name) in (None, value)
    maps = enumerate(values["maps"])
    return [number for number, each in maps if fits("case", each["case"]) and fits("method", each["method"])]


def worth(values: Mapping[str, Any], numbers: Sequence[int]) -> pd.DataFrame:
    """Return what each of some maps is worth: a row for each, columns that all lack left out."""
    rows = []
    for number in numbers:
        each = values["maps"][number]
        case = values["cases"][each["case"]]
        row = {"Example": str(case["id"]), "Checkpoint": case["checkpoint"], "Method": each["title"]}
        row |= {"Verdict": VERDICTS[each["badge"]], "Sanity": SANITY.get(each.get("sanity") or "")}
        rows.append(row | {title: each.get(name) for name, title in COLUMNS.items()})
    table = pd.DataFrame(rows)
    if len({each["checkpoint"] for each in values["cases"]}) == 1:
        table = table.drop(columns="Checkpoint", errors="ignore")
    return table.dropna(axis="columns", how="all")


def _worth(result: Result, view: Mapping[str, Any]) -> None:
    numbers = shown(result.values, view)
    if not numbers:
        return
    st.subheader("What each map is worth", anchor=False)
    table = worth(result.values, numbers)
    columns = {
        title: st.column_config.NumberColumn(title, format="%.3g", help=HELP[name]) for name, title in COLUMNS.items()
    }
    st.dataframe(table, column_config=columns, hide_index=True, placeholder="–", alt="What each map is worth")
    said: dict[str, list[str]] = {}
    for number in numbers:
        each = result.values["maps"][number]
        for words in (*each["reasons"], *each["notes"]):
            said.setdefault(words, []).append(each["title"])
    if said:
        with st.expander(f"Reasons and notes ({len(said)})", icon=":material/fact_check:", expanded=len(said) < 4):
            st.markdown(as_list(f"{', '.join(dict.fromkeys(names))}: {words}" for words, names in said.items()))
