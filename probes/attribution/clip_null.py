"""Do word scores of CLIP mean anything on these pairs? The same captions on other images, and swapped words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import beta

from probes.attribution.clip import counting, worst
from probes.dataset.examples import Caption, Word

Array = np.ndarray[Any, Any]
Interval = tuple[float, float]
DRAWS = 2000
_LETTERS = 3  # of words that are swapped, where there are such


@dataclass(frozen=True)
class Swap:
    """A caption with one word in the place of another. row: of the pair; place: among its words; text: the new word."""

    row: int
    place: int
    text: str
    ids: tuple[int, ...]
    words: tuple[Word, ...]


def other_images(images: Sequence[bytes], texts: Sequence[str], count: int, seed: int) -> list[Array]:
    """Draw for each caption up to `count` rows whose image and caption are both others; fewer where there are fewer."""
    rng = np.random.default_rng([seed, 2])
    pictures, words = (np.unique(np.array(each), return_inverse=True)[1] for each in (images, texts))
    found = []
    for row in range(len(texts)):
        allowed = np.flatnonzero((pictures != pictures[row]) & (words != words[row]))
        found.append(rng.choice(allowed, min(count, len(allowed)), replace=False) if len(allowed) else allowed)
    return found


def swaps(ids: Array, captions: Sequence[Caption], context: int, seed: int) -> list[Swap]:
    """Replace one word of each caption by one that stands behind the same word in another; else by any other word.

    ids: (N, T), each row ending in its end token. context: most tokens. A caption for which there is no other word, or
    whose words are too many then, is left out.
    """
    rng = np.random.default_rng([seed, 3])
    pool = _pool(ids, captions)
    made = (_swap(row, ids[row], caption, pool, context, rng) for row, caption in enumerate(captions))
    return [each for each in made if each is not None]


def mean_with_interval(values: Array, seed: int) -> tuple[float, float, float]:
    """Return a mean over pairs with its 95 % interval, by drawing the pairs again."""
    rng = np.random.default_rng([seed, 4])
    means = np.array([values[rng.integers(0, len(values), len(values))].mean() for _ in range(DRAWS)])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def ratio_with_interval(parts: Array, totals: Array, seed: int) -> tuple[float, float, float]:
    """Return a share of units that come in groups (words in captions) with its 95 % interval, by drawing groups."""
    rng = np.random.default_rng([seed, 4])
    drawn = rng.integers(0, len(parts), (DRAWS, len(parts)))
    sums, whole = parts[drawn].sum(1), totals[drawn].sum(1)
    shares = np.divide(sums, whole, out=np.zeros(len(sums)), where=whole > 0)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(parts.sum() / max(totals.sum(), 1)), float(low), float(high)


def binomial_interval(hits: int, total: int) -> Interval:
    """Return the exact 95 % interval of a rate (Clopper and Pearson 1934)."""
    low = float(beta.ppf(0.025, hits, total - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, total - hits)) if hits < total else 1.0
    return low, high


def beats(own: Array, others: Sequence[Array]) -> Array:
    """Return for each caption the share of other images on which the number is lower; ties count half, NaN if none."""
    return np.array(
        [
            float(((each < value) + 0.5 * (each == value)).mean()) if len(each) else np.nan
            for value, each in zip(own, others, strict=True)
        ]
    )


def hits(swapped: Sequence[Swap], values: Sequence[Array]) -> Array:
    """Tell of each swap whether its word has the lowest score of the caption, (S,)."""
    return np.array([worst(value, each.words) == each.place for each, value in zip(swapped, values, strict=True)], bool)


def _pool(ids: Array, captions: Sequence[Caption]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the words that stand behind each word, and under "" all of them, with their tokens."""
    pool: dict[str, dict[str, tuple[int, ...]]] = {"": {}}
    for row, caption in zip(ids, captions, strict=True):
        before = "^"
        for word, counts in zip(caption.words, counting(caption.words), strict=True):
            key = word.text.lower()
            if counts:
                tokens = tuple(int(each) for each in row[word.first : word.end])
                pool[""].setdefault(key, tokens)
                pool.setdefault(before, {}).setdefault(key, tokens)
            before = key
    return pool


def _swap(
    row: int,
    ids: Array,
    caption: Caption,
    pool: dict[str, dict[str, tuple[int, ...]]],
    context: int,
    rng: np.random.Generator,
) -> Swap | None:
    words = caption.words
    held = {each.text.lower() for each in words}
    places = np.flatnonzero(counting(words))
    long = [each for each in places if len(words[each].text) >= _LETTERS]
    for place in rng.permutation(long or places).tolist():
        before = words[place - 1].text.lower() if place else "^"
        for choices in (pool.get(before, {}), pool[""]):
            fitting = sorted(each for each in choices if each not in held and (not long or len(each) >= _LETTERS))
            if fitting:
                text = fitting[int(rng.integers(len(fitting)))]
                return _replaced(row, ids, words, place, text, choices[text], context)
    return None


def _replaced(
    row: int, ids: Array, words: tuple[Word, ...], place: int, text: str, tokens: tuple[int, ...], context: int
) -> Swap | None:
    old, last = words[place], int(np.flatnonzero(ids == ids[-1])[0])
    line = (*ids[: old.first].tolist(), *tokens, *ids[old.end : last + 1].tolist())
    if len(line) > context:
        return None
    longer = len(tokens) - (old.end - old.first)
    moved = [Word(each.text, each.first + longer, each.end + longer) for each in words[place + 1 :]]
    changed = (*words[:place], Word(text, old.first, old.first + len(tokens)), *moved)
    return Swap(row, place, text, tuple(map(int, line)), changed)
