"""Paired bootstrap over clusters: is one score better than another on the same rows? Pure.

Rows of one card, or of one day, come together, so these are drawn, with replacement, and both scores are measured on each draw (Field and
Welsh 2007: the cluster bootstrap). A draw is a weight for each row, so nothing is sorted again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.errors import FindingError

__all__ = ["Interval", "Ranking", "paired_bootstrap", "paired_hits"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """``first`` and ``second``: the metric of each score on all rows; ``low`` and ``high`` bound first - second, each missed with
    probability 5 %. ``positives`` counts the clusters that tell something, which have ``telling``; ``draws`` those of the bootstrap that
    had one."""

    first: float
    second: float
    low: float
    high: float
    positives: int
    draws: int
    metric: str = "average precision"
    telling: str = "a positive row"

    @property
    def difference(self) -> float:
        return self.first - self.second


class Ranking:
    """Rows in descending order of a score, ties together, so that average precision under any weights costs three sums."""

    def __init__(self, label: Array, score: Array) -> None:
        self._order = np.argsort(-score, kind="stable")
        ranked = score[self._order]
        self._ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self._positive = label[self._order] > 0

    def average_precision(self, weights: Array) -> float:
        """As scikit-learn's with ``sample_weight``; nan without a positive row of weight above 0."""
        weights = weights[self._order]
        hits = np.cumsum(weights * self._positive)[self._ends]
        all_ = np.cumsum(weights)[self._ends]
        if not hits[-1]:
            return float("nan")
        gained = np.diff(hits, prepend=0.0)
        return float((gained * hits / np.maximum(all_, 1e-300)).sum() / hits[-1])


def paired_bootstrap(label: Array, cluster: Array, first: Array, second: Array, draws: int = 1_000, seed: int = 0) -> Interval:
    """Average precision of ``first`` against ``second``.

    Parameters
    ----------
    label, cluster, first, second
        One entry a row: 0 or 1, what the row belongs to, and its two scores.

    Raises FindingError where no row is positive, or all are.
    """
    if not 0 < label.sum() < len(label):
        raise FindingError(f"{int(label.sum())} of {len(label):,} rows are positive", hint="compare on a period with both classes")
    _, member = np.unique(cluster, return_inverse=True)
    clusters = int(member.max()) + 1
    rankings = [Ranking(label, score) for score in (first, second)]
    random = np.random.default_rng(seed)
    differences = np.empty(draws)
    for i in range(draws):
        weights = np.bincount(random.integers(0, clusters, clusters), minlength=clusters)[member].astype(np.float64)
        one, other = (ranking.average_precision(weights) for ranking in rankings)
        differences[i] = one - other
    differences = differences[~np.isnan(differences)]
    low, high = np.quantile(differences, (0.05, 0.95)) if len(differences) else (-np.inf, np.inf)
    everything = np.ones(len(label))
    one, other = (ranking.average_precision(everything) for ranking in rankings)
    return Interval(one, other, float(low), float(high), len(np.unique(member[label > 0])), len(differences))


def paired_hits(cluster: Array, first: Array, second: Array, draws: int = 1_000, seed: int = 0) -> Interval:
    """Share of rows that ``first`` has right against that of ``second``: both bool[n], n > 0, one entry a row of ``cluster``."""
    names, member = np.unique(cluster, return_inverse=True)
    gained = np.bincount(member, first.astype(np.float64) - second, len(names))
    rows = np.bincount(member, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    low, high = np.quantile(gained[drawn].sum(1) / rows[drawn].sum(1), (0.05, 0.95))
    return Interval(float(first.mean()), float(second.mean()), float(low), float(high), len(np.unique(member[first != second])), draws,
                    "accuracy", "a row that only one has right")
