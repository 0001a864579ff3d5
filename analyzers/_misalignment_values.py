"""What a result about captions holds: a row for each pair, the nulls with their intervals, and caveats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analyzers._examples import number
from analyzers._misalignment_measure import Found, lowest

if TYPE_CHECKING:
    from probes.attribution.clip import Scores
    from probes.dataset.examples import Word

Array = np.ndarray[Any, Any]
FEWEST_SWAPS = 20


def values_of(found: Found) -> dict[str, Any]:
    """Return the values of the result."""
    rows = [_row(found, row) for row in range(len(found.captions))]
    marked = [each["misaligned"] for each in rows]
    return {
        "pairs": len(rows),
        "words": sum(len(each["words"]) for each in rows),
        "blocks": found.asked.blocks,
        "threshold": found.asked.threshold,
        "order": found.asked.order,
        "worst_word": [each["worst_word"] for each in rows],
        "scores": [each["scores"] for each in rows],
        "f_clip_score": [each["f_clip_score"] for each in rows],
        "mean_cosine": float(found.own.cosines.mean()),
        "mean_f_clip_score": float(found.own.f_clip.mean()),
        "misaligned_pairs": sum(marked),
        **_shuffled(found),
        **_swaps(found),
        "listed": list(found.listed),
        "patch_errors": None if found.patches is None else [number(each.error) for each in found.patches],
        "patch_baselines": None if found.patches is None else [each.baseline for each in found.patches],
        "rows": rows,
    }


def arrays_of(found: Found) -> dict[str, Array]:
    """Return cosines and scores of all pairs and of the other images, and pictures and patches of those listed."""
    from probes.pictures import pictures_of

    words = [each.words for each in found.captions]
    arrays = {"cosines": found.own.cosines, "f_clip": found.own.f_clip, "worst": lowest(found.own, words)}
    if found.null is not None:
        arrays |= {"null_cosines": found.null.cosines, "null_f_clip": found.null.f_clip}
        arrays["null_worst"] = lowest(found.null, _null_words(found))
        arrays["null_images"] = np.concatenate(found.others)
        arrays["null_captions"] = np.repeat(np.arange(len(found.others)), [len(each) for each in found.others])
    pictures = pictures_of(found.objective.batches, found.listed, side=160)
    arrays |= {} if pictures is None else {"pictures": pictures}
    if found.patches:
        arrays["patches"] = np.stack([each.values for each in found.patches])
    return arrays


def card_of(found: Found) -> dict[str, Any]:
    """Return the card: attention is switched to the plain kernel, which gives it back."""
    return found.objective.card() | {"seed": found.asked.seed, "attention": "eager in the text tower"}


def caveats_of(found: Found, values: dict[str, Any]) -> list[str]:
    """Return what a reader must bear in mind."""
    said = [
        "A word below zero lowers the cosine through the attention of the last blocks. That it does not fit the image "
        "is one reason; compare with the same word on other images (typical, lower_on_others)."
    ]
    if found.null is None:
        said.append(
            "No caption could be set beside another image: all captions, or all images, are alike. Nothing is known of "
            "what these scores are by chance."
        )
    elif values["lower_on_others_worst"]["low"] <= 0.5:
        said.append(
            "The worst words are not significantly worse on the images of other captions: on these data the scores do "
            "not tell a fitting caption from another."
        )
    said += _of_swaps(values)
    errors = [each for each in values["patch_errors"] or () if each is None or each > found.asked.tolerance]
    if errors:
        said.append(
            f"The patches of {len(errors)} pictures do not add up to their share of the cosine within "
            f"{found.asked.tolerance:g} (patch_errors)."
        )
    return said


def _of_swaps(values: dict[str, Any]) -> list[str]:
    made = values["swaps"]
    if made is None:
        return []
    if made["captions"] < FEWEST_SWAPS:
        return [f"Only {made['captions']} captions could be given a swapped word: the hit rate says little. Add pairs."]
    if made["low"] <= max(made["chance"], made["unchanged"]):
        return [
            "A swapped word is not the most negative one significantly more often than by chance and than the word "
            "that stood there: do not trust this model to name the wrong word in captions like these."
        ]
    return []


def _row(found: Found, row: int) -> dict[str, Any]:
    from probes.attribution.clip import counting, worst

    words, scores = found.captions[row].words, found.own.words[row]
    place = worst(scores, words)
    null = _null_of(found, row)
    below = np.flatnonzero(counting(words) & (scores < found.asked.threshold))
    return {
        "row": row,
        "id": found.objective.batches.ids[row],
        "caption": found.captions[row].text,
        "cosine": float(found.own.cosines[row]),
        "f_clip_score": float(found.own.f_clip[row]),
        "worst_word": None if place is None else words[place].text,
        "worst_score": None if place is None else float(scores[place]),
        "worst_place": place,
        "misaligned": bool(len(below)),
        "misaligned_words": [words[int(each)].text for each in below],
        "words": [each.text for each in words],
        "scores": [float(each) for each in scores],
        "typical": None if null is None else [float(each) for each in null.mean(0)],
        "lower_on_others": None if null is None else [float(each) for each in (null < scores).mean(0)],
    }


def _null_of(found: Found, row: int) -> Array | None:
    """Return the scores of a caption's words on other images, (K, W)."""
    count = len(found.others[row])
    if found.null is None or not count:
        return None
    start = sum(len(each) for each in found.others[:row])
    return np.stack(found.null.words[start : start + count])


def _null_words(found: Found) -> list[tuple[Word, ...]]:
    return [each.words for each, rows in zip(found.captions, found.others, strict=True) for _ in rows]


def _shuffled(found: Found) -> dict[str, Any]:
    """Compare each number with itself on other images: the share of them on which it is lower; 0.5 is chance."""
    words = [each.words for each in found.captions]
    flagged = _flagged(found, found.own, words)
    head: dict[str, Any] = {"misaligned_words": flagged}
    names = ("cosine", "f_clip_score", "worst")
    if found.null is None:
        return {**head, "misaligned_words_on_others": None, **{f"lower_on_others_{name}": None for name in names}}
    null_words = _null_words(found)
    pairs = {
        "cosine": (found.own.cosines, found.null.cosines),
        "f_clip_score": (found.own.f_clip, found.null.f_clip),
        "worst": (lowest(found.own, words), lowest(found.null, null_words)),
    }
    compared = {f"lower_on_others_{name}": _compared(found, *pair) for name, pair in pairs.items()}
    return {**head, "misaligned_words_on_others": _flagged(found, found.null, null_words), **compared}


def _compared(found: Found, own: Array, null: Array) -> dict[str, float]:
    from probes.attribution.clip_null import beats, mean_with_interval

    shares = beats(own, found.per_caption(null))
    mean, low, high = mean_with_interval(shares[np.isfinite(shares)], found.asked.seed)
    return {"mean": mean, "low": low, "high": high}


def _flagged(found: Found, scores: Scores, words: Sequence[Sequence[Word]]) -> dict[str, float]:
    """Return the share of words below the threshold, punctuation aside, with an interval over captions."""
    from probes.attribution.clip import counting
    from probes.attribution.clip_null import ratio_with_interval

    kept = [counting(each) for each in words]
    parts = [((row < found.asked.threshold) & each).sum() for row, each in zip(scores.words, kept, strict=True)]
    mean, low, high = ratio_with_interval(np.array(parts), np.array([each.sum() for each in kept]), found.asked.seed)
    return {"mean": mean, "low": low, "high": high}


def _swaps(found: Found) -> dict[str, Any]:
    """Say how often a swapped word is the most negative one, beside chance and the word that stood there."""
    from probes.attribution.clip import counting, worst
    from probes.attribution.clip_null import binomial_interval, hits

    if found.changed is None:
        return {"swaps": None}
    made, total = found.swapped, len(found.swapped)
    right = hits(made, found.changed.words)
    before = [worst(found.own.words[each.row], found.captions[each.row].words) == each.place for each in made]
    low, high = binomial_interval(int(right.sum()), total)
    chance = float(np.mean([1 / counting(each.words).sum() for each in made]))
    rate, unchanged = float(right.mean()), float(np.mean(before))
    return {
        "swaps": {
            "captions": total, "hit_rate": rate, "low": low, "high": high, "chance": chance, "unchanged": unchanged,
        }
    }  # fmt: skip
