"""Which predictions a detection is about. Pure.

A signal of shapes (data, prediction) is about predictions of the champion whose events arrived in its window; one of losses (concept,
performance) about evaluations that came in time, of predictions that came of age in it; a feed's about whatever arrived. Evidence adds
up over windows: where a start of the change is suspected, it is about all since then.
"""

from __future__ import annotations

from typing import Any

from feature_repo.models import ModelSpec
from feature_repo.reference import loss_streams
from schemas.evaluations import Evaluation
from schemas.monitoring import Detection

__all__ = ["LOSSES", "about_evaluation", "about_prediction", "span"]

LOSSES = frozenset({"concept", "performance"})


def span(detection: Detection, spec: ModelSpec) -> tuple[int, int]:
    """When the events of its predictions arrived: from the first time on and before the second."""
    age_ms = spec.drift.age_ms if spec.drift is not None and detection.family in LOSSES else 0
    first_ms, end_ms = detection.from_ms - age_ms, detection.until_ms - age_ms
    return min(first_ms, first_ms if detection.suspected_start_ms is None else detection.suspected_start_ms), end_ms


def about_prediction(detection: Detection, spec: ModelSpec, prediction: Any) -> bool:
    """Whether a signal of shapes or of the feed has counted ``prediction``."""
    first_ms, end_ms = span(detection, spec)
    own = detection.family == "feed" or detection.model_version == (prediction.model_version or "")
    return detection.family not in LOSSES and detection.model == prediction.model and own and first_ms <= prediction.arrival_ms < end_ms


def about_evaluation(detection: Detection, spec: ModelSpec, one: Evaluation) -> bool:
    """Whether a signal of losses has counted ``one``: its stream has it, and it came in time."""
    first_ms, end_ms = span(detection, spec)
    if (detection.family not in LOSSES or spec.drift is None or one.degraded or one.alert is None
            or (detection.model, detection.model_version) != (one.model, one.model_version or "")):
        return False
    streams = [name for name, _ in loss_streams(spec.drift, one.event_time, one.alert, one.label)]
    return (detection.signal in streams and first_ms <= one.predicted_ms < end_ms
            and one.outcome_ms - one.predicted_ms <= spec.drift.age_ms)
