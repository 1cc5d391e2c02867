"""From a batch of events, what the store said of them and a model to prediction records. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
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

__all__ = ["Arrived", "Scored", "predict", "prediction_id", "scorer_group"]

ENCODE = msgspec.json.Encoder().encode


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """An event with its place in the source topic. ``late`` says that some view did not admit it.

    ``sent_ns`` is the header that a latency measurement put on the event; it travels on with the prediction.
    """

    event: Transaction
    partition: int
    offset: int
    arrival_ms: int
    late: bool
    sent_ns: bytes | None = None


class Scored(msgspec.Struct, frozen=True, gc=False):
    key: bytes
    prediction_id: str
    value: bytes


def prediction_id(model: str, event_id: str, event_time: int) -> str:
    """The same for the same event however often and by whatever version it is scored: one event has one prediction."""
    return xxh3_128_hexdigest(f"{model}|{event_time}|{event_id}".encode())


def scorer_group(model: str) -> str:
    """The consumer group of a model's scorers."""
    return f"headrace-scorer-{model}"


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
    degraded = _degraded(vectors.stamps, len(events), reading)
    applied: Any = ENCODE({view.name: marks for view, marks in zip(service.views, reading.applied, strict=True)} if reading else {})
    applied = msgspec.Raw(applied)  # the same for the whole batch
    digest, head = xxh3_128_hexdigest, f"{name}|"
    scored = []
    for arrived, event, row, score, stamp, poor in zip(batch, events, vectors.matrix.tolist(), scores, stamps, degraded, strict=True):
        identity = digest(f"{head}{event.event_time}|{event.event_id}".encode())  # as prediction_id, without its call
        scored.append(Scored(event.card_id.encode(), identity, ENCODE(Prediction(
            identity, event.event_id, event.event_time, event.card_id, event.terminal_id, arrived.partition, arrived.offset,
            arrived.arrival_ms, name, version, service.definition_hash, score, threshold, score >= threshold if model else None, poor,
            arrived.late, row, stamp, applied, read_ms))))
    return scored


def _stamps(service: FeatureService, stamps: Sequence[Any], n: int) -> list[Any]:
    """Per event, the stamps of all views."""
    if not stamps:
        return [()] * n
    return list(zip(*(_of_view(view.name, of_view) for view, of_view in zip(service.views, stamps, strict=True)), strict=True))


def _of_view(name: str, stamps: Any) -> list[ViewStamp]:
    digits = stamps[:, kernel.XOR].astype(">i8").tobytes().hex()
    newest: list[int | None] = stamps[:, kernel.NEWEST].tolist()
    if kernel.NO_TIME in newest:
        newest = [None if at == kernel.NO_TIME else at for at in newest]
    merged, refused = ((stamps[:, column] == 1).tolist() for column in (kernel.MERGED, kernel.REFUSED))
    return [ViewStamp(name, used, digits[at:at + 16], last, own, below)
            for used, at, last, own, below in zip(stamps[:, kernel.USED].tolist(), range(0, len(digits), 16), newest, merged, refused,
                                                  strict=True)]


def _degraded(stamps: Sequence[Any], n: int, reading: Reading | None) -> list[bool]:
    """Whether an event is scored without its whole history: the store did not answer, or some of it was trimmed."""
    if reading is None:
        return [True] * n
    refused: list[bool] = np.any([of_view[:, kernel.REFUSED] == 1 for of_view in stamps], axis=0).tolist()
    return refused


def _defaults(service: FeatureService, events: Sequence[Transaction], model: Model | None) -> Any:
    matrix = np.full((len(events), len(service.feature_names)), np.nan)
    if model is not None:
        matrix[:] = model.defaults
    columns = {name: np.array([getattr(event, name) for event in events], np.int64) for name in service.event_columns}
    request_features(service, matrix, columns)
    return matrix
