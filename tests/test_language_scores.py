"""Log-probabilities of tokens by teacher forcing, with and without a cache, and greedy continuations."""

from __future__ import annotations

import pytest
import torch
from attribution_cases import LENGTH, VOCABULARY, objective_of
from curvature_oracles import batches
from family_nets import objective_of as family_of
from language_runs import START, counting, forced, last_row, texts

from probes.attribution import AttributionError
from probes.attribution.language import (
    answer_scores,
    answer_start,
    cache_error,
    generate,
)
from probes.objective import Objective

NETS = ("gpt2", "llama", "small gpt", "small llama")
CACHED = ("gpt2", "llama", "qwen3", "gemma2", "phi", "bloom", "opt", "gpt neox", "bert lm")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETS)
def test_token_scores_are_those_of_teacher_forcing(name: str, dtype: str) -> None:
    objective = objective_of(name, dtype)
    for start in (1, START):
        expected = forced(objective, objective.inputs[1:2], start)
        assert answer_scores(objective, 1, start) == pytest.approx(expected, abs=1e-5 if dtype == "float32" else 1e-10)


@pytest.mark.parametrize("name", CACHED)
def test_a_cache_changes_nothing_and_only_new_tokens_are_fed(name: str) -> None:
    objective = family_of(name, "float32")
    expected = forced(objective, objective.inputs[:1], START)
    with counting(objective) as seen:
        found = answer_scores(objective, 0, START, use_cache=True)
    assert found == pytest.approx(expected, abs=1e-5)
    assert seen[-(LENGTH - START) :] == [(1, START), *[(1, 1)] * (LENGTH - START - 1)]
    assert cache_error(objective, 0, START) == pytest.approx(0, abs=1e-5)


def test_models_without_a_cache_say_so() -> None:
    for name in ("small gpt", "small llama"):
        objective = objective_of(name)
        assert cache_error(objective, 0, START) is None
        with pytest.raises(AttributionError, match="keeps no cache"):
            answer_scores(objective, 0, START, use_cache=True)


def test_the_last_target_is_the_last_token_of_the_answer() -> None:
    ids = torch.randint(1, VOCABULARY, (2, LENGTH))
    objective = texts(objective_of("gpt2").module, ids)
    assert objective.inputs.shape[1] == LENGTH - 1
    assert answer_scores(objective, 0, START) == pytest.approx(forced(objective, ids[:1], START), abs=1e-10)
    short = ids[:, 1:].clone()
    short[:, -2:] = -100  # padding
    filled = ids[:, :-1].clone()
    filled[:, -1] = 0
    padded = Objective(objective.module, batches(filled, short), "causal_lm", dtype="float64", device="cpu")
    assert answer_scores(padded, 0, 2) == pytest.approx(forced(objective, ids[:1, :-2], 2), abs=1e-10)


def test_a_greedy_continuation_is_the_argmax_again_and_again() -> None:
    for name in NETS:
        objective = objective_of(name)
        ids, expected = objective.inputs[:1, :3], list[int]()
        for _ in range(4):
            with torch.no_grad():
                row = last_row(objective, torch.cat([ids, torch.tensor([expected], dtype=torch.int64)], 1))
            expected.append(int(row.argmax()))
            if name == "llama" and expected[-1] == 2:
                break
        assert generate(objective, ids[0], 4) == expected == generate(objective, ids[0].tolist(), 4, use_cache=False)


def test_a_continuation_stops_where_the_text_ends_or_the_model_cannot_go_on() -> None:
    objective = objective_of("gpt2")
    first = generate(objective, [3, 4], 1)[0]
    objective.module.config.eos_token_id = first
    assert generate(objective, [3, 4], 5) == [first]
    for ids, count in (([], 2), ([3] * 14, 4)):
        with pytest.raises(AttributionError, match="the model takes 1 to 16"):
            generate(objective, ids, count)
    with pytest.raises(AttributionError, match="the model takes 1 to 16"):
        generate(objective_of("small llama"), [3] * 17, 1)


def test_the_answer_begins_at_the_first_token_that_counts() -> None:
    module, ids = objective_of("gpt2").module, torch.randint(1, VOCABULARY, (1, LENGTH))
    assert answer_start(texts(module, ids, first=5), 0) == 5
    assert answer_start(texts(module, ids), 0) == LENGTH // 2
    assert answer_scores(texts(module, ids, first=5), 0, 5) == pytest.approx(answer_scores(texts(module, ids), 0, 5))
