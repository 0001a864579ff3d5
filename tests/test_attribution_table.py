"""Every method on every kind of model either runs or refuses in words; the document has the same table."""

from __future__ import annotations

import re

import pytest
from attribution_table import NETS, in_document, maps_on, written

from analyzers._attribution_names import METHODS


@pytest.mark.parametrize("net", NETS)
def test_every_method_runs_or_says_why_not_and_what_to_choose(net):
    found = maps_on(net)
    assert [each["method"] for each in found] == list(METHODS)
    for each in found:
        assert each["badge"] in ("ok", "doubtful", "refused"), each
        assert bool(each["reasons"]) == (each["badge"] != "ok")
        assert (each["array"] is None) == (each["badge"] == "refused")
        if each["badge"] == "refused":
            assert re.search(r"[Cc]hoose", each["reasons"][0]), each["reasons"]


def test_known_places_of_the_table():
    badges = {net: {each["method"]: each["badge"] for each in maps_on(net)} for net in NETS}
    assert all(found["integrated_gradients"] == found["fullgrad"] == "ok" for found in badges.values())
    assert badges["ViT"]["grad_cam"] == "ok" and badges["BERT"]["grad_cam"] == "refused"
    assert badges["ResNet-20"]["deep_lift"] == "ok" and badges["ViT"]["deep_lift"] == "refused"
    assert badges["CNN"]["guided_backprop"] == "ok" and badges["GPT-2"]["guided_backprop"] == "refused"
    assert badges["BERT"]["attention_rollout"] == "ok" and badges["CNN"]["attention_rollout"] == "refused"


def test_the_document_has_this_table():
    assert in_document() == written(), "python tests/attribution_table.py writes it anew"
