"""What decision trees say of one vector, and how much of that each feature contributes. Exact, no sampling.

Contributions are Shapley values of the path-dependent expectation (TreeSHAP: Lundberg et al., From local explanations to global
understanding with explainable AI for trees, Nature Machine Intelligence 2, 2020): a split on a feature that is left out is followed
both ways, weighted by how many training rows went each way. They are log-odds and add up: base + sum = margin.

A leaf is reached by a product of conditions, one factor a feature, and the Shapley values of a product follow from the elementary
symmetric sums of its factors; with depth 5 that is simpler than the usual recursion, and as exact.

This module imports nothing of headrace: `headrace export --edge --explain` copies it to devices as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Leaf", "Split", "Trees", "contributions", "margin"]

TESTS = {"BRANCH_LT": np.less, "BRANCH_LEQ": np.less_equal, "BRANCH_GT": np.greater, "BRANCH_GTE": np.greater_equal}


@dataclass(frozen=True)
class Split:
    """One condition on the way to a leaf. ``share`` of the training rows that came to it went the leaf's way."""

    feature: int
    mode: str
    threshold: float
    holds: bool
    missing_holds: bool
    share: float

    def passes(self, x: Any) -> bool:
        """Whether the vector goes the leaf's way."""
        value = x[self.feature]
        met = self.missing_holds if np.isnan(value) else bool(TESTS[self.mode](value, np.float32(self.threshold)))
        return met == self.holds


@dataclass(frozen=True)
class Leaf:
    value: float
    path: tuple[Split, ...]


@dataclass(frozen=True)
class Trees:
    """All leaves of all trees. ``counted``: the file says how many training rows met each node; else every split counts half and half."""

    leaves: tuple[Leaf, ...]
    base: float
    width: int
    counted: bool


def margin(trees: Trees, x: Any) -> float:
    """The log-odds of vector ``x`` (float[F], NaN is null), as the trees compare it: in float32."""
    x = np.asarray(x, np.float32)
    return trees.base + math.fsum(leaf.value for leaf in trees.leaves if all(split.passes(x) for split in leaf.path))


def contributions(trees: Trees, x: Any) -> tuple[float, Any]:
    """The base (the trees' mean over training rows) and float64[F]: what each feature of ``x`` adds to it.

    >>> low, high = Split(0, "BRANCH_LT", 5.0, True, True, 0.75), Split(0, "BRANCH_LT", 5.0, False, True, 0.25)
    >>> stump = Trees((Leaf(-1.0, (low,)), Leaf(3.0, (high,))), 0.0, 2, True)
    >>> base, parts = contributions(stump, [7.0, 1.0])
    >>> base, parts.tolist(), margin(stump, [7.0, 1.0])
    (0.0, [3.0, 0.0], 3.0)
    """
    x = np.asarray(x, np.float32)
    base, parts = trees.base, np.zeros(trees.width)
    for leaf in trees.leaves:
        factors: dict[int, tuple[float, float]] = {}  # feature -> whether x passes, share of rows that do
        for split in leaf.path:
            one, zero = factors.get(split.feature, (1.0, 1.0))
            factors[split.feature] = one * split.passes(x), zero * split.share
        base += leaf.value * math.prod(zero for _, zero in factors.values())
        for feature, (one, zero) in factors.items():
            others = [pair for other, pair in factors.items() if other != feature]
            parts[feature] += leaf.value * (one - zero) * _weight(others)
    return base, parts


def _weight(factors: list[tuple[float, float]]) -> float:
    """The mean over all orders of the product of ``one`` of the factors that come before a feature and ``zero`` of the others."""
    sums = [1.0]  # sums[k]: over subsets of k factors, the product of their ones and of the zeros of the rest
    for one, zero in factors:
        sums = [zero * a + one * b for a, b in zip([*sums, 0.0], [0.0, *sums], strict=True)]
    n = len(factors)
    return math.fsum(value / ((n + 1) * math.comb(n, k)) for k, value in enumerate(sums))
