"""Lines read place by place: against a loop over networks, with BatchNorm measured anew, kept for another attempt."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches, cnn, gpt, mlp
from torch import nn
from torch.nn.functional import cross_entropy

from analyzers._base import Quiet
from probes import line_readings
from probes.line_readings import Reader, walked
from probes.lines import Line, grid
from probes.objective import Objective
from probes.points import Point, between, point_of


def objectives(made, seed: int = 5, test: int = 7, **options):
    """An objective with test data, and a point elsewhere."""
    net, data = made()
    net = net.double()
    x = data.inputs.double() if data.inputs.is_floating_point() else data.inputs
    here = Objective.of(net, batches(x, data.targets), "causal_lm" if made is gpt else "cross_entropy",
                        dtype="float64", micro_batch=4, **options)  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    theta = tuple(
        each.detach() + 0.5 * torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in here.theta
    )
    buffers = {name: each + 0.2 for name, each in point_of(here).buffers.items()}
    return here.with_test(batches(x[:test].flip(0), data.targets[:test].flip(0))), Point(theta, buffers)


def network(here: Objective, point: Point) -> nn.Module:
    module = copy.deepcopy(here.module)
    state = module.state_dict() | dict(zip(here.names, point.theta, strict=True)) | dict(point.buffers)
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize("made", [mlp, cnn, gpt])
def test_a_line_is_read_as_a_loop_over_networks_reads_it(made) -> None:
    here, end = objectives(made)
    line, places = Line(point_of(here), end), (0.0, 0.4, 1.0)
    found = walked(Reader(here, renew=False, follow=3), line, places, 0, "line", Quiet(), (0, 1))
    for number, alpha in enumerate(places):
        module = network(here, between(point_of(here), end, alpha))
        for side, read in ((here, found.data), (here.on_test(), found.test)):
            assert side is not None and read is not None and read.accuracy is not None
            with torch.no_grad():
                logits = module(side.inputs)
            flat, targets = logits.flatten(0, -2), side.targets.flatten()
            known = targets != -100
            assert read.loss[number] == pytest.approx(float(cross_entropy(flat[known], targets[known])), rel=1e-10)
            right = (flat.argmax(1) == targets)[known].double().mean()
            assert read.accuracy[number] == pytest.approx(float(right), rel=1e-12)
            if side is here:
                np.testing.assert_allclose(found.outputs[number], flat[known], rtol=1e-9)  # type: ignore[index]
    assert found.uncorrected is None


def test_statistics_are_measured_on_the_data_for_the_test_data_too() -> None:
    here, end = objectives(cnn)
    line = Line(point_of(here), end)
    found = walked(Reader(here, renew=True, beside=True), line, (0.0, 0.5, 1.0), 0, "line", Quiet(), (0, 1))
    module = network(here, between(point_of(here), end, 0.5))
    test = here.on_test()
    assert test is not None and found.test is not None and found.uncorrected is not None
    with torch.no_grad():
        stale = [float(cross_entropy(module(side.inputs), side.targets)) for side in (here, test)]
        module[1].train().momentum = 1.0
        module(here.inputs)
        module.eval()
        fresh = [float(cross_entropy(module(side.inputs), side.targets)) for side in (here, test)]
    assert [found.data.loss[1], found.test.loss[1]] == pytest.approx(fresh, rel=1e-10)
    assert list(found.uncorrected[1, [0, 2]]) == pytest.approx(stale, rel=1e-10)
    assert abs(fresh[0] - stale[0]) > 1e-3


def test_outputs_are_followed_for_as_many_predictions_as_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    here, end = objectives(mlp)
    line = Line(point_of(here), end)
    walk = lambda: walked(Reader(here, renew=False, follow=2), line, (0.0, 1.0), 0, "line", Quiet(), (0, 1)).outputs
    everything = walk()
    monkeypatch.setattr(line_readings, "WATCHED", 3)
    np.testing.assert_array_equal(walk(), everything[:, [0, 6, 12]])
    monkeypatch.setattr(line_readings, "HELD", 5)
    assert walk() is None


def test_what_an_earlier_attempt_kept_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_readings, "SECONDS_BETWEEN_SAVES", 0.0)
    here, end = objectives(cnn)
    line, places = Line(point_of(here), end), grid(0, 1, 5)
    walk = lambda tick: walked(Reader(here, renew=True, beside=True, follow=9), line, places, 4, "line", tick, (0, 0.5))
    whole, notes = walk(Quiet()), Notes(stop_after=7)
    with pytest.raises(KeyboardInterrupt):
        walk(notes)
    read = []
    real = Reader.row
    monkeypatch.setattr(Reader, "row", lambda self, point: read.append(1) or real(self, point))
    notes.stop_after = None
    again = walk(notes)
    assert len(read) == 9 - 6
    for one, other in (
        (whole.alpha, again.alpha),
        (whole.outputs, again.outputs),
        (whole.uncorrected, again.uncorrected),
    ):
        np.testing.assert_array_equal(one, other)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole.data.losses, again.data.losses)
    np.testing.assert_array_equal(whole.test.counts, again.test.counts)  # type: ignore[union-attr]
    assert max(notes.shares) <= 0.5 and notes.shares[:6] == sorted(notes.shares[:6])
