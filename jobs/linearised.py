"""Intervals over clusters without drawing: a figure's derivative by the weight of each row, summed by cluster. Pure.

Rows of one card come together, so cards are what varies. A figure that is smooth in the rows' weights has the variance of the sum of its
derivatives over a cluster (infinitesimal jackknife: Efron 1982, chapter 6; Jaeckel 1972): one pass over the rows where a bootstrap needs a
thousand, which is what lets a gate look into every group of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

__all__ = ["Estimate", "average_precision", "clustered", "t_quantile"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, its standard error, and how many clusters told something of it: that many less 1 are its degrees of freedom."""

    value: float
    error: float
    telling: int

    def bounds(self, miss: float) -> tuple[float, float]:
        """A lower and an upper bound, each missed with probability ``miss``; infinite where fewer than two clusters told anything."""
        if self.telling < 2:
            return -math.inf, math.inf
        reach = t_quantile(1 - miss, self.telling - 1) * self.error
        return self.value - reach, self.value + reach


def t_quantile(probability: float, freedom: int) -> float:
    """Student's t, by the expansion of Abramowitz and Stegun 26.7.5: from 20 degrees of freedom on good to four digits.

    >>> round(t_quantile(0.95, 29), 3), round(t_quantile(0.995, 29), 3)
    (1.699, 2.756)
    """
    z, n = NormalDist().inv_cdf(probability), freedom
    return (z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3))


def clustered(value: float, influence: Array, member: Array, telling: int) -> Estimate:
    """``value`` with its error. ``influence`` is its derivative by each row's weight, ``member`` the row's cluster, numbered from 0."""
    sums = np.bincount(member, influence)
    return Estimate(float(value), float(np.sqrt((sums**2).sum() * telling / max(telling - 1, 1))), telling)


def average_precision(label: Array, score: Array) -> tuple[float, Array]:
    """Average precision as scikit-learn has it, and its derivative by the weight of each row. At least one row is positive.

    It is S / T, S the sum over positives of the precision at their score, T their number. A row adds to the hits (if it is one) and to the
    rows of every cut-off at or below its own score.
    """
    order = np.argsort(-score, kind="stable")
    ranked, positive = score[order], label[order] > 0
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    rows = np.diff(ends, prepend=-1)
    hits, all_ = np.cumsum(positive)[ends].astype(np.float64), ends + 1.0
    gained = np.diff(hits, prepend=0.0)
    precision, total = hits / all_, hits[-1]
    value = float((gained * precision).sum() / total)
    per_hit = precision + np.cumsum((gained / all_)[::-1])[::-1]
    per_row = np.cumsum((gained * hits / all_**2)[::-1])[::-1]
    influence = np.empty(len(label))
    influence[order] = (positive * (np.repeat(per_hit, rows) - value) - np.repeat(per_row, rows)) / total
    return value, influence
