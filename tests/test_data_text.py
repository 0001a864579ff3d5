"""Token sequences worked out by hand; every token but the first of a document is predicted once."""

import gzip
import json

import pytest
import torch

from probes.data import preview, read_batches
from probes.errors import DataError
from probes.specs import DataSpec, ModelSpec
from probes.token_tables import context_of


def text(tmp_path, content, name="t.txt", **options):
    (tmp_path / name).write_text(content, encoding="utf-8")
    return DataSpec((str(tmp_path / name),), **options)


def lines(tmp_path, *objects, **options):
    return text(tmp_path, "\n".join(json.dumps(each) for each in objects) + "\n", "t.jsonl", **options)


def test_characters_by_hand(tmp_path):
    batches = read_batches(text(tmp_path, "banana", context=4))  # a=0 b=1 n=2: 1 0 2 0 2 0
    assert batches.inputs.tolist() == [[1, 0, 2, 0], [2, 0, 0, 0]]
    assert batches.targets.tolist() == [[0, 2, 0, 2], [0, -100, -100, -100]]
    assert batches.inputs.dtype == batches.targets.dtype == torch.int64
    assert batches.ids == ("t[0]:0", "t[0]:4")
    assert batches.about["vocabulary"] == 3 and batches.about["tokenizer"] == "characters"
    assert batches.doubts == ()


def test_bytes_by_hand(tmp_path):
    batches = read_batches(text(tmp_path, "aé", context=2, tokenizer="bytes"))
    assert batches.inputs.tolist() == [[0x61, 0xC3]] and batches.targets.tolist() == [[0xC3, 0xA9]]
    assert batches.about["vocabulary"] == 256


@pytest.mark.parametrize("context", [1, 2, 3, 5, 8, 11, 12, 40])
def test_every_token_but_the_first_is_predicted_once(tmp_path, context):
    content = "hello, world"
    batches = read_batches(text(tmp_path, content, context=context, tokenizer="bytes"))
    counted = batches.targets[batches.targets != -100]
    assert bytes(counted.tolist()).decode() == content[1:]
    assert batches.inputs.shape[1] == context


def test_without_a_context_one_is_chosen_and_said(tmp_path):
    assert read_batches(text(tmp_path, "ab" * 200)).inputs.shape[1] == 128
    batches = read_batches(text(tmp_path, "abcde"))
    assert batches.inputs.shape == (1, 4) and "sequences of 4 tokens" in batches.doubts[0]


def test_the_context_of_the_model_is_used_where_none_is_given(tmp_path):
    spec = text(tmp_path, "abcdefgh")
    assert read_batches(spec, own_context=3).inputs.shape == (3, 3)
    assert read_batches(spec, own_context=100).inputs.shape == (1, 7)
    assert read_batches(spec, own_context=3).doubts == ()
    assert read_batches(DataSpec(spec.files, context=5), own_context=3).inputs.shape == (2, 5)


def test_the_context_is_found_in_arguments_or_in_the_position_table():
    named = ModelSpec("catalogue", "small_gpt", {"context": 32})
    folder = ModelSpec("hugging_face", folder="x")
    assert context_of(named, {}) == 32
    assert context_of(folder, {"transformer.wte.weight": (50, 8), "transformer.wpe.weight": (64, 8)}) == 64
    assert context_of(folder, {"0.weight": (50, 8)}) == 0


def test_jsonl_ids_and_padding(tmp_path):
    spec = lines(tmp_path, {"input_ids": [5, 6, 7], "text": "no"}, {"input_ids": [9, 8]}, context=3)
    batches = read_batches(spec)
    assert batches.inputs.tolist() == [[5, 6, 0], [9, 0, 0]]
    assert batches.targets.tolist() == [[6, 7, -100], [8, -100, -100]]
    assert batches.ids == ("t[0]:0", "t[1]:0") and batches.about["documents"] == 2
    assert batches.about["largest_id"] == 9


def test_jsonl_labels_and_attention_mask_as_transformers_writes_them(tmp_path):
    first = {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}
    second = {"input_ids": [5, 6, 1, 1], "attention_mask": [1, 1, 0, 0]}
    batches = read_batches(lines(tmp_path, first, second, context=3))
    assert batches.targets.tolist() == [[-100, 7, 8], [6, -100, -100]]


def test_jsonl_text_has_one_vocabulary_and_documents_stay_apart(tmp_path):
    spec = lines(tmp_path, {"text": "ab"}, {"text": "ca"}, context=2)
    batches = read_batches(spec)
    assert batches.inputs.tolist() == [[0, 0], [2, 0]] and batches.targets.tolist() == [[1, -100], [0, -100]]


def test_the_field_may_be_named(tmp_path):
    batches = read_batches(lines(tmp_path, {"text": "zz", "story": "ba"}, context=1, label="story"))
    assert batches.inputs.tolist() == [[1]] and batches.targets.tolist() == [[0]]
    batches = read_batches(lines(tmp_path, {"text": "zz", "codes": [4, 5]}, context=1, label="codes"))
    assert batches.inputs.tolist() == [[4]]


def test_tokens_come_before_text_unless_a_tokenizer_is_chosen(tmp_path):
    both = {"tokens": [3, 4], "text": "AB"}
    assert read_batches(lines(tmp_path, both, context=1)).inputs.tolist() == [[3]]
    assert read_batches(lines(tmp_path, both, context=1, tokenizer="bytes")).inputs.tolist() == [[65]]


def test_a_tokenizer_json_is_used(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, "sat": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    spec = text(tmp_path, "the cat sat there", context=3, tokenizer=str(tmp_path / "tokenizer.json"))
    batches = read_batches(spec)
    assert batches.inputs.tolist() == [[1, 2, 3]] and batches.targets.tolist() == [[2, 3, 0]]
    assert batches.about["vocabulary"] == 4 and batches.about["tokenizer"] == "tokenizer.json"


def test_limit_and_order_are_of_sequences(tmp_path):
    import numpy as np

    spec = text(tmp_path, "abcdefghi", context=2, examples=2, shuffle=1)
    order = np.random.default_rng(1).permutation(4)[:2]
    assert read_batches(spec).inputs[:, 0].tolist() == [2 * int(each) for each in order]


def test_packed_text_is_read(tmp_path):
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b'{"input_ids": [1, 2, 3]}\n'))
    assert read_batches(DataSpec((str(tmp_path / "t.jsonl.gz"),))).targets.tolist() == [[2, 3]]


def test_prose_with_commas_is_text(tmp_path):
    content = "It was, in short, a day.\nNobody came.\nThe end, then.\n"
    assert read_batches(text(tmp_path, content, "0a1b2c")).about["format"] == "text"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"input_ids": [1, 2]}\nhello\n', "line 2 is no JSON"),
        ('{"input_ids": [1, 2]}\n[1]\n', "line 2 is a list"),
        ('{"input_ids": [1, 2]}\n{"input_ids": [1, -2]}\n', "line 2 has the token -2"),
        ('{"input_ids": [1, 2.5]}\n', "line 1 has .* whole numbers"),
        ('{"input_ids": [1, true]}\n', "whole numbers"),
        ('{"input_ids": [1, 1e400]}\n', "whole numbers"),
        ('{"input_ids": [1, 99999999999999999999]}\n', "whole numbers"),
        ('{"input_ids": "12"}\n', "whole numbers"),
        ('{"input_ids": [1, 2]}\n{"text": "a"}\n', "line 2 has None in 'input_ids'"),
        ('{"input_ids": [1, 2], "labels": [1]}\n', "2 input_ids but 1 labels"),
        ('{"text": 3}\n', "line 1 has no text"),
        ('{"text": "a\\ud800b"}\n', "line 1 has half a character"),
        ('{"story": "a"}\n', r"no field input_ids or tokens or text \(it has 'story'\)"),
        ('{"text": "a"}\n', "nothing can be predicted"),
        ('{"a": ' + "[" * 100_000 + "\n", "line 1 is no JSON"),
    ],
)
def test_jsonl_that_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_batches(text(tmp_path, content, "t.jsonl"))
    assert str(caught.value).startswith("t.jsonl")


def test_short_texts_are_left_out_and_said(tmp_path):
    batches = read_batches(lines(tmp_path, {"text": "ab"}, {"text": "a"}, {"text": ""}, context=1))
    assert len(batches) == 1 and "2 of 3 texts" in batches.doubts[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": -1}, "a context of -1"),
        ({"tokenizer": "missing.json"}, "'missing.json' is no file"),
        ({"mean": (0.5,)}, "tokens, which are not normalised"),
    ],
)
def test_choices_that_make_no_sense(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        read_batches(text(tmp_path, "hello", **options))


def test_a_broken_tokenizer_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(DataError, match=r"tokenizer\.json is no tokenizer\.json that can be read"):
        read_batches(text(tmp_path, "hello", tokenizer=str(tmp_path / "tokenizer.json")))


def test_preview_shows_lines_as_plain_text(tmp_path):
    seen = preview(text(tmp_path, "<b>one</b>\n" + "x" * 500 + "\n", context=10))
    assert seen["lines"] == ["<b>one</b>", "x" * 200] and seen["sheet"] is None and seen["classes"] == []
    assert seen["shape"] == [10] and seen["labels"] == [] and seen["about"]["vocabulary"] == 9
    json.dumps(seen, allow_nan=False)
