"""Which features go first, what takes their place, and what the model says of the examples that this makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.attribution.baselines import baselines, fitting_baselines
from probes.attribution.errors import AttributionError
from probes.attribution.language_cases import AnswerCase
from probes.attribution.players import laid_out

if TYPE_CHECKING:
    from probes.attribution.case import Case

Floats = NDArray[np.float64]
Numbers = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Measure = Literal["probability", "score"]
Pair = tuple[str, str]


def plane(case: Case, values: Numbers) -> Floats:
    """Return one number for each feature that is replaced at once: a pixel (channels added), a column, a token; (N,).

    Raises AttributionError where the map has another shape than the example, or values that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    shape = case.shape
    if case.kind == "image":
        fits = values.shape[-2:] == shape[-2:] and values.shape[:-2] in ((), (1,), shape[:1])
    else:
        fits = values.shape == shape
    if not fits:
        raise AttributionError(
            f"The map has shape {values.shape}, but the example's features have shape {shape}; it cannot be judged."
        )
    if not np.isfinite(values).all():
        raise AttributionError("The map has values that are not finite, so its features have no order to judge.")
    return np.asarray(values.sum(0) if case.kind == "image" and values.ndim == 3 else values).reshape(-1)


def free(case: Case) -> Ints:
    """Return the numbers of the features that may be replaced: all but special tokens."""
    if not case.embedding:
        return np.arange(int(np.prod(_laid(case))))
    found = np.flatnonzero(~np.array(case.special, dtype=bool))
    if not len(found):
        raise AttributionError("All tokens of this example are special ones, so there is nothing to replace.")
    return found


def order_of(case: Case, values: Numbers, seed: int = 0) -> Ints:
    """Return the numbers of the free features from the largest value to the smallest, equal ones at random, (n,)."""
    mixed = np.random.default_rng(seed).permutation(free(case))
    return mixed[np.argsort(-plane(case, values)[mixed], kind="stable")]


def default_baselines(case: Case) -> Pair:
    """Return the two references that curves are drawn with, unless others are asked for.

    Images: blur and mean. Tables: mean, and another row of the data (zero where there is none). Text: mean embedding,
    and the mask token, else padding, else random tokens.
    """
    if case.kind == "image":
        return "blur", "mean"
    if case.kind == "table":
        return "mean", "data" if len(case.objective.inputs) > 1 else "zero"
    known = fitting_baselines(case)
    return "mean embedding", next((each for each in ("mask", "pad") if each in known), "random")


def reference(case: Case, name: str, seed: int = 0) -> Tensor:
    """Return one reference (1, ...), made once for a case."""
    return case.once(("judging reference", name, seed), lambda: baselines(case, name, seed=seed)[:1])


def measure_of(case: Case) -> Measure:
    """Return what is drawn: the target's probability where the loss gives outputs one, else its raw score.

    Of a language model's answer of several tokens, or set against others, it is the score.
    """
    if isinstance(case, AnswerCase):
        return "probability" if _is_one_token(case) else "score"
    return "probability" if case.objective.loss in ("cross_entropy", "bce_with_logits", "causal_lm") else "score"


@dataclass(frozen=True)
class Steps:
    """How many features are replaced at each point, from none to all; (P,)."""

    counts: Ints
    size: int

    @property
    def shares(self) -> Floats:
        """Return the counts as shares, 0 to 1."""
        return self.counts / self.size


def steps_of(case: Case, points: int) -> Steps:
    """Spread so many steps evenly over the features; all where there are few. Raises AttributionError below 2."""
    if points < 2:
        raise AttributionError(f"points is {points}; a curve needs at least 2.")
    size = len(free(case))
    counts = np.arange(size + 1) if size <= points else np.linspace(0, size, points + 1).round().astype(np.int64)
    return Steps(counts, size)


def inserted(case: Case, order: Ints, name: str, counts: Ints, seed: int = 0) -> Tensor:
    """Return the example's first `count` features on the baseline, for each count, (len(counts), ...).

    Taking the last features of an order away is putting the first ones of the reversed order in.
    """
    rank = np.full(int(np.prod(_laid(case))), -1)  # special tokens stay as they are
    rank[order] = np.arange(len(order))
    ranks = torch.from_numpy(laid_out(case, rank.reshape(_laid(case)))).to(case.features.device)
    kept = ranks[None] < torch.from_numpy(counts).to(ranks).view(-1, *[1] * ranks.ndim)
    return torch.where(kept, case.features, reference(case, name, seed))


def read(case: Case, features: Tensor) -> Floats:
    """Return the target's probability and score at features (B, ...), (2, B); the probability is NaN without one."""
    found = [_read(case, part) for part in features.split(case.chunk())]
    return torch.cat(found, 1).double().cpu().numpy()  # type: ignore[no-any-return]


def ends(case: Case, name: str, seed: int = 0) -> Floats:
    """Return what `read` gives of the blank and of the whole example, (2, 2); run once for each baseline of a case."""

    def run() -> Floats:
        order = free(case)
        return read(case, inserted(case, order, name, np.array([0, len(order)]), seed))

    return case.once(("judging ends", name, seed), run)


def _read(case: Case, features: Tensor) -> Tensor:
    if isinstance(case, AnswerCase):
        score = case.in_chunks(features)
        return torch.stack([score.exp() if _is_one_token(case) else torch.full_like(score, torch.nan), score])
    return _of_logits(case, case.in_chunks(features, "logits"))


def _is_one_token(case: AnswerCase) -> bool:
    return len(case.answer) == 1 and not bool((case.against >= 0).any())


def _of_logits(case: Case, logits: Tensor) -> Tensor:
    at = case.target.index
    if case.kind == "language_model":
        score = torch.log_softmax(logits, -1)[:, at]
        return torch.stack([score.exp(), score])
    score = logits[:, at]
    if case.objective.loss == "cross_entropy":
        return torch.stack([torch.softmax(logits, -1)[:, at], score])
    known = case.objective.loss == "bce_with_logits"
    return torch.stack([torch.sigmoid(score) if known else torch.full_like(score, torch.nan), score])


def _laid(case: Case) -> tuple[int, ...]:
    return case.shape[-2:] if case.kind == "image" else case.shape
