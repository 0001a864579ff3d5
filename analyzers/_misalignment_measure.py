"""Word scores of all pairs, of the captions on other images, and of captions with a swapped word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._base import Arrays, Tick

if TYPE_CHECKING:
    from torch import Tensor

    from probes.attribution.clip import Scores
    from probes.attribution.clip_null import Swap
    from probes.attribution.clip_patches import Patches
    from probes.dataset.examples import Caption, Word
    from probes.objective import Objective

Array = np.ndarray[Any, Any]
Said = Callable[[float, str], None]
ORDERS = ("worst word", "F-CLIPScore", "order of the data")


@dataclass(frozen=True)
class Asked:
    """The options of the analyzer."""

    order: str
    top: int
    blocks: int
    threshold: float
    null_images: int
    swaps: bool
    patches: bool
    tolerance: float
    seed: int


@dataclass(frozen=True)
class Found:
    """What was found of N pairs. others: of each caption the rows of the other images it was set beside.

    null: of these, one after another. swapped, changed: captions with another word, and their scores. listed: the rows
    that are drawn, with their patches (None where not asked for).
    """

    objective: Objective
    asked: Asked
    captions: tuple[Caption, ...]
    own: Scores
    others: tuple[Array, ...]
    null: Scores | None
    swapped: tuple[Swap, ...]
    changed: Scores | None
    listed: tuple[int, ...]
    patches: tuple[Patches, ...] | None

    def per_caption(self, values: Array) -> list[Array]:
        """Cut values of the other images, one after another, into those of each caption."""
        return np.split(values, np.cumsum([len(each) for each in self.others])[:-1])


def measure(objective: Objective, asked: Asked, tick: Tick) -> Found:
    """Score the words of all pairs and of their nulls, and find the patches of those that are listed."""
    from probes.attribution.clip import captions_of, image_vectors

    captions = captions_of(objective)
    vectors = image_vectors(objective, _part(tick, 0.0, 0.1))
    own = _own(objective, asked, captions, vectors, tick)
    others, null = _others(objective, asked, captions, vectors, tick)
    swapped, changed = _swapped(objective, asked, captions, vectors, tick)
    listed = tuple(_order(asked.order, own, captions)[: asked.top])
    found = _patches(objective, asked, listed, tick) if asked.patches else None
    return Found(objective, asked, captions, own, others, null, swapped, changed, listed, found)


def lowest(scores: Scores, words: Sequence[Sequence[Word]]) -> Array:
    """Return the lowest word score of each caption, NaN where it has no word, (N,)."""
    from probes.attribution.clip import worst

    places = [worst(values, each) for values, each in zip(scores.words, words, strict=True)]
    return np.array(
        [np.nan if place is None else values[place] for place, values in zip(places, scores.words, strict=True)]
    )


def _own(objective: Objective, asked: Asked, captions: tuple[Caption, ...], vectors: Tensor, tick: Tick) -> Scores:
    from probes.attribution.clip import scores

    words = [each.words for each in captions]
    said = _part(tick, 0.1, 0.2)
    return _kept("own", tick, lambda: scores(objective, vectors, objective.targets, words, asked.blocks, said))


def _others(
    objective: Objective, asked: Asked, captions: tuple[Caption, ...], vectors: Tensor, tick: Tick
) -> tuple[tuple[Array, ...], Scores | None]:
    """Set each caption beside images of other captions."""
    import torch

    from probes.attribution.clip import scores
    from probes.attribution.clip_null import other_images

    contents = [each.numpy().tobytes() for each in objective.batches.inputs]
    drawn = other_images(contents, [each.text for each in captions], asked.null_images, asked.seed)
    rows = np.repeat(np.arange(len(captions)), [len(each) for each in drawn])
    if not len(rows):
        return tuple(drawn), None
    images, ids = torch.from_numpy(np.concatenate(drawn)), torch.from_numpy(rows).to(objective.targets.device)
    words = [captions[row].words for row in rows]
    said = _part(tick, 0.2, 0.7)
    work = lambda: scores(objective, vectors[images], objective.targets[ids], words, asked.blocks, said)
    return tuple(drawn), _kept("null", tick, work)


def _swapped(
    objective: Objective, asked: Asked, captions: tuple[Caption, ...], vectors: Tensor, tick: Tick
) -> tuple[tuple[Swap, ...], Scores | None]:
    """Give each caption one word of another."""
    import torch

    from probes.attribution.clip import scores
    from probes.attribution.clip_null import swaps
    from probes.dataset.captions import padded

    if not asked.swaps:
        return (), None
    context = int(objective.module.config.text_config.max_position_embeddings)  # type: ignore[union-attr, arg-type]
    made = tuple(swaps(objective.targets.cpu().numpy(), captions, context, asked.seed))
    if not made:
        return (), None
    ids = torch.from_numpy(padded([list(each.ids) for each in made]))
    rows = torch.tensor([each.row for each in made])
    said = _part(tick, 0.7, 0.8)
    work = lambda: scores(objective, vectors[rows], ids, [each.words for each in made], asked.blocks, said)
    return made, _kept("swapped", tick, work)


def _patches(objective: Objective, asked: Asked, listed: tuple[int, ...], tick: Tick) -> tuple[Patches, ...]:
    from probes.attribution.clip_patches import patches

    found = []
    for done, row in enumerate(listed):
        tick(0.8 + 0.2 * done / len(listed), "looking for the patches that speak for a caption")
        found.append(objective.in_memory(lambda row=row: patches(objective, row, asked.tolerance)))  # type: ignore[misc]
    return tuple(found)


def _order(order: str, own: Scores, captions: tuple[Caption, ...]) -> list[int]:
    if order == ORDERS[2]:
        return list(range(len(captions)))
    keys = own.f_clip if order == ORDERS[1] else lowest(own, [each.words for each in captions])
    return [int(each) for each in np.argsort(keys, kind="stable")]


def _kept(key: str, tick: Tick, work: Callable[[], Scores]) -> Scores:
    """Do the work, or take what an earlier attempt kept of it."""
    from probes.attribution.clip import Scores

    held: Arrays | None = tick.load(key)
    if held is None:
        found = work()
        lengths = np.array([len(each) for each in found.words])
        flat = np.concatenate([np.zeros(0), *found.words])
        saved: Mapping[str, Array] = {"cosines": found.cosines, "words": flat, "lengths": lengths}
        tick.save(key, saved)
        return found
    return Scores(held["cosines"], tuple(np.split(held["words"], np.cumsum(held["lengths"])[:-1])))


def _part(tick: Tick, start: float, end: float) -> Said:
    return lambda share, doing: tick(start + share * (end - start), doing)
