"""Tiny transformers with random weights and their examples, as objectives: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
import transformers
from curvature_oracles import batches
from torch import Tensor, nn

from probes.architecture.llama import SmallLlama
from probes.architecture.modules import SmallGPT
from probes.hugging_face import _as_logits
from probes.objective import Objective

_VOCABULARY, _LENGTH = 23, 7


def perturbed(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter, norms and biases with them, weights of its own; in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in module.parameters():
            if each.is_floating_point():
                each += (0.3 if each.dim() == 1 else 0.1) * torch.randn(each.shape, generator=generator)
    return module


def objective_of(name: str, dtype: str = "float64", seed: int = 0) -> Objective:
    """The objective of a tiny model of a family, at perturbed weights; names are those of NETS."""
    torch.manual_seed(seed)
    module = perturbed(NETS[name](), seed)
    # not Objective.of: a copy of transformers' model, made to return logits, still runs the one that it was copied from
    examples = _language() if name in LANGUAGE else _texts() if name in TEXTS else _pictures()
    return Objective(module, batches(*examples), "causal_lm" if name in LANGUAGE else "cross_entropy", dtype=dtype,
                        device="cpu")  # fmt: skip


def _language() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(1, _VOCABULARY, (5, _LENGTH))
    return tokens, tokens


def _texts() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(2, _VOCABULARY, (5, _LENGTH))
    tokens[2, 5:] = 0  # padding
    return tokens, torch.randint(3, (5,))


def _pictures() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 16, 16), torch.randint(3, (4,))


def _hub(kind: str, architecture: str, **settings: Any) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind, **settings)
    made = getattr(transformers, architecture)._from_config(
        config, attn_implementation=settings.get("attention", "sdpa")
    )
    return _as_logits(made)


_ENCODER = {
    "vocab_size": _VOCABULARY, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "max_position_embeddings": 16, "pad_token_id": 0, "num_labels": 3, "type_vocab_size": 2,
}  # fmt: skip
_DECODER = {
    "vocab_size": _VOCABULARY, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 16,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20, "image_size": 16,
    "patch_size": 8, "num_labels": 3,
}  # fmt: skip


def bert() -> nn.Module:
    """A BERT classifier: 2 layers of width 12, 3 heads, 20 inside."""
    return _hub("bert", "BertForSequenceClassification", **_ENCODER)


def gpt2(*, tied: bool = True) -> nn.Module:
    """A GPT-2 language model: 2 layers of width 12, 3 heads, 48 inside."""
    sizes = {"vocab_size": _VOCABULARY, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16}
    return _hub("gpt2", "GPT2LMHeadModel", tie_word_embeddings=tied, **sizes)


def llama(**more: Any) -> nn.Module:
    """A Llama: 2 layers of width 24, 6 query heads over 2 heads of keys and values, SwiGLU of 20, rotary positions."""
    return _hub("llama", "LlamaForCausalLM", **{**_DECODER, **more})


def vit() -> nn.Module:
    """A ViT classifier: 2 layers of width 12, 3 heads, 20 inside, 2 x 2 patches."""
    return _hub("vit", "ViTForImageClassification", **_VISION)


def small_gpt(**more: Any) -> nn.Module:
    """The app's own decoder with GPT-2's names."""
    return SmallGPT(_VOCABULARY, 16, 2, 3, 12, hidden=20, **more)


def small_llama() -> nn.Module:
    """The app's own decoder with the names of llama2.c: 4 query heads over 2."""
    return SmallLlama(_VOCABULARY, 16, 2, 4, 8, 16, 20)


class EncoderClassifier(nn.Module):
    """Token and position tables, torch's own encoder, a mean over tokens, a head with a hidden layer."""

    def __init__(self, *, norm_first: bool = False, hidden: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(_VOCABULARY, 12)
        self.positions = nn.Parameter(torch.randn(1, _LENGTH, 12))
        layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, norm_first=norm_first, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3)) if hidden else nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.tokens(x) + self.positions).mean(1))


def torch_encoder() -> nn.Module:
    """A classifier around torch's own TransformerEncoder: 2 layers of width 12, 3 heads, 20 inside."""
    return EncoderClassifier()


def timm_vit(**more: Any) -> nn.Module:
    """A ViT of timm: 2 layers of width 12, 3 heads, 24 inside."""
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "mlp_ratio": 2.0}
    return timm.models.vision_transformer.VisionTransformer(num_classes=3, **{**sizes, **more})


def torchvision_vit(**more: Any) -> nn.Module:
    """A ViT of torchvision: 2 layers of width 12, 3 heads, 20 inside."""
    return torchvision.models.VisionTransformer(16, 8, 2, 3, 12, 20, num_classes=3, **more)


def _small(kind: str, architecture: str, **more: Any) -> Callable[[], nn.Module]:
    return lambda: _hub(kind, architecture, **more)


_BLOOM = {"vocab_size": _VOCABULARY, "hidden_size": 12, "n_layer": 2, "n_head": 3}
_ELECTRA = {**_ENCODER, "embedding_size": 8}
_DISTIL = {"vocab_size": _VOCABULARY, "dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "num_labels": 3,
           "max_position_embeddings": 16, "pad_token_id": 0}  # fmt: skip
_OPT = {"vocab_size": _VOCABULARY, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "ffn_dim": 20,
        "max_position_embeddings": 16, "word_embed_proj_dim": 12}  # fmt: skip
_NEOX = {**{key: each for key, each in _ENCODER.items() if "label" not in key}, "hidden_size": 24,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}  # fmt: skip
_PHI = {**_DECODER, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}  # fmt: skip
_NEO = {"vocab_size": _VOCABULARY, "hidden_size": 12, "num_layers": 2, "num_heads": 3, "max_position_embeddings": 16,
        "attention_types": [[["global", "local"], 1]]}  # fmt: skip
_GPTJ = {"vocab_size": _VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 3, "rotary_dim": 4}
_MODERN = {key: each for key, each in _ENCODER.items() if key != "type_vocab_size"}

NETS: dict[str, Callable[[], nn.Module]] = {
    "bert": bert,
    "bert lm": _small("bert", "BertLMHeadModel", is_decoder=True, **_ENCODER),
    "roberta": _small("roberta", "RobertaForSequenceClassification", **{**_ENCODER, "max_position_embeddings": 20}),
    "electra": _small("electra", "ElectraForSequenceClassification", **_ELECTRA),
    "electra lm": _small("electra", "ElectraForCausalLM", is_decoder=True, **_ELECTRA),
    "albert": _small("albert", "AlbertForSequenceClassification", **_ELECTRA),
    "distilbert": _small("distilbert", "DistilBertForSequenceClassification", **_DISTIL),
    "gpt2": gpt2,
    "gpt2 untied": lambda: gpt2(tied=False),
    "small gpt": small_gpt,
    "small gpt transposed": lambda: small_gpt(transposed=True, tied=False, bias=False, mask=True),
    "llama": llama,
    "llama tied": lambda: llama(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama one head": lambda: llama(num_key_value_heads=1),
    "small llama": small_llama,
    "mistral": _small("mistral", "MistralForCausalLM", **_DECODER),
    "qwen2": _small("qwen2", "Qwen2ForCausalLM", **{k: v for k, v in _DECODER.items() if k != "head_dim"}),
    "qwen3": _small("qwen3", "Qwen3ForCausalLM", **_DECODER),
    "gemma2": _small("gemma2", "Gemma2ForCausalLM", attention="eager", **_DECODER),
    "olmo2": _small("olmo2", "Olmo2ForCausalLM", **_DECODER),
    "phi": _small("phi", "PhiForCausalLM", **_PHI),
    "phi3": _small("phi3", "Phi3ForCausalLM", **{**_DECODER, "pad_token_id": 0}),
    "starcoder2": _small("starcoder2", "Starcoder2ForCausalLM", **_DECODER),
    "gpt neox": _small("gpt_neox", "GPTNeoXForCausalLM", **_NEOX),
    "bloom": _small("bloom", "BloomForCausalLM", attention="eager", **_BLOOM),
    "glm": _small("glm", "GlmForCausalLM", **{**_DECODER, "pad_token_id": 0}),
    "gpt neo": _small("gpt_neo", "GPTNeoForCausalLM", attention="eager", **_NEO),
    "gpt j": _small("gptj", "GPTJForCausalLM", attention="eager", **_GPTJ),
    "modernbert": _small("modernbert", "ModernBertForSequenceClassification", **_MODERN),
    "opt": _small("opt", "OPTForCausalLM", **_OPT),
    "opt projected": _small("opt", "OPTForCausalLM", **{**_OPT, "word_embed_proj_dim": 8}),
    "vit": vit,
    "deit": _small("deit", "DeiTForImageClassification", **_VISION),
    "dinov2": _small("dinov2", "Dinov2ForImageClassification", layerscale_value=0.7, **_VISION),
    "dinov2 swiglu": _small("dinov2", "Dinov2ForImageClassification", use_swiglu_ffn=True, **_VISION),
    "beit": _small("beit", "BeitForImageClassification", use_relative_position_bias=True, attention="eager", **_VISION),
    "clip": _small("clip", "CLIPForImageClassification", vision_config=_VISION, num_labels=3),
    "timm vit": timm_vit,
    "timm vit scaled": lambda: timm_vit(init_values=0.5, reg_tokens=2, qkv_bias=False, global_pool="avg"),
    "timm vit normed": lambda: timm_vit(qk_norm=True),
    "torchvision vit": torchvision_vit,
    "torchvision vit hidden": lambda: torchvision_vit(representation_size=9),
    "torch encoder": torch_encoder,
    "torch encoder pre-norm": lambda: EncoderClassifier(norm_first=True, hidden=False),
}  # fmt: skip
LANGUAGE = {
    "bert lm", "electra lm", "gpt2", "gpt2 untied", "small gpt", "small gpt transposed", "llama", "llama tied",
    "llama one head", "small llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "phi", "phi3", "starcoder2",
    "gpt neox", "bloom", "opt", "opt projected", "glm", "gpt neo", "gpt j",
}  # fmt: skip
TEXTS = {"bert", "roberta", "electra", "albert", "distilbert", "modernbert", "torch encoder", "torch encoder pre-norm"}
