"""References: what each is, which fit a case, and that a decoder is never compared with zero unless asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attribution_cases import IMAGES, LANGUAGE, NETS, case, objective_of

from probes.attribution import AttributionError, baselines, case_of, default_baseline
from probes.attribution.baselines import blur, fitting_baselines, token_id


@pytest.mark.parametrize("name", NETS)
def test_every_fitting_baseline_has_the_features_shape(name: str) -> None:
    found = case(name)
    assert default_baseline(found) in fitting_baselines(found)
    for each in fitting_baselines(found):
        made = baselines(found, each, count=2, seed=1)
        assert made.shape[1:] == found.features.shape[1:]
        assert made.dtype == found.features.dtype
        assert len(made) == (2 if each in ("random", "data") else 1)
        assert torch.equal(made, baselines(found, each, count=2, seed=1))
        assert bool(torch.isfinite(found.in_chunks(made)).all())
    assert torch.equal(baselines(found, "auto"), baselines(found, default_baseline(found)))


def test_defaults() -> None:
    expected = {**dict.fromkeys(IMAGES, "zero"), **dict.fromkeys(LANGUAGE, "mean embedding"), "bert": "pad",
                "tabular": "mean", "linear": "mean"}  # fmt: skip
    assert {name: default_baseline(case(name)) for name in NETS} == expected


def test_means_are_those_of_the_data() -> None:
    image, row = case("resnet20"), case("tabular")
    assert torch.allclose(baselines(image, "mean")[0, 1], image.objective.inputs[:, 1].mean().expand(16, 16))
    assert torch.allclose(baselines(row, "mean")[0], row.objective.inputs.mean(0))


@pytest.mark.parametrize("name", ["bert", "gpt2", "small gpt", "llama"])
def test_the_mean_embedding_is_the_mean_row_of_the_table(name: str) -> None:
    found = case(name)
    table = dict(found.module.named_parameters())[f"{found.embedding}.weight"].detach().double()
    assert torch.allclose(baselines(found, "mean embedding"), table.mean(0).expand_as(found.features), atol=1e-7)


def test_the_mean_embedding_follows_a_layer_that_scales() -> None:
    objective = objective_of("small gpt")
    handle = objective.module.transformer["wte"].register_forward_hook(lambda *args: 3 * args[-1])
    found = case_of(objective, 0)
    table = objective.module.transformer["wte"].weight.detach().double()
    assert torch.allclose(baselines(found, "mean embedding"), 3 * table.mean(0).expand_as(found.features), atol=1e-7)
    handle.remove()


def test_pad_keeps_special_tokens_and_positions() -> None:
    found = case("bert", 2)  # its last two tokens are padding, which is set apart
    assert found.special == (False,) * 5 + (True,) * 2
    made = baselines(found, "pad")
    table = found.module.bert.embeddings.word_embeddings.weight.detach().double()
    assert torch.allclose(made[0], table[0].expand(7, -1))
    kept = replace(found, special=(True, *found.special[1:]))
    assert torch.allclose(baselines(kept, "pad")[0, 0], found.features[0, 0])


def test_tokens_are_found_by_their_text() -> None:
    objective = objective_of("small gpt")
    names = {5: "[MASK]", 0: "<pad>", 7: "</s>"}
    shown = replace(objective.batches, show=lambda ids: names.get(int(ids[0]), f"t{ids[0]}"))
    objective.batches = shown
    objective.inputs[0, 2] = 7
    found = case_of(objective, 0)
    assert (token_id(found, "mask"), token_id(found, "pad"), token_id(found, "cls")) == (5, 0, None)
    assert found.names[2] == "</s>"
    assert found.special == tuple(each == 7 for each in objective.inputs[0].tolist())
    table = objective.module.transformer["wte"].weight.detach().double()
    assert torch.allclose(baselines(found, "mask")[0, 0], table[5])


def test_blur_is_a_gaussian_and_keeps_what_is_flat() -> None:
    flat = torch.full((1, 2, 9, 13), 0.7, dtype=torch.float64)
    assert torch.allclose(blur(flat, 1.3), flat)
    point = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    point[0, 0, 10, 10] = 1
    y, x = torch.meshgrid(torch.arange(21) - 10.0, torch.arange(21) - 10.0, indexing="ij")
    gaussian = torch.exp(-(x**2 + y**2).double() / (2 * 1.5**2))
    assert torch.allclose(blur(point, 1.5)[0, 0], gaussian / gaussian.sum(), atol=2e-4)


def test_data_are_other_examples() -> None:
    found = case("tabular", 3)
    others = baselines(found, "data", count=9, seed=4)
    assert len(others) == 5
    rows = {tuple(each.tolist()) for each in found.objective.inputs} - {tuple(found.raw[0].tolist())}
    assert {tuple(each.tolist()) for each in others} == rows


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [("cnn", "pad", "for text"), ("bert", "blur", "Only images"), ("gpt2", "pad", "not known"),
     ("cnn", "mean embedding", "for text"), ("cnn", "black", "no baseline 'black'")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_words(name: str, asked: str, words: str) -> None:
    with pytest.raises(AttributionError, match=words):
        baselines(case(name), asked)
