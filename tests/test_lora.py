"""Merged adapters are what peft's own merge gives, and every tensor of an adapter must find its base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from probes.checkpoint import Checkpoint, read_checkpoint
from probes.errors import ModelError
from probes.hugging_face import fit_names
from probes.lora import merge
from probes.models import load_model, recognise

pytestmark = pytest.mark.filterwarnings("ignore")  # peft warns of what it sets right, of old names, of ties


def small(kind: str) -> Any:
    """Make a tiny model; some layers are square, which hides how they are stored."""
    import transformers as hf

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
    if kind == "gpt2":
        config = hf.GPT2Config(
            n_layer=2, n_head=2, n_embd=8, vocab_size=13, n_positions=8, bos_token_id=1, eos_token_id=1
        )
        return hf.GPT2LMHeadModel(config).eval()
    if kind == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, vocab_size=13)).eval()
    if kind == "bert":
        config = hf.BertConfig(**sizes, vocab_size=13, max_position_embeddings=9, num_labels=3, pad_token_id=0)
        return hf.BertForSequenceClassification(config).eval()
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)).eval()


class Plain(nn.Module):
    """Convolutions, embeddings and odd and square layers, without transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.point = nn.Embedding(7, 3), nn.Conv2d(3, 4, (3, 2)), nn.Conv2d(4, 5, 1)
        self.line, self.square, self.last = nn.Conv1d(3, 4, 3), nn.Linear(5, 5), nn.Linear(5, 2)


def trained(model: nn.Module, config: LoraConfig) -> Any:
    """Give every adapted and saved tensor values that a training might."""
    wrapped = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, each in wrapped.named_parameters():
        if each.requires_grad and "magnitude" not in name:
            each.data = torch.randn_like(each) / 3
        elif each.requires_grad:
            each.data *= 1 + torch.rand_like(each)
    return wrapped


def both(base: nn.Module, config: LoraConfig, home: Path) -> tuple[Checkpoint, Checkpoint, dict[str, Tensor]]:
    """Save the base and the adapter as their libraries do; return them read, and what peft merges them to."""
    if hasattr(base, "save_pretrained"):
        base.save_pretrained(home / "base")
    else:
        home.mkdir(exist_ok=True)
        torch.save(base.state_dict(), home / "base")
    wrapped = trained(base, config)
    wrapped.save_pretrained(home / "adapter")
    read = read_checkpoint(home / "base")
    read = fit_names(read, home / "base") if (home / "base").is_dir() else read
    return read, read_checkpoint(home / "adapter"), wrapped.merge_and_unload().state_dict()


def check(base: nn.Module, config: LoraConfig, home: Path) -> None:
    checkpoint, adapter, expected = both(base, config, home)
    found = merge(checkpoint, adapter).load()
    assert found.keys() == checkpoint.tensors.keys()
    before = checkpoint.load()
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
        assert tensor.dtype == before[name].dtype
    assert any(not torch.equal(found[name], before[name]) for name in found)


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("gpt2", ["c_attn", "c_proj", "c_fc"]),
        ("gpt2", ["attn.c_proj"]),  # square alone: only the model's class tells that it is stored transposed
        ("gpt2", ["attn.c_proj", "lm_head"]),  # peft writes fan_in_fan_out: false, for the last one's sake
        ("gpt2", ["wte", "c_attn"]),
        ("llama", ["q_proj", "v_proj", "down_proj", "embed_tokens"]),
        ("bert", ["query", "dense"]),
        ("vit", "all-linear"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_merged_weights_are_those_of_peft(kind: str, targets: Any, more: Any, tmp_path: Path) -> None:
    check(small(kind), LoraConfig(r=3, lora_alpha=5, target_modules=targets, **more), tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"bias": "all", "modules_to_save": ["lm_head", "ln_f"]},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"rank_pattern": {"0.attn.c_attn": 5}, "alpha_pattern": {"0.attn.c_attn": 7, "^transformer.h.1.mlp.c_fc": 2}},
        {"layers_to_transform": [1]},
    ],
)
def test_saved_modules_biases_and_patterns_are_those_of_peft(more: Any, tmp_path: Path) -> None:
    model = small("gpt2")
    if "modules_to_save" in more:  # a head of its own; tied heads are the next test
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(torch.randn(13, 8))
    check(model, LoraConfig(r=2, target_modules=["c_attn", "c_fc"], **more), tmp_path)


@pytest.mark.parametrize("more", [{}, {"use_dora": True}, {"use_rslora": True, "modules_to_save": ["last"]}])
def test_convolutions_and_plain_modules_are_merged_as_peft_does(more: Any, tmp_path: Path) -> None:
    targets = ["conv", "point", "line", "square", "embed"]
    check(Plain(), LoraConfig(r=2, target_modules=targets, **more), tmp_path / "x")


def test_tied_embeddings_change_together(tmp_path: Path) -> None:
    base, adapter, expected = both(small("gpt2"), LoraConfig(r=2, target_modules=["lm_head"]), tmp_path)
    assert "lm_head.weight" not in base.tensors
    merged = merge(base, adapter)
    module = load_model(recognise(base).spec, merged)
    assert torch.allclose(module.state_dict()["lm_head.weight"], expected["lm_head.weight"], atol=1e-6)
    assert torch.allclose(module.state_dict()["transformer.wte.weight"], expected["transformer.wte.weight"], atol=1e-6)


def test_how_square_layers_lie_is_told_by_the_base_or_not_at_all(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["attn.c_proj", "lm_head"])
    base, adapter, expected = both(small("gpt2"), config, tmp_path)
    bare = replace(base, facts={key: each for key, each in base.facts.items() if key != "hugging_face"})
    name = "transformer.h.1.attn.c_proj.weight"
    assert torch.allclose(merge(bare, adapter).load()[name], expected[name], atol=1e-6)
    without = {key: info for key, info in base.tensors.items() if not key.endswith("bias")}
    contrary = rewrite(tmp_path, fan_in_fan_out=True)  # while lm_head is not transposed
    with pytest.raises(ModelError, match="cannot be told"):
        merge(replace(bare, tensors=without), contrary)


def test_half_precision_keeps_its_type_and_is_as_near_as_it_can_be(tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    base, adapter, _ = both(small("llama").to(torch.bfloat16), config, tmp_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    held, before = adapter.load(), base.load()[name]
    a, b = (held[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight"].double() for part in "AB")
    exact = before.double() + 4 * (b @ a)  # alpha / r = 8 / 2
    found = merge(base, adapter).load()[name]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.float().to(torch.bfloat16))


def test_the_merged_checkpoint_has_a_name_and_a_hash_of_its_own(tmp_path: Path) -> None:
    base, adapter, _ = both(small("gpt2"), LoraConfig(r=2, target_modules=["c_attn"]), tmp_path)
    merged = merge(base, adapter)
    assert merged.name == "base + adapter"
    assert len({merged.sha256, base.sha256, adapter.sha256}) == 3
    assert merged.sha256 == merge(base, adapter).sha256
    assert "lora" not in merged.facts
    assert recognise(merged).spec is not None
    assert json.dumps(merged.describe())


# What is refused


def rewrite(home: Path, **changes: Any) -> Checkpoint:
    path = home / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return read_checkpoint(home / "adapter")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "kind IA3"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": "8"}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+": 3}}, "alpha_pattern"),
        ({"alpha_pattern": {"c_attn": "3"}}, "alpha_pattern"),
        ({"use_dora": True}, "magnitudes"),
    ],
)
def test_what_would_be_merged_wrongly_is_refused(changes: Any, words: str, tmp_path: Path) -> None:
    base, _, _ = both(small("gpt2"), LoraConfig(r=2, target_modules=["c_attn"]), tmp_path)
    with pytest.raises(ModelError, match=words):
        merge(base, rewrite(tmp_path, **changes))


def test_every_tensor_must_find_its_base(tmp_path: Path) -> None:
    base, adapter, _ = both(small("gpt2"), LoraConfig(r=2, target_modules=["c_attn"]), tmp_path)
    other = small("bert")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"c_attn\.weight, which other does not have"):
        merge(read_checkpoint(tmp_path / "other"), adapter)
    with pytest.raises(ModelError, match="adapter itself"):
        merge(adapter, adapter)
    with pytest.raises(ModelError, match="Bring the folder"):
        merge(base, replace(adapter, facts={}))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_"
    for change, words in (
        ({f"{name}B.weight": None}, "has no lora_B"),
        ({f"{name}A.weight": torch.ones(2, 9)}, "does not fit"),
        ({f"{name}A.weight": torch.ones(0, 8), f"{name}B.weight": torch.ones(24, 0)}, "does not fit"),
        ({"base_model.model.score.weight": torch.ones(2)}, "score.weight, which base does not have"),
        ({"base_model.model.transformer.ln_f.weight": torch.ones(9)}, "does not fit"),
        ({"unet.down.lora.up.weight": torch.ones(9)}, "which base does not have"),
    ):
        changed = {key: each for key, each in {**tensors, **change}.items() if each is not None}
        save_file(changed, tmp_path / "adapter" / "adapter_model.safetensors")
        with pytest.raises(ModelError, match=words):
            merge(base, read_checkpoint(tmp_path / "adapter"))
