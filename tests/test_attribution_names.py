"""The names that the browser side knows are those of the methods that there are."""

from __future__ import annotations

from analyzers._attribution_names import FAMILIES, METHODS
from probes.attribution import methods


def test_every_method_is_offered_by_its_own_title_and_family() -> None:
    assert {name: (each.title, each.family) for name, each in METHODS.items()} == {
        name: (each.title, each.family) for name, each in methods().items()
    }
    assert list(METHODS) == list(methods())
    assert {each.family for each in METHODS.values()} <= set(FAMILIES)
