"""Edits: another word, a region taken out, another value; the original stays, and numbers follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import LENGTH, VOCABULARY, objective_of
from curvature_oracles import batches
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn

from probes.attribution import AttributionError, attribute, case_of
from probes.attribution.editing import text_of, with_mask, with_sequence, with_tokens, with_values, with_words
from probes.attribution.language import answer_scores
from probes.attribution.language_cases import tokens_of
from probes.data import read_batches
from probes.losses import IGNORED
from probes.objective import Objective
from probes.specs import DataSpec

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "play", "##ing", ".", "ot", "##ter", "##s", "good"]


class Means(nn.Module):
    """A classifier of texts: a linear map of the mean vector of the tokens that are no padding (0)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(vocabulary, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        kept = (ids != 0)[..., None]
        return self.head((self.table(ids) * kept).sum(1) / kept.sum(1))


class Next(nn.Module):
    """A language model of the sum of all vectors so far."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(vocabulary, 4), nn.Linear(4, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).cumsum(1))


def bert_file(path: Path) -> Path:
    made = Tokenizer(models.WordPiece({each: i for i, each in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece(cleanup=False)
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    made.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


def gpt_file(path: Path, merges: bool = True) -> tuple[Path, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    joined = ["Ġt", "Ġth", "Ġthe", "at", "Ġc", "Ġcat", "Ġs", "Ġsat", "og", "Ġd", "Ġdog"]
    pairs = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("a", "t"), ("Ġ", "c"), ("Ġc", "at"), ("Ġ", "s"), ("Ġs", "at"),
             ("o", "g"), ("Ġ", "d"), ("Ġd", "og")]  # fmt: skip
    vocabulary = {each: i for i, each in enumerate([*letters, *joined])}
    made = Tokenizer(models.BPE(vocabulary, pairs if merges else []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json", len(vocabulary)


def classifier(path: Path) -> Objective:
    """A classifier of two texts with the tokenizer of a BERT."""
    (path / "a.jsonl").write_text('{"text": "the cat sat.", "label": 0}\n{"text": "the playing cat", "label": 1}\n')
    spec = DataSpec((str(path / "a.jsonl"),), tokenizer=str(bert_file(path)))
    return Objective(Means(len(WORDS)), read_batches(spec), "cross_entropy", dtype="float64", device="cpu")


def writer(path: Path, text: str = "the cat sat the cat") -> Objective:
    """A language model of one text with the tokenizer of a GPT-2."""
    (path / "a.txt").write_text(text)
    file, size = gpt_file(path)
    spec = DataSpec((str(path / "a.txt"),), tokenizer=str(file))
    return Objective(Next(size), read_batches(spec), "causal_lm", dtype="float64", device="cpu")


def untouched(objective: Objective) -> Any:
    inputs, targets, sha256 = objective.inputs.clone(), objective.targets.clone(), objective.batches.sha256
    caveats = list(objective.caveats)

    def check() -> None:
        assert torch.equal(objective.inputs, inputs) and torch.equal(objective.targets, targets)
        assert objective.batches.sha256 == sha256 and objective.caveats == caveats

    return check


def test_a_mask_fills_half_open_pixels_by_the_baseline() -> None:
    objective = objective_of("cnn")
    check = untouched(objective)
    made = with_mask(objective, 1, [(0, 0, 3, 4), (10, 11, 12, 12)])
    expected = objective.inputs[1].clone()
    expected[:, :3, :4] = 0
    expected[:, 10:, 11:] = 0
    assert torch.equal(made.inputs[1], expected) and torch.equal(made.inputs[[0, 2, 3]], objective.inputs[[0, 2, 3]])
    assert torch.equal(made.batches.inputs[1], expected.float()) and made.batches.sha256 != objective.batches.sha256
    assert made.batches.about["edited"] == {"row": 1, "mask": [[0, 0, 3, 4], [10, 11, 12, 12]]}
    check()
    mean = with_mask(objective, 1, [(2, 2, 4, 4)], "mean")
    assert mean.inputs[1, 0, 2:4, 2:4].tolist() == [[pytest.approx(float(objective.inputs.mean()))] * 2] * 2
    assert torch.equal(mean.inputs[1, 0, 4:], objective.inputs[1, 0, 4:])


def test_prediction_and_map_follow_an_edit() -> None:
    objective = objective_of("linear")
    weights = objective.module[0].weight.detach().double()
    made = with_values(objective, 0, {2: 1.5})
    assert torch.equal(made.inputs[0, [0, 1, 3, 4, 5]], objective.inputs[0, [0, 1, 3, 4, 5]])
    with torch.no_grad():
        before, after = (each.outputs(each.theta, slice(0, 1))[0] for each in (objective, made))
    change = (1.5 - objective.inputs[0, 2]) * weights[:, 2]
    assert torch.allclose(after - before, change, atol=1e-6)
    case = case_of(made, 0)
    assert attribute(case, "input_x_gradient").values[2] == pytest.approx(1.5 * float(weights[case.target.index, 2]))


def test_values_go_by_number_or_name_in_the_units_of_model_or_file() -> None:
    plain = objective_of("tabular")
    names = [f"x{i}" for i in range(6)]
    about = {"features": names, "mean": [float(i) for i in range(6)], "std": [2.0] * 6}
    plain.batches = replace(plain.batches, about=about)
    made = with_values(plain, 2, {"x3": 7.0, "4": 1.0, 0: -1.0}, units="file")
    assert made.inputs[2, [3, 4, 0]].tolist() == [(7 - 3) / 2, (1 - 4) / 2, (-1 - 0) / 2]
    assert with_values(plain, 2, {"x3": 7.0}).inputs[2, 3] == 7
    for values, words in (({"x9": 1.0}, "no column 'x9'"), ({6: 1.0}, "no column '6'"), ({0: float("nan")}, "is nan")):
        with pytest.raises(AttributionError, match=words):
            with_values(plain, 0, values)


def test_tokens_of_a_classifier_and_of_a_language_model() -> None:
    objective = objective_of("bert")
    check = untouched(objective)
    made = with_tokens(objective, 1, {0: 4, 3: 5})
    assert made.inputs[1, [0, 3]].tolist() == [4, 5] and int((made.inputs != objective.inputs).sum()) <= 2
    assert torch.equal(made.targets, objective.targets)
    check()
    ids = torch.randint(1, VOCABULARY, (3, LENGTH))
    targets = ids[:, 1:].clone()
    targets[0, :2] = IGNORED
    model = Objective(
        objective_of("gpt2").module, batches(ids[:, :-1], targets), "causal_lm", dtype="float64", device="cpu"
    )
    changed = with_tokens(model, 0, {2: 7, 4: 8, LENGTH - 1: 9})
    expected = ids[0].clone()
    expected[[2, 4, LENGTH - 1]] = torch.tensor([7, 8, 9])
    assert torch.equal(tokens_of(changed, 0), expected) and changed.units == model.units
    assert changed.targets[0].tolist() == [IGNORED, IGNORED, *expected[3:].tolist()]
    assert torch.equal(changed.inputs[1:], model.inputs[1:]) and torch.equal(changed.targets[1:], model.targets[1:])


def test_a_word_of_as_many_tokens_takes_its_place(tmp_path: Path) -> None:
    objective = classifier(tmp_path)
    check = untouched(objective)
    assert [each.text for each in text_of(objective, 0)[2]] == ["[CLS]", "the", "cat", "sat", ".", "[SEP]"]
    made = with_words(objective, 0, {2: "good", 1: "cat"})
    assert made.batches.show is not None
    assert made.batches.show(made.inputs[0].numpy()) == "[CLS] cat good sat . [SEP]"
    assert made.caveats == objective.caveats
    check()


def test_a_word_of_more_or_fewer_tokens_moves_what_follows(tmp_path: Path) -> None:
    objective = classifier(tmp_path)
    longer = with_words(objective, 0, {2: "otters"})
    assert [WORDS[each] for each in longer.inputs[0]] == ["[CLS]", "the", "ot", "##ter", "##s", "sat", ".", "[SEP]"]
    assert [WORDS[each] for each in longer.inputs[1]] == [
        "[CLS]", "the", "play", "##ing", "cat", "[SEP]", "[PAD]", "[PAD]"
    ]  # fmt: skip
    with torch.no_grad():  # the model counts no padding, so the other example's logits stay
        rows = [each.outputs(each.theta, slice(1, 2)) for each in (objective, longer)]
    assert torch.allclose(*rows)
    shorter = with_words(objective, 1, {2: "sat", 3: ""})
    assert [WORDS[each] for each in shorter.inputs[1]] == ["[CLS]", "the", "sat", "[SEP]", "[PAD]", "[PAD]"]
    assert case_of(shorter, 1).special == (True, False, False, True, True, True)


def test_words_of_a_language_model_and_their_targets(tmp_path: Path) -> None:
    objective = writer(tmp_path)
    words = text_of(objective, 0)[2]
    assert [each.text for each in words] == ["the", "cat", "sat", "the", "cat"]
    made = with_words(objective, 0, {2: "dog"})
    assert made.batches.show is not None
    text = made.batches.show(tokens_of(made, 0).numpy())
    assert text == "the cat dog the cat" and made.caveats == objective.caveats
    theta = dict(zip(made.names, (each.detach() for each in made.theta), strict=True))
    sums = theta["table.weight"][tokens_of(made, 0)].cumsum(0) @ theta["head.weight"].T + theta["head.bias"]
    start = words[3].first
    expected = [
        float(sums[p - 1].log_softmax(-1)[tokens_of(made, 0)[p]]) for p in range(start, len(tokens_of(made, 0)))
    ]
    assert answer_scores(made, 0, start) == pytest.approx(expected)
    longer = with_words(objective, 0, {1: "catdog", 4: "dogs"})
    assert objective.batches.show(tokens_of(longer, 0).numpy()) == "the catdog sat the dogs"
    assert longer.inputs.shape[1] == objective.inputs.shape[1] + 3
    assert "cut into the longest tokens" in longer.caveats[-1] and "catdog" in longer.caveats[-2]
    gone = with_words(objective, 0, {1: "", 2: ""})
    assert objective.batches.show(tokens_of(gone, 0).numpy()) == "the the cat"
    assert gone.targets[0].tolist()[-2:] == [IGNORED] * 2 and gone.units == objective.units - 2


def test_spelling_is_that_of_the_tokenizer_for_words_it_knows(tmp_path: Path) -> None:
    objective = writer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for word in ("dog", "cat", "the"):
        made = with_words(objective, 0, {2: word})
        assert tokens_of(made, 0).tolist() == tokenizer.encode(f"the cat {word} the cat").ids


def test_characters_and_bytes_spell_every_word(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat sat at a tea")
    for tokenizer, size in (("characters", 6), ("bytes", 256)):
        data = read_batches(DataSpec((str(tmp_path / "a.txt"),), tokenizer=tokenizer))
        objective = Objective(Next(size), data, "causal_lm", dtype="float64", device="cpu")
        assert [each.text for each in text_of(objective, 0)[2]] == ["a", "cat", "sat", "at", "a", "tea"]
        made = with_words(objective, 0, {1: "teast"})
        assert data.show is not None and data.show(tokens_of(made, 0).numpy()) == "a teast sat at a tea"
        assert made.caveats == objective.caveats
    with pytest.raises(AttributionError, match="no token for 'dog'"):
        with_words(replace_data(objective, tmp_path), 0, {1: "dog"})


def replace_data(objective: Objective, path: Path) -> Objective:
    data = read_batches(DataSpec((str(path / "a.txt"),), tokenizer="characters"))
    return Objective(objective.module, data, "causal_lm", dtype="float64", device="cpu")


def test_a_whole_text_takes_the_place_of_another() -> None:
    objective = objective_of("gpt2")
    made = with_sequence(objective, 1, [3, 4, 5, 6, 7, 8, 9, 10, 11], counted_from=4)
    assert tokens_of(made, 1).tolist() == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert made.targets[1].tolist() == [IGNORED] * 3 + [7, 8, 9, 10, 11]
    assert made.inputs.shape == (5, 8)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda: with_mask(objective_of("tabular"), 0, [(0, 0, 1, 1)]), "Only images"),
        (lambda: with_mask(objective_of("cnn"), 0, [(0, 0, 13, 1)]), "not within the image of 12 x 12"),
        (lambda: with_mask(objective_of("cnn"), 0, [(3, 0, 3, 1)]), "is empty"),
        (lambda: with_mask(objective_of("cnn"), 9, [(0, 0, 1, 1)]), "no example 9"),
        (lambda: with_mask(objective_of("cnn"), 0, [(0, 0, 1, 1)], "grey"), "no baseline 'grey'"),
        (lambda: with_values(objective_of("cnn"), 0, {0: 1.0}), "Only rows of a table"),
        (lambda: with_tokens(objective_of("cnn"), 0, {0: 1}), "Only texts"),
        (lambda: with_tokens(objective_of("bert"), 0, {LENGTH: 1}), f"no token at place {LENGTH}"),
        (lambda: with_tokens(objective_of("bert"), 0, {0: VOCABULARY}), f"no token {VOCABULARY}"),
        (lambda: with_tokens(objective_of("bert"), 9, {0: 1}), "no example 9"),
        (lambda: with_words(objective_of("bert"), 0, {0: "a"}), "tokenizer of this data is not known"),
        (lambda: with_words(objective_of("gpt2"), 0, {0: "a"}), "tokenizer of this data is not known"),
        (lambda: with_words(objective_of("gpt2"), 0, {99: "a"}), "no word 99"),
        (lambda: with_words(objective_of("gpt2"), 0, {1: ""}), "are not its next tokens"),
        (lambda: with_sequence(objective_of("gpt2"), 0, [1]), "needs 2"),
        (lambda: with_sequence(objective_of("gpt2"), 0, [3] * 18), "takes 16 at most"),
        (lambda: with_sequence(objective_of("bert"), 0, [3, 4]), "Only examples of language models"),
    ],
)
def test_what_cannot_be_edited_is_refused_in_words(edit: Any, words: str) -> None:
    with pytest.raises(AttributionError, match=words):
        edit()


def test_an_edit_holds_at_other_checkpoints_and_in_other_types() -> None:
    objective = objective_of("cnn")
    made = with_mask(objective, 0, [(0, 0, 6, 6)])
    moved = made.moved([each + 1 for each in made.theta])
    assert torch.equal(moved.inputs, made.inputs)
    assert np.isclose(float(made.converted("float32").inputs[0, 0, 0, 0]), 0)
