"""The sanity check: stages, weights drawn beside the module, the edge control, what passes and what is flagged."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from attribution_cases import case, objective_of
from scipy.stats import sem, spearmanr

from probes.attribution import AttributionError, Method, attribute, case_of, make_map
from probes.attribution.judging import edge_map, sanity
from probes.attribution.judging.cascade import cascade, stages_of
from probes.attribution.language_cases import sequence_of


def with_method(monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    """Add a method to the registry."""
    registry = import_module("probes.attribution.methods")
    of_module = registry._methods_of
    first = registry.MODULES[0]
    monkeypatch.setattr(registry, "_methods_of", lambda name: of_module(name) + ((method,) if name == first else ()))


@pytest.mark.parametrize(("name", "expected"), [
    ("cnn", ["9", "7", "3", "0"]),
    ("resnet20", ["linear", "layer3", "layer2", "layer1", "conv1"]),
    ("tabular", ["4", "2", "0"]),
    ("vit", ["classifier", "vit.layers.1", "vit.layers.0", "vit.embeddings"]),
    ("gpt2", ["lm_head", "transformer.h.1", "transformer.h.0", "transformer.wpe"]),
])  # fmt: skip
def test_stages_go_from_the_head_to_the_input(name: str, expected: list[str]) -> None:
    assert [each.name for each in stages_of(case(name))] == expected


@pytest.mark.parametrize("name", ["cnn", "resnet20", "hub resnet", "vit", "convnext", "bert", "gpt2", "llama"])
def test_every_weight_is_in_one_stage_and_there_are_eight_at_most(name: str) -> None:
    found = case(name)
    stages = stages_of(found)
    names = [each for stage in stages for layer in stage.layers for each in layer.names]
    left = set(found.objective.names) - set(names)
    assert len(names) == len(set(names)) and 3 <= len(stages) <= 8
    assert all(each.startswith(found.embedding + ".") for each in left if found.embedding)
    assert not left or found.embedding
    assert ("lm_head" in stages[0].name) == (name in ("gpt2", "llama"))


def test_many_blocks_are_joined_to_eight() -> None:
    torch.manual_seed(0)
    layers = [each for _ in range(12) for each in (torch.nn.Linear(6, 6), torch.nn.LayerNorm(6), torch.nn.ReLU())]
    objective = objective_of("tabular")
    net = type(objective).of(torch.nn.Sequential(*layers, torch.nn.Linear(6, 3)), objective.batches, "cross_entropy",
                             dtype="float64", device="cpu")  # fmt: skip
    stages = stages_of(case_of(net, 0))
    assert len(stages) == 8 and stages[0].name == "36" and stages[1].name == "33" and stages[-1].name == "0 to 3"
    assert [layer.path for layer in stages[-1].layers] == ["0", "1", "3", "4"]  # norms stay with their layer


@pytest.mark.parametrize("name", ["cnn", "resnet20", "vit", "gpt2", "llama"])
def test_weights_are_those_of_the_layers_own_initialisation_cumulatively(name: str) -> None:
    found = case(name)
    stages = stages_of(found)
    before = copy.deepcopy(found.module.state_dict())
    fresh = dict[str, torch.Tensor]()
    for number, (stage, there) in enumerate(zip(stages, cascade(found, stages, 7), strict=True)):
        now = dict(zip(there.objective.names, there.objective.theta, strict=True))
        for place, layer in enumerate(stage.layers):
            module = copy.deepcopy(found.module.get_submodule(layer.path)).float()
            if hasattr(module, "reset_parameters"):
                torch.manual_seed(int(np.random.default_rng([7, number, place]).integers(2**31)))
                module.reset_parameters()
                own = {id(each): key for key, each in found.module.get_submodule(layer.path).named_parameters()}
                whole = {id(each): key for key, each in found.module.named_parameters()}
                values = dict(module.named_parameters())
                fresh |= {whole[key]: values[short].detach().double() for key, short in own.items()}
            else:
                fresh |= {each: now[each] for each in layer.names}
                for each in layer.names:
                    real = dict(zip(found.objective.names, found.objective.theta, strict=True))[each]
                    assert not torch.equal(real, now[each])
        for key, real in zip(found.objective.names, found.objective.theta, strict=True):
            torch.testing.assert_close(now[key], fresh.get(key, real), rtol=0, atol=0)
    for key, each in found.module.state_dict().items():
        torch.testing.assert_close(each, before[key], rtol=0, atol=0)


def test_a_batch_norm_forgets_its_statistics_and_other_weights_keep_mean_and_deviation() -> None:
    found = case("resnet20")
    *_, last = cascade(found, stages_of(found), 0)
    name = next(each for each in last.objective.constants if each.endswith("running_mean"))
    assert float(last.objective.constants[name].abs().max()) == 0.0
    assert float(found.objective.constants[name].abs().max()) > 0.0
    llama = case("llama")
    stages = stages_of(llama)
    *_, there = cascade(llama, stages, 0)
    bare = next(layer for stage in stages for layer in stage.layers
                if not hasattr(llama.module.get_submodule(layer.path), "reset_parameters"))  # fmt: skip
    at = llama.objective.names.index(bare.names[0])
    real, now = llama.objective.theta[at].detach(), there.objective.theta[at].detach()
    assert abs(float(now.mean() - real.mean())) < 4 * float(real.std()) / len(real) ** 0.5


def test_correlations_are_those_of_scipy_over_draws() -> None:
    found = case("cnn")
    made = sanity(found, "input_x_gradient", draws=3, seed=4)
    original = attribute(found, "input_x_gradient").values.sum(0).reshape(-1)
    rows = []
    for draw in range(3):
        maps = [attribute(there, "input_x_gradient").values.sum(0).reshape(-1)
                for there in cascade(found, stages_of(found), 4 + draw)]  # fmt: skip
        rows.append([[spearmanr(original, each)[0], spearmanr(abs(original), abs(each))[0]] for each in maps])
    expected = np.array(rows)
    np.testing.assert_allclose(made.spearman, expected[:, :, 0].mean(0), atol=1e-12)
    np.testing.assert_allclose(made.stderr, sem(expected[:, :, 0]), atol=1e-12)
    np.testing.assert_allclose(made.sizes, expected[:, :, 1].mean(0), atol=1e-12)
    np.testing.assert_allclose(made.sizes_stderr, sem(expected[:, :, 1]), atol=1e-12)
    assert made.draws == 3 and made.verdict == "pass" and "0.5" in made.rule


def test_edges_survive_and_a_map_that_draws_them_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("cnn")

    def draw(case, *_):
        return make_map(case, "edges", torch.tensor(edge_map(case)))

    with_method(monkeypatch, Method("edges", "Edges", "mask", draw, signed=False))
    made = sanity(found, "edges", draws=2)
    assert made.verdict == "flagged"
    np.testing.assert_allclose(made.spearman, 1)
    np.testing.assert_allclose(made.edge, 1)
    np.testing.assert_allclose(made.likeness, 1)
    assert sanity(found, "saliency", draws=2).edge == pytest.approx(np.ones(4))


def test_a_map_that_vanishes_has_no_order_left_and_one_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("cnn")

    def at_home(case):
        return torch.equal(case.objective.theta[-1], found.objective.theta[-1])

    def vanishing(case, *_):
        return make_map(case, "gone", case.features * float(at_home(case)))

    def failing(case, *_):
        if not at_home(case):
            raise AttributionError("nothing to see")
        return make_map(case, "fails", case.features)

    with_method(monkeypatch, Method("gone", "Gone", "mask", vanishing))
    made = sanity(found, "gone", draws=2)
    assert made.verdict == "pass" and made.spearman.tolist() == [0, 0, 0, 0] and "counts as 0" in made.notes[0]
    with_method(monkeypatch, Method("fails", "Fails", "mask", failing))
    made = sanity(found, "fails", draws=2)
    assert made.verdict is None and np.isnan(made.spearman).all() and "nothing to see" in made.notes[0]


def test_special_tokens_do_not_count_and_few_tokens_are_doubted() -> None:
    found = case("bert")
    some = replace(found, special=(True, *[False] * 5, True))
    made = sanity(some, "gradient", draws=2)
    there = list(cascade(found, stages_of(found), 0))[-1], list(cascade(found, stages_of(found), 1))[-1]
    original = attribute(found, "gradient").values[1:-1]
    expected = [spearmanr(original, attribute(each, "gradient").values[1:-1])[0] for each in there]
    assert made.spearman[-1] == pytest.approx(np.mean(expected)) and made.edge is None and made.likeness is None
    assert "5 features" in made.notes[0]


def test_an_answer_is_run_at_the_random_weights() -> None:
    found = sequence_of(objective_of("gpt2"), 0).rows(4)[1]
    found.in_chunks(found.features)  # rows of one answer share what was run at the real weights
    *_, there = cascade(found, stages_of(found), 0)
    with torch.no_grad():
        expected = there.scores(there.features)
    torch.testing.assert_close(there.in_chunks(there.features), expected)
    assert not torch.isclose(expected, found.in_chunks(found.features)).any()


def test_nothing_is_left_behind() -> None:
    found = case("resnet20")
    before = {name: each.clone() for name, each in found.module.state_dict().items()}
    state, mode = torch.get_rng_state(), [each.training for each in found.module.modules()]
    score = found.in_chunks(found.features)
    asked = [each.requires_grad for each in found.module.parameters()]
    told = []
    sanity(found, "saliency", tick=lambda share, doing: told.append(share), draws=2)
    assert all(torch.equal(each, before[name]) for name, each in found.module.state_dict().items())
    assert not any(each._forward_pre_hooks or each._forward_hooks for each in found.module.modules())
    assert torch.equal(torch.get_rng_state(), state) and [each.training for each in found.module.modules()] == mode
    assert [each.requires_grad for each in found.module.parameters()] == asked
    torch.testing.assert_close(found.in_chunks(found.features), score, rtol=0, atol=0)
    assert told == pytest.approx([(i + 1) / 10 for i in range(10)])
    with pytest.raises(AttributionError, match="draws is 1"):
        sanity(found, "saliency", draws=1)
