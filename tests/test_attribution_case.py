"""Cases: the score as a function of features is the model's own, for every kind of model; nothing leaks."""

from __future__ import annotations

import copy

import pytest
import torch
from attribution_cases import IMAGES, LANGUAGE, NETS, TABLES, TEXT, case, objective_of
from torch import Tensor

from probes.attribution import AttributionError, Target, case_of, kind_of


def own_logits(name: str, row: int) -> Tensor:
    """The logits of one example, by the model called as it is."""
    objective = objective_of(name)
    module = copy.deepcopy(objective.module).double()
    with torch.no_grad():
        return module(objective.inputs[row : row + 1])


@pytest.mark.parametrize("name", NETS)
def test_logits_of_features_are_the_models_own(name: str) -> None:
    found, own = case(name, 2), own_logits(name, 2)
    with torch.no_grad():
        logits, score = found.logits(found.features), found.scores(found.features)
    expected = own[:, -1] if name in LANGUAGE else own
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    assert found.target.index == int(expected.argmax())
    rows = expected.log_softmax(-1) if name in LANGUAGE else expected
    torch.testing.assert_close(score, rows[:, found.target.index], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.scores_of_raw(found.raw).detach(), score, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.as_module()(found.features).detach(), score[:, None], rtol=0, atol=1e-6)
    assert found.score == pytest.approx(float(score), abs=1e-12)


@pytest.mark.parametrize("name", sorted(LANGUAGE))
def test_a_position_in_the_middle_is_read_where_the_whole_sequence_has_it(name: str) -> None:
    found = case(name, 1, Target(5, 3))
    own = own_logits(name, 1)[0, 3].log_softmax(-1)[5]
    assert found.score == pytest.approx(float(own), abs=1e-6)
    assert found.raw.shape == (1, 4)
    assert found.shape == (4,) == (len(found.names),)


@pytest.mark.parametrize("name", NETS)
def test_rows_of_a_batch_are_scored_as_alone(name: str) -> None:
    found = case(name)
    torch.manual_seed(3)
    several = found.features + 0.1 * torch.randn(5, *found.features.shape[1:], dtype=torch.float64)
    together, gradients = found.gradients(several)
    for row, each in enumerate(several):
        alone, gradient = found.gradients(each[None])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradients[row : row + 1], gradient, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.in_chunks(several), together, rtol=1e-10, atol=1e-10)


def test_chunks_do_not_change_the_numbers() -> None:
    found = case("bert")
    several = found.features * torch.linspace(0, 1, 7, dtype=torch.float64)[:, None, None]
    whole = found.gradients(several)
    found._kept["chunk"] = 3
    for one, other in zip(found.gradients(several), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_out_of_memory_halves_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("tabular")
    chunk, sizes, real = found.chunk(), [], type(found).scores

    def short(self: object, features: Tensor) -> Tensor:
        sizes.append(len(features))
        if len(features) > chunk // 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(found, features)

    monkeypatch.setattr(type(found), "scores", short)
    several = found.features.expand(chunk + 3, -1)
    scores, gradients = found.gradients(several)
    assert scores.shape == (chunk + 3,)
    assert gradients.shape == several.shape
    assert sizes[:2] == [chunk, chunk // 2]
    monkeypatch.setattr(type(found), "scores", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(AttributionError, match="single example"):
        found.gradients(several)


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    found = case(name)
    torch.manual_seed(1)
    direction = torch.randn(found.features.shape, dtype=torch.float64)
    size, rel = (1e-4, 1e-2) if name == "llama" else (1e-6, 1e-4)  # transformers' RMSNorm computes in float32
    ahead, behind = found.in_chunks(torch.cat([found.features + size * direction, found.features - size * direction]))
    slope = float((found.plain()[1] * direction).sum())
    assert float(ahead - behind) / (2 * size) == pytest.approx(slope, rel=rel, abs=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_nothing_leaks(name: str) -> None:
    objective = objective_of(name)
    state = {key: each.clone() for key, each in objective.module.state_dict().items()}
    asked = [each.requires_grad for each in objective.module.parameters()]
    before = objective.evaluate().loss
    found = case_of(objective, 0)
    found.plain()
    leaf = found.features.clone().requires_grad_()
    found.as_module()(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, found.plain()[1])
    assert all(not each._forward_hooks and not each._forward_pre_hooks for each in objective.module.modules())
    assert all(not each.training for each in objective.module.modules())
    assert [each.requires_grad for each in objective.module.parameters()] == asked
    assert all(each.grad is None for each in (*objective.module.parameters(), *objective.theta))
    assert all(torch.equal(each, state[key]) for key, each in objective.module.state_dict().items())
    assert objective.evaluate().loss == before


def test_hooks_go_when_the_model_fails() -> None:
    found = case("gpt2")
    with pytest.raises(RuntimeError):
        found.scores(found.features[:, :, :5])
    assert all(not each._forward_hooks for each in found.module.modules())


def test_the_objectives_theta_counts_not_the_modules() -> None:
    objective = objective_of("linear")
    moved = case_of(objective.moved([2 * each for each in objective.theta]), 0, Target(1))
    torch.testing.assert_close(moved.plain()[1][0], 2 * objective.theta[0][1].detach())
    assert moved.score == pytest.approx(2 * case_of(objective, 0, Target(1)).score)


def test_one_gradient_serves_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    found = case("cnn")
    runs, real = [], type(found).run
    monkeypatch.setattr(type(found), "run", lambda self, raw: runs.append(len(raw)) or real(self, raw))
    found.plain()
    used = len(runs)
    assert found.at(found.features.clone())[0] == found.plain()[0]
    assert found.score == float(found.plain()[0])
    assert len(runs) == used
    found.at(found.features + 1)
    assert len(runs) == used + 1


def test_kinds() -> None:
    kinds = {name: kind_of(objective_of(name)) for name in NETS}
    assert {name for name, kind in kinds.items() if kind == "image"} == IMAGES
    assert {name for name, kind in kinds.items() if kind == "table"} == TABLES
    assert {name for name, kind in kinds.items() if kind == "text"} == TEXT
    assert {name for name, kind in kinds.items() if kind == "language_model"} == LANGUAGE


@pytest.mark.parametrize(
    ("name", "row", "target", "words"),
    [
        ("cnn", 9, None, "no example 9"),
        ("cnn", 0, Target(3), r"no output 3; the model has 3 \(0 to 2\)"),
        ("gpt2", 0, Target(23, 2), "no token 23"),
        ("gpt2", 0, Target(2, 7), "no position 7; the sequence has 7 tokens"),
    ],
)
def test_what_is_not_there_is_named(name: str, row: int, target: Target | None, words: str) -> None:
    with pytest.raises(AttributionError, match=words):
        case(name, row, target)
