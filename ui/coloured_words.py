"""Tokens and words coloured by their attribution, with the numbers in print: readable without colour."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import streamlit as st

FOR, AGAINST = (178, 24, 43), (33, 102, 172)  # the ends of the diverging scale of the maps
STRONGEST = 0.65  # opacity of the largest value: text stays readable on it
SPECIAL = "opacity:.45"


def html_of(texts: Sequence[str], values: Sequence[float], special: Sequence[bool], largest: float = 0.0) -> str:
    """Write texts as coloured HTML; every text is escaped.

    values: one for each text. special: set apart, and left out of the scale. largest: the end of the scale, 0 takes
    the largest of the others. The sign is printed with the number, so that nothing is said by colour alone.
    """
    plain = [abs(value) for value, apart in zip(values, special, strict=True) if not apart]
    end = largest or max(plain, default=0.0) or 1.0
    rows = zip(texts, values, special, strict=True)
    return f'<div style="line-height:2.6;font-size:1.05rem">{"".join(_span(*row, end) for row in rows)}</div>'


def draw(texts: Sequence[str], values: Sequence[float], special: Sequence[bool], largest: float = 0.0) -> None:
    """Draw coloured texts; see `html_of`."""
    st.html(html_of(texts, values, special, largest))


def _span(text: str, value: float, special: bool, end: float) -> str:
    share = min(abs(value) / end, 1.0)
    red, green, blue = FOR if value > 0 else AGAINST
    colour = f"background:rgba({red},{green},{blue},{0 if special else STRONGEST * share:.3f})"
    style = f"{colour};padding:.2em .3em;border-radius:.25em;margin-right:.15em;white-space:nowrap"
    shown = escape(_visible(text))
    said = escape(f"{_visible(text)}: {value:+.4g}", quote=True)
    number = f'<sub style="font-size:.7em;opacity:.8">{value:+.2g}</sub>'
    return f'<span style="{style}{";" + SPECIAL if special else ""}" title="{said}">{shown}{number}</span> '


def _visible(text: str) -> str:
    """Show what would not be seen: spaces at the ends, line breaks, what cannot be printed."""
    known = text.replace("\n", "⏎").replace("\t", "⇥")
    known = "".join(each if each.isprintable() else "�" for each in known)
    return known.strip(" ") or "␣"
