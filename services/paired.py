"""Is one of two versions that scored the same events worse? Anytime-valid: one may look after each label, and stop when one likes. Pure.

Loss of a decision: a false alarm costs the threshold t of the first version, a miss 1 - t, over the larger of the two. (Whoever alerts
from t on says that a miss is worth (1 - t) / t false alarms: Vickers and Elkin 2006, Elkan 2001.) Where both decide alike the
losses are the same, so only disagreements tell something. Events of a subject (a card) come together, so of each only its first
disagreement counts: one value in [-1, 1] a subject, above 0 where the second version was the wrong one.

Subjects come together as well: a wave of one fraud hits many cards in hours, and whoever misses it misses it on all of them. So a roll-back
is decided on blocks of ``BLOCK_MS``, each a single thing that happened. Where a block's sum S is as likely to be s as -s, given the blocks
before, ``1 + tanh(c S)`` has mean 1 for every c, whatever goes on within the block: a fair coin, with the size of the sum as the stake.
(It is ``exp(c S) / cosh(c S)``; for sums of symmetric values see de la Pena, "A general class of exponential inequalities for martingales
and ratios", 1999, section 6.) The product over blocks, and the mean of such products over several c, reaches 1 / alpha with probability
at most alpha, ever (Ville 1939). But waves do not keep to blocks: one that is as long as two touches three, which fall alike. That
is one coin that is counted three times, 8 instead of 2 at most; so ``ACROSS`` = 4 times as much is asked, and no block more than doubles
it: 400 takes nine blocks at least.

Bounds for who compares are of the mean of a subject's value, and take subjects for independent. For values whose mean, given those
before, is at most m, ``prod(1 + c (x - m) / (1 + m))`` for a fixed c in (0, 1) is a nonnegative supermartingale that begins at 1. Every m
at which it has not reached 1 / alpha, on either side, is the confidence sequence: Waudby-Smith and Ramdas, "Estimating means of bounded
random variables by betting" (2023), section 4, with fixed bets. Fixed ones, because then a mean that goes up and down around m by the hour
gathers nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

__all__ = ["ACROSS", "ALPHA", "BLOCK_MS", "Bounds", "Decided", "Trial", "confidence", "enough", "first_of_subjects", "losses",
           "should_roll_back"]

BETS = (0.05, 0.1, 0.2, 0.4, 0.8)
ALPHA = 0.01
"""The probability that a version that is no worse is ever rolled back."""
BLOCK_MS = 43_200_000
"""Half a day: what happens in it is one thing, on however many cards."""
ACROSS = 4
"""So much more evidence is asked for because a wave may lie across blocks."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What the first and the second version made of one event, and what it was; ``at_ms`` is when the event arrived."""

    prediction_id: str
    subject: str
    at_ms: int
    first: bool
    second: bool
    label: bool


@dataclass(frozen=True, slots=True)
class Bounds:
    """``mean`` of ``n`` values, and bounds that hold at every n at once, each missed with probability 2.5 %."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Trial:
    """``e_value`` is ``enough``: ``worse``. ``values`` are those of the ``blocks`` up to then, ``ids`` the predictions they are of, in
    order."""

    worse: bool
    e_value: float
    values: tuple[float, ...]
    ids: tuple[str, ...]
    blocks: int
    last_ms: int | None


def losses(decided: Decided, threshold: float) -> tuple[float, float]:
    """Of the first and the second version, in [0, 1]."""
    cost = (1 - threshold if decided.label else threshold) / max(threshold, 1 - threshold)
    return cost * (decided.first != decided.label), cost * (decided.second != decided.label)


def first_of_subjects(disagreements: Iterable[Decided]) -> list[Decided]:
    """The first of each subject, in the order in which events arrived."""
    first: dict[str, Decided] = {}
    for each in sorted(disagreements, key=lambda each: (each.at_ms, each.prediction_id)):
        first.setdefault(each.subject, each)
    return list(first.values())


def enough(alpha: float) -> float:
    """The e-value from which on a version is rolled back."""
    return ACROSS / alpha


def should_roll_back(disagreements: Iterable[Decided], threshold: float, until_ms: int, alpha: float = ALPHA) -> Trial:
    """Whether the second version is worse than the first, and on what grounds; the second is the one that is live.

    ``disagreements`` are those of the trial whose labels have come of age, in any order; of events that arrived before ``until_ms`` they
    are all. Only blocks that were over by then count, so the answer is that of the first of them at whose end the evidence sufficed.
    ``threshold`` is the first version's.
    """
    counting = [each for each in first_of_subjects(each for each in disagreements if each.first != each.second)
                if each.at_ms < until_ms // BLOCK_MS * BLOCK_MS]
    values, ids = list[float](), list[str]()
    products, e_value, n = np.ones(len(BETS)), 1.0, 0
    for _, block in groupby(counting, lambda each: each.at_ms // BLOCK_MS):
        told = list(block)
        worse = [second - first for first, second in (losses(each, threshold) for each in told)]
        values, ids, n = values + worse, ids + [each.prediction_id for each in told], n + 1
        products *= 1 + np.tanh(np.array(BETS) * sum(worse))
        e_value = float(products.mean())
        if e_value >= enough(alpha):
            break
    return Trial(e_value >= enough(alpha), e_value, tuple(values), tuple(ids), n, counting[len(ids) - 1].at_ms if ids else None)


def confidence(values: Sequence[float], alpha: float = 0.05) -> Bounds:
    """Of the mean of ``values`` in [-1, 1], which come in any order that the future does not choose.

    >>> confidence([1.0] * 40 + [-1.0] * 10)
    Bounds(mean=0.6, low=0.1599315801395278, high=0.8663415435294155, n=50)
    """
    x = np.asarray(values, np.float64)
    if not len(x):
        return Bounds(0.0, -1.0, 1.0, 0)
    return Bounds(float(x.mean()), _lower(x, alpha / 2), -_lower(-x, alpha / 2), len(x))


def _lower(x: np.ndarray[tuple[int], np.dtype[np.float64]], alpha: float) -> float:
    """The largest m that is refused; what is gained falls as m rises."""
    bets, low, high = np.array(BETS)[:, None], -1.0, 1.0
    for _ in range(40):
        m = (low + high) / 2
        gained = np.log1p(bets * ((x - m) / (1 + m))[None, :]).sum(1)
        refused = math.log(len(BETS)) - math.log(alpha) <= float(np.logaddexp.reduce(gained))
        low, high = (m, high) if refused else (low, m)
    return low
