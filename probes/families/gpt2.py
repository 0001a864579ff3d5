"""GPT-2 (Radford et al. 2019) and what has its names: nanoGPT, minGPT."""

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
    ),
    places={
        "wte": ("", "stream"),
        "wpe": ("", "stream"),
        "ln_f": ("", "stream"),
        "lm_head": ("stream", ""),
        "score": ("stream", ""),
    },
    titles={"GPT2": "GPT-2"},
)
