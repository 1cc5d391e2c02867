"""The detectors of one model version, with thresholds solved from the policy's budget. Their states are plain data, kept by the monitor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.models import DriftPolicy
from feature_repo.reference import MISSED, Reference
from feature_repo.views import DAY_MS
from streams.budget import Budget, solve
from streams.detectors.contract import Detector, Verdict
from streams.detectors.losses import LossDetector, LossReference, LossState
from streams.detectors.shapes import ShapeBatch, ShapeDetector, ShapeReference, ShapeState

__all__ = ["FEATURES", "SCORE", "Instrument", "close_window", "instruments", "state_type"]

FEATURES, SCORE = "features", "score"


@dataclass(frozen=True)
class Instrument:
    """``stream``: features, score, or one of losses. ``per_day``: its steps, which the budget counts by."""

    stream: str
    family: Any
    slice: str
    detector: Detector[Any, Any]
    per_day: float

    def per_90_days(self, verdict: Verdict) -> float | None:
        rate = verdict.false_alarms_per_step
        return None if rate is None else 90 * self.per_day * rate


def instruments(reference: Reference, policy: DriftPolicy) -> dict[str, Instrument]:
    """By stream. Of losses only those of which the reference has some; every one gets an equal share of the budget."""
    per_day = {FEATURES: DAY_MS / policy.window_ms, SCORE: DAY_MS / policy.window_ms}
    per_day |= {stream: number / reference.days for stream, (_, number) in reference.losses.items() if number}
    arl = solve(Budget(policy.false_alarms, policy.days), per_day)
    found = {
        FEATURES: _shapes(FEATURES, "data", tuple(reference.features), np.array(reference.counts), reference, policy, arl, per_day),
        SCORE: _shapes(SCORE, "prediction", (SCORE,), np.array(reference.score_counts)[:, None], reference, policy, arl, per_day),
    }
    for stream, (total, number) in sorted(reference.losses.items()):
        if number:
            against = LossReference(reference.name, (total,), (number,), cluster=policy.cluster)
            family = "performance" if stream == MISSED else "concept"
            found[stream] = Instrument(stream, family, stream.partition("/")[2], LossDetector(against, arl[stream]), per_day[stream])
    return found


def _shapes(stream: str, family: str, names: tuple[str, ...], counts: Any, reference: Reference, policy: DriftPolicy,
            arl: dict[str, float], per_day: dict[str, float]) -> Instrument:
    against = ShapeReference(reference.name, names, counts.astype(np.int64), cluster=policy.cluster)
    return Instrument(stream, family, "", ShapeDetector(against, arl[stream]), per_day[stream])


def state_type(stream: str) -> type[LossState] | type[ShapeState]:
    return ShapeState if stream in (FEATURES, SCORE) else LossState


def close_window(detector: Detector[Any, Any], state: ShapeState, window_ms: int, until_ms: int, counts: Any) -> ShapeState:
    """A window's counts, then nothing of the next one: so that it is closed now, or goes on into the next where it is too small."""
    full = detector.update(state, ShapeBatch(window_ms, counts))
    closed: ShapeState = detector.update(full, ShapeBatch(until_ms, np.zeros_like(counts)))
    return closed


