"""GPT-2 (Radford et al. 2019) and what has its names: nanoGPT, minGPT, GPT-Neo, GPT-J (with rotary positions)."""

from __future__ import annotations

from probes.families._layers import Family, Layout

GPT2 = Family(
    title="GPT-2",
    layouts=(
        Layout(
            classes="GPT2Block|Block",
            attention="attn",
            query="attn.c_attn",
            fused="blocks",
            out="attn.c_proj",
            up=("mlp.c_fc",),
            down="mlp.c_proj",
            stream=("ln_1", "ln_2"),
        ),
        Layout(
            classes="GPTNeoBlock",
            attention="attn.attention",
            query="attn.attention.q_proj",
            key="attn.attention.k_proj",
            value="attn.attention.v_proj",
            out="attn.attention.out_proj",
            up=("mlp.c_fc",),
            down="mlp.c_proj",
            stream=("ln_1", "ln_2"),
        ),
        Layout(
            classes="GPTJBlock",
            attention="attn",
            query="attn.q_proj",
            key="attn.k_proj",
            value="attn.v_proj",
            out="attn.out_proj",
            up=("mlp.fc_in",),
            down="mlp.fc_out",
            stream=("ln_1",),
            rotary=True,
        ),
    ),
    places={
        "wte": ("", "stream"),
        "wpe": ("", "stream"),
        "ln_f": ("", "stream"),
        "lm_head": ("stream", ""),
        "score": ("stream", ""),
    },
    titles={"GPT2": "GPT-2", "GPTNeo": "GPT-Neo", "GPTJ": "GPT-J"},
)
