"""Which words of a caption speak against its image? From the attention of CLIP's text tower.

Nam et al. 2025, "Extract Free Dense Misalignment from CLIP": with s the cosine of image and caption and A the attention
of a block, R = the mean over the last blocks of the mean over heads of (ds/dA * A). A token's score is R[end, token], a
word's the mean of its tokens', and below zero the word lowers the cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from probes.attribution.errors import AttributionError
from probes.clip import embedded_captions, embedded_images, ends_of, is_scorer
from probes.dataset.captions import from_ids
from probes.dataset.examples import Caption, Word
from probes.objective import Objective
from probes.strict import strict

Array = np.ndarray[Any, Any]
Said = Callable[[float, str], None]
BLOCKS, THRESHOLD = 3, -5e-5  # of the paper, and of its authors' demonstration
CHUNK = 64


@dataclass(frozen=True)
class Relevance:
    """Cosines (B,), and what each token adds to them at the end token, (B, T)."""

    cosines: Array
    tokens: Array


@dataclass(frozen=True)
class Scores:
    """Of some pairs: cosines (B,), and the scores of the words of each caption."""

    cosines: Array
    words: tuple[Array, ...]

    @property
    def f_clip(self) -> Array:
        """Cosine and all scores below zero, added up, (B,): F-CLIPScore."""
        below: Array = np.array([each[each < 0].sum() for each in self.words], np.float64)
        total: Array = self.cosines + below
        return total


def captions_of(objective: Objective) -> tuple[Caption, ...]:
    """Return the captions of the objective's pairs; raise AttributionError where these are no pairs."""
    if objective.loss != "caption_distance" or not is_scorer(objective.module):
        raise AttributionError(
            "This needs a CLIP model and images with captions. Choose the Hugging Face folder of a CLIP model, data "
            "with a captions.csv, and the loss “Image and caption”."
        )
    return objective.batches.captions or from_ids(objective.targets.cpu().numpy(), str)


def image_vectors(objective: Objective, said: Said | None = None) -> Tensor:
    """Return the unit vectors of all images, (N, D), on the objective's device."""

    def work() -> Tensor:
        found = []
        with torch.no_grad(), strict(objective.module):
            for part in objective.parts():
                pixels = objective.inputs[part].to(objective.device)
                found.append(run(objective, embedded_images, pixels))
                if said is not None:
                    said(part.stop / len(objective.inputs), "looking at the images")
        return torch.cat(found)

    return objective.in_memory(work)


def relevance(objective: Objective, vectors: Tensor, ids: Tensor, blocks: int = BLOCKS) -> Relevance:
    """Return cosines and token scores of images (B, D) and captions (B, T), with plain attention meanwhile.

    Raises AttributionError where the text tower has fewer blocks or returns no attention.
    """
    ids = ids.to(objective.device)
    with strict(objective.module), torch.enable_grad(), _attention(objective.module, blocks) as maps:
        captions = run(objective, embedded_captions, ids)
        cosines = (vectors * captions).sum(-1)
        if len(maps) != blocks:
            raise AttributionError(f"The text tower gave the attention of {len(maps)} of {blocks} blocks.")
        slopes = torch.autograd.grad(cosines.sum(), maps)
    with torch.no_grad():
        parts = [(each * slope).mean(1) for each, slope in zip(maps, slopes, strict=True)]
        whole = torch.stack(parts).double().mean(0)
        rows = whole[torch.arange(len(ids), device=ids.device), ends_of(objective.module, ids)]
    return Relevance(cosines.detach().double().cpu().numpy(), rows.cpu().numpy())


def scores(
    objective: Objective,
    vectors: Tensor,
    ids: Tensor,
    words: Sequence[Sequence[Word]],
    blocks: int = BLOCKS,
    said: Said | None = None,
) -> Scores:
    """Return the cosine and the word scores of each pair of image (B, D) and caption (B, T), in chunks."""

    def work() -> list[Relevance]:
        found = []
        chunk = min(objective.micro_batch, CHUNK)
        for start in range(0, len(ids), chunk):
            part = slice(start, start + chunk)
            found.append(relevance(objective, vectors[part], ids[part], blocks))
            if said is not None:
                said(min(1.0, part.stop / len(ids)), "scoring words")
        return found

    parts = objective.in_memory(work)
    tokens = [row for each in parts for row in each.tokens]
    cosines = np.concatenate([each.cosines for each in parts])
    return Scores(cosines, tuple(word_scores(row, each) for row, each in zip(tokens, words, strict=True)))


def word_scores(tokens: Array, words: Sequence[Word]) -> Array:
    """Return the mean of the tokens of each word, (T,) -> (W,)."""
    return np.array([tokens[each.first : each.end].mean() for each in words], np.float64)


def counting(words: Sequence[Word]) -> Array:
    """Tell which words are more than punctuation, (W,)."""
    return np.array([any(letter.isalnum() for letter in each.text) for each in words], bool)


def worst(values: Array, words: Sequence[Word]) -> int | None:
    """Return the place of the word with the lowest score, punctuation aside; None where there is no word."""
    places = np.flatnonzero(counting(words))
    return int(places[values[places].argmin()]) if len(places) else None


def run(objective: Objective, tower: Callable[[nn.Module, Tensor], Tensor], given: Tensor) -> Tensor:
    """Run a part of the model at the objective's theta held constant."""
    values = {name: each.detach() for name, each in zip(objective.names, objective.theta, strict=True)}
    named = {f"model.{name}": each for name, each in {**objective.constants, **values}.items()}
    return functional_call(_Tower(objective.module, tower), named, (given,))  # type: ignore[no-any-return]


class _Tower(nn.Module):
    def __init__(self, model: nn.Module, tower: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._tower = tower

    def forward(self, given: Tensor) -> Tensor:
        return self._tower(self.model, given)


@contextmanager
def _attention(module: Any, blocks: int) -> Iterator[list[Tensor]]:
    """Collect the attention of the last blocks of the text tower, as parts of the graph, (B, heads, T, T) each."""
    text, layers = module.text_model, module.text_model.encoder.layers
    if not 1 <= blocks <= len(layers):
        raise AttributionError(f"The text tower has {len(layers)} blocks; {blocks} were asked for.")
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: object) -> None:
        found = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(found, Tensor):
            maps.append(found)

    chosen = [each.self_attn for each in layers[len(layers) - blocks :]]
    # The parameters are held constant, so the graph begins at the token vectors.
    start = text.embeddings.register_forward_hook(lambda _, __, output: output.detach().requires_grad_())
    handles = [start, *(each.register_forward_hook(keep) for each in chosen)]
    configs = {id(each.config): each.config for each in (text, *(layer.self_attn for layer in layers))}
    before = {key: each._attn_implementation for key, each in configs.items()}
    try:
        for each in configs.values():
            each._attn_implementation = "eager"  # the fused kernels return no attention
        yield maps
    finally:
        for key, each in configs.items():
            each._attn_implementation = before[key]
        for handle in handles:
            handle.remove()
