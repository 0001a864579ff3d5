"""Which rows of the attention a score is read from, and which models are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_cases import family
from attribution_cases import case
from curvature_oracles import batches
from family_nets import _hub
from torch import nn
from torch.nn import functional

from probes.attribution import AttributionError, attribute, case_of
from probes.attribution import attention_maps as watching
from probes.attribution.attention import rollout
from probes.attribution.attention_maps import attentions_of, probabilities
from probes.objective import Objective

ROWS = {"vit": [0], "deit": [0], "bert": [0], "gpt2": [6], "torch encoder": [*range(7)],
        "timm vit scaled": [*range(3, 7)], "timm vit": [0]}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_are_those_that_the_score_is_read_from(name):
    one = family(name)
    shown = attribute(one, "attention_rollout")
    assert shown.about["rows"] == ROWS[name]
    if one.kind != "image":
        expected = rollout(attentions_of(one).maps)[ROWS[name]].mean(0)
        np.testing.assert_allclose(shown.values, expected, atol=1e-12)
        assert shown.values.sum() == pytest.approx(1, abs=1e-6)


def test_the_row_of_a_position_within_the_sequence():
    from probes.attribution import Target

    whole, early = case("small gpt"), case("small gpt", 0, Target(5, 3))
    expected = rollout(attentions_of(whole).maps)[3]
    np.testing.assert_allclose(attribute(early, "attention_rollout").values, expected[:4], atol=1e-12)
    np.testing.assert_allclose(expected[4:], 0, atol=1e-12)


def of(module, x):
    data = batches(x, torch.zeros(len(x), dtype=torch.int64))
    return case_of(Objective(module.eval(), data, "cross_entropy", dtype="float64", device="cpu"), 0)


def test_windows_and_other_keys_are_refused():
    torch.manual_seed(0)
    swin = _hub("swin", "SwinForImageClassification", image_size=16, patch_size=2, embed_dim=6, depths=[1, 1],
                num_heads=[1, 2], window_size=2, num_labels=3)  # fmt: skip
    with pytest.raises(AttributionError, match="within windows"):
        attribute(of(swin, torch.randn(2, 3, 16, 16)), "attention_rollout")

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, ids):
            x = self.table(ids)
            return self.head(functional.scaled_dot_product_attention(x[:, :1], x, x)[:, 0])

    with pytest.raises(AttributionError, match="not the same tokens"):
        attribute(of(Pooled(), torch.randint(9, (2, 5))), "attention_rollout")


def test_a_model_that_counts_differently_in_the_open_is_refused(monkeypatch):
    monkeypatch.setattr(watching, "probabilities", lambda q, k, *_: probabilities(q, k) ** 2)
    with pytest.raises(AttributionError, match="in the open"):
        attribute(case("small gpt"), "attention_rollout")
