"""Options of some analyzers that have a form of their own, beside the one made from their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analyzers._base import Analyzer
from ui import attribution_form, specification
from ui.ready import Laid, Ready


def options(
    analyzer: type[Analyzer], what: Laid, chosen: Sequence[str], given: Mapping[str, Any], place: str
) -> dict[str, Any]:
    """Draw the forms of an analyzer's own options; return their values. given: the options to begin with."""
    found: dict[str, Any] = {}
    if not isinstance(what, Ready) or not chosen:
        return found
    if any(each.name == "specification" for each in analyzer.options()):
        found["specification"] = specification.form(what, chosen[0], str(given.get("specification", "")), place)
    if analyzer.name == "attribution":
        found |= attribution_form.draw(what, chosen, given, place)
    return found
