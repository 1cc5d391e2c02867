"""The false-alarm budget: "at most one wasted retrain per 90 days" becomes thresholds, and is held against a clean stretch. Pure.

Solving is exact under the detectors' assumptions: on an unchanged stream an alarm at ARL comes at most once in ARL steps on average.
Verifying is for what they assume and a real stream may not keep, dependence above all: blocks of a clean stretch, drawn with
replacement, keep what depends on what within a block (Kunsch 1989), and are run through the very detector. Neither knows more than the
stretch itself: its length alone bounds what can be claimed, so that bound is published beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from schemas.errors import DefinitionError
from streams.detectors.intervals import event_rate_bound
from streams.detectors.losses import LossBatch, LossDetector

__all__ = ["Budget", "Verification", "design_effect", "solve", "verify"]

DAY_MS = 86_400_000
CLUSTERS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``alarms`` expected false alarms in ``days`` days of stream time."""

    alarms: float = 1.0
    days: float = 90.0


@dataclass(frozen=True, slots=True)
class Verification:
    """What block resampling showed. Rates are per the budget's days.

    Parameters
    ----------
    cluster
        The smallest number of losses to count as one with which the budget was kept, among those up to twice the design effect.
    design_effect
        Variance of the blocks' means over that of independent losses: how many come together.
    rate, rate_bound
        Alarms per period over all resampled streams, and its 95 % upper bound. It is blind to what the stretch does not hold.
    own_alarms, own_bound
        Alarms on the stretch as it was, and the 95 % upper bound per period that its length allows: the claim to publish.
    kept
        False where none of these kept the budget: the stretch is worse than the reference, and no clustering explains that.
    """

    arl: float
    cluster: int
    design_effect: float
    streams: int
    block: int
    rate: float
    rate_bound: float
    own_alarms: int
    own_days: float
    own_bound: float
    kept: bool


def solve(budget: Budget, steps_per_day: Mapping[str, float]) -> dict[str, float]:
    """The ARL of each detector, in its own steps: every one gets an equal share of the budget.

    >>> solve(Budget(), {"losses": 10_000, "shapes": 24})
    {'losses': 1800000.0, 'shapes': 4320.0}
    """
    if not steps_per_day or min(steps_per_day.values()) <= 0 or budget.alarms <= 0 or budget.days <= 0:
        raise DefinitionError(f"budget of {budget.alarms} alarms in {budget.days} days for {dict(steps_per_day)} steps a day",
                              hint="all of them are positive, and there is a detector")
    return {name: steps * budget.days * len(steps_per_day) / budget.alarms for name, steps in steps_per_day.items()}


def verify(detector: LossDetector, clean: LossBatch, budget: Budget, *, block: int, streams: int = 20, seed: int = 0) -> Verification:
    """Run ``detector`` over streams of the budget's length, resampled from ``clean`` in whole blocks, until they keep the budget.

    What breaks it is that losses come together. A higher threshold hardly helps there, for the sums of a burst grow without limit;
    counting several losses as one does.

    Parameters
    ----------
    clean
        A stretch without changes, in order, that is not the reference's own.
    block
        Losses that stay together: longer than what depends on what. Blocks start at whole multiples, so that with a block of a week's
        losses every hour of the week stays where it was.
    """
    n, first, last = len(clean.losses), int(clean.times_ms[0]), int(clean.times_ms[-1])
    days = (last - first) / DAY_MS * n / max(n - 1, 1)
    if n < 2 * block or days <= 0:
        raise DefinitionError(f"{n} losses in {days:.1f} days are too few for blocks of {block}", hint="give at least two blocks")
    per_stream = max(round(n / days * budget.days), 1)
    starts = np.random.default_rng(seed).integers(0, n // block, (streams, -(-per_stream // block))) * block
    effect = design_effect(clean.losses, block)
    for cluster in (cluster for cluster in CLUSTERS if cluster == 1 or cluster <= 2 * effect):
        trial = replace(detector, reference=replace(detector.reference, cluster=cluster), latched=False)
        alarms = sum(_alarms(trial, clean, (row[:, None] + np.arange(block)).ravel()[:per_stream]) for row in starts)
        if kept := alarms / streams <= budget.alarms:
            break
    own = _alarms(trial, clean, np.arange(n))
    return Verification(detector.arl, cluster, effect, streams, block, alarms / streams, event_rate_bound(alarms, streams), own, days,
                        budget.days * event_rate_bound(own, days), kept)


def design_effect(losses: Any, block: int) -> float:
    """How many of ``losses`` come together: the variance of the means of blocks over that of independent losses (Kish 1965); at least 1."""
    means = np.asarray(losses)[: len(losses) // block * block].reshape(-1, block).mean(1)
    spread = float(np.var(losses))
    return max(float(means.var(ddof=1)) * block / spread, 1.0) if spread else 1.0


def _alarms(detector: LossDetector, clean: LossBatch, chosen: Any) -> int:
    return detector.update(detector.start(), LossBatch(clean.losses[chosen], clean.times_ms[chosen])).alarms
