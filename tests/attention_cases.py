"""Models for the tests of attention."""

from __future__ import annotations

from family_nets import objective_of

from probes.attribution import case_of


def family(name: str, row: int = 0):
    return case_of(objective_of(name), row)
