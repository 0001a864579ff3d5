"""Small language models by their names; independent implementations and transformers are the oracles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import IndependentGPT, same, saved
from safetensors.torch import save_file
from torch import nn

from probes.architecture.modules import SmallGPT
from probes.checkpoint import read_checkpoint
from probes.errors import ModelError
from probes.models import build, load_model, recognise
from probes.specs import ModelSpec


@pytest.mark.parametrize("bias", [True, False])
def test_a_nano_gpt_is_recognised_and_gives_the_logits_of_an_independent_one(bias: bool, tmp_path: Path) -> None:
    module = IndependentGPT(11, 8, 2, 4, 16, bias)
    checkpoint = saved(module, tmp_path, model_args={"n_head": 4, "n_layer": 2})
    same(module, checkpoint, torch.randint(11, (2, 6)))
    found = recognise(checkpoint)
    assert found.spec.arguments["tied"] is True
    assert "heads" not in found.choices
    assert checkpoint.parameters == sum(each.numel() for each in build(found.spec).parameters())


def test_heads_are_a_choice_where_the_file_does_not_say(tmp_path: Path) -> None:
    module = IndependentGPT(11, 8, 1, 2, 16, True)
    checkpoint = saved(module, tmp_path)
    found = recognise(checkpoint)
    assert {1, 2, 4, 8, 16} == set(found.choices["heads"])
    chosen = ModelSpec("catalogue", "small_gpt", {**found.spec.arguments, "heads": 2})
    tokens = torch.randint(11, (2, 8))
    assert torch.allclose(load_model(chosen, checkpoint)(tokens), module(tokens), atol=1e-6)


def test_a_tied_head_may_be_missing_from_the_file_but_not_differ(tmp_path: Path) -> None:
    module = SmallGPT(11, 8, 1, 2, 16)
    tensors = {name: each.clone() for name, each in module.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    spec = ModelSpec("catalogue", "small_gpt", {**recognise(checkpoint).spec.arguments, "heads": 2})
    assert spec.arguments["tied"] is True
    tokens = torch.randint(11, (2, 8))
    assert torch.allclose(load_model(spec, checkpoint)(tokens), module.eval()(tokens))
    save_file({**tensors, "lm_head.weight": torch.randn(11, 16)}, tmp_path / "y")
    other = read_checkpoint(tmp_path / "y")
    assert recognise(other).spec.arguments["tied"] is False
    with pytest.raises(ModelError, match="ties them"):
        load_model(spec, other)


def test_a_min_gpt_is_told_from_a_nano_gpt_by_its_masks_and_its_own_head(tmp_path: Path) -> None:
    module = SmallGPT(11, 8, 1, 2, 16, tied=False, activation="gelu_tanh", mask=True)
    found = recognise(saved(module, tmp_path))
    assert found.spec.arguments["activation"] == "gelu_tanh"
    assert "minGPT" in found.reasons[0]
    assert recognise(saved(SmallGPT(11, 8, 1, 2, 16, mask=True), tmp_path)).spec.arguments["activation"] == "gelu"


# llama2.c


def llama(kv_heads: int, tied: bool, theta: float = 10_000.0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return transformers' own Llama, and its weights under the names and in the order of channels of llama2.c."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=13, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, rms_norm_eps=1e-5, max_position_embeddings=16, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": theta}, attn_implementation="eager",
    )  # fmt: skip
    module = LlamaForCausalLM(config).eval()
    for tensor in module.state_dict().values():
        tensor.normal_(0.5, 0.3) if tensor.ndim == 1 else tensor.normal_(0, 0.3)
    held = module.state_dict()
    names = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
             "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "self_attn.v_proj": "attention.wv",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    tensors = {"tok_embeddings.weight": held["model.embed_tokens.weight"], "norm.weight": held["model.norm.weight"]}
    for layer in range(2):
        for theirs, ours in names.items():
            tensors[f"layers.{layer}.{ours}.weight"] = held[f"model.layers.{layer}.{theirs}.weight"]
        for letter, heads in (("q", 4), ("k", kv_heads)):
            weight = held[f"model.layers.{layer}.self_attn.{letter}_proj.weight"]
            pairs = weight.view(heads, 2, 4, 32).transpose(1, 2).reshape(weight.shape)  # halves -> neighbours
            tensors[f"layers.{layer}.attention.w{letter}.weight"] = pairs.contiguous()
    if not tied:
        tensors["output.weight"] = held["lm_head.weight"]
    return module, {name: each.clone() for name, each in tensors.items()}


def logits(module: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    found = module(tokens)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_gives_the_logits_of_transformers(kv_heads: int, tied: bool, tmp_path: Path) -> None:
    module, tensors = llama(kv_heads, tied)
    said = {"dim": 32, "n_heads": 4, "n_kv_heads": kv_heads, "max_seq_len": 16, "norm_eps": 1e-5, "multiple_of": 8}
    compiled = {f"_orig_mod.{key}": each for key, each in tensors.items()}
    torch.save({"model": compiled, "model_args": said}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    found = recognise(checkpoint)
    tokens = torch.randint(13, (3, 16))
    with torch.no_grad():
        assert torch.allclose(load_model(found.spec, checkpoint)(tokens), logits(module, tokens), atol=2e-5)
    wanted = {"vocabulary": 13, "context": 16, "layers": 2, "heads": 4, "kv_width": 8 * kv_heads, "hidden": 40}
    assert {key: found.spec.arguments[key] for key in wanted} == wanted
    assert found.spec.arguments["tied"] is tied
    assert found.title.startswith(f"Small Llama, 2 layers, 4 heads{'' if kv_heads == 4 else f' ({kv_heads} for'}")
    assert "heads" not in found.choices


def test_other_angles_and_norms_are_taken_from_the_file(tmp_path: Path) -> None:
    module, tensors = llama(2, True, theta=500.0)
    torch.save({"model": tensors, "model_args": {"n_heads": 4, "rope_theta": 500.0, "norm_eps": 0.1}}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    spec = recognise(checkpoint).spec
    tokens = torch.randint(13, (1, 9))
    plain = ModelSpec("catalogue", spec.name, {**spec.arguments, "norm_eps": 1e-5})
    with torch.no_grad():
        assert torch.allclose(load_model(plain, checkpoint)(tokens), logits(module, tokens), atol=2e-5)
        assert not torch.allclose(load_model(spec, checkpoint)(tokens), logits(module, tokens), atol=1e-2)
    assert spec.arguments["context"] == 2048


@pytest.mark.parametrize("table", ["freqs_cos", "rope.freqs"])
def test_tables_of_angles_that_older_files_keep_show_the_heads(table: str, tmp_path: Path) -> None:
    module, tensors = llama(2, False)
    frequencies = 10_000.0 ** -(torch.arange(4) / 4)
    angles = torch.outer(torch.arange(16.0), frequencies)
    kept = {"freqs_cos": angles.cos(), "freqs_sin": angles.sin()} if table == "freqs_cos" else {table: frequencies}
    torch.save({**tensors, **kept}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    found = recognise(checkpoint)
    assert (found.spec.arguments["heads"], found.spec.arguments["kv_width"]) == (4, 16)
    tokens = torch.randint(13, (2, 7))
    with torch.no_grad():
        assert torch.allclose(load_model(found.spec, checkpoint)(tokens), logits(module, tokens), atol=2e-5)


def test_heads_of_a_llama_are_a_choice_where_nothing_shows_them(tmp_path: Path) -> None:
    module, tensors = llama(2, True)
    torch.save(tensors, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    found = recognise(checkpoint)
    assert 4 in found.choices["heads"]
    assert all(32 % heads == 0 and 16 % (32 // heads) == 0 for heads in found.choices["heads"])  # 16: width of the keys
    arguments = {**found.spec.arguments, "heads": 4}
    tokens = torch.randint(13, (2, 7))
    with torch.no_grad():
        chosen = load_model(ModelSpec("catalogue", "small_llama", arguments), checkpoint)
        assert torch.allclose(chosen(tokens), logits(module, tokens), atol=2e-5)


def test_a_llama_has_second_derivatives_and_refuses_sequences_beyond_its_context() -> None:
    from probes.strict import strict

    sizes = {"vocabulary": 7, "context": 5, "layers": 1, "heads": 2, "kv_width": 4, "width": 8, "hidden": 6}
    module = build(ModelSpec("catalogue", "small_llama", sizes)).double()
    weight = module.layers[0].attention.wq.weight
    with strict(module):
        loss = module(torch.randint(7, (2, 5))).square().mean()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), weight)
    assert second.abs().sum() > 0
    with pytest.raises(ValueError, match="context is 5"):
        module(torch.zeros(1, 6, dtype=torch.int64))


@pytest.mark.parametrize("sizes", [{"heads": 3}, {"heads": 4, "kv_width": 3}, {"theta": -1.0}, {"norm_eps": 1e300}])
def test_absurd_llamas_are_refused(sizes: dict[str, float]) -> None:
    usual = {"vocabulary": 7, "context": 5, "layers": 1, "heads": 2, "kv_width": 4, "width": 8, "hidden": 6}
    with pytest.raises(ModelError):
        build(ModelSpec("catalogue", "small_llama", {**usual, **sizes}))
