"""From a batch of events, what the store said of them and a model to prediction records. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
from xxhash import xxh3_128_hexdigest

from feature_repo import kernel
from feature_repo.bundle import Model
from feature_repo.marks import NOTHING
from feature_repo.online import Reading
from feature_repo.vector import VectorBuilder, Vectors, request_features
from feature_repo.views import FeatureService
from schemas.records import ViewStamp
from schemas.topics import PREDICTION_TOPICS
from services.canary import Split

__all__ = ["NO_PLACE", "Arrived", "Scored", "predict", "scorer_group"]

NO_PLACE = -1
ENCODE = msgspec.json.Encoder().encode


class Arrived(msgspec.Struct, frozen=True, gc=False):
    """An event with its place in the source topic. ``late`` says that some view did not admit it.

    ``sent_ns`` is the header that a latency measurement put on the event; it travels on with the prediction. ``short`` says that whoever
    read its history knows it not to be whole. An event that is scored by request has no place: partition and offset are ``NO_PLACE``.
    """

    event: Any
    partition: int
    offset: int
    arrival_ms: int
    late: bool
    sent_ns: bytes | None = None
    short: bool = False


class Decider(NamedTuple):
    """Which version an event is scored by, and whether it is a canary's candidate."""

    version: str | None
    threshold: float | None
    candidate: bool

    @classmethod
    def of(cls, champion: Model | None) -> Decider:
        return cls(None, None, False) if champion is None else cls(champion.version, champion.threshold, False)


class Scored(msgspec.Struct, frozen=True, gc=False):
    """``probe`` travels as the header ``schemas.envelope.PROBE``: what champion and candidate took for one and the same row."""

    key: bytes
    prediction_id: str
    value: bytes
    probe: bytes | None = None


def scorer_group(model: str) -> str:
    """The consumer group of a model's scorers."""
    return f"headrace-scorer-{model}"


def predict(name: str, builder: VectorBuilder, batch: Sequence[Arrived], reading: Reading | None, model: Model | None,
            read_ms: int, epoch: int | None = None, split: Split | None = None) -> list[Scored]:
    """One prediction an event. ``reading`` None: the store did not answer, the model's declared defaults stand in, degraded.

    Without a model the score is null and the vector is logged all the same. ``read_ms`` and ``epoch`` are told, never used in a decision.
    With a ``split`` some are made by its candidate.
    """
    service = builder.service
    contract = PREDICTION_TOPICS[service.predictions]
    record, key_of, entities_of = contract.record, attrgetter(contract.key), _entities(service)
    events = [arrived.event for arrived in batch]
    vectors = builder.build(events, reading) if reading is not None else Vectors(_defaults(service, events, model), ())
    scores = model.score(vectors.matrix).tolist() if model is not None else [None] * len(events)
    deciders = [Decider.of(model)] * len(events)
    probe = _split(split, model, service, events, vectors.matrix, scores, deciders, reading is None) if split is not None else None
    stamps = _stamps(service, vectors.stamps, len(events))
    degraded = _degraded(service, vectors.stamps, batch, reading)
    applied: Any = ENCODE({view.name: marks for view, marks in zip(service.views, reading.applied, strict=True)} if reading else {})
    applied = msgspec.Raw(applied)  # the same for the whole batch
    digest, head = xxh3_128_hexdigest, f"{name}|"
    scored = []
    for arrived, event, row, score, stamp, poor, (version, threshold, mine) in zip(
            batch, events, vectors.matrix.tolist(), scores, stamps, degraded, deciders, strict=True):
        identity = digest(f"{head}{event.event_time}|{event.event_id}".encode())  # as pairs.prediction_id, without its call
        scored.append(Scored(key_of(event).encode(), identity, ENCODE(record(
            identity, event.event_id, event.event_time, *entities_of(event), arrived.partition, arrived.offset,
            arrived.arrival_ms, name, version, service.definition_hash, score, threshold, score >= threshold if model else None, poor,
            arrived.late, row, stamp, applied, read_ms, epoch, mine)), probe))
        probe = None
    return scored


def _split(split: Split, champion: Model | None, service: FeatureService, events: Sequence[Any], matrix: Any, scores: list[Any],
           deciders: list[Decider], store_down: bool) -> bytes | None:
    """Put the candidate's word in the place of the champion's for the events that are its own. Returns what a probe measured, if any.

    Without a store the rows hold the champion's defaults: the candidate has its own.
    """
    candidate = split.candidate
    if champion is None or candidate is None or not (chosen := split.chosen(events)):
        return None
    if store_down:
        matrix[chosen] = _defaults(service, [events[at] for at in chosen], candidate)
    own = split.score(matrix[chosen])
    if own is None:
        return None
    decider = Decider(candidate.version, candidate.threshold, True)
    for at, score in zip(chosen, own, strict=True):
        scores[at], deciders[at] = score, decider
    return split.probe(champion, candidate, matrix[chosen[:1]])


def _entities(service: FeatureService) -> Callable[[Any], tuple[str, ...]]:
    """A function from an event to the entities of the service's views, in their order."""
    one_or_all: Any = attrgetter(*service.entities)
    return one_or_all if len(service.entities) > 1 else lambda event: (one_or_all(event),)


def _stamps(service: FeatureService, stamps: Any, n: int) -> list[Sequence[ViewStamp]]:
    """Per event, the stamps of all views."""
    if not len(stamps):
        return [()] * n
    rows = stamps.transpose(1, 0, 2).reshape(-1, stamps.shape[2])
    digits = rows[:, kernel.XOR].astype(">i8").tobytes().hex()
    names = [view.name for view in service.views]
    told = [ViewStamp(name, used, digits[at:at + 16], None if newest == kernel.NO_TIME else newest, merged == 1, refused == 1)
            for name, (used, _, newest, merged, refused), at in zip(names * n, rows.tolist(), range(0, len(digits), 16), strict=True)]
    return [told[at:at + len(names)] for at in range(0, len(told), len(names))]


def _degraded(service: FeatureService, stamps: Any, batch: Sequence[Arrived], reading: Reading | None) -> list[bool]:
    """Whether an event is scored without its whole history: the store did not answer, some of it was trimmed, or the store has lost
    what it had. A worker publishes what is valid after it was applied, so a store whose mark lies before the event is being rebuilt."""
    if reading is None:
        return [True] * len(batch)
    of_views = stamps[:, :, kernel.REFUSED]
    refused: list[bool] = of_views.any(axis=0).tolist() if np.count_nonzero(of_views) else [False] * len(batch)
    own = [applied for view, applied in zip(service.views, reading.applied, strict=True) if view.source == service.source]
    if not own:
        return [below or one.short for below, one in zip(refused, batch, strict=True)]
    held = dict(enumerate(map(min, zip(*own, strict=False))))
    return [below or one.short or held.get(one.partition, NOTHING) < one.offset for below, one in zip(refused, batch, strict=True)]


def _defaults(service: FeatureService, events: Sequence[Any], model: Model | None) -> Any:
    matrix = np.full((len(events), len(service.feature_names)), np.nan)
    if model is not None:
        matrix[:] = model.defaults
    columns = {name: np.array([getattr(event, name) for event in events], np.int64) for name in service.event_columns}
    request_features(service, matrix, columns)
    return matrix
