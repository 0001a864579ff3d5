"""Names and sentences on the page: what came from a file must come out as itself, never as markup."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable

JOINER = "\u2060"  # invisible; keeps `:name:` from becoming an icon and `www.` from becoming a link
LONGEST = 400  # characters
LONGEST_SENTENCE = 2000  # of sentences of our own, which may name things from files
_PUNCTUATION = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|$~:&^=@\"'])")
_TRIGGERS = re.compile(r"(:(?=\\?[\w+/-])|@|www(?=\\?\.)|-(?=\\?[->])|<(?=\\?-))", re.IGNORECASE)


def as_text(value: object, longest: int = LONGEST) -> str:
    """Escape a text for Streamlit's Markdown, which stays one line: no links, colours, icons, formulas or HTML."""
    text = "".join(each if each.isprintable() else ("�" if each not in "\r\n\t" else " ") for each in str(value))
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return _TRIGGERS.sub(rf"\1{JOINER}", _PUNCTUATION.sub(r"\\\1", text))


def as_list(sentences: Iterable[object]) -> str:
    """Write texts as a Markdown list."""
    return "\n".join(f"- {as_text(each, LONGEST_SENTENCE)}" for each in sentences)


def number(value: object, digits: int = 4) -> str:
    """Write a number to so many significant digits; a dash for none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–"
    if isinstance(value, int) and abs(value) < 10**13:
        return f"{value:,}".replace(",", " ")
    return f"{value:.{digits}g}"


def with_error(value: object, error: object) -> str:
    """Write a number to the digits that its error leaves, five at most, and the error to as many places."""
    if not isinstance(value, int | float) or not isinstance(error, int | float) or not error > 0:
        return number(value)
    size = math.floor(math.log10(abs(value))) if value else 0
    wanted = 1 - math.floor(math.log10(error))
    decimals = min(wanted, 4 - size)
    if not -5 < size < 6:
        return f"{value:.{max(0, min(4, size + decimals))}e} ± {error:.0e}"
    places = max(0, decimals)
    spread = f"{round(error, decimals):.{places}f}" if wanted == decimals < 7 else f"{error:.0e}"
    return f"{round(value, decimals):.{places}f} ± {spread}"


def percent(value: object) -> str:
    """Write a share as percent."""
    return f"{100 * value:.2f} %" if isinstance(value, int | float) else "–"


def size(value: int) -> str:
    """Write a number of bytes: 2.0 GB, 340 kB."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= step:
            return f"{value / step:.1f} {unit}"
    return f"{value} bytes"


def duration(seconds: float | None) -> str:
    """Write a time span: 8 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(at: float | None) -> str:
    """Write a time in the server's own zone."""
    return "–" if at is None else time.strftime("%d %b %H:%M:%S", time.localtime(at))
