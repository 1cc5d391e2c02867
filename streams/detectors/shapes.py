"""Data and prediction drift: one e-value per model from the histograms of all its features against frozen reference bins.

The reference is a sample, so its shares are not the truth: a likelihood ratio against them grows for ever on an unchanged stream. Here
every set of bins (each bin, the lower quarters, and the complements of all) has an upper bound of its probability that holds for all
sets of all features at once with probability ``1 - error`` (Clopper-Pearson, Bonferroni); with the bound u, odds m and c of n events in
the set, ``m^c / (1 + (m - 1) u)^n`` is an e-value for *every* distribution within the bounds. Per set and odds it feeds a
Shiryaev-Roberts sum over closed windows; the mean of the sums is the statistic. So alarms at ARL come no more often than once in ARL
windows, whatever depends on what between features, given only that the reference was not the unlucky ``error``.

A stock sum grows by one in a window that can tell nothing. Here it grows by what the window can tell, one at most: else sets that are
nearly everything, or nearly nothing, would add up to an alarm that no window ends. While an alarm is on, the sums are kept so low that
a few windows as the reference has them end it, and the noise of one does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from feature_repo.bins import MINIMUM_N
from schemas.errors import DefinitionError
from streams.detectors.contract import Verdict
from streams.detectors.distances import psi
from streams.detectors.intervals import rate_bound
from streams.detectors.seasons import HOURS, hour_of_week

__all__ = ["ShapeBatch", "ShapeDetector", "ShapeReference", "ShapeState"]

ODDS = (1.1, 1.5, 3.0)
CUTS = (0.2, 0.4, 0.6, 0.8)
CAP = 2.0
"""A sum is held at this multiple of what suffices to alarm alone: else the set that a change moves most would outweigh all others for
good."""
NOTHING = -1e300
"""The logarithm of an empty sum, as JSON can hold it."""
ENDS, NOISE = 3, 2
"""An alarm is held so many windows of mean fall, and deviations of one window, above its end. Of 98 that were on at the end of a random
change half ended within three windows, all within thirteen."""
TOP = 5
WEEK_MS = HOURS * 3_600_000


@dataclass(frozen=True)
class ShapeReference:
    """Counts of the training Delta version: int64[cells, features, bins], cells of equal length from Monday 00:00 UTC (7: days).

    ``cluster``: how many events count as one because they come together (as in ``losses``). A window is to be no longer than a cell.
    """

    name: str
    features: tuple[str, ...]
    counts: Any
    error: float = 0.01
    cluster: float = 1.0

    def __post_init__(self) -> None:
        if self.counts.ndim != 3 or HOURS % self.counts.shape[0] or self.counts.shape[1] != len(self.features):
            raise DefinitionError(f"shape reference {self.name!r} has counts {self.counts.shape} for {len(self.features)} features",
                                  hint="give [cells, features, bins], as many cells as divide the hours of a week")

    @cached_property
    def sets(self) -> Any:
        """bool[sets, bins]: single bins, lower ends of the ordered ones (the last two are missing and unseen), and complements."""
        bins = self.counts.shape[2]
        ordered = np.arange(bins)
        some = np.array([*(ordered == b for b in range(bins)), *(ordered < round(cut * (bins - 2)) for cut in CUTS)])
        return np.concatenate([some, ~some])

    def cell(self, window_ms: int) -> int:
        return int(hour_of_week(window_ms)) * len(self.counts) // HOURS

    def has(self, window_ms: int) -> bool:
        """Whether it has seen enough of that hour of the week: other hours may be unlike it."""
        return bool(self.seen[self.cell(window_ms)])

    @cached_property
    def seen(self) -> Any:
        """bool[cells]: those with 500 events, for against looser bounds a change that other days tell looks like none. Where no cell has so
        many, those that have any."""
        n = self.counts.sum(2).min(1)
        return n >= MINIMUM_N if (n >= MINIMUM_N).any() else n > 0

    @cached_property
    def bounds(self) -> Any:
        """float64[cells, features, sets]: what the probability of each set is at most, by the cell's own events."""
        hits, n = self.counts @ self.sets.T, np.maximum(self.counts.sum(2)[:, :, None], 1)
        return rate_bound(hits / self.cluster, n / self.cluster, self.error / hits.size)

    def bounds_between(self, first_ms: int, last_ms: int) -> Any:
        """float64[features, sets], for events of windows that began from ``first_ms`` to ``last_ms``: however they are mixed, the largest
        bound holds. Of cells that the reference has not seen there are none."""
        first, cells = self.cell(first_ms), len(self.counts)
        steps = -(-(last_ms - first_ms) * cells // WEEK_MS)
        between = {(first + step) % cells for step in range(min(steps, cells) + 1)} | {self.cell(last_ms)}
        held = [cell for cell in sorted(between) if self.seen[cell]]
        return self.bounds[held].max(0) if held else np.ones_like(self.bounds[0])


@dataclass(frozen=True)
class ShapeBatch:
    """Counts int64[features, bins] of events of the window that begins at ``window_ms``. A retraction counts negatively, in the window of
    its event: in a later one it would be taken for a change."""

    window_ms: int
    counts: Any


@dataclass(frozen=True, slots=True)
class ShapeState:
    """``log_sums``: log of the Shiryaev-Roberts sum per feature, set and odds, flat; ``open``: counts that no closed window has yet, of
    windows that began between ``opened_ms`` and ``open_ms``; ``statistic``: the mean of the sums, before an alarm held them down."""

    log_sums: tuple[float, ...] | None = None
    cusums: tuple[float, ...] = ()
    since_ms: tuple[int, ...] = ()
    open: tuple[tuple[int, ...], ...] = ()
    open_ms: int | None = None
    last: tuple[tuple[int, ...], ...] = ()
    last_ms: int | None = None
    windows: int = 0
    alarms: int = 0
    alarm_ms: int | None = None
    alarming: bool = False
    opened_ms: int | None = None
    statistic: float = 0.0


@dataclass(frozen=True)
class ShapeDetector:
    """``arl`` is in windows. Batches must not straddle windows; a window with fewer than 500 events joins the next one, and one of an hour
    of the week of which the reference has no 500 is passed over."""

    reference: ShapeReference
    arl: float

    def start(self) -> ShapeState:
        return ShapeState()

    def update(self, state: ShapeState, batch: ShapeBatch) -> ShapeState:
        """Counts merge, in any order within a window; a batch of a later window closes the one before."""
        newest_ms = state.open_ms if state.open_ms is not None else state.last_ms
        if newest_ms is not None and (batch.window_ms < newest_ms or batch.window_ms == state.last_ms):
            raise DefinitionError(f"a batch of window {batch.window_ms} ms came after window {newest_ms} ms",
                                  hint="send windows in the order of stream time; count late events into the open one")
        if state.open_ms is not None and batch.window_ms > state.open_ms and min(map(sum, state.open)) >= MINIMUM_N:
            state = self._close(state)
        if not self.reference.has(batch.window_ms):
            return state
        added = np.asarray(batch.counts, np.int64) + (np.array(state.open, np.int64) if state.open else 0)
        opened_ms = state.opened_ms if state.opened_ms is not None and any(map(any, state.open)) else batch.window_ms
        return replace(state, open=tuple(map(tuple, added.tolist())), open_ms=batch.window_ms, opened_ms=opened_ms)

    def judge(self, state: ShapeState) -> Verdict:
        """Of the last closed window; its PSI is the largest of any feature."""
        if state.log_sums is None or state.last_ms is None:
            return Verdict("shapes", "INSUFFICIENT_DATA", 0.0, self.arl, 0.0, sum(state.open[0]) if state.open else 0, state.open_ms,
                           state.open_ms, self.reference.name, None, 1 / self.arl)
        by_feature = self._sums(state.log_sums).reshape(len(self.reference.features), -1).mean(1)
        old = self.reference.counts[self.reference.cell(state.last_ms)]
        effect = max(psi(a, np.maximum(b, 0)) for a, b in zip(old, state.last, strict=True))
        top, total = np.argsort(-by_feature, kind="stable")[:TOP], float(by_feature.sum())
        lead = int(top[0])
        return Verdict(
            "shapes", "ALARM" if state.alarming else "OK", state.statistic, self.arl, effect, sum(state.last[0]),
            state.last_ms, state.last_ms, self.reference.name, state.since_ms[lead] if state.cusums[lead] > 0 else None, 1 / self.arl,
            tuple((self.reference.features[f], float(by_feature[f] / max(total, 1e-300))) for f in top))

    def _close(self, state: ShapeState) -> ShapeState:
        assert state.open_ms is not None
        counts = np.array(state.open, np.int64)
        opened_ms = state.open_ms if state.opened_ms is None else state.opened_ms
        bounds = self.reference.bounds_between(opened_ms, state.open_ms)
        rise, fall, most = self._moves(np.maximum(counts, 0), bounds)
        log_e = rise - fall
        before = np.full(log_e.size, NOTHING) if state.log_sums is None else np.array(state.log_sums)
        ceiling = np.log(CAP * self.arl * log_e.size)
        can_tell = np.clip(np.minimum(fall, most - fall), 0, 1).ravel()
        grown = np.logaddexp(np.log(np.maximum(can_tell, np.finfo(float).tiny)), before)
        known = np.broadcast_to((bounds < 1)[:, :, None], log_e.shape).ravel()  # a set that may be everything tells nothing, for ever
        sums = np.where(known, np.minimum(grown + log_e.ravel(), ceiling), before)
        per_feature = np.logaddexp.reduce(log_e.reshape(len(counts), -1), 1) - np.log(log_e[0].size)
        cusums = np.array(state.cusums) if state.cusums else np.zeros(len(counts))
        since = np.where(cusums > 0, np.array(state.since_ms or (0,) * len(counts)), opened_ms)
        cusums = np.maximum(cusums + per_feature, 0)
        mean = float(self._sums(sums).mean())
        crossed = mean >= self.arl and not state.alarming
        released = state.alarming and mean < np.sqrt(self.arl)
        if released:
            sums[:], cusums[:] = NOTHING, 0.0
        elif state.alarming or crossed:
            sums -= max(np.log(mean) - self._held_at(sums, state.open_ms, fall, most), 0.0)
        return replace(
            state, log_sums=tuple(sums.tolist()), cusums=tuple(cusums.tolist()), since_ms=tuple(since.tolist()),
            open=(), open_ms=None, opened_ms=None, last=state.open, last_ms=state.open_ms, windows=state.windows + 1,
            alarms=state.alarms + crossed, alarm_ms=state.open_ms if crossed else state.alarm_ms,
            alarming=(state.alarming or crossed) and not released, statistic=mean)

    def _moves(self, counts: Any, bounds: Any) -> tuple[Any, Any, Any]:
        """float64[features, sets, odds], of the logarithms of sums: what the events raise them by, what their number lowers them by, and
        what they would raise them by if all lay in the set."""
        odds, n = np.log(ODDS), counts.sum(1)[:, None, None] / self.reference.cluster
        hits = (counts @ self.reference.sets.T)[:, :, None] / self.reference.cluster
        return hits * odds, n * np.log1p(np.expm1(odds) * bounds[:, :, None]), np.broadcast_to(n * odds, (*bounds.shape, len(odds)))

    def _held_at(self, sums: Any, window_ms: int, fall: Any, most: Any) -> float:
        """The logarithm of the mean from which ``ENDS`` windows with the reference's own shares lead to the end of an alarm."""
        old = self.reference.counts[self.reference.cell(window_ms)]
        shares = ((old @ self.reference.sets.T) / np.maximum(old.sum(1), 1)[:, None])[:, :, None]
        weights = np.exp(sums - sums.max())
        weights /= weights.sum()
        brings = float(weights @ (fall - most * shares).ravel())
        noise = float(weights @ np.sqrt(most * shares * (1 - shares) * np.log(ODDS)).ravel())
        return float(np.log(self.arl) / 2) + ENDS * max(brings, 0.0) + NOISE * noise

    def _sums(self, log_sums: Any) -> Any:
        return np.exp(np.minimum(np.asarray(log_sums), 700))
