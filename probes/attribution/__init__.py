"""Attribution: which features of one example drive one score of the model, by many methods behind one interface."""

from probes.attribution.baselines import baselines, default_baseline
from probes.attribution.case import Case, Kind, Target, case_of, kind_of
from probes.attribution.errors import AttributionError
from probes.attribution.maps import Map, make_map
from probes.attribution.methods import Method, Settings, attribute, methods
from probes.attribution.validity import Badge, badge_of

__all__ = [
    "AttributionError", "Badge", "Case", "Kind", "Map", "Method", "Settings", "Target", "attribute", "badge_of",
    "baselines", "case_of", "default_baseline", "kind_of", "make_map", "methods",
]  # fmt: skip
