"""Families whose units cannot be exchanged by the rules here: each is refused in words."""

from __future__ import annotations

import re

from torch import nn

from probes.errors import ModelError
from probes.families._draft import WAY_OUT

_REASONS = {
    r"(\w*T5|MT5)Block": (
        "T5", "all its layers share one table of relative positions, with a column for each head",
    ),
    r"SwinLayer|Swinv2Layer|SwinTransformerBlock\w*|SwinTransformerV2Block": (
        "Swin", "its stages merge neighbouring patches into new channels and add position tables for each head",
    ),
    r"Deberta(V2)?Layer": (
        "DeBERTa", "queries and keys are also compared with tables of relative positions",
    ),
    r"MPNetLayer": ("MPNet", "all its layers share one table of relative positions, with a column for each head"),
    r"XLNetLayer": ("XLNet", "queries are also compared with tables of relative positions"),
    r"\w*(Experts|SparseMoeBlock|MoEMLP|MoE)": (
        "Mixture of experts", "its experts may change places only together with the rows of their router",
    ),
    r"TransformerDecoderLayer": (
        "torch's TransformerDecoder", "its attention joins two streams",
    ),
}  # fmt: skip


def refuse(module: nn.Module) -> None:
    """Raise ModelError where a module has layers of a family that is known and not supported."""
    for layer in module.modules():
        for pattern, (title, reason) in _REASONS.items():
            if re.fullmatch(pattern, type(layer).__name__):
                raise ModelError(f"{title}: its units cannot be matched here, because {reason}. {WAY_OUT}")
