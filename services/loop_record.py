"""What the loop said of a model, from its topics: detections, decisions, requests, releases, and what came of predictions."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from schemas.errors import ContractError
from schemas.evaluations import EVALUATION, EVALUATIONS
from schemas.monitoring import DECISIONS, DETECTIONS, REQUESTS, Detection, RetrainDecision, RetrainRequest
from schemas.releases import Release
from services.ledger import read_topic
from services.releasing import read_chain

__all__ = ["Evaluated", "LoopRecord", "read_evaluated", "read_loop"]


WAITED = re.compile(r"(?<=waits for labels): .*")


@dataclass(frozen=True)
class LoopRecord:
    """Each once, in the order in which it was said."""

    detections: list[Detection]
    decisions: list[RetrainDecision]
    requests: list[RetrainRequest]
    releases: list[Release]

    def refused(self) -> dict[str, int]:
        """Why there was no retrain in windows with an alarm, and how often."""
        said = [each.reason for each in self.decisions if each.by == "policy" and not each.request and (each.evidence or each.what != "OK")]
        said += [each.reason for each in self.decisions if each.by == "governor" and each.what == "declined"]
        return dict(Counter(WAITED.sub("", reason) for reason in said).most_common())

    def ended(self, what: str) -> list[str]:
        """Retrains that ended so: promoted, rejected or failed."""
        return [each.retrain_id for each in self.decisions if each.by == "governor" and each.what == what]


def read_loop(kafka: str, model: str) -> LoopRecord:
    """Raises LogError where the broker does not answer."""
    def said(topic: str, kind: Any, key: str) -> list[Any]:
        found: dict[str, Any] = {}
        for message in read_topic(kafka, topic):
            with suppress(msgspec.MsgspecError):  # whoever wrote it, it was not the loop
                record = msgspec.json.decode(message.value() or b"", type=kind)
                if record.model == model:
                    found.setdefault(getattr(record, key), record)
        return list(found.values())

    return LoopRecord(said(DETECTIONS, Detection, "detection_id"), said(DECISIONS, RetrainDecision, "decision_id"),
                      said(REQUESTS, RetrainRequest, "retrain_id"), read_chain(kafka).history(model))


@dataclass(frozen=True)
class Evaluated:
    """Scored events with the newest that is known of them: ``event_time`` ms, ``predicted_ms``, ``score`` and ``label``, each [n]."""

    event_time: Any
    predicted_ms: Any
    score: Any
    label: Any

    def between(self, from_ms: int, to_ms: int) -> Evaluated:
        """Predictions made in [from_ms, to_ms)."""
        there = (self.predicted_ms >= from_ms) & (self.predicted_ms < to_ms)
        return Evaluated(self.event_time[there], self.predicted_ms[there], self.score[there], self.label[there])


def read_evaluated(kafka: str, model: str) -> Evaluated:
    """Of predictions with a score. Holds a row of four numbers for each: of a demo's topic, not of a year's."""
    newest: dict[str, tuple[int, tuple[Any, ...]]] = {}
    for message in read_topic(kafka, EVALUATIONS):
        try:
            one = EVALUATION.decode(message.value())
        except ContractError:
            continue
        if one.model == model and one.score is not None and one.revision >= newest.get(one.prediction_id, (-1, ()))[0]:
            newest[one.prediction_id] = one.revision, (one.event_time, one.predicted_ms, one.score, one.label)
    rows = [row for _, row in newest.values()]
    times, predicted, scores, labels = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Evaluated(np.array(times, np.int64), np.array(predicted, np.int64), np.array(scores, float), np.array(labels, bool))
