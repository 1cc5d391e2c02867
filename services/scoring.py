"""From a batch of events, what the store said of them and a model to prediction records. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from xxhash import xxh3_128_hexdigest

from feature_repo import kernel
from feature_repo.bundle import Model
from feature_repo.online import Reading
from feature_repo.vector import VectorBuilder, Vectors, request_features
from feature_repo.views import FeatureService
from schemas.records import Prediction, Transaction, ViewStamp

__all__ = ["Arrived", "Scored", "predict", "prediction_id"]

UNSIGNED = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Arrived:
    """An event with its place in the source topic. ``late`` says that some view did not admit it.

    ``sent_ns`` is the header that a latency measurement put on the event; it travels on with the prediction.
    """

    event: Transaction
    partition: int
    offset: int
    arrival_ms: int
    late: bool
    sent_ns: bytes | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    key: bytes
    prediction_id: str
    value: bytes


def prediction_id(model: str, event_id: str, event_time: int) -> str:
    """The same for the same event however often and by whatever version it is scored: one event has one prediction."""
    return xxh3_128_hexdigest(f"{model}|{event_time}|{event_id}".encode())


def predict(name: str, builder: VectorBuilder, batch: Sequence[Arrived], reading: Reading | None, model: Model | None,
            read_ms: int) -> list[Scored]:
    """One prediction an event. ``reading`` None: the store did not answer, the model's declared defaults stand in, degraded.

    Without a model the score is null and the vector is logged all the same. ``read_ms`` is told, never used in a decision.
    """
    service = builder.service
    events = [arrived.event for arrived in batch]
    vectors = builder.build(events, reading) if reading is not None else Vectors(_defaults(service, events, model), ())
    scores = model.score(vectors.matrix).tolist() if model is not None else [None] * len(events)
    threshold = model.threshold if model is not None else None
    version = model.version if model is not None else None
    stamps = _stamps(service, vectors.stamps, len(events))
    applied = {view.name: list(marks) for view, marks in zip(service.views, reading.applied, strict=True)} if reading else {}
    encode = msgspec.json.Encoder().encode
    scored = []
    for arrived, row, score, stamp in zip(batch, vectors.matrix.tolist(), scores, stamps, strict=True):
        event = arrived.event
        identity = prediction_id(name, event.event_id, event.event_time)
        degraded = reading is None or any(view.refused for view in stamp)
        alert = score >= threshold if score is not None else None
        scored.append(Scored(event.card_id.encode(), identity, encode(Prediction(
            identity, event.event_id, event.event_time, event.card_id, event.terminal_id, arrived.partition, arrived.offset,
            arrived.arrival_ms, name, version, service.definition_hash, score, threshold, alert, degraded, arrived.late, row, stamp,
            applied, read_ms))))
    return scored


def _stamps(service: FeatureService, stamps: Sequence[Any], n: int) -> list[list[ViewStamp]]:
    if not stamps:
        return [[] for _ in range(n)]
    columns = [
        [ViewStamp(view.name, used, f"{xor & UNSIGNED:016x}", None if newest == kernel.NO_TIME else newest, merged == 1, refused == 1)
         for used, xor, newest, merged, refused in of_view.tolist()]
        for view, of_view in zip(service.views, stamps, strict=True)
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def _defaults(service: FeatureService, events: Sequence[Transaction], model: Model | None) -> Any:
    matrix = np.full((len(events), len(service.feature_names)), np.nan)
    if model is not None:
        matrix[:] = model.defaults
    columns = {name: np.array([getattr(event, name) for event in events], np.int64) for name in service.event_columns}
    request_features(service, matrix, columns)
    return matrix
