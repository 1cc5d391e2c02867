"""Concept drift: an e-detector on losses, a mixture of Shiryaev-Roberts sums of betting e-values.

A loss x in [0, 1] whose mean, given the past, is at most u makes ``e = (1 + (m - 1) x) / (1 + (m - 1) u)`` an e-value: its mean is at
most 1 for every odds ratio m > 1 (for 0/1 losses it is the likelihood ratio of odds m). R_n = (1 + R_{n-1}) e_n then has mean at
most n, so an alarm at R >= ARL has a mean time to a false alarm of at least ARL and comes within n losses with probability at most n / ARL.
A mixture over m keeps both, and so does any e to a power below 1. Source: Shin, Ramdas and Rinaldo, "E-detectors" (2023), sections 2 and 4.

What it stands on, and what breaks it, is measured in docs/drift.md: u must bound the rate *given the past*.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit

from schemas.errors import DefinitionError
from streams.detectors.contract import Verdict
from streams.detectors.intervals import mean_bound, rate_bound
from streams.detectors.seasons import hour_of_week, shrink

__all__ = ["LossBatch", "LossDetector", "LossReference", "LossState"]

ODDS = (1.25, 1.5, 2.0, 3.0, 5.0)
LARGEST = 1e300
MINIMUM_REFERENCE = 500


@dataclass(frozen=True)
class LossReference:
    """The losses of a frozen stretch: their sum and number, for each hour of the week where it has a season.

    Parameters
    ----------
    totals, counts
        One cell, or 168 from Monday 00:00 UTC.
    error
        With this probability the reference was unlucky, its true rate lies above ``level_bound`` and nothing is promised. None: the
        rate is known exactly.
    binary
        Whether losses are 0 or 1; if not, the bound is wider.
    cluster
        How many losses count as one because they come together (the design effect of surveys, Kish 1965): the reference counts for that
        much less, and each e-value is taken to the power of its inverse, which for losses repeated ``cluster`` times is exactly right.
    """

    name: str
    totals: tuple[float, ...]
    counts: tuple[int, ...]
    error: float | None = 0.01
    binary: bool = True
    cluster: float = 1.0

    def __post_init__(self) -> None:
        if len(self.totals) != len(self.counts) or len(self.counts) not in (1, 168) or not 0 <= sum(self.totals) <= sum(self.counts):
            raise DefinitionError(f"loss reference {self.name!r} has {len(self.totals)} sums and {len(self.counts)} counts",
                                  hint="give one cell or 168, each sum between 0 and its count")

    @property
    def n(self) -> int:
        return sum(self.counts)

    @property
    def rate(self) -> float:
        return sum(self.totals) / max(self.n, 1)

    @cached_property
    def level_bound(self) -> float:
        """What the overall rate is at most."""
        if self.error is None or not self.n:
            return self.rate
        bound = rate_bound if self.binary else mean_bound
        return float(bound(sum(self.totals) / self.cluster, self.n / self.cluster, self.error))

    @cached_property
    def _cells(self) -> Any:
        """float64[cells]: each hour's shrunk rate, all raised alike from the estimate to the bound (1/2 an event stands for none)."""
        shares = shrink(np.array(self.totals)[:, None], np.array(self.counts))[:, 0]
        floor = 0.5 / max(self.n, 1)
        return np.clip(np.maximum(shares, floor) * max(self.level_bound, floor) / max(self.rate, floor), floor, 1.0)

    def bounds(self, times_ms: Any) -> Any:
        """float64[n]: what each loss's mean is at most."""
        cells = self._cells
        return np.broadcast_to(cells, len(times_ms)) if len(cells) == 1 else cells[hour_of_week(times_ms)]


@dataclass(frozen=True)
class LossBatch:
    """Losses in [0, 1], float64[n], in the order of the log; ``times_ms`` int64[n] is what an hour and a suspected start go by."""

    losses: Any
    times_ms: Any


@dataclass(frozen=True, slots=True)
class LossState:
    """Per odds ratio: the Shiryaev-Roberts sum, the CUSUM, and what has come since that CUSUM left 1. ``peak``: the
    largest CUSUM in this alarm."""

    sums: tuple[float, ...] = (0.0,) * len(ODDS)
    cusums: tuple[float, ...] = (0.0,) * len(ODDS)
    since_ms: tuple[int, ...] = (0,) * len(ODDS)
    since_n: tuple[int, ...] = (0,) * len(ODDS)
    since_loss: tuple[float, ...] = (0.0,) * len(ODDS)
    n: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    alarms: int = 0
    alarm_ms: int | None = None
    alarming: bool = False
    peak: float = 0.0


@dataclass(frozen=True)
class LossDetector:
    """Alarms when losses are worse than the reference; never because they are better. ``arl`` is in losses.

    ``latched``: an alarm lasts until there is as much evidence against it; else every alarm starts afresh, which counts them.
    """

    reference: LossReference
    arl: float
    latched: bool = True

    def start(self) -> LossState:
        return LossState()

    def update(self, state: LossState, batch: LossBatch) -> LossState:
        """Every state between two losses is the same however the stream was cut. Raises DefinitionError outside [0, 1]."""
        losses, times = np.ascontiguousarray(batch.losses, np.float64), np.ascontiguousarray(batch.times_ms, np.int64)
        if not len(losses):
            return state
        if not ((losses >= 0) & (losses <= 1)).all():
            raise DefinitionError(f"losses reach from {losses.min()} to {losses.max()}", hint="scale them to [0, 1]; NaN is no loss")
        reals = np.array((state.sums, state.cusums, state.since_loss))
        whole = np.array((state.since_ms, state.since_n))
        alarms, alarm_ms, alarming, peak = _advance(losses, self.reference.bounds(times), times, np.array(ODDS), 1 / self.reference.cluster,
                                                    self.arl, self.latched, reals, whole, state.alarming, state.peak)
        sums, cusums, since_loss = map(tuple, reals.tolist())
        since_ms, since_n = map(tuple, whole.tolist())
        return LossState(
            sums, cusums, since_ms, since_n, since_loss,
            state.n + len(losses), int(times[0]) if state.first_ms is None else state.first_ms, int(times[-1]),
            state.alarms + alarms, int(alarm_ms) if alarms else state.alarm_ms, bool(alarming), float(peak))

    def judge(self, state: LossState) -> Verdict:
        best = int(np.argmax(state.cusums))
        n, gathered = state.since_n[best], state.cusums[best] > 0 and state.since_n[best] > 0
        short = state.n == 0 or self.reference.n < MINIMUM_REFERENCE
        return Verdict(
            "losses", "INSUFFICIENT_DATA" if short else "ALARM" if state.alarming else "OK",
            float(np.mean(state.sums)), self.arl, state.since_loss[best] / n - self.reference.rate if gathered else 0.0,
            n if gathered else state.n, state.since_ms[best] if gathered else state.first_ms, state.last_ms, self.reference.name,
            state.since_ms[best] if gathered else None, 1 / self.arl,
            tuple(sorted(((f"odds x{m:g}", s / max(sum(state.sums), 1e-300)) for m, s in zip(ODDS, state.sums, strict=True)),
                         key=lambda pair: -pair[1])))


@njit(cache=True)
def _advance(losses: Any, bounds: Any, times: Any, odds: Any, power: float, arl: float, latched: bool, reals: Any, whole: Any,
             alarming: bool, peak: float) -> Any:
    """Advance the rows of ``reals`` (sums, CUSUMs, losses since) and ``whole`` (ms and number since) in place."""
    alarms, alarm_ms = 0, 0
    for i in range(len(losses)):
        mixed = 0.0
        for k in range(len(odds)):
            e = (1 + (odds[k] - 1) * losses[i]) / (1 + (odds[k] - 1) * bounds[i])
            if power != 1:
                e **= power
            reals[0, k] = min((1 + reals[0, k]) * e, LARGEST)
            if reals[1, k] <= 1:
                reals[1, k], reals[2, k], whole[0, k], whole[1, k] = 1.0, 0.0, times[i], 0
            reals[1, k] = min(reals[1, k] * e, LARGEST)
            reals[2, k] += losses[i]
            whole[1, k] += 1
            mixed += reals[0, k] / len(odds)
        over = False
        if alarming:
            peak = max(peak, np.max(reals[1]))
            over = np.max(reals[1]) * arl < peak  # as much evidence against the change as the alarm had for it
        elif mixed >= arl:
            alarming, alarms, alarm_ms, peak = True, alarms + 1, times[i], np.max(reals[1])
            over = not latched
        if over:
            alarming = False
            reals[:] = 0.0
            whole[:] = 0
    return alarms, alarm_ms, alarming, peak
