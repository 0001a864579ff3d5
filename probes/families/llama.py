"""Decoders with rotary positions: Llama (Touvron et al. 2023) and its kin, llama2.c, Phi, StarCoder 2, StableLM."""

from __future__ import annotations

from probes.families._layers import Family, Layout

_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_LLAMA = Layout(
    classes=r"\w+DecoderLayer",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.o_proj",
    up=("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj"),
    down="mlp.down_proj",
    stream=(*_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm"),
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    rotary=True,
)
_STARCODER = Layout(
    classes="Starcoder2DecoderLayer",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.o_proj",
    up=("mlp.c_fc",),
    down="mlp.c_proj",
    stream=_NORMS,
    rotary=True,
)
_PHI = Layout(
    classes="PhiDecoderLayer",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.dense",
    up=("mlp.fc1",),
    down="mlp.fc2",
    stream=_NORMS,
    query_norm="self_attn.q_layernorm",
    key_norm="self_attn.k_layernorm",
    rotary=True,
)
_PHI3 = Layout(
    classes=r"\w+DecoderLayer",
    attention="self_attn",
    query="self_attn.qkv_proj",
    fused="blocks",
    out="self_attn.o_proj",
    up=("mlp.gate_up_proj",),
    down="mlp.down_proj",
    stream=_NORMS,
    rotary=True,
)
_LLAMA2C = Layout(
    classes="Block|TransformerBlock",
    attention="attention",
    query="attention.wq",
    key="attention.wk",
    value="attention.wv",
    out="attention.wo",
    up=("feed_forward.w1", "feed_forward.w3"),
    down="feed_forward.w2",
    stream=("attention_norm", "ffn_norm"),
    rotary=True,
)
LLAMA = Family(
    title="Llama",
    layouts=(_LLAMA, _STARCODER, _PHI, _PHI3, _LLAMA2C),
    places={
        "embed_tokens": ("", "stream"),
        "tok_embeddings": ("", "stream"),
        "norm": ("", "stream"),
        "final_layernorm": ("", "stream"),
        "lm_head": ("stream", ""),
        "output": ("stream", ""),
        "score": ("stream", ""),
    },
    titles={"Phi3": "Phi-3", "Starcoder2": "StarCoder 2"},
)
