"""The matrix of tokens: closed forms, Captum, what is held, shown or cut, shared passes, nothing left behind."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from attribution_cases import LENGTH, VOCABULARY, objective_of
from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput
from family_nets import perturbed
from language_runs import START, bag, counting, forced, last_row, texts
from perturbation_cases import Cancelled, Keeping
from torch import Tensor

from probes.attribution import AttributionError, Settings, Target, attribute, case_of
from probes.attribution.language import (
    Matrix,
    answer_case,
    answer_scores,
    cache_error,
    generate,
    matrix_by,
    token_matrix,
)
from probes.attribution.language_cases import sequence_of
from probes.attribution.language_parts import Part, part_scores
from probes.attribution.language_segments import segment_map
from probes.hugging_face import _as_logits
from probes.objective import Objective

ONE_RULE = Settings(steps=16, tolerance=float("inf"), baseline="zero")


class Numbers:
    """A tokenizer whose text is ids; what Captum asks of one."""

    pad_token_id = 0

    def encode(self, text: str, **_: Any) -> Tensor:
        return torch.tensor([[int(each) for each in text.split()]])

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, torch.as_tensor(ids).flatten().tolist()))

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        return [str(int(each)) for each in ids]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        return [int(each) for each in tokens] if isinstance(tokens, list) else int(tokens)

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        ends = [i for i, sign in enumerate(text + " ") if sign == " "]
        starts = [0, *(each + 1 for each in ends[:-1])]
        return {"input_ids": self.encode(text)[0].tolist(), "offset_mapping": list(zip(starts, ends, strict=True))}


def test_captums_cached_scores_are_wrong_and_ours_are_its_uncached() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=12, n_layer=2, n_head=3, n_positions=32,
                                     bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    plain = perturbed(transformers.GPT2LMHeadModel(config)).eval()
    ids = torch.randint(3, VOCABULARY, (1, 10))
    objective = texts(_as_logits(copy.deepcopy(plain)), ids)
    ours = token_matrix(objective, 0, 7, "feature_ablation", Settings(baseline="pad"))
    given = TextTokenInput(Numbers().decode(ids[0, :7]), Numbers(), baselines=0)  # type: ignore[arg-type]

    def captums(**options: Any) -> Any:
        plain.double()
        return LLMAttribution(FeatureAblation(plain), Numbers()).attribute(given, ids[0, 7:], **options)  # type: ignore[arg-type]

    for options in ({"forward_in_tokens": False}, {"use_cached_outputs": False}):
        right = captums(**options)
        assert ours.values == pytest.approx(right.token_attr.numpy(), abs=1e-6)
        assert ours.sequence == pytest.approx(right.seq_attr.numpy(), abs=1e-6)
    wrong = captums()
    assert (
        np.abs(ours.values[0] - wrong.token_attr.numpy()[0]).max() < 1e-6
    )  # the first token, as nothing is cached yet
    assert np.abs(ours.values[1:] - wrong.token_attr.numpy()[1:]).max() > 1e-3
    assert cache_error(objective, 0, 7) == pytest.approx(0, abs=1e-9)


def test_a_logit_of_a_sum_of_vectors_has_a_closed_form_by_every_method() -> None:
    objective = bag()
    ids = torch.cat([objective.inputs[0], objective.targets[0, -1:]])
    module = objective.module.double()
    against = {place: int(ids[place]) % (VOCABULARY - 1) + 1 for place in range(START, LENGTH)}
    vectors = module.table(ids)
    expected = torch.stack(
        [vectors[:START] @ (module.head.weight[ids[p]] - module.head.weight[against[p]]) for p in range(START, LENGTH)]
    ).detach().numpy()  # fmt: skip
    for method in ("input_x_gradient", "integrated_gradients", "feature_ablation", "occlusion", "exact_shapley"):
        found = token_matrix(objective, 0, START, method, replace(ONE_RULE, window=1 if method == "occlusion" else 0),
                             against=against)  # fmt: skip
        assert found.values == pytest.approx(expected, abs=1e-8), method
    logits = module(ids[None])[0].detach()
    differences = [float(logits[p - 1, ids[p]] - logits[p - 1, against[p]]) for p in range(START, LENGTH)]
    assert found.scores == pytest.approx(differences, abs=1e-9)
    assert found.log_probs == pytest.approx(forced(objective, ids[None], START), abs=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama", "small gpt"])
def test_rows_add_up_to_what_the_prompt_did(name: str) -> None:
    objective = objective_of(name)
    settings = Settings(tolerance=1e-5, baseline="mean embedding")
    held = token_matrix(objective, 0, START, "integrated_gradients", settings)
    assert held.values.shape == (LENGTH - START, START) and held.earlier == "held" and not held.lost.any()
    assert held.values.sum(1) == pytest.approx(held.log_probs - held.baseline_scores, rel=1e-4)
    case = case_of(objective, 0, Target(int(objective.inputs[0, -1]), LENGTH - 2))
    mean = dict(objective.module.named_parameters())[f"{case.embedding}.weight"].double().mean(0)
    vectors = case.features.clone()
    vectors[:, :START] = mean * (vectors[0, 0] / objective.module.get_submodule(case.embedding)(case.raw)[0, 0])
    with torch.no_grad():
        assert held.baseline_scores[-1] == pytest.approx(float(case.scores(vectors)), abs=1e-5)
    shown = token_matrix(objective, 0, START, "integrated_gradients", settings, earlier="shown")
    assert shown.values.shape == (LENGTH - START, LENGTH - 1)
    assert shown.values.sum(1) == pytest.approx(shown.log_probs - shown.baseline_scores, rel=1e-4)
    for row in range(LENGTH - START):
        assert not shown.values[row, START + row :].any()  # tokens that come later
        alone = attribute(case_of(objective, 0, Target(int(objective.inputs[0, START + row]), START + row - 1)),
                          "integrated_gradients", settings)  # fmt: skip
        assert shown.values[row, : START + row] == pytest.approx(alone.values, abs=1e-9)


def test_what_is_cut_off_is_said() -> None:
    objective = objective_of("gpt2")
    shown, cut = (token_matrix(objective, 0, START, "integrated_gradients", ONE_RULE, earlier=each)
                  for each in ("shown", "cut"))  # fmt: skip
    assert cut.values == pytest.approx(shown.prompt)
    assert cut.lost == pytest.approx(shown.values[:, START:].sum(1)) and abs(cut.lost[1:]).min() > 1e-4
    assert cut.values.sum(1) + cut.lost == pytest.approx(shown.values.sum(1))
    assert not shown.notes and "is left out" in cut.notes[-1]
    gradients = [token_matrix(objective, 0, START, "gradient", earlier=each).values for each in ("held", "cut")]
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-12)


def test_methods_that_read_all_tokens_are_cut_unless_asked_otherwise() -> None:
    objective = objective_of("gpt2")
    for method in ("attention_rollout", "layer_integrated_gradients"):
        found = token_matrix(objective, 0, START, method, Settings(steps=8, tolerance=0.1))
        shown = token_matrix(objective, 0, START, method, Settings(steps=8, tolerance=0.1), earlier="shown")
        assert found.earlier == "cut" and found.values == pytest.approx(shown.prompt)
        assert found.lost == pytest.approx(shown.values[:, START:].sum(1)) and "is left out" in found.notes[-1]
        with pytest.raises(AttributionError):
            token_matrix(objective, 0, START, method, earlier="held")
    assert token_matrix(objective, 0, START, "lime").earlier == "held"


@pytest.mark.parametrize("method", ["integrated_gradients", "feature_ablation", "exact_shapley"])
def test_one_map_of_the_whole_answer_is_the_sum_of_the_rows(method: str) -> None:
    objective = objective_of("gpt2")
    rows = token_matrix(objective, 0, START, method, ONE_RULE)
    whole = attribute(answer_case(objective, 0, START), method, ONE_RULE)
    assert rows.sequence == pytest.approx(whole.values, abs=1e-9)
    assert whole.score == pytest.approx(rows.log_probs.sum(), abs=1e-9)


def test_rows_share_their_forward_passes_and_equal_words_keep_their_places() -> None:
    objective = objective_of("gpt2")
    objective.inputs[0] = torch.tensor([5, 5, 9, 5, 7, 5, 7])
    settings = Settings(baseline="zero")
    with counting(objective) as one:
        token_matrix(objective, 0, LENGTH - 1, "exact_shapley", settings)
    with counting(objective) as three:
        found = token_matrix(objective, 0, 3, "exact_shapley", settings)
    evaluations = sum(rows for rows, _ in three)
    assert evaluations < 2**3 + 60 and sum(rows for rows, _ in one) > 2**6
    assert found.names[:4] == ("5", "5", "9", "5") and len(found.sequence) == 3
    assert found.values[0, 0] != found.values[0, 1]
    again = [attribute(replace(each, shared=None), "exact_shapley", settings).values
             for each in _cases(objective, 3)]  # fmt: skip
    assert found.values == pytest.approx(np.stack(again), abs=1e-9)


def _cases(objective: Objective, start: int) -> list[Any]:
    return sequence_of(objective, 0).rows(start)


def test_parts_of_the_prompt_by_row() -> None:
    objective = objective_of("llama")
    parts = (Part(0, 1, "system", ""), Part(1, 3, "user", ""), Part(3, START, "user", ""))
    found = matrix_by(objective, 0, START, "exact_shapley", lambda case, tick: segment_map(case, parts, tick=tick))
    assert part_scores(found.values, parts).shape == (LENGTH - START, 3)
    assert found.values.sum(1) == pytest.approx(found.log_probs - found.baseline_scores, abs=1e-9)


def test_what_cannot_be_asked_is_refused_in_words() -> None:
    objective = objective_of("gpt2")
    for start in (0, LENGTH):
        with pytest.raises(AttributionError, match="cannot begin at place"):
            answer_scores(objective, 0, start)
    with pytest.raises(AttributionError, match="causal language models"):
        token_matrix(objective_of("bert"), 0, 3, "gradient")
    with pytest.raises(AttributionError, match="no example 9"):
        answer_scores(objective, 9, 3)
    for against, words in (({2: 1}, "at place 2"), ({5: VOCABULARY}, f"no token {VOCABULARY}")):
        with pytest.raises(AttributionError, match=words):
            token_matrix(objective, 0, START, "gradient", against=against)
    with pytest.raises(AttributionError, match="no method 'x'"):
        token_matrix(objective, 0, START, "x")


def test_progress_is_told_can_be_cancelled_and_sampled_rows_are_kept() -> None:
    objective, settings = objective_of("small gpt"), Settings(samples=4, baseline="zero")
    tick = Keeping()
    first = token_matrix(objective, 0, START, "shapley_sampling", settings, tick)
    shares = [share for share, _ in tick.told]
    assert shares == sorted(shares) and shares[-1] <= 1 and "token 3 of 3" in tick.told[-1][1] and tick.kept
    again = token_matrix(objective, 0, START, "shapley_sampling", settings, tick)
    assert again.values == pytest.approx(first.values) and np.isfinite(first.stderr).all()
    with pytest.raises(Cancelled):
        token_matrix(objective, 0, START, "shapley_sampling", settings, Keeping(2))


def test_nothing_of_the_model_is_changed() -> None:
    objective = objective_of("llama")
    before = _state(objective)
    outputs = last_row(objective, objective.inputs[:1])
    for run in (
        lambda: token_matrix(objective, 0, START, "integrated_gradients", ONE_RULE),
        lambda: answer_scores(objective, 0, START, use_cache=True),
        lambda: generate(objective, [3, 4], 2),
    ):
        run()
        assert _state(objective) == before
    with pytest.raises(Cancelled):
        token_matrix(objective, 0, START, "occlusion", ONE_RULE, Keeping(1))
    assert _state(objective) == before and torch.equal(last_row(objective, objective.inputs[:1]), outputs)


def _state(objective: Objective) -> list[Any]:
    modules = list(objective.module.modules())
    hooks = [(len(each._forward_hooks), len(each._forward_pre_hooks), each.training) for each in modules]
    return [hooks, [each.requires_grad for each in objective.module.parameters()], objective.inputs.tolist()]


def test_a_matrix_is_a_value() -> None:
    found = token_matrix(objective_of("gpt2"), 0, START, "input_x_gradient")
    assert isinstance(found, Matrix) and found.signed and found.stderr.shape == found.values.shape
    assert np.isnan(found.completeness_errors).all() and len(found.badges) == len(found.log_probs) == LENGTH - START
