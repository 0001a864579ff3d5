"""Vision transformers (Dosovitskiy et al. 2021) of transformers, timm and torchvision; DeiT, DINOv2, BEiT, CLIP's."""

from __future__ import annotations

from dataclasses import replace

from probes.families._layers import Family, Layout

_VIT = Layout(
    classes="(ViT|DeiT|Dinov2|Dinov2WithRegisters|Beit|ViTMSN)Layer",
    attention="attention",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    out="attention.o_proj",
    up=("mlp.fc1", "mlp.gate_proj", "mlp.up_proj"),
    down="mlp.fc2",
    stream=("layernorm_before", "layernorm_after", "norm1", "norm2", "layer_scale1", "layer_scale2",
            "lambda_1", "lambda_2"),
    by_head="relative_position_bias.relative_position_bias_table",
)  # fmt: skip
_CLIP = Layout(
    classes="(CLIP|Siglip|Siglip2)EncoderLayer",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.out_proj",
    up=("mlp.fc1",),
    down="mlp.fc2",
    stream=("layer_norm1", "layer_norm2"),
)
_TIMM = Layout(
    classes="Block|LayerScaleBlock|ResPostBlock",
    attention="attn",
    query="attn.qkv",
    fused="blocks",
    out="attn.proj",
    up=("mlp.fc1", "mlp.fc1_g", "mlp.fc1_x"),
    down="mlp.fc2",
    stream=("norm1", "norm2", "ls1", "ls2", "gamma_1", "gamma_2"),
    inner_norm="mlp.norm",
    query_norm="attn.q_norm",
    key_norm="attn.k_norm",
)
_TORCHVISION = Layout(
    classes="EncoderBlock",
    attention="self_attention",
    query="self_attention.out_proj",
    out="self_attention.out_proj",
    up=("mlp.0",),
    down="mlp.3",
    stream=("ln_1", "ln_2"),
)
_TOKENS = (
    "cls_token", "dist_token", "distillation_token", "mask_token", "register_tokens", "reg_token", "class_token",
    "class_embedding", "position_embeddings", "position_embedding", "pos_embed", "pos_embedding",
)  # fmt: skip
_NORMS = (
    "layernorm", "norm", "norm_pre", "fc_norm", "encoder.ln", "pre_layrnorm", "post_layernorm", "pooler.layernorm",
)  # fmt: skip
_PATCHES = ("patch_embeddings.projection", "patch_embed.proj", "conv_proj", "patch_embedding")
VIT = Family(
    title="ViT",
    layouts=(_VIT, replace(_VIT, down="mlp.down_proj"), _CLIP, _TIMM, _TORCHVISION),
    places={
        **dict.fromkeys((*_TOKENS, *_NORMS, *_PATCHES), ("", "stream")),
        "pooler.dense": ("stream", "pooler"),
        "heads.pre_logits": ("stream", "pooler"),
        "heads.head": ("pooler|stream", ""),
        "classifier": ("pooler|stream", ""),
        "cls_classifier": ("stream", ""),
        "distillation_classifier": ("stream", ""),
        "head": ("pooler|stream", ""),
        "head_dist": ("stream", ""),
    },
    titles={"": "ViT", "Encoder": "ViT", "CLIP": "CLIP", "Beit": "BEiT", "Dinov2": "DINOv2", "LayerScale": "ViT"},
)
