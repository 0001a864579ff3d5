"""Texts with their tokens or words coloured, a block for each map; the maps of one method share a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from analyzers._base import Result
from ui import coloured_words
from ui.text import as_text

LONGEST = 600  # tokens of a text that are coloured


@dataclass(frozen=True)
class Units:
    """Tokens or words of a text. values: their attributions; special: those set apart."""

    texts: list[str]
    values: NDArray[np.float64]
    special: NDArray[np.bool_]

    @property
    def end(self) -> float:
        """The largest size that is not of a special one."""
        return float(np.abs(self.values[~self.special]).max(initial=0.0))


def draw(result: Result, numbers: Sequence[int], *, by_word: bool) -> None:
    """Draw the texts of some maps; those that were refused are left out."""
    maps, cases = result.values["maps"], result.values["cases"]
    found = {
        number: units(cases[maps[number]["case"]], result.arrays[maps[number]["array"]], by_word=by_word)
        for number in numbers
        if maps[number]["array"]
    }
    ends: dict[str, float] = {}
    for number, each in found.items():
        method = maps[number]["method"]
        ends[method] = max(ends.get(method, 0.0), each.end)
    for number, each in found.items():
        about, case = maps[number], cases[maps[number]["case"]]
        st.markdown(f"**{as_text(about['title'])}** · {as_text(case['id'])} · {as_text(case['checkpoint'])}")
        some = slice(0, LONGEST)
        coloured_words.draw(each.texts[some], each.values[some].tolist(), each.special[some].tolist(),
                            ends[about["method"]])  # fmt: skip
        _told(each)


def units(case: Mapping[str, Any], values: Any, *, by_word: bool) -> Units:
    """Return the tokens of a case with their values, or its words with the sums of theirs (where words are known)."""
    found = np.asarray(values, np.float64)
    apart = np.array(case["special"] or [False] * len(found), dtype=bool)
    words = case["words"]
    if not by_word or not words:
        return Units(list(case["tokens"]), found, apart)
    places = [slice(each["first"], each["stop"]) for each in words]
    sums = np.array([found[place].sum() for place in places])
    return Units([each["text"] for each in words], sums, np.array([bool(apart[place].any()) for place in places]))


def _told(each: Units) -> None:
    if len(each.texts) > LONGEST:
        st.caption(f"The first {LONGEST} of {len(each.texts)} are shown; the table has all.")
    whole = float(np.abs(each.values).sum())
    if each.special.any() and whole > 0:
        share = float(np.abs(each.values[each.special]).sum()) / whole
        st.caption(f"Special tokens carry {100 * share:.0f} % of the sizes; they are pale and left out of the scale.")
