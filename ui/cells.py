"""One number above the figures of a result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One number. text: written here, never from a file; help and note (in small print below): raw text."""

    label: str
    text: str
    help: str = ""
    note: str = ""
