"""What one window says of one model version: its shapes and its losses that are old enough, through its own detectors. Pure but for the
state that it is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from feature_repo.bins import BINS
from feature_repo.models import DriftPolicy
from feature_repo.reference import Reference
from schemas.monitoring import WindowPart
from streams.detectors.contract import Verdict
from streams.detectors.losses import LossBatch
from streams.monitors.feed import labels_verdict
from streams.monitors.instruments import FEATURES, SCORE, Instrument, close_window
from streams.monitors.losses import HOUR_MS, expand
from streams.monitors.state import Cohort, Pending, VersionState

__all__ = ["Judged", "Performance", "Signed", "count_features", "judge_version", "take_part"]


@dataclass(frozen=True)
class Signed:
    """A verdict with its name. ``per_90_days``: false alarms that it may raise, None where nothing is promised. ``news``: it had data in
    this window; an alarm without lasts, but confirms nothing.
    """

    name: str
    family: Any
    slice: str
    verdict: Verdict
    per_90_days: float | None = None
    news: bool = True

    @property
    def judged(self) -> bool:
        return self.news and self.verdict.status != "INSUFFICIENT_DATA"


@dataclass(frozen=True)
class Performance:
    """Of the window of predictions that has come of age: figures to show, and whether its labels are there."""

    figures: dict[str, float | None] = field(default_factory=dict)
    feed: tuple[Signed, ...] = ()


@dataclass(frozen=True)
class Judged:
    signals: tuple[Signed, ...]
    performance: Performance


def take_part(versions: dict[str, VersionState], part: WindowPart, policy: DriftPolicy) -> None:
    """Keep what ``part`` holds until it is of age. What belongs to hours that have been judged came too late."""
    for version, predicted in part.versions.items():
        state = versions.setdefault(version, VersionState())
        state.used_ms = max(state.used_ms, predicted.last_ms)
        state.cohorts.setdefault(part.window_ms, Cohort()).n += predicted.n
    for version, found in part.evaluated.items():
        state = versions.setdefault(version, VersionState())
        for stream, hours in found.losses.items():
            for hour_ms, gaps in hours.items():
                if hour_ms + HOUR_MS + policy.age_ms > part.window_ms:
                    taken_back = found.retracted.get(stream, {}).get(hour_ms, [0, 0])
                    state.pending.setdefault(stream, {}).setdefault(hour_ms, []).append(Pending(gaps, taken_back))
        for window_ms, table in found.table.items():
            if window_ms + policy.window_ms + policy.age_ms > part.window_ms:
                cohort = state.cohorts.setdefault(window_ms, Cohort())
                cohort.table = (np.array(cohort.table) + table).tolist()
                held = cohort.scores or [[0] * (BINS + 2)] * 2
                cohort.scores = (np.array(held) + found.scores[window_ms]).tolist()


def count_features(parts: Iterable[WindowPart], version: str) -> Any:
    """int64[F, 22] of a window, None where nothing was counted."""
    return _sum([found.features for part in parts if (found := part.versions.get(version)) is not None and found.features is not None])


def judge_version(state: VersionState, version: str, reference: Reference, tools: Mapping[str, Instrument], policy: DriftPolicy,
                  window_ms: int, parts: Iterable[WindowPart], tainted: Collection[int], miscounted: Collection[int]) -> Judged:
    """Close the window that begins at ``window_ms`` for one version.

    What was predicted in ``tainted`` windows is no evidence of any drift: an alarm outlasts what raised it, and would outlast the fault.
    Of ``miscounted`` ones it is not asked whether labels are missing: of lost, repeated or misdated events they are.
    """
    until = window_ms + policy.window_ms
    performance = _performance(state, reference, policy, until, miscounted)
    bad = {*tainted, *(int(performance.figures["cohort_ms"] or 0) for signed in performance.feed if signed.verdict.status == "ALARM")}
    shapes: dict[str, Any] = {FEATURES: None, SCORE: None}
    if window_ms not in bad:
        score = _sum([found.score for part in parts if (found := part.versions.get(version)) is not None and found.score is not None])
        shapes = {FEATURES: count_features(parts, version), SCORE: score[None] if score is not None else None}

    def of_bad(hour_ms: int) -> bool:
        return hour_ms // policy.window_ms * policy.window_ms in bad

    signals = []
    for name, tool in tools.items():
        if name in shapes:
            signals.append(_shapes(state, name, tool, window_ms, until, shapes[name]))
        else:
            signals.append(_losses(state, name, tool, until - policy.age_ms, of_bad))
    for name, hours in state.pending.items():
        if name not in tools:  # the reference has no such losses: they have nothing to be compared with
            hours.clear()
    return Judged(tuple(signals), performance)


def _sum(counts: Sequence[Any]) -> Any:
    return np.sum([np.array(each) for each in counts], 0) if counts else None


def _shapes(state: VersionState, name: str, tool: Instrument, window_ms: int, until: int, counts: Any) -> Signed:
    before = state.shapes.get(name, tool.detector.start())
    after = close_window(tool.detector, before, window_ms, until, counts) if counts is not None else before
    state.shapes[name] = after
    return _signed(name, tool, tool.detector.judge(after), after.windows > before.windows)


def _losses(state: VersionState, name: str, tool: Instrument, old_until_ms: int, bad: Callable[[int], bool]) -> Signed:
    before = state.losses.get(name, tool.detector.start())
    hours = state.pending.get(name, {})
    after, news = before, False
    for hour_ms in sorted(hour for hour in hours if hour + HOUR_MS <= old_until_ms):
        pending = hours.pop(hour_ms)
        if bad(hour_ms):
            continue
        losses = expand([each.gaps for each in pending], [each.retracted for each in pending])
        after = tool.detector.update(after, LossBatch(losses, np.full(len(losses), hour_ms)))
        news = news or len(losses) > 0
    state.losses[name] = after
    return _signed(name, tool, tool.detector.judge(after), news)


def _signed(name: str, tool: Instrument, verdict: Verdict, news: bool) -> Signed:
    if not news and verdict.status == "OK":
        verdict = replace(verdict, status="INSUFFICIENT_DATA")
    return Signed(name, tool.family, tool.slice, verdict, tool.per_90_days(verdict), news)


def _performance(state: VersionState, reference: Reference, policy: DriftPolicy, until: int, miscounted: Collection[int]) -> Performance:
    """Of the cohorts that are of age now; the newest of them is shown. Of ``miscounted`` ones it is not asked whether labels lack."""
    figures: dict[str, float | None] = {}
    feed: tuple[Signed, ...] = ()
    for window_ms in sorted(at for at in state.cohorts if at + policy.window_ms + policy.age_ms <= until):
        cohort = state.cohorts.pop(window_ms)
        _, false, missed, right = cohort.table
        labelled = sum(cohort.table)
        feed = (Signed("labels", "feed", "", labels_verdict(cohort.n, labelled, reference)),) if window_ms not in miscounted else ()
        figures = {"cohort_ms": window_ms, "predictions": cohort.n, "labelled": labelled,
                   "error": _share(false + missed, labelled), "precision": _share(right, right + false),
                   "recall": _share(right, right + missed), "auc": _auc(cohort.scores)}
    return Performance(figures, feed)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole > 0 else None


def _auc(scores: list[list[int]]) -> float | None:
    """Area under the ROC curve from the scores' bins; within a bin ties count half."""
    if not scores:
        return None
    negatives, positives = np.array(scores, float)[:, :BINS]
    pairs = negatives.sum() * positives.sum()
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs) if pairs else None

