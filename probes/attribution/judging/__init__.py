"""Judging maps: is what a method shows faithful to the model, stable, and more than a null map would show?"""

from probes.attribution.judging.agreement import Agreement, Table, agreement
from probes.attribution.judging.curves import Curves, area, curves
from probes.attribution.judging.infidelity import Estimate, infidelity
from probes.attribution.judging.intervals import Interval, mean_interval
from probes.attribution.judging.nulls import NullCurves, edge_map, null_curves
from probes.attribution.judging.orders import default_baselines
from probes.attribution.judging.sanity import Sanity, sanity
from probes.attribution.judging.scoreboard import Scoreboard, Standing, scoreboard
from probes.attribution.judging.sensitivity import moved, sensitivity_max

__all__ = [
    "Agreement", "Curves", "Estimate", "Interval", "NullCurves", "Sanity", "Scoreboard", "Standing", "Table",
    "agreement", "area", "curves", "default_baselines", "edge_map", "infidelity", "mean_interval", "moved",
    "null_curves", "sanity", "scoreboard", "sensitivity_max",
]  # fmt: skip
