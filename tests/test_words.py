"""Words and parts of texts: marks of four kinds of tokenizers, cut characters, special tokens, turns of chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import case
from curvature_oracles import batches
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from probes.attribution.words import (
    Pieces,
    doubts_of,
    merged,
    pieces_by_decoding,
    pieces_by_marks,
    pieces_of,
    special_share,
    words_in,
    words_of,
)
from probes.dataset.tokens import shower

TEXT = "The cat sat on the mat. The cats weren't there, 42 times!\nÉté à la mer: 漢字 and naïve 🙂 faces."


def byte_level() -> Tokenizer:
    """GPT-2's kind: merges of bytes, spaces before words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([TEXT.replace("漢字", "").replace("🙂", "")] * 3, trainer)
    made.add_special_tokens([AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)])
    return made


def metaspace() -> Tokenizer:
    """Llama's kind: "▁" for spaces, bytes where characters are unknown; decoding a token alone loses its space."""
    vocabulary = [
        "<unk>",
        "<s>",
        *(f"<0x{each:02X}>" for each in range(256)),
        "▁the",
        "▁cat",
        "s",
        "▁sat",
        "the",
        ".",
        "▁",
    ]
    made = Tokenizer(
        models.BPE({each: i for i, each in enumerate(vocabulary)}, [], byte_fallback=True, unk_token="<unk>")
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def wordpiece() -> Tokenizer:
    """BERT's kind: "##" goes on with a word."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "the", "cat", ".", "otter", "##s", "s"]
    made = Tokenizer(models.WordPiece({each: i for i, each in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


def show_of(tokenizer: Tokenizer) -> Any:
    return shower(lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False)))


def read(tokenizer: Tokenizer, ids: Sequence[int]) -> Pieces:
    return pieces_by_decoding(show_of(tokenizer), ids)


def said(pieces: Pieces, special: Sequence[bool] = ()) -> list[str]:
    return [each.text for each in words_in(pieces, special or [False] * len(pieces.texts))]


def test_bytes_of_a_vocabulary_give_the_text_back_and_its_words() -> None:
    tokenizer = byte_level()
    encoding = tokenizer.encode(TEXT)
    pieces = read(tokenizer, encoding.ids)
    assert pieces.text == TEXT
    whole = [i for i, each in enumerate(pieces.joined) if not each and pieces.texts[i].isascii()]
    assert [pieces.starts[i] for i in whole] == [encoding.offsets[i][0] for i in whole]  # the tokenizer's own offsets
    assert said(pieces) == [
        "The", "cat", "sat", "on", "the", "mat", ".", "The", "cats", "weren't", "there", ",", "42", "times", "!", "\n",
        "Été", "à", "la", "mer", ":", "漢", "字", "and", "naïve", "🙂", "faces", ".",
    ]  # fmt: skip


def test_words_are_those_of_the_tokenizer_where_letters_and_signs_part() -> None:
    tokenizer = byte_level()
    encoding = tokenizer.encode("The cat sat on the mat. The cats: 42 times! la mer, faces")
    found = words_in(read(tokenizer, encoding.ids), [False] * len(encoding.ids))
    cuts = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(
        "The cat sat on the mat. The cats: 42 times! la mer, faces"
    )
    starts = {start for _, (start, _) in cuts}
    assert [each.first for each in found] == [i for i, (start, _) in enumerate(encoding.offsets) if start in starts]


def test_characters_that_are_cut_into_bytes_stay_together_and_are_told() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a 漢🙂").ids
    pieces = read(tokenizer, ids)
    assert len(ids) > 5 and any(pieces.joined) and "\ufffd" not in pieces.text
    words = words_in(pieces, [False] * len(ids))
    assert [each.text for each in words][-2:] == ["漢", "🙂"] and words[-1].stop - words[-1].first == 4
    assert "2 characters are cut" in doubts_of(pieces)[0]
    assert doubts_of(read(tokenizer, tokenizer.encode("The cat").ids)) == ()


def test_half_a_character_at_the_end_is_shown_and_not_lost() -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode("a 🙂").ids[:-1]
    pieces = read(tokenizer, ids)
    assert pieces.text == "a \ufffd" and len(pieces.texts) == len(ids)


def test_spaces_that_decoding_a_single_token_loses_are_found() -> None:
    tokenizer = metaspace()
    ids = [tokenizer.token_to_id(each) for each in ("<s>", "▁the", "▁cat", "s", "▁sat", "▁the", "the", ".")]
    assert [show_of(tokenizer)(np.array([each])) for each in ids[1:4]] == ["the", "cat", "s"]  # the trap
    pieces = read(tokenizer, ids)
    assert pieces.text == "<s> the cats sat thethe."
    assert said(pieces, [True] + [False] * 7) == ["<s>", "the", "cats", "sat", "thethe", "."]
    fallback = [tokenizer.token_to_id(f"<0x{each:02X}>") for each in "é".encode()]
    assert read(tokenizer, [*ids[:2], *fallback]).text == "<s> theé"


def test_word_pieces_join_and_special_tokens_stay_apart() -> None:
    tokenizer = wordpiece()
    ids = [2, 6, 4, 5, 7, 8, 3, 0, 0]
    pieces = read(tokenizer, ids)
    special = [each in (0, 2, 3) for each in ids]
    assert said(pieces, special) == ["[CLS]", "the", "playing", "cat", ".", "[SEP]", "[PAD]", "[PAD]"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["the", "play", "##ing", "cat"], ["the", "playing", "cat"]),
        (["The", "Ġplay", "ing", "Ġcat", ".", "Ċ", "Ġ", "x"], ["The", "playing", "cat", ".", "\n", "x"]),
        (["▁The", "▁play", "ing", "s"], ["The", "playings"]),
        (["12", "7", "7"], ["12", "7", "7"]),
    ],
)
def test_marks_tell_words_where_nothing_can_be_decoded(names: list[str], words: list[str]) -> None:
    assert said(pieces_by_marks(names)) == words


def test_ids_without_a_tokenizer_are_words_of_their_own() -> None:
    data = replace(batches(torch.tensor([[3, 5, 5]]), torch.tensor([0])), show=shower(),
                   about={"tokenizer": "ids in the field 'input_ids'"})  # fmt: skip
    pieces = pieces_of(data, [3, 5, 5])
    assert said(pieces) == ["3", "5", "5"] and "not known" in doubts_of(pieces)[0]
    assert said(pieces_of(batches(torch.zeros(1, 2), torch.tensor([0])), [3, 12])) == ["3", "12"]


def test_sums_over_words_are_sums_over_tokens_and_equal_words_keep_their_own() -> None:
    tokenizer = wordpiece()
    pieces = read(tokenizer, [2, 4, 5, 7, 4, 5, 3])
    words = words_in(pieces, [True, *[False] * 5, True])
    values = np.array([[5.0, 0.3, -0.7, 1.0, 2.0, 0.25, -1.0], np.arange(7.0)])
    found = merged(values, words)
    assert [each.text for each in words] == ["[CLS]", "playing", "cat", "playing", "[SEP]"]
    assert found[0].tolist() == pytest.approx([5, -0.4, 1, 2.25, -1])  # sums, not the largest part of a word
    assert found.sum(1) == pytest.approx(values.sum(1))
    assert special_share(values[0], [each.special for each in words_in_tokens(words, 7)]) == pytest.approx(6 / 10.25)
    assert "of the attribution falls on special tokens" in doubts_of(pieces, values[0], [True, *[False] * 5, True])[0]
    assert merged(np.zeros(0), ()).shape == (0,) and special_share(np.zeros(2), [True, False]) == 0


def words_in_tokens(words: Sequence[Any], count: int) -> list[Any]:
    return [next(each for each in words if each.first <= i < each.stop) for i in range(count)]


def test_words_of_a_case_cover_its_tokens() -> None:
    for name in ("bert", "gpt2"):
        found = case(name)
        words = words_of(found)
        assert [i for each in words for i in range(each.first, each.stop)] == list(range(found.shape[0]))
