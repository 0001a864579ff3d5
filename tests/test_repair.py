"""REPAIR against plain sums over the examples and against inserted BatchNorm layers, and what it leaves as it is."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import batches
from torch import Tensor, nn

import probes.repair
from probes.batch_statistics import renewed
from probes.errors import ModelError
from probes.layer_moments import layout, moments_at
from probes.objective import Objective
from probes.paths import read
from probes.points import between, point_of, tensors_of
from probes.repair import repaired


def pair(make, x: Tensor, **options) -> tuple[Objective, Objective]:
    y = torch.arange(len(x)) % 3
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = make().double()
        made.append(Objective.of(net, batches(x.double(), y), "cross_entropy", dtype="float64", micro_batch=4))
    return made[0], made[1]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def data() -> Tensor:
    return torch.randn(13, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1


def by_hand(net: nn.Sequential, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the pre-activations of a layer."""
    with torch.no_grad():
        z = net[: layer + 1](x)
    z = z.movedim(1, -1).reshape(-1, z.shape[1])
    return z.mean(0), z.std(0, correction=0)


def loaded(objective: Objective, point) -> nn.Module:
    module = copy.deepcopy(objective.module)
    module.load_state_dict(tensors_of(objective, point), strict=False)
    return module.eval()


def test_mean_and_deviation_are_those_between_the_ends() -> None:
    one, two = pair(mlp, data())
    found = repaired(one, point_of(one), point_of(two), 0.3)
    assert found.layers == ("0", "2") and found.notes == ()
    net = loaded(one, found.point)
    for layer in (0, 2):
        (mean_a, std_a), (mean_b, std_b) = (by_hand(each.module, one.inputs, layer) for each in (one, two))
        mean, std = by_hand(net, one.inputs, layer)
        torch.testing.assert_close(mean, 0.7 * mean_a + 0.3 * mean_b, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(std, 0.7 * std_a + 0.3 * std_b, rtol=1e-12, atol=1e-12)
    plain = between(point_of(one), point_of(two), 0.3)
    assert torch.equal(net[4].weight, plain.theta[4]) and torch.equal(net[4].bias, plain.theta[5])
    assert not torch.allclose(net[2].weight, plain.theta[2])


def test_it_is_what_inserted_batch_norm_gives_after_one_pass() -> None:
    """The procedure of the paper's notebooks: train-mode pass over all examples as one batch, then fused."""
    one, two = pair(mlp, data())
    x, count = one.inputs, len(one.inputs)
    middle = loaded(one, between(point_of(one), point_of(two), 0.5))
    norms = {}
    for layer in (0, 2):
        ends = [by_hand(each.module, x, layer) for each in (one, two)]
        norms[layer] = nn.BatchNorm1d(len(ends[0][0]), eps=1e-30, momentum=None).double()
        norms[layer].weight.data = (ends[0][1] + ends[1][1]) / 2
        norms[layer].bias.data = (ends[0][0] + ends[1][0]) / 2
    with torch.no_grad():
        norms[2](middle[2](torch.tanh(norms[0](middle[0](x)))))
        for layer, norm in norms.items():
            gamma = norm.weight / (norm.running_var * (count - 1) / count).sqrt()
            middle[layer].weight *= gamma[:, None]
            middle[layer].bias.copy_(norm.bias + gamma * (middle[layer].bias - norm.running_mean))
    found = loaded(one, repaired(one, point_of(one), point_of(two), 0.5).point)
    for (name, truth), value in zip(middle.named_parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-12, msg=name)


def test_the_ends_stay_as_they_are() -> None:
    one, two = pair(mlp, data())
    for alpha, end in ((0.0, one), (1.0, two)):
        found = repaired(one, point_of(one), point_of(two), alpha)
        for value, truth in zip(found.point.theta, end.theta, strict=True):
            torch.testing.assert_close(value, truth.detach(), rtol=1e-12, atol=1e-12)


def test_moments_measured_once_serve_every_alpha_and_may_come_of_other_data() -> None:
    one, two = pair(mlp, data())
    few = one.chosen(range(7))
    ends = (moments_at(few, point_of(one)), moments_at(few, point_of(two)))
    mean, std = by_hand(one.module, few.inputs, 2)
    torch.testing.assert_close(ends[0]["2"].mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ends[0]["2"].variance, std.square(), rtol=1e-12, atol=1e-12)
    given = repaired(one, point_of(one), point_of(two), 0.4, statistics=few, moments=ends).point
    own = repaired(few, point_of(one), point_of(two), 0.4).point
    whole = repaired(one, point_of(one), point_of(two), 0.4).point
    for a, b in zip(given.theta, own.theta, strict=True):
        assert torch.equal(a, b)
    assert not torch.allclose(given.theta[0], whole.theta[0])


def mixed() -> nn.Module:
    """BatchNorm after the first convolution, an activation in place before the second one, none after the third."""
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3, padding=1)]
    layers += [nn.ReLU(inplace=True), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers)


def images() -> Tensor:
    return torch.randn(11, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.mark.parametrize("parts", [1, 3])
def test_batch_norm_is_measured_anew_on_the_way(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair(mixed, images())
    if parts > 1:
        spare = 2 * 6 * layout(one).bytes * 11 / parts
        monkeypatch.setattr(probes.repair, "spare_bytes", lambda _: spare)
    found = repaired(one, point_of(one), point_of(two), 0.5)
    assert found.layers == ("3", "6")
    assert "2 BatchNorm" in found.notes[-1]
    net, x = loaded(one, found.point), one.inputs
    for layer in (3, 6):
        ends = [by_hand(each.module, x, layer) for each in (one, two)]
        mean, std = by_hand(net, x, layer)
        torch.testing.assert_close(mean, (ends[0][0] + ends[1][0]) / 2, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(std, (ends[0][1] + ends[1][1]) / 2, rtol=1e-10, atol=1e-10)
    for before, norm in ((0, 1), (4, 5)):
        mean, std = by_hand(net, x, before)
        torch.testing.assert_close(net[norm].running_mean, mean, rtol=1e-10, atol=1e-10)
        count = x.shape[0] * 36
        torch.testing.assert_close(net[norm].running_var, std.square() * count / (count - 1), rtol=1e-10, atol=1e-10)


def test_a_network_of_batch_norms_is_reset_and_nothing_else() -> None:
    make = lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3),
        nn.Flatten(), nn.Linear(48, 3),
    )  # fmt: skip
    one, two = pair(make, images())
    found = repaired(one, point_of(one), point_of(two), 0.5)
    assert found.layers == ()
    truth = renewed(one, between(point_of(one), point_of(two), 0.5))
    for name, each in tensors_of(one, truth).items():
        assert torch.equal(tensors_of(one, found.point)[name], each), name


def test_memory_for_a_part_only_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = pair(mlp, data())
    once = repaired(one, point_of(one), point_of(two), 0.5).point
    monkeypatch.setattr(probes.repair, "spare_bytes", lambda _: 1)
    for a, b in zip(repaired(one, point_of(one), point_of(two), 0.5).point.theta, once.theta, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_layer_without_bias_is_scaled_only() -> None:
    make = lambda: nn.Sequential(nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    one, two = pair(make, data())
    found = repaired(one, point_of(one), point_of(two), 0.5)
    assert any("not shifted" in note and "0." in note for note in found.notes)
    net = loaded(one, found.point)
    for layer in (0, 2):
        (mean_a, std_a), (mean_b, std_b) = (by_hand(each.module, one.inputs, layer) for each in (one, two))
        mean, std = by_hand(net, one.inputs, layer)
        torch.testing.assert_close(std, (std_a + std_b) / 2, rtol=1e-12, atol=1e-12)
        shifted = torch.allclose(mean, (mean_a + mean_b) / 2)
        assert shifted is (layer == 2)


class Shared(nn.Module):
    """One layer called twice, one whose weight another has too, and attention that calls no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.tied, self.same = (nn.Linear(4, 4) for _ in range(4))
        self.same.weight = self.tied.weight
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.first(x)).relu()).relu()
        x = self.same(self.tied(x).relu()).relu()[:, None]
        return self.last(self.attention(x, x, x)[0][:, 0])


def test_what_cannot_be_corrected_is_named() -> None:
    one, two = pair(Shared, torch.randn(9, 4))
    found = repaired(one, point_of(one), point_of(two), 0.5)
    assert found.layers == ("first",)
    assert any("used several times: twice, tied, same" in note for note in found.notes)
    assert any("attention.out_proj" in note for note in found.notes)


def test_only_the_layers_that_are_wanted() -> None:
    one, two = pair(mlp, data())
    found = repaired(one, point_of(one), point_of(two), 0.5, layers=["2"])
    assert found.layers == ("2",)
    assert torch.equal(found.point.theta[0], between(point_of(one), point_of(two), 0.5).theta[0])
    with pytest.raises(ModelError, match=r"no linear or convolutional layer 7; it has 0, 2, 4"):
        repaired(one, point_of(one), point_of(two), 0.5, layers=["7"])


def test_the_linear_layers_of_gpt2_hold_their_units_along_the_other_axis() -> None:
    from transformers.pytorch_utils import Conv1D

    one, two = pair(lambda: nn.Sequential(Conv1D(7, 5), nn.GELU(), nn.Linear(7, 3)), data())
    net = loaded(one, repaired(one, point_of(one), point_of(two), 0.5).point)
    ends = [by_hand(each.module, one.inputs, 0) for each in (one, two)]
    mean, std = by_hand(net, one.inputs, 0)
    torch.testing.assert_close(mean, (ends[0][0] + ends[1][0]) / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(std, (ends[0][1] + ends[1][1]) / 2, rtol=1e-12, atol=1e-12)


def test_units_that_vary_nowhere_are_not_blown_up() -> None:
    one, two = pair(mlp, data())
    for each, sign in ((one, 1.0), (two, -1.0)):
        each.theta[0].data[3] = sign * torch.ones(5).double()  # they cancel at the midpoint
    found = repaired(one, point_of(one), point_of(two), 0.5)
    assert any("do not vary" in note and note.endswith("0.") for note in found.notes)
    assert all(bool(each.isfinite().all()) for each in found.point.theta)


def test_nothing_is_left_behind() -> None:
    one, two = pair(mixed, images())
    before = [each.clone() for each in (*one.theta, *one.constants.values())]
    loss = one.evaluate().loss
    repaired(one, point_of(one), point_of(two), 0.5)
    assert all(map(torch.equal, before, (*one.theta, *one.constants.values())))
    assert all(not each._forward_hooks and not each._forward_pre_hooks for each in one.module.modules())
    assert one.evaluate().loss == loss


def test_large_activations_are_pooled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import probes.layer_moments

    one, _ = pair(mixed, images())
    whole = moments_at(one, point_of(one))
    monkeypatch.setattr(probes.pool, "CHUNK_BYTES", 1)
    for name, each in moments_at(one, point_of(one)).items():
        np.testing.assert_allclose(each.mean, whole[name].mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(each.variance, whole[name].variance, rtol=1e-10)


def test_single_precision_comes_near() -> None:
    one, two = pair(mlp, data())
    single = [each.converted("float32") for each in (one, two)]
    exact = read(one, repaired(one, point_of(one), point_of(two), 0.5).point).loss
    found = read(single[0], repaired(single[0], point_of(single[0]), point_of(single[1]), 0.5).point).loss
    np.testing.assert_allclose(found, exact, rtol=1e-5)
