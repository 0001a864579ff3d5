"""Skill localisation: planted weights, masks against sorting, grafts against mixed networks."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from curvature_oracles import Notes, batches, cnn, gpt
from series_runs import a_run, moved
from torch import nn
from torch.nn.functional import cross_entropy

from analyzers import _grafting_measure
from analyzers._base import Quiet
from analyzers.grafting import Grafting, GraftingResult
from probes.errors import DataError, ModelError
from probes.grafting import Place, counts_of, kind_of, layer_of, overlap, top


class Planted(nn.Module):
    """A network of which one weight decides: class 1 where the first input is above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(6, elementwise_affine=True), nn.Linear(6, 2)
        self.norm.bias.data.zero_()
        self.head.weight.data.zero_()
        self.head.bias.data.copy_(torch.tensor([0.3, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + 0 * self.norm(x))


def planted(folder, *, others: int = 0, test: bool = True):
    """The base predicts class 0; fine-tuning moved one weight by 5, all others by at most 0.001."""
    torch.manual_seed(4)
    module = Planted()
    states = [copy.deepcopy(module.state_dict())]
    for place in range(1 + others):
        state = {name: each + 0.001 * torch.rand_like(each) for name, each in states[0].items()}
        state["head.weight"][1, place] = 5.0
        states.append(state)
    x = torch.randn(300, 6)
    y = (x[:, 0] > 0).long()
    objective, checkpoints = a_run(folder, module, states, batches(x[:200], y[:200]), dtype="float64")
    return (objective.with_test(batches(x[200:], y[200:])) if test else objective), checkpoints


def test_one_planted_weight_is_all_that_is_needed(tmp_path) -> None:
    found = Grafting(smallest=1.0, points=12).run(*planted(tmp_path), Quiet())
    values = found.values
    json.dumps(found.to_json(), allow_nan=False)
    assert values["count"][0] == 1 and values["count"][-1] == values["weights"] == 26
    assert values["base_accuracy"] == pytest.approx(np.mean(planted(tmp_path)[0].targets.numpy() == 0))
    for prefix in ("", "test_"):
        top_ways, bottom = (np.array(values[f"{prefix}recovery"][way]) for way in ("top", "bottom"))
        assert top_ways[0] == pytest.approx(1, abs=0.03) and top_ways[-1] == 1
        assert np.abs(bottom[:-1]).max() < 0.1 and bottom[-1] == 1
        assert values[f"{prefix}of_fine_tuned"]["top"][0] == pytest.approx(1, abs=0.03)
        assert values[f"{prefix}reached"]["recovery"] == pytest.approx(1 / 26)
    assert values["recovery"]["random"][0] < 0.7, "each of three random weights was the planted one"
    assert values["chosen"]["count"] == 1
    rows = {each["parameter"]: each for each in values["density"]}
    assert rows["head.weight"]["grafted"] == 1 and rows["head.weight"]["times_chance"] == pytest.approx(26 / 12)
    assert values["density_by_kind"]["norm"] == {"weights": 12, "grafted": 0, "density": 0.0, "times_chance": 0.0}
    assert values["overlap"] is None and values["calibration"]["on"] == "test data"
    assert found.tables()["density"].grafted.sum() == 1
    assert len(found.tables()["recovery"]) == 3 * len(values["count"])


def test_recovery_is_what_the_definitions_say(tmp_path) -> None:
    values = Grafting(smallest=1.0).run(*planted(tmp_path), Quiet()).values
    base, tuned = values["base_accuracy"], values["fine_tuned_accuracy"]
    for way in ("top", "bottom", "random"):
        accuracy = np.array(values["accuracy"][way])
        np.testing.assert_allclose(values["recovery"][way], (accuracy - base) / (tuned - base))
        np.testing.assert_allclose(values["of_fine_tuned"][way], accuracy / tuned)
        loss = np.array(values["loss"][way])
        share = (loss - values["base_loss"]) / (values["fine_tuned_loss"] - values["base_loss"])
        np.testing.assert_allclose(values["loss_recovery"][way], share)
        for key in ("accuracy", "recovery", "loss", "of_fine_tuned"):
            rows = zip(values[f"{key}_low"][way], values[key][way], values[f"{key}_high"][way], strict=True)
            assert all(low <= middle + 1e-9 and middle <= high + 1e-9 for low, middle, high in rows)


@pytest.mark.parametrize("made", [cnn, gpt])
def test_a_graft_is_the_network_of_the_mixed_state(made, tmp_path) -> None:
    """With running statistics and tied weights; against torch's own sorting and a network loaded with the mixture."""
    module, data = made()
    module = module.double()
    states = moved(module, 2)
    loss = "causal_lm" if made is gpt else "cross_entropy"
    objective, checkpoints = a_run(tmp_path, module, states, data, loss, dtype="float64")
    ask = Grafting(smallest=5.0, points=4, statistics="fine_tuned", masks=1, dtype="float64")
    values = ask.run(objective, checkpoints, Quiet()).values
    names, (base, tuned) = objective.names, states
    flat = torch.cat([(tuned[name] - base[name]).abs().flatten() for name in names])
    order = torch.sort(flat, descending=True, stable=True).indices
    for place, count in enumerate(values["count"]):
        chosen = torch.zeros(len(flat), dtype=torch.bool)
        chosen[order[:count]] = True
        pieces = chosen.split([base[name].numel() for name in names])
        mixed = copy.deepcopy(tuned)
        for name, piece in zip(names, pieces, strict=True):
            mixed[name] = torch.where(piece.view_as(base[name]), tuned[name], base[name])
        if "head.weight" in mixed and "token.weight" in mixed:
            mixed["head.weight"] = mixed["token.weight"]
        other = copy.deepcopy(module)
        other.load_state_dict(mixed)
        with torch.no_grad():
            truth = cross_entropy(other.eval()(data.inputs.double() if made is cnn else data.inputs).flatten(0, -2),
                                  data.targets.flatten(), ignore_index=-100)  # fmt: skip
        assert values["loss"]["top"][place] == pytest.approx(truth.item(), rel=1e-12)


def test_statistics_are_measured_anew_unless_told_otherwise(tmp_path) -> None:
    module, data = cnn()
    objective, checkpoints = a_run(tmp_path, module, moved(module, 2), data, dtype="float64")
    fresh, kept = (Grafting(points=2, masks=1, statistics=each, dtype="float64").run(objective, checkpoints, Quiet())
                   for each in ("fresh", "fine_tuned"))  # fmt: skip
    assert fresh.values["fine_tuned_loss"] != kept.values["fine_tuned_loss"]
    assert kept.values["fine_tuned_loss"] == pytest.approx(objective.at(checkpoints[1]).evaluate().loss)
    assert any("measured anew" in each for each in fresh.caveats)
    assert any("those of the fine-tuned model" in each for each in kept.caveats)


def test_masks_are_those_of_sorting_and_ties_are_taken_in_order() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, size=200).astype(np.float32)
    order = sorted(range(200), key=lambda place: (-scores[place], place))
    for count in (0, 1, 7, 50, 199, 200):
        truth = np.zeros(200, dtype=bool)
        truth[order[:count]] = True
        np.testing.assert_array_equal(top(scores, count), truth)
    with pytest.raises(ValueError, match="201 of 200"):
        top(scores, 201)
    assert counts_of([1e-9, 0.01, 0.012, 0.5, 1.0], 100) == [1, 50, 100]


def test_the_overlap_is_that_of_sets_and_chance_that_of_a_simulation() -> None:
    places = (Place("a", "a", "MLP", slice(0, 100)), Place("b", "b", "MLP", slice(100, 1000)))
    draw = np.random.default_rng(1)
    mask = lambda one, two: np.concatenate([top(draw.random(100), one), top(draw.random(900), two)])
    one, other = mask(60, 40), mask(50, 80)
    found = overlap(one, other, places)
    sets = set(np.flatnonzero(one)), set(np.flatnonzero(other))
    assert found.shared == len(sets[0] & sets[1])
    assert found.jaccard == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    jaccard = lambda a, b: (a & b).sum() / (a | b).sum()
    simulated = [jaccard(mask(60, 40), mask(50, 80)) for _ in range(400)]
    assert found.by_tensor == pytest.approx(np.mean(simulated), abs=4 * np.std(simulated) / 20 + 1e-3)
    free = [jaccard(top(draw.random(1000), 100), top(draw.random(1000), 130)) for _ in range(400)]
    assert found.by_chance == pytest.approx(np.mean(free), abs=4 * np.std(free) / 20 + 1e-3)


def test_tasks_that_moved_other_weights_have_nothing_in_common(tmp_path) -> None:
    objective, checkpoints = planted(tmp_path, others=2)
    found = Grafting(share=4.0).run(objective, (*checkpoints, checkpoints[1]), Quiet())
    names, jaccard = found.values["overlap"]["names"], np.array(found.values["overlap"]["jaccard"])
    assert names == [each.name for each in (*checkpoints[1:], checkpoints[1])]
    np.testing.assert_array_equal(jaccard, [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]])
    assert len(found.tables()["overlap"]) == 6
    assert found.values["chosen"] == {"count": 1, "share": 1 / 26, "why": "as asked for"}


def test_killed_it_goes_on_behind_what_was_judged(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_grafting_measure, "SAVE_SECONDS", 0.0)
    objective, checkpoints = planted(tmp_path)
    ask, notes = Grafting(smallest=5.0, points=5), Notes(stop_after=9)
    whole = ask.run(objective, checkpoints, Quiet())
    with pytest.raises(KeyboardInterrupt):
        ask.run(objective, checkpoints, notes)
    notes.stop_after, calls = None, []
    truth = _grafting_measure.read
    monkeypatch.setattr(_grafting_measure, "read", lambda *args: calls.append(1) or truth(*args))
    again = ask.run(objective, checkpoints, notes)
    assert again.to_json() == whole.to_json()
    jobs = 2 + (2 + 3) * (len(whole.values["count"]) - 1)
    assert len(calls) == 2 * (jobs - 9)


def test_regression_is_judged_by_its_loss(tmp_path) -> None:
    module = nn.Linear(3, 1)
    states = [copy.deepcopy(module.state_dict()), {"weight": torch.tensor([[1.0, 2.0, 3.0]]), "bias": torch.zeros(1)}]
    x = torch.randn(150, 3)
    data = batches(x, x @ states[1]["weight"].T)
    run = a_run(tmp_path, module, states, data, "mse")
    found = Grafting(smallest=25.0, points=9, target=100.0).run(*run, Quiet())
    values, recovery = found.values, found.values["loss_recovery"]
    assert values["accuracy"] is values["recovery"] is values["calibration"] is None
    assert recovery["top"][-1] == values["reached"]["loss_recovery"] == 1
    place = (np.array(recovery["top"]) - recovery["random"]).argmax()
    assert values["chosen"]["count"] == values["count"][place] < 4
    assert "only all weights recover 100 %" in values["chosen"]["why"]
    easy = Grafting(smallest=25.0, points=9, target=50.0).run(*run, Quiet()).values
    assert easy["chosen"]["why"].endswith("recovers 50 % of the gain in loss")
    first = next(place for place, each in enumerate(recovery["top"]) if each >= 0.5)
    assert easy["chosen"]["count"] == easy["count"][first]
    assert set(found.figures()) == {"recovery", "density"}
    json.dumps(found.to_json(), allow_nan=False)


def test_where_there_is_no_gain_there_is_no_recovery(tmp_path) -> None:
    objective, (base, tuned) = planted(tmp_path, test=False)
    found = Grafting(points=4).run(objective.at(tuned), (tuned, base), Quiet())
    said = " ".join(found.caveats)
    assert "not clearly better than the base" in said and "no test data" in said
    assert "recovery cannot be told" in found.values["chosen"]["why"]
    json.dumps(found.to_json(), allow_nan=False)


def test_what_cannot_be_compared_is_refused_in_words(tmp_path) -> None:
    objective, (base, tuned) = planted(tmp_path)
    with pytest.raises(DataError, match="give the base and the fine-tuned"):
        Grafting().run(objective, (base,), Quiet())
    with pytest.raises(ModelError, match="the same weights"):
        Grafting().run(objective, (base, base), Quiet())
    with pytest.raises(ModelError, match="nothing is left to graft"):
        Grafting(whole="norm, head").run(objective, (base, tuned), Quiet())


def test_a_head_that_was_begun_anew_can_be_left_out(tmp_path) -> None:
    found = Grafting(whole="head", points=3).run(*planted(tmp_path), Quiet())
    assert found.values["weights"] == 12 and found.values["recovery"]["bottom"][0] == pytest.approx(1, abs=0.05)
    assert any("2 parameters are the fine-tuned model's" in each for each in found.caveats)


def test_the_graft_can_be_made_again(tmp_path) -> None:
    objective, checkpoints = planted(tmp_path)
    ask = Grafting(dtype="float64")
    found = ask.run(objective, checkpoints, Quiet())
    assert list(ask.merges(found)) == ["grafted"] and "3.846 %" in ask.merges(found)["grafted"]
    point = ask.merged(objective, checkpoints, found, "grafted", Quiet())
    made = objective.moved(point.theta, point.buffers).evaluate()
    assert made.accuracy == pytest.approx(found.values["accuracy"]["top"][0])
    differ = sum(int((a != b).sum()) for a, b in zip(point.theta, objective.theta, strict=True))
    assert differ == 1
    with pytest.raises(ValueError, match="no checkpoint"):
        ask.merged(objective, checkpoints, found, "soup", Quiet())


def test_saved_and_read_again_it_is_the_same(tmp_path) -> None:
    found = Grafting(points=3).run(*planted(tmp_path, others=1), Quiet())
    found.save(tmp_path / "out")
    again = GraftingResult.read(tmp_path / "out")
    assert again.to_json() == found.to_json()
    assert {name: each.to_json() for name, each in again.figures().items()} == {
        name: each.to_json() for name, each in found.figures().items()
    }


@pytest.mark.parametrize(
    ("name", "owner", "kind", "layer"),
    [
        ("transformer.h.3.attn.c_attn.weight", None, "attention", "transformer.h.3"),
        ("transformer.h.3.ln_1.weight", nn.LayerNorm(2), "norm", "transformer.h.3"),
        ("transformer.wte.weight", nn.Embedding(2, 2), "embedding", "transformer.wte"),
        ("bert.encoder.layer.0.attention.output.LayerNorm.weight", nn.LayerNorm(2), "norm", "bert.encoder.layer.0"),
        ("bert.encoder.layer.0.attention.self.query.weight", nn.Linear(2, 2), "attention", "bert.encoder.layer.0"),
        ("bert.encoder.layer.0.intermediate.dense.bias", nn.Linear(2, 2), "MLP", "bert.encoder.layer.0"),
        ("classifier.weight", nn.Linear(2, 2), "head", "classifier"),
        ("model.layers.1.self_attn.q_proj.weight", nn.Linear(2, 2), "attention", "model.layers.1"),
        ("model.layers.1.mlp.gate_proj.weight", nn.Linear(2, 2), "MLP", "model.layers.1"),
        ("model.norm.weight", None, "norm", "model.norm"),
        ("vit.embeddings.cls_token", None, "embedding", "vit.embeddings"),
        ("layer1.0.conv1.weight", nn.Conv2d(1, 1, 1), "convolution", "layer1.0"),
        ("fc.weight", nn.Linear(2, 2), "head", "fc"),
        ("encoder.layers.0.self_attn.in_proj_weight", nn.MultiheadAttention(2, 1), "attention", "encoder.layers.0"),
        ("3.weight", nn.Conv2d(1, 1, 1), "convolution", "3"),
        ("scale", None, "other", "scale"),
    ],
)
def test_kinds_and_layers_are_known_by_module_and_name(name, owner, kind, layer) -> None:
    assert (kind_of(name, owner), layer_of(name)) == (kind, layer)
