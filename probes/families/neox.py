"""Decoders with interleaved queries, keys and values: GPT-NeoX (Black et al. 2022), BLOOM (with ALiBi); and OPT."""

from __future__ import annotations

from probes.families._layers import Family, Layout

_NEOX = Layout(
    classes="GPTNeoXLayer",
    attention="attention",
    query="attention.query_key_value",
    fused="interleaved",
    out="attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    stream=("input_layernorm", "post_attention_layernorm"),
    rotary=True,
)
_BLOOM = Layout(
    classes="BloomBlock",
    attention="self_attention",
    query="self_attention.query_key_value",
    fused="interleaved",
    out="self_attention.dense",
    up=("mlp.dense_h_to_4h",),
    down="mlp.dense_4h_to_h",
    stream=("input_layernorm", "post_attention_layernorm"),
    alibi=True,
)
_OPT = Layout(
    classes="OPTDecoderLayer",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.out_proj",
    up=("fc1",),
    down="fc2",
    stream=("self_attn_layer_norm", "final_layer_norm"),
)
_HEADS = {"lm_head": ("embedding|stream", ""), "score": ("embedding|stream", "")}
NEOX = Family(
    title="GPT-NeoX",
    layouts=(_NEOX, _BLOOM),
    places={
        "embed_in": ("", "stream"),
        "word_embeddings": ("", "stream"),
        "word_embeddings_layernorm": ("", "stream"),
        "final_layer_norm": ("", "stream"),
        "ln_f": ("", "stream"),
        **_HEADS,
    },
    titles={"GPTNeoX": "GPT-NeoX", "Bloom": "BLOOM"},
)
OPT = Family(
    title="OPT",
    layouts=(_OPT,),
    places={
        "decoder.project_in": ("embedding", "stream"),
        "decoder.project_out": ("stream", "embedding"),
        "decoder.embed_tokens": ("", "embedding|stream"),
        "decoder.embed_positions": ("", "stream"),
        "decoder.final_layer_norm": ("", "stream"),
        **_HEADS,
    },
    titles={},
)
