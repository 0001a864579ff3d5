"""Parts of texts: turns of chats, lines, sentences, words, cuts of one's own; what maps over them are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import case, objective_of
from curvature_oracles import batches
from test_words import byte_level, read

from probes.attribution import AttributionError, Settings, attribute, case_of
from probes.attribution.language_parts import Part, as_segments, part_scores, parts_in, parts_of
from probes.attribution.language_segments import segment_map, segment_players
from probes.attribution.words import Pieces, pieces_by_marks
from probes.objective import Objective

CHATS = {
    "chatml": ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nOk",
               ["system", "user", "assistant"]),
    "llama 3": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nOk", ["turn 1", "user", "assistant"]),
    "llama 2": ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Ok </s><s>[INST] More [/INST]",
                ["turn 1", "system", "user", "assistant", "user", "assistant"]),
    "gemma": ("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nOk", ["user", "model"]),
    "phi": ("<|system|>\nBe brief<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nOk", ["system", "user", "assistant"]),
}  # fmt: skip


def letters(text: str) -> Pieces:
    """A tokenizer of characters."""
    return Pieces(tuple(text), (False,) * len(text), True)


@pytest.mark.parametrize("name", CHATS)
def test_turns_of_chats_are_the_parts(name: str) -> None:
    text, roles = CHATS[name]
    parts = parts_in(letters(text), [False] * len(text))
    assert [each.name for each in parts] == roles
    assert (parts[0].first, parts[-1].stop) == (0, len(text))
    assert all(one.stop == two.first for one, two in pairwise(parts))
    user = next(each for each in parts if each.name == "user")
    assert "Hi" in user.text and "Be brief" not in user.text


def test_turns_are_found_where_markers_are_tokens_of_their_own() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("<|im_start|>user\nThe cat<|im_end|>\n<|im_start|>assistant\nsat").ids
    parts = parts_in(read(tokenizer, ids), [False] * len(ids))
    assert [each.name for each in parts] == ["user", "assistant"]
    assert tokenizer.token_to_id("<|im_start|>") == ids[parts[1].first]


def test_lines_sentences_words_tokens_and_own_cuts() -> None:
    text = 'One is here. "Two?" Three e\nfour!'
    pieces, none = letters(text), [False] * len(text)
    assert [each.text for each in parts_in(pieces, none)] == ['One is here. "Two?" Three e', "four!"]
    sentences = parts_in(pieces, none, "sentences")
    assert [each.text for each in sentences] == ["One is here.", '"Two?"', "Three e", "four!"]
    assert [each.name for each in sentences] == [f"sentence {i}" for i in (1, 2, 3, 4)]
    assert text[sentences[1].first] == '"'  # the space before belongs to what came before
    assert [each.text for each in parts_in(letters("漢字。漢！字"), [False] * 6)] == ["漢字。", "漢！", "字"]
    assert [each.text for each in parts_in(letters("one two"), [False] * 7)] == ["one", "two"]
    assert len(parts_in(letters("one two"), [False] * 7, "tokens")) == 7
    assert [each.text for each in parts_in(letters("abcdef"), [False] * 6, cuts=[2, 0, 4, 2])] == ["ab", "cd", "ef"]
    with pytest.raises(AttributionError, match="no token at place 6"):
        parts_in(letters("abcdef"), [False] * 6, cuts=[6])
    with pytest.raises(AttributionError, match="cannot be cut into sentences"):
        parts_in(pieces_by_marks(["3", "4"]), [False, False], "sentences")
    with pytest.raises(AttributionError, match="Only texts"):
        parts_of(case("cnn"))


def test_the_value_of_a_part_is_what_the_score_loses_without_it() -> None:
    found = case("gpt2")
    parts = (Part(0, 2, "a", ""), Part(2, 3, "b", ""), Part(3, found.shape[0], "a", ""))  # the same name twice
    map = segment_map(found, parts, "feature_ablation", Settings(baseline="zero"))
    values = part_scores(map.values, parts)
    for part, value in zip(parts, values, strict=True):
        without = found.features.clone()
        without[:, part.first : part.stop] = 0
        with torch.no_grad():
            assert value == pytest.approx(found.score - float(found.scores(without)), abs=1e-9)
    assert as_segments(parts).labels.tolist() == [0, 0, 1, *[2] * (found.shape[0] - 3)]


def test_methods_leave_out_the_sentences_or_words_that_settings_ask_for() -> None:
    objective = objective_of("gpt2")
    shown = ["One", " is", " one", ".", " Tw", "o", "."]
    show: Callable[[Any], str] = lambda ids: "".join(shown[int(each)] for each in ids)
    ids = torch.arange(7)[None]
    data = replace(batches(ids, ids), show=show, about={"tokenizer": "its own"})
    found = case_of(Objective(objective.module, data, "causal_lm", dtype="float64", device="cpu"), 0)
    for by, edges in (("sentences", [0, 4, 7]), ("words", [0, 1, 2, 3, 4, 6, 7]), ("tokens", range(8))):
        map = attribute(found, "feature_ablation", Settings(baseline="zero", over=by))
        expected = [Part(first, stop, "", "") for first, stop in pairwise(edges)]
        known = segment_map(found, expected, "feature_ablation", Settings(baseline="zero"))
        np.testing.assert_allclose(map.values, known.values, atol=1e-12)
        assert map.about["segments"] == by


def test_shapley_values_of_parts_are_those_of_two_players_and_complete() -> None:
    found = case("llama")
    parts = (Part(0, 3, "a", ""), Part(3, found.shape[0], "b", ""))
    map = segment_map(found, parts)
    players = segment_players(found, parts)
    kept = np.array([[False, False], [True, False], [False, True], [True, True]])
    none, a, b, both = players.game(kept)
    expected = [((a - none) + (both - b)) / 2, ((b - none) + (both - a)) / 2]
    assert part_scores(map.values, parts) == pytest.approx(expected, abs=1e-9)
    assert map.completeness_error == pytest.approx(0, abs=1e-9) and map.badge.verdict == "ok"


def test_parts_of_one_token_each_are_exact_shapley_and_too_many_are_refused() -> None:
    found = case("gpt2")
    tokens = parts_of(found, "tokens")
    known = attribute(found, "exact_shapley", Settings(baseline="zero"))
    assert segment_map(found, tokens, settings=Settings(baseline="zero")).values == pytest.approx(known.values)
    objective = objective_of("gpt2")
    long = torch.cat([objective.inputs, objective.inputs], 1)
    wide = case_of(Objective(objective.module, batches(long, long), "causal_lm", dtype="float64", device="cpu"), 0)
    with pytest.raises(AttributionError, match=r"14 parts .* at most 10"):
        segment_map(wide, parts_of(wide, "tokens"), settings=Settings(baseline="zero"))
