"""Rank correlations of maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]


def rank_scores(values: Floats) -> Floats:
    """Return centred ranks of length one of flat values (N,), equal ones sharing theirs; zeros where all are equal."""
    if not np.isfinite(values).all():
        return np.full(values.shape, np.nan)
    ranks = rankdata(values) - (len(values) + 1) / 2
    length = np.linalg.norm(ranks)
    return ranks / length if length else np.zeros(len(values))


def spearman(a: Floats, b: Floats) -> float:
    """Return Spearman's rank correlation of flat maps; 0 where one has no order, NaN where one is not finite."""
    return float(rank_scores(a) @ rank_scores(b))
