"""CLIP of transformers as a function of images and captions: their embeddings, and the cosine of a pair.

Radford et al. 2021. The module keeps its parameters' names; its forward pass takes pixels (B, C, H, W) and token ids
(B, T) and returns cosines (B,), without the learned temperature, which is the same for all pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from probes.errors import DataError, ObjectiveError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLIP = "CLIPModel"
_OLD_EOS = 2  # in configurations of before mid-2023; such models take the largest id for the end


def as_scorer(model: PreTrainedModel) -> nn.Module:
    """Make a CLIPModel map images and captions to the cosines of pairs, in place."""
    kind = type(model)

    def forward(self: nn.Module, x: Tensor, captions: Tensor | None = None) -> Tensor:
        if captions is None:
            raise ObjectiveError(
                "A CLIP model has no outputs for an image alone: it scores an image together with a caption. Give "
                "images with captions, and the loss for them."
            )
        return (embedded_images(self, x) * embedded_captions(self, captions)).sum(-1)

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__, "scores": True})
    module: nn.Module = model.eval()
    return module


def is_scorer(module: nn.Module) -> bool:
    """Tell whether `as_scorer` made this module."""
    return type(module).__name__ == CLIP and getattr(module, "scores", False) is True


def embedded_images(module: Any, pixels: Tensor) -> Tensor:
    """Return unit vectors of images, (B, C, H, W) -> (B, D)."""
    pooled = module.vision_model(pixel_values=pixels).pooler_output
    return normalize(module.visual_projection(pooled), dim=-1)


def embedded_captions(module: Any, ids: Tensor) -> Tensor:
    """Return unit vectors of captions, (B, T) -> (B, D), read at the first end token; what follows it is not seen."""
    pooled = module.text_model(input_ids=ids).pooler_output
    return normalize(module.text_projection(pooled), dim=-1)


def ends_of(module: Any, ids: Tensor) -> Tensor:
    """Return where the model reads each caption: the place of its end token, (B, T) -> (B,)."""
    end = int(module.config.text_config.eos_token_id)
    return (ids if end == _OLD_EOS else (ids == end).long()).argmax(-1)


def as_captions(module: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return targets as captions that the model can read; raise DataError where they, or the images, do not fit."""
    text, vision = module.config.text_config, module.config.vision_config
    size = (vision.num_channels, vision.image_size, vision.image_size)
    if not inputs.is_floating_point() or tuple(inputs.shape[1:]) != size:
        raise DataError(
            f"The model takes images of {_by(size)}, the examples are {_by(inputs.shape[1:])}. Give images of that "
            "size, or the model's folder with its preprocessor_config.json, by which images with captions are resized."
        )
    if targets.is_floating_point() or targets.ndim != 2:
        raise DataError(
            f"The examples have no captions (their targets are {_by(targets.shape[1:])}). Give images with a "
            "captions.csv, or an .npz with images and input_ids."
        )
    if targets.shape[1] > text.max_position_embeddings:
        raise DataError(f"Captions have {targets.shape[1]} tokens, the model reads {text.max_position_embeddings}.")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= text.vocab_size:
        wrong = low if low < 0 else high
        raise DataError(f"A caption has the token {wrong}; the model knows 0 to {text.vocab_size - 1}. {_TOKENIZER}")
    _check_ends(module, targets)
    return targets


_TOKENIZER = "Use the tokenizer.json of the model's own folder."


def _check_ends(module: Any, ids: Tensor) -> None:
    end = int(module.config.text_config.eos_token_id)
    without = torch.zeros(len(ids), dtype=torch.bool) if end == _OLD_EOS else (ids != end).all(-1)
    early = ends_of(module, ids) == 0
    if bool((without | early).any()):
        row = int((without | early).nonzero()[0, 0])
        raise DataError(
            f"The caption of example {row} has no end token ({end}) behind its words, where the model reads it. "
            f"{_TOKENIZER}"
        )


def _by(shape: Any) -> str:
    return " x ".join(map(str, shape)) or "one number"
