"""Attention is captured as the models compute it, rolled out as NumPy does, and never called an attribution."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from attention_cases import family
from attribution_cases import IMAGES, NETS, TABLES, case
from family_nets import LANGUAGE, TEXTS
from torch import nn
from torch.nn import functional

from probes.architecture.llama import rotate
from probes.attribution import AttributionError, attribute, case_of
from probes.attribution import attention_maps as watching
from probes.attribution.attention import relevance, rollout
from probes.attribution.attention_maps import attentions_of, probabilities
from probes.attribution.methods import methods

ATTENTION = ("attention_rollout", "gradient_x_attention")


HUB = ["vit", "deit", "clip", "bert", "roberta", "distilbert", "gpt2", "llama", "mistral", "qwen3", "gemma2", "bloom",
       "gpt j"]  # fmt: skip


def in_double(one):
    """A copy of the model with the objective's theta."""
    module = copy.deepcopy(one.module).double()
    with torch.no_grad():
        for name, value in zip(one.objective.names, one.objective.theta, strict=True):
            module.get_parameter(name).copy_(value)
    return module


def by_transformers(one):
    """The maps that transformers returns when it is asked for them, its attention switched to eager; with the score."""
    module = in_double(one)
    module.set_attn_implementation("eager")
    original = type(module).__mro__[1]
    more = {}
    if one.kind == "text":
        more["attention_mask"] = (one.raw != module.config.pad_token_id).long()
    module.requires_grad_()
    found = original.forward(module, **{original.main_input_name: one.raw}, output_attentions=True, return_dict=True,
                             **more)  # fmt: skip
    logits = found.logits[:, -1].log_softmax(-1) if one.kind == "language_model" else found.logits
    return found.attentions, logits[0, one.target.index]


@pytest.mark.parametrize("name", HUB)
@pytest.mark.parametrize("row", [0, 2])
def test_captured_maps_and_their_slopes_are_those_of_transformers(name, row):
    one = family(name, row)
    found = attentions_of(one)
    maps, score = by_transformers(one)
    slopes = torch.autograd.grad(score, maps)
    assert len(found.maps) == len(maps) == 2
    for mine, known, slope, expected in zip(found.maps, maps, found.slopes, slopes, strict=True):
        torch.testing.assert_close(mine.double(), known[0].detach().double(), rtol=0, atol=1e-6)
        torch.testing.assert_close(slope.double(), expected[0].double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mine.sum(-1), torch.ones_like(mine.sum(-1)), rtol=0, atol=1e-6)


def kept_inputs(one, ending: str):
    kept = []
    layers = [each for name, each in one.module.named_modules() if name.endswith(ending)]
    handles = [each.register_forward_hook(lambda _, args, output: kept.append((args, output))) for each in layers]
    with torch.no_grad():
        one.scores(one.features)
    for each in handles:
        each.remove()
    return kept


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def test_own_decoder_with_gpts_names_by_hand():
    one = case("small gpt")
    for mine, (_, output) in zip(attentions_of(one).maps, kept_inputs(one, "c_attn"), strict=True):
        q, k, _ = (part.reshape(7, 3, 4).transpose(1, 0, 2) for part in np.split(output[0].numpy(), 3, -1))
        logits = q @ k.transpose(0, 2, 1) / 2
        logits[:, ~np.tri(7, dtype=bool)] = -np.inf
        np.testing.assert_allclose(mine, softmax(logits), atol=1e-12)


def test_own_decoder_with_llamas_names_by_hand():
    one = case("small llama")
    queries, keys = kept_inputs(one, "wq"), kept_inputs(one, "wk")
    cos, sin = (table[:7].double() for table in (one.module.freqs_cos, one.module.freqs_sin))
    for mine, (_, query), (_, key) in zip(attentions_of(one).maps, queries, keys, strict=True):
        q = rotate(query.view(1, 7, 4, -1), cos, sin)[0].numpy().transpose(1, 0, 2)
        k = rotate(key.view(1, 7, 2, -1), cos, sin)[0].numpy().transpose(1, 0, 2).repeat(2, 0)
        logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        logits[:, ~np.tri(7, dtype=bool)] = -np.inf
        np.testing.assert_allclose(mine, softmax(logits), atol=1e-6)


@pytest.mark.parametrize("name", ["torchvision vit", "torch encoder", "torch encoder pre-norm"])
def test_torchs_multi_head_attention(name):
    one = family(name)
    found = attentions_of(one)
    module = in_double(one).eval()
    kept = []
    for each in module.modules():
        if isinstance(each, nn.MultiheadAttention):
            each.register_forward_pre_hook(lambda layer, args: kept.append((layer, args[0])))
    module(one.raw.requires_grad_() if one.raw.is_floating_point() else one.raw)
    assert len(kept) == len(found.maps) == 2
    with torch.no_grad():
        for mine, (layer, x) in zip(found.maps, list(kept), strict=True):
            known = layer.forward(x, x, x, need_weights=True, average_attn_weights=False)[1]
            torch.testing.assert_close(mine, known[0], rtol=0, atol=1e-10)


def test_slopes_of_torchs_multi_head_attention_are_finite_differences(monkeypatch):
    one = family("torchvision vit")
    found = attentions_of(one)
    mixed = watching._mixed

    def score(nudge):
        blocks = []

        def nudged(given, weights):
            blocks.append(weights)
            return mixed(given, weights + nudge if len(blocks) == 1 else weights)

        monkeypatch.setattr(watching, "_mixed", nudged)
        with torch.no_grad(), watching._Watch():
            return float(one.scores(one.features)[0])

    for h, i, j in ((0, 0, 0), (1, 2, 3), (2, 4, 0)):
        nudge = torch.zeros(1, 3, 5, 5, dtype=torch.float64)
        nudge[0, h, i, j] = 1e-5
        assert (score(nudge) - score(-nudge)) / 2e-5 == pytest.approx(
            float(found.slopes[0][h, i, j]), rel=1e-5, abs=1e-9
        )


def test_timms_attention_fused_and_not():
    one = family("timm vit")
    fused = attentions_of(one)
    for each in one.module.modules():
        if hasattr(each, "fused_attn"):
            each.fused_attn = False
    apart = attentions_of(case_of(one.objective, 0, one.target))
    for mine, other, (_, known) in zip(fused.maps, apart.maps, kept_inputs(one, "attn_drop"), strict=True):
        torch.testing.assert_close(mine, known[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(other, known[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "added", "nowhere"])
def test_probabilities_mix_values_as_torch_does(mask):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64) for _ in range(3))
    masks = {
        "bool": (torch.rand(5, 5) > 0.3) | torch.eye(5, dtype=torch.bool),
        "added": torch.randn(5, 5, dtype=torch.float64),
        "nowhere": (torch.arange(5)[:, None] > 1).expand(5, 5),
    }
    given = {"mask": masks.get(mask), "is_causal": mask == "causal"}
    known = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=masks.get(mask), is_causal=mask == "causal", scale=0.3
    )
    torch.testing.assert_close(probabilities(q, k, scale=0.3, **given) @ v, known)


def test_rollout_is_the_product_of_numpy():
    one = case("vit")
    maps = attentions_of(one).maps
    product = np.eye(5)
    for each in maps:
        product = (0.5 * each.double().numpy().mean(0) + 0.5 * np.eye(5)) @ product
    np.testing.assert_allclose(rollout(maps), product, atol=1e-12)
    np.testing.assert_allclose(product.sum(1), 1, atol=1e-6)
    shown = attribute(one, "attention_rollout")
    cells = functional.interpolate(torch.from_numpy(product[0, 1:].reshape(1, 1, 2, 2)), (16, 16), mode="bilinear")[0]
    np.testing.assert_allclose(shown.values, cells, atol=1e-12)
    assert shown.about["prefix_share"] == pytest.approx(product[0, 0])


def test_gradient_x_attention_is_the_recursion_of_numpy():
    one = case("bert", 2)
    found = attentions_of(one)
    R = np.eye(7)
    for A, G in zip(found.maps, found.slopes, strict=True):
        R = R + np.maximum(A.double().numpy() * G.double().numpy(), 0).mean(0) @ R
    np.testing.assert_allclose(relevance(found), R - np.eye(7), atol=1e-12)
    shown = attribute(one, "gradient_x_attention")
    np.testing.assert_allclose(shown.values, (R - np.eye(7))[0], atol=1e-12)
    assert (shown.values >= 0).all()
    np.testing.assert_allclose(shown.values[5:], 0, atol=1e-12)  # padding is not looked at
    assert not np.allclose(shown.values, attribute(case("bert", 2, None), "attention_rollout").values)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", ATTENTION)
def test_every_net_runs_or_refuses_in_words(name, method):
    one = case(name)
    if name in TABLES or (name in IMAGES and name != "vit"):
        with pytest.raises(AttributionError, match="choose integrated_gradients"):
            attribute(one, method)
        return
    found = attribute(one, method)
    assert found.badge.verdict == "ok" and not found.signed
    assert found.values.shape == ((1, 16, 16) if name == "vit" else one.shape)


@pytest.mark.parametrize("name", sorted((LANGUAGE | TEXTS) - set(NETS)))
def test_every_family_of_text_runs(name):
    found = attribute(family(name), "attention_rollout")
    assert found.badge.verdict == "ok"
    assert found.values.sum() == pytest.approx(1, abs=1e-5)


def test_it_is_presented_as_attention_and_not_as_attribution():
    shown = attribute(case("bert"), "attention_rollout")
    assert "not attribution" in methods()["attention_rollout"].title
    assert any("attention, not attribution" in note for note in shown.notes)
    assert any("same for every target" in note for note in shown.notes)
    assert shown.completeness_error is None


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "llama", "torchvision vit"])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_leaks(name, fails, monkeypatch):
    one = family(name)
    before = one.outputs(one.features)
    config = getattr(one.module, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    grads = [each.requires_grad for each in one.module.parameters()]
    if fails:
        monkeypatch.setattr(watching._Watch, "_scaled", _stop)
        monkeypatch.setattr(watching._Watch, "_multi_head", _stop)
        with pytest.raises(RuntimeError, match="stop"):
            attribute(one, "attention_rollout")
    else:
        attribute(one, "gradient_x_attention")
    assert torch._C._len_torch_function_stack() == 0
    assert getattr(config, "_attn_implementation", None) == implementation
    assert [each.requires_grad for each in one.module.parameters()] == grads
    assert not any(each.training or each._forward_hooks or each._forward_pre_hooks for each in one.module.modules())
    torch.testing.assert_close(one.outputs(one.features), before, rtol=0, atol=0)


def _stop(*_, **__):
    raise RuntimeError("stop")
