"""Maps over the parts of a text: leaving each out, or their exact Shapley values.

The score of a part is the sum over its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from probes.attribution.errors import AttributionError
from probes.attribution.language_parts import Part, as_segments
from probes.attribution.methods import Settings, Tick
from probes.attribution.perturbation import ablated
from probes.attribution.players import Players, players_of
from probes.attribution.shapley import MOST_EXACT, exact
from probes.attribution.validity import badge_of

if TYPE_CHECKING:
    from probes.attribution.case import Case
    from probes.attribution.maps import Map

How = Literal["feature_ablation", "exact_shapley"]


def segment_players(case: Case, parts: Sequence[Part], settings: Settings | None = None) -> Players:
    """Set up the game among the parts of a text, for any method of shapley, perturbation, lime or one's own."""
    return players_of(case, settings or Settings(), lambda *_: as_segments(parts))


def segment_map(
    case: Case, parts: Sequence[Part], how: How = "exact_shapley", settings: Settings | None = None,
    tick: Tick = lambda *_: None,
) -> Map:  # fmt: skip
    """Attribute the score to parts: what it loses without each, or their exact Shapley values.

    The value of a part is divided evenly among its tokens. Raises AttributionError for more than 10 parts of which
    Shapley values are asked.
    """
    players = segment_players(case, parts, settings)
    if how == "feature_ablation":
        found = players.map(how, ablated(players.game, tick))
    elif players.game.count > MOST_EXACT:
        raise AttributionError(
            f"The text has {players.game.count} parts that differ from the baseline; exact Shapley values take at most "
            f"{MOST_EXACT}. Choose larger parts, such as turns or lines, or feature ablation."
        )
    else:
        found = players.map(how, exact(players.game, tick), complete=True)
    return replace(found, badge=badge_of(case, found))
