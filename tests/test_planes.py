"""Planes through weight space: filters, distances, checkpoints, components and curvature, against plain loops."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, dense_hessian, gpt, mlp
from torch import nn

from probes.errors import ModelError
from probes.objective import Objective
from probes.planes import filter_norms, inner, principal, projected, random_plane, through
from probes.planes_curvature import curvature, eigenplane, held
from probes.points import Point, distance, point_of

SILENT = lambda share, doing: None


class Conv1D(nn.Module):
    """As transformers has it: weights are (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


LAYERS = {
    "linear": (nn.Linear(5, 3), (2, 5)),
    "one output": (nn.Linear(5, 1), (2, 5)),
    "convolution": (nn.Conv2d(4, 6, 3), (1, 4, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 5)),
    "one dimension": (nn.Conv1d(4, 6, 3), (1, 4, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (1, 4, 5, 5)),
    "transposed and grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5)),
    "Conv1D of GPT-2": (Conv1D(6, 4), (2, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_filter_is_all_that_one_output_channel_depends_on(name: str) -> None:
    layer, shape = LAYERS[name]
    axis = -1 if name in ("linear", "one output", "Conv1D of GPT-2") else 1
    x = torch.rand(shape) + 0.1
    norms = filter_norms(layer, "weight", layer.weight.detach())
    whole = norms.expand_as(layer.weight)
    outputs = layer(x)
    for channel in range(outputs.shape[axis]):
        (used,) = torch.autograd.grad(outputs.select(axis, channel).sum(), layer.weight, retain_graph=True)
        mine = used != 0
        assert 0 < mine.sum() <= layer.weight.numel()
        assert whole[mine] == pytest.approx(float(layer.weight.detach()[mine].norm()), rel=1e-5)


def test_biases_and_norms_have_no_filters_and_tables_have_rows() -> None:
    module = nn.Sequential(nn.LayerNorm((3, 4)), nn.Embedding(7, 4), nn.Linear(4, 2))
    module.cls = nn.Parameter(torch.randn(1, 1, 4))
    module.places = nn.Parameter(torch.randn(1, 5, 4))
    find = lambda name: filter_norms(module, name, dict(module.named_parameters())[name].detach())
    assert find("0.weight") is None and find("0.bias") is None and find("2.bias") is None
    assert find("1.weight").shape == (7, 1)
    assert find("cls").numel() == 1
    assert find("places").shape == (1, 5, 1)


@pytest.mark.parametrize("make", [mlp, gpt])
def test_random_directions_have_the_norm_of_every_filter(make) -> None:
    net, data = make()
    objective = Objective.of(net, data, "causal_lm" if make is gpt else "cross_entropy", dtype="float64")
    centre = point_of(objective)
    found = random_plane(objective, centre, seed=3)
    squares = 0.0
    for name, weights, step in zip(objective.names, centre.theta, found.plane.first.theta, strict=True):
        if weights.ndim == 1:
            assert not step.any() and name in found.still
            continue
        for row, moved in zip(weights, step, strict=True):
            assert float(found.length * moved.norm()) == pytest.approx(float(row.norm()), rel=1e-9)
            squares += float(row.square().sum())
    assert found.length == pytest.approx(squares**0.5)
    assert abs(found.cosine) < 0.3
    other = random_plane(objective, centre, seed=3, index=1)
    assert abs(inner(found.plane.first.theta, other.plane.first.theta)) < 0.3


def test_coordinates_are_distances_and_the_centre_is_the_model_itself() -> None:
    net, data = mlp()
    objective = Objective.of(net, data, "cross_entropy", dtype="float64")
    centre = point_of(objective)
    plane = random_plane(objective, centre, 0).plane
    assert plane.at(0.0, 0.0) is centre
    for x, y in ((1.5, 0.0), (0.0, -2.0), (3.0, 4.0)):
        assert distance(plane.at(x, y), centre) == pytest.approx(np.hypot(x, y), rel=1e-12)
        place = projected(plane, plane.at(x, y))
        assert (place.x, place.y, place.off) == pytest.approx((x, y, 0.0), abs=1e-10)
    far = Point(tuple(each + 0.1 for each in centre.theta), {})
    place = projected(plane, far)
    inside, whole = place.squared
    assert whole == pytest.approx(0.01 * objective.size) and 0 <= inside < whole


def points(count: int, seed: int = 0) -> list[Point]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return [Point((draw(3, 4), draw(5)), {"bn.running_mean": draw(2)}) for _ in range(count)]


def test_a_plane_through_three_points_holds_them_with_their_buffers() -> None:
    one, two, three = points(3)
    plane = through(one, two, three)
    for point in (one, two, three):
        place = projected(plane, point)
        again = plane.at(place.x, place.y)
        assert place.off < 1e-12 and distance(again, point) < 1e-12
        assert again.buffers["bn.running_mean"] == pytest.approx(point.buffers["bn.running_mean"], abs=1e-12)
    second, third = projected(plane, two), projected(plane, three)
    assert second.x == pytest.approx(distance(one, two)) and abs(second.y) < 1e-12 and third.y > 0
    middle = Point(tuple((a + b) / 2 for a, b in zip(one.theta, two.theta, strict=True)), one.buffers)
    with pytest.raises(ModelError, match="lie on one line"):
        through(one, two, middle)
    with pytest.raises(ModelError, match="lie on one line"):
        through(one, one, two)
    with pytest.raises(ModelError, match="not finite"):
        through(one, two, Point((three.theta[0] * np.nan, three.theta[1]), three.buffers))
    with pytest.raises(ModelError, match="do not have the same tensors"):
        through(one, two, Point(three.theta, {}))


def test_principal_components_are_those_of_the_displacements() -> None:
    centre, *others = points(6)
    rows = np.stack(
        [np.concatenate([(a - b).numpy().ravel() for a, b in zip(p.theta, centre.theta, strict=True)]) for p in others]
    )
    _, sizes, right = np.linalg.svd(rows)
    for number in (0, 1):
        found = principal(centre, others, number)
        assert found.shares == pytest.approx(sizes**2 / (sizes**2).sum())
        for direction, expected in zip((found.plane.first, found.plane.second), right[2 * number :], strict=False):
            flat = np.concatenate([each.numpy().ravel() for each in direction.theta])
            assert abs(flat @ expected) == pytest.approx(1)
        inside = sum(projected(found.plane, each).squared[0] for each in others)
        assert inside / (rows**2).sum() == pytest.approx(sum(found.shares[2 * number : 2 * number + 2]))
    with pytest.raises(ModelError, match="fewer than 6 directions"):
        principal(centre, others, 2)


@pytest.mark.parametrize("make", [mlp, gpt])
def test_the_curvature_of_planes_is_that_of_the_dense_hessian(make) -> None:
    net, data = make()
    loss = "causal_lm" if make is gpt else "cross_entropy"
    objective = Objective.of(net, data, loss, dtype="float64")
    H = dense_hessian(copy.deepcopy(net), data)
    values, total = np.linalg.eigvalsh(H)[::-1], (H**2).sum()
    found = curvature(objective, 0, Notes(), SILENT, top=4)
    for number in (0, 1):
        plane, pairs, doubts = eigenplane(found, objective, number, 1e-4)
        two = slice(2 * number, 2 * number + 2)
        assert [each.value for each in pairs] == pytest.approx(values[two], rel=1e-3) and not doubts
        known = held(found, plane)
        assert known.along == pytest.approx(values[two], rel=1e-3)
        assert max(known.residuals) < 0.02 * values[0]
        assert abs(known.share - (values[two] ** 2).sum() / total) <= 4 * known.stderr + 1e-9
    sketch = curvature(objective, 1, Notes(), SILENT)
    plane = random_plane(objective, point_of(objective), 0).plane
    U = np.stack([torch.cat([each.reshape(-1) for each in axis.theta]).numpy() for axis in (plane.first, plane.second)])
    true = ((U @ H @ U.T) ** 2).sum() / total
    known = held(sketch, plane)
    assert abs(known.share - true) <= 4 * known.stderr + 1e-9 and known.share < 0.5
    assert known.along == pytest.approx(np.diag(U @ H @ U.T))
