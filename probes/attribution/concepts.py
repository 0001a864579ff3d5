"""Does a class depend on a concept that examples show? TCAV: directional derivatives along the concept, and a test.

Kim et al. 2018, "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation Vectors". A
concept activation vector (CAV) is the normal, towards the concept, of a linear classifier between a layer's
activations of concept examples and of random ones; the score is the share of a class's examples whose logit rises
along it. A CAV can be fitted between any two sets: scores of several are compared with those of CAVs between two
random sets (Welch's t-test, as published), and where they do not differ there is no score.

The sets of these CAVs overlap, and those of one concept share what its examples have in common by chance; where the
slopes of all examples are alike any direction has a score near 0 or 1. So that test alone calls many random sets a
concept. Therefore random sets are also taken for a concept (controls), and a concept is significant only where also
its mean derivative is larger than that of nearly all of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from probes.attribution.concept_layers import activations, slopes_of
from probes.attribution.concept_vectors import Gram, Sets, cav
from probes.errors import DataError
from probes.objective import Objective

Floats = NDArray[np.float64]
Report = Callable[[float, str], None]
RUNS = 20
FEWEST = 10  # random sets below which the test says little
CONTROLS = 39


@dataclass(frozen=True)
class Concept:
    """What a class makes of a concept at a layer.

    score: mean share of the class's examples with a positive derivative, None where it is not significant; stderr: of
    that mean. scores, random_scores: (R,) of each CAV against a random set, and of CAVs between random sets. p:
    two-sided Welch t-test of the two. p_controls: how often random sets that are taken for a concept have as large a
    mean derivative, (k + 1) / (controls + 1). significant: both are at most alpha. derivatives: (R,) the mean of the
    class's examples along each CAV. control_scores, control_derivatives: (controls,) means over the CAVs of each random
    set that is taken for a concept. accuracies, random_accuracies: (R,) of the CAVs on examples held out; 0.5 is
    chance. examples: of the class. sentence: in words.
    """

    layer: str
    class_index: int
    score: float | None
    stderr: float
    p: float
    p_controls: float
    significant: bool
    scores: Floats
    random_scores: Floats
    derivatives: Floats
    control_scores: Floats
    control_derivatives: Floats
    accuracies: Floats
    random_accuracies: Floats
    examples: int
    sentence: str

    @property
    def accuracy(self) -> float:
        """Return the mean accuracy of the CAVs."""
        return float(self.accuracies.mean())

    @property
    def random_accuracy(self) -> float:
        """Return the mean accuracy of CAVs between random sets."""
        return float(self.random_accuracies.mean())


def tcav(
    objective: Objective,
    layer: str,
    concept_rows: Sequence[int],
    random_rows: Sequence[int],
    class_index: int,
    *,
    class_rows: Sequence[int] | None = None,
    runs: int = RUNS,
    pooled: bool = False,
    penalty: float = 0.01,
    alpha: float = 0.05,
    controls: int = CONTROLS,
    seed: int = 0,
    tick: Report | None = None,
) -> Concept:
    """Test whether a class's logit depends on a concept at a layer.

    concept_rows, random_rows: examples that show the concept, and any others. runs: how often two thirds of the
    concept's (as many as a third of the random ones at most) are set against as many random ones. class_rows: examples
    of the class, else all that have it as their label. pooled: activations of channels, averaged over places or tokens,
    rather than of every place. penalty: the weight of the squared norm of the CAV, beside the mean loss of its
    classifier. controls: random sets that are taken for a concept; alpha of 0.05 needs 19 at least.

    Raises DataError (too few examples), ModelError (no such layer, or not a single tensor), ObjectiveError.
    """
    tick = tick or (lambda _share, _doing: None)
    rows = _rows_of_class(objective, class_index) if class_rows is None else list(class_rows)
    size = _checked(concept_rows, random_rows, rows, runs)
    taken = lambda chosen: activations(objective, layer, chosen, pooled)
    tick(0.0, "activations")
    concept, random = taken(concept_rows), taken(random_rows)
    gram = Gram.of(torch.cat([concept, random]), slopes_of(objective, layer, rows, class_index, pooled), penalty)
    found = _measured(gram, (size, len(concept), runs), controls, np.random.default_rng(seed), tick)
    return _concluded(layer, class_index, found, len(rows), alpha)


def t_test(scores: Floats, others: Floats) -> float:
    """Return the two-sided p-value of Welch's t-test; where neither side varies 1 if they are equal, else 0."""
    from scipy.stats import t

    parts = np.array([each.var(ddof=1) / len(each) for each in (scores, others)])
    if not parts.sum():
        return float(scores[0] == others[0])
    freedom = parts.sum() ** 2 / (parts**2 / [len(scores) - 1, len(others) - 1]).sum()
    return float(2 * t.sf(abs(scores.mean() - others.mean()) / np.sqrt(parts.sum()), freedom))


def along(
    objective: Objective,
    layer: str,
    rows: Sequence[int],
    concept_rows: Sequence[int],
    random_rows: Sequence[int],
    *,
    pooled: bool = False,
    penalty: float = 0.01,
) -> Floats:
    """Return how far examples lie along the CAV of all examples given, (n,).

    In standard deviations of the random examples, from their mean; zeros where these do not differ.
    """
    taken = lambda chosen: activations(objective, layer, chosen, pooled)
    concept, random = taken(concept_rows), taken(random_rows)
    normal = cav(concept, random, penalty)
    null = random @ normal
    spread = float(null.std())
    found = (taken(rows) @ normal - null.mean()) / (spread or math.inf)
    return np.asarray(found.cpu().numpy())


@dataclass(frozen=True)
class _Measured:
    """What was measured: scores and mean derivatives of the concept, of random sets and of controls, accuracies."""

    concept: tuple[Floats, Floats]
    random: tuple[Floats, Floats]
    controls: tuple[Floats, Floats]
    accuracies: tuple[Floats, Floats]

    @property
    def p(self) -> tuple[float, float]:
        """Return the p-values of the t-test and of the controls."""
        as_large = int((abs(self.controls[1]) >= abs(self.concept[1].mean())).sum())
        return t_test(self.concept[0], self.random[0]), (as_large + 1) / (len(self.controls[1]) + 1)


def _measured(
    gram: Gram, sizes: tuple[int, int, int], controls: int, draw: np.random.Generator, tick: Report
) -> _Measured:
    """Fit all classifiers; sizes: of a set, of the concept, and how many sets."""
    size, concept, runs = sizes
    tick(0.5, "concept activation vectors")
    places = np.split(np.arange(len(gram.products)), [concept])
    shown, against = (_sets(draw, each, size, runs) for each in places)
    first, second = (_sets(draw, places[1], 2 * size, runs)[:, part] for part in (slice(size), slice(size, None)))
    own, others, means = gram.along(shown, against), gram.along(first, second), np.zeros((controls, 2))
    for control in range(controls):
        tick(0.6 + 0.4 * control / controls, "random sets taken for a concept")
        false, left = np.split(draw.permutation(places[1]), [min(concept, len(places[1]) - size)])
        means[control] = [each.mean() for each in gram.along(_sets(draw, false, size, runs),
                                                            _sets(draw, left, size, runs))]  # fmt: skip
    accuracies = gram.accuracy(shown, against), gram.accuracy(first, second)
    return _Measured(own, others, (means[:, 0], means[:, 1]), accuracies)


def _concluded(layer: str, class_index: int, found: _Measured, count: int, alpha: float) -> Concept:
    (scores, derivatives), p = found.concept, found.p
    mean, significant = float(scores.mean()), max(p) <= alpha
    tests = f"(p = {p[0]:.2g}; {p[1]:.2g} by random sets taken for a concept)."
    if significant:
        words = f"The logit of class {class_index} {'rises' if mean > 0.5 else 'falls'} along the concept"
        words += f" for {max(mean, 1 - mean):.0%} of {count} examples {tests}"
    else:
        words = f"Not significant: the concept does no more than random examples do {tests}"
    stderr = float(scores.std(ddof=1) / math.sqrt(len(scores)))
    score = mean if significant else None
    measured = (scores, found.random[0], derivatives, *found.controls, *found.accuracies)
    return Concept(layer, class_index, score, stderr, *p, significant, *measured, count, words)


def _sets(draw: np.random.Generator, places: Sets, size: int, runs: int) -> Sets:
    """Draw (runs, size) of these places, none twice in a row."""
    return np.stack([draw.permutation(places)[:size] for _ in range(runs)])


def _checked(concept: Sequence[int], random: Sequence[int], rows: Sequence[int], runs: int) -> int:
    size = min(max(3, 2 * len(concept) // 3), len(random) // 3)
    if size < 3 or len(concept) < 3:
        raise DataError(
            f"There are {len(concept)} examples of the concept and {len(random)} random ones; give 3 and 9 at least, "
            "and better 50 of each."
        )
    if set(concept) & set(random):
        raise DataError(f"{len(set(concept) & set(random))} examples are among both the concept's and the random ones.")
    if not rows:
        raise DataError("There is no example of the class to take derivatives of.")
    if runs < FEWEST:
        raise ValueError(f"runs is {runs}; the test needs at least {FEWEST}")
    return size


def _rows_of_class(objective: Objective, class_index: int) -> list[int]:
    from probes.head_alignment import class_of

    if objective.loss == "causal_lm" or objective.own is not None:
        raise DataError("These examples have no class as their label; name those of the class.")
    return (class_of(objective.targets) == class_index).nonzero()[:, 0].tolist()  # type: ignore[no-any-return]
