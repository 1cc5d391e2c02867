"""Served vectors with the newest that is known of their outcome, read from the log for certain spans of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.models import ModelSpec
from schemas.errors import ContractError
from schemas.evaluations import EVALUATION, EVALUATIONS
from schemas.topics import PREDICTION_TOPICS
from services.ledger import read_topic

__all__ = ["ServedRows", "read_served"]


@dataclass(frozen=True)
class ServedRows:
    """``predicted_ms`` int64[n], ``subject`` of each (a card), ``x`` float64[n, F], ``label`` float64[n], NaN where none is known."""

    predicted_ms: Any
    subject: Any
    x: Any
    label: Any

    def between(self, from_ms: int, to_ms: int) -> ServedRows:
        """Labelled rows that were predicted in [from_ms, to_ms)."""
        there = (self.predicted_ms >= from_ms) & (self.predicted_ms < to_ms) & ~np.isnan(self.label)
        return ServedRows(self.predicted_ms[there], self.subject[there], self.x[there], self.label[there])


def read_served(kafka: str, spec: ModelSpec, spans: Sequence[tuple[int, int]]) -> ServedRows:
    """Predictions of today's features in any of the ``spans`` [from, to), each once. Holds these spans' vectors, not the topic's.

    Raises LogError where the broker does not answer.
    """
    labels = _labels(kafka, spec.name, spans)
    topic, service_hash = spec.service.predictions, spec.service.definition_hash
    seen: set[str] = set()
    times, subjects, vectors, told = [], [], [], []
    for message in read_topic(kafka, topic):
        try:
            one: Any = PREDICTION_TOPICS[topic].decode(message.value())
        except ContractError:
            continue
        if one.model == spec.name and one.service_hash == service_hash and _within(one.arrival_ms, spans) and one.prediction_id not in seen:
            seen.add(one.prediction_id)
            times.append(one.arrival_ms)
            subjects.append(getattr(one, spec.subject))
            vectors.append(np.array(one.features, np.float64))
            told.append(labels.get(one.prediction_id, (0, np.nan))[1])
    x = np.array(vectors) if vectors else np.empty((0, len(spec.service.feature_names)))
    return ServedRows(np.array(times, np.int64), np.array(subjects), x, np.array(told, np.float64))


def _labels(kafka: str, model: str, spans: Sequence[tuple[int, int]]) -> dict[str, tuple[int, float]]:
    """Prediction id -> (revision, label)."""
    found: dict[str, tuple[int, float]] = {}
    for message in read_topic(kafka, EVALUATIONS):
        try:
            one = EVALUATION.decode(message.value())
        except ContractError:
            continue
        if one.model == model and _within(one.predicted_ms, spans) and one.revision >= found.get(one.prediction_id, (-1, 0.0))[0]:
            found[one.prediction_id] = one.revision, float(one.label)
    return found


def _within(at_ms: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(first <= at_ms < last for first, last in spans)
