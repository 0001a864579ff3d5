"""Where the outputs of layers lie on the input: layouts, amounts that are spread, layers that cut the net."""

from __future__ import annotations

import pytest
import torch
from attribution_cases import case, objective_of

from probes.attribution import case_of, layer_outputs
from probes.attribution.cam import default_cam_layer
from probes.attribution.layer_outputs import cuts, grids_of
from probes.attribution.layer_places import Layout, patch_layout, picture_layout, spread


def test_a_layer_beside_a_residual_path_does_not_cut_the_net():
    one = case("resnet20")
    assert cuts(one, "layer3") and cuts(one, "layer2.0")
    assert not cuts(one, "layer2.0.bn2")
    vit = case("vit")
    assert cuts(vit, "vit.layers.0") and not cuts(vit, "vit.layers.1.layernorm_before")


def test_layouts():
    assert picture_layout((1, 8, 4, 4), (16, 16), []) == Layout("channels first", (4, 4))
    assert picture_layout((1, 4, 4, 8), (16, 16), []) == Layout("channels last", (4, 4))
    assert picture_layout((1, 4, 4, 4), (16, 16), [], last=True) == Layout("channels last", (4, 4))
    assert picture_layout((1, 3, 5, 4), (16, 16), []) is None  # heads of an attention
    assert picture_layout((4, 3, 4, 4), (16, 16), []) is None  # windows
    assert patch_layout(197, (224, 224), []) == Layout("tokens", (14, 14), 1)
    assert patch_layout(201, (224, 224), []) == Layout("tokens", (14, 14), 5)
    assert patch_layout(25, (16, 24), []) == Layout("tokens", (4, 6), 1)
    assert patch_layout(26, (16, 16), [(4, 4), (5, 5)]) == Layout("tokens", (5, 5), 1)
    assert patch_layout(7, (16, 16), []) == Layout("tokens", (2, 2), 3)
    assert patch_layout(4 + 9, (16, 16), []) is None
    assert grids_of(case("cnn")) == ((12, 12), (6, 6), (3, 3))


@pytest.mark.parametrize("size", [(9, 9), (10, 7), (3, 2), (2, 3), (1, 1)])
def test_spread_amounts_keep_their_sums(size):
    values = torch.randn(3, 3, dtype=torch.float64)
    found = spread(values, size)
    assert found.shape == (1, *size)
    torch.testing.assert_close(found.sum(), values.sum())
    one = torch.zeros(3, 3, dtype=torch.float64)
    one[1, 1] = 1
    assert float(spread(one, size).min()) >= 0


def test_layers_are_looked_at_once_for_a_model_so_that_a_gallery_has_one(monkeypatch):
    calls, watched = [], layer_outputs._watched
    monkeypatch.setattr(layer_outputs, "_watched", lambda one: calls.append(one.row) or watched(one))
    objective = objective_of("cnn")
    found = [default_cam_layer(case_of(objective, row)) for row in (2, 0, 1)]
    assert len(set(found)) == 1 and calls == [0]
    default_cam_layer(case_of(objective_of("cnn"), 1))
    assert calls == [0, 0], "another model is looked at anew"
