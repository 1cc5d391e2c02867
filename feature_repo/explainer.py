"""Contributions of one vector in a millisecond: ``feature_repo.contributions`` as arrays, and what is said of them as reasons.

The Shapley value of a product of conditions is an integral over t in [0, 1] of the product of (1 - t) * zero + t * one over the
other features (Owen's multilinear extension, 1972). It is a polynomial of a degree below the number of features of a path, so a few
Gauss-Legendre points give it exactly, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.contributions import TESTS, Trees
from feature_repo.models import ReasonCode
from schemas.reasons import Reason

__all__ = ["MOST_REASONS", "SCORE_TOLERANCE", "Explained", "Explainer", "fault_of", "reasons_of"]

MOST_REASONS = 4
SCORE_TOLERANCE = 1e-5
"""Between a served score and the sigmoid of the margin: scorers add up a hundred leaves in float32, each addition wrong by at most
2**-24 of the sum. A sum of ten is off by 6e-5 at worst, and a score by a quarter of that; seen were 2e-7."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Explained:
    """``base + parts.sum() == margin`` within ``tolerance``: log-odds, one part a feature."""

    base: float
    margin: float
    parts: Array
    tolerance: float

    @property
    def adds_up(self) -> bool:
        return bool(abs(self.base + math.fsum(self.parts) - self.margin) <= self.tolerance)


class Explainer:
    """The trees of one bundle, prepared. Of a path to a leaf, all conditions on one feature are one factor."""

    def __init__(self, trees: Trees) -> None:
        self.width, self.counted = trees.width, trees.counted
        conditions: dict[tuple[int, str, float, bool], int] = {}
        of_factor: list[tuple[int, int]] = []  # condition, and whether it is to hold, factor by factor
        starts, factor_leaf, factor_place, factor_feature, shares = [], [], [], [], []
        for number, leaf in enumerate(trees.leaves):
            by_feature: dict[int, list[Any]] = {}
            for split in leaf.path:
                by_feature.setdefault(split.feature, []).append(split)
            for place, (feature, splits) in enumerate(by_feature.items()):
                starts.append(len(of_factor))
                factor_leaf.append(number)
                factor_place.append(place)
                factor_feature.append(feature)
                shares.append(math.prod(split.share for split in splits))
                for split in splits:
                    key = split.feature, split.mode, split.threshold, split.missing_holds
                    of_factor.append((conditions.setdefault(key, len(conditions)), split.holds))
        shape = len(trees.leaves), max(factor_place, default=0) + 1
        self._values = np.array([leaf.value for leaf in trees.leaves], np.float64)
        self._zero = np.ones(shape)
        self._at = np.array(factor_leaf, np.int64), np.array(factor_place, np.int64)
        self._zero[self._at] = shares
        self._feature, self._starts = np.array(factor_feature, np.int64), np.array(starts, np.int64)
        self._condition, self._holds = (np.array([pair[i] for pair in of_factor], kind) for i, kind in ((0, np.int64), (1, bool)))
        told = list(conditions)
        self._column = np.array([key[0] for key in told], np.int64)
        self._threshold = np.array([key[2] for key in told], np.float32)
        self._missing = np.array([key[3] for key in told], bool)
        modes = np.array([key[1] for key in told])
        self._modes = [(test, np.flatnonzero(modes == mode)) for mode, test in TESTS.items()]
        points, weights = np.polynomial.legendre.leggauss(-(-shape[1] // 2))
        self._points, self._weights = (points + 1) / 2, weights / 2
        self._trees_base = trees.base
        self._base = trees.base + math.fsum(self._values * self._zero.prod(axis=1))
        # Every leaf is added at most once a factor, and each step errs by at most half a unit in the last place of what is there.
        self._tolerance = 4 * float(np.finfo(float).eps) * (len(starts) + len(trees.leaves) + 1) * (
            abs(trees.base) + float(np.abs(self._values).sum()))

    def __call__(self, vector: Any) -> Explained:
        """Of float[F], NaN is null, compared in float32 as scorers do."""
        with np.errstate(over="ignore"):
            x = np.asarray(vector, np.float64).astype(np.float32)
        one = np.ones_like(self._zero)
        if len(self._starts):
            value = x[self._column]
            met = np.empty(len(value), bool)
            for test, rows in self._modes:
                met[rows] = test(value[rows], self._threshold[rows])
            met = np.where(np.isnan(value), self._missing, met)
            one[self._at] = np.logical_and.reduceat(met[self._condition] == self._holds, self._starts)
        t = self._points[:, None, None]
        factors = (1 - t) * self._zero + t * one
        before, after = np.ones_like(factors), np.ones_like(factors)
        np.cumprod(factors[..., :-1], axis=-1, out=before[..., 1:])
        after[..., :-1] = np.cumprod(factors[..., :0:-1], axis=-1)[..., ::-1]
        others = np.tensordot(self._weights, before * after, axes=1)
        parts = (self._values[:, None] * (one - self._zero) * others)[self._at]
        margin = self._trees_base + math.fsum(self._values[one.all(axis=1)])
        return Explained(self._base, margin, np.bincount(self._feature, parts, self.width), self._tolerance)


def fault_of(explained: Explained, score: float) -> str | None:
    """Why this is no explanation of ``score``; None where it is."""
    if not explained.adds_up:
        return "the contributions do not add up to the margin"
    own = 1 / (1 + math.exp(-explained.margin)) if explained.margin > -700 else 0.0
    if not abs(own - score) <= SCORE_TOLERANCE:
        return f"the bundle scores this vector {own:.6f}, served was {score:.6f}"
    return None


def reasons_of(codes: Mapping[str, ReasonCode], names: Sequence[str], values: Sequence[float | None], parts: Array,
               most: int = MOST_REASONS) -> list[Reason]:
    """The features that raised the score most, at most ``most``; of equal ones the first of the vector first.

    A feature that today's definitions do not know (of an old version) has the code ``OTHER``.
    """
    ranked = [int(i) for i in np.argsort(-parts, kind="stable")[:most] if parts[i] > 0]
    found = [(i, codes.get(names[i], ReasonCode(names[i], "OTHER", names[i].replace("_", " ")))) for i in ranked]
    return [Reason(code.code, names[i], values[i], float(parts[i]), code.words) for i, code in found]
