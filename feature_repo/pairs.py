"""When a prediction meets what became known of its event: the rules, the same for the streaming join and for the one over tables. Pure.

An event's outcomes are looked at in the order of their log. One counts where its revision is higher than that of every one before it: a
retry, another content under the same revision and an older revision after a newer one change nothing. Each that counts is one evaluation
of each prediction of its event, whichever of the two came first; so the evaluations follow from the two logs, not from how their
readers took turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
from xxhash import xxh3_128_hexdigest

from feature_repo.models import ModelSpec, Outcomes
from schemas.envelope import CE_TYPE, Headers
from schemas.errors import DefinitionError
from schemas.evaluations import EVALUATION, Evaluation, evaluation_id
from schemas.records import Id, TimeMs

__all__ = ["LAST_MS", "Label", "Scored", "beyond", "encode", "evaluation", "evaluations", "headers_of", "joined_models",
           "prediction_decoder", "prediction_id", "scored_of"]

LAST_MS = 4_102_444_800_000
"""The last time that contracts take; what a producer stamped later is joined with nothing."""
HEADERS: Headers = [("ce_specversion", b"1.0"), (CE_TYPE, EVALUATION.type_bytes), ("ce_source", b"headrace/outcomes"),
                    ("content-type", b"application/json")]
ENCODE = msgspec.json.Encoder().encode


class Label(NamedTuple):
    """What one revision of an outcome says, and when it arrived."""

    revision: int
    label: bool
    outcome_ms: int


class Scored(msgspec.Struct, frozen=True, gc=False):
    """What a pair needs of a prediction beside its event: ``partition`` is where it lies, ``predicted_ms`` when its event arrived."""

    model: str
    model_version: str | None
    threshold: float | None
    score: float | None
    alert: bool | None
    degraded: bool
    predicted_ms: int
    partition: int
    subject: str


def prediction_id(model: str, event_id: str, event_time: int) -> str:
    """The same for the same event however often and by whatever version it is scored: one event has one prediction."""
    return xxh3_128_hexdigest(f"{model}|{event_time}|{event_id}".encode())


def joined_models(specs: Iterable[ModelSpec]) -> dict[Outcomes, list[ModelSpec]]:
    """What tells labels, with the models whose labels it tells. An absence is told by nobody: models with such labels are in none.

    Raises DefinitionError where two of them read one topic differently: an event has one label there.
    """
    found: dict[Outcomes, list[ModelSpec]] = {}
    for spec in specs:
        if isinstance(spec.labels, Outcomes):
            found.setdefault(spec.labels, []).append(spec)
    if len({told.topic for told in found}) < len(found):
        raise DefinitionError(f"models take their labels from different fields of one topic: {', '.join(map(str, found))}",
                              hint="send the second label on a topic of its own")
    return found


def prediction_decoder(spec: ModelSpec) -> msgspec.json.Decoder[Any]:
    """Reads of a prediction of ``spec`` what ``scored_of`` and a pair's identity need, and passes over the rest."""
    fields = [("event_id", Id), ("event_time", TimeMs), ("model", str), ("model_version", str | None), ("threshold", float | None),
              ("score", float | None), ("alert", bool | None), ("degraded", bool), ("arrival_ms", int), ("subject", Id)]
    return msgspec.json.Decoder(msgspec.defstruct("Predicted", fields, rename={"subject": spec.subject}, frozen=True, gc=False))


def scored_of(prediction: Any, partition: int) -> Scored:
    """What a pair needs of a decoded ``prediction`` in ``partition``."""
    return Scored(prediction.model, prediction.model_version, prediction.threshold, prediction.score, prediction.alert,
                  prediction.degraded, prediction.arrival_ms, partition, prediction.subject)


def beyond(event_time: int, arrival_ms: int, horizon_ms: int) -> bool:
    """Whether a record came so long after its event that the streaming join leaves its pairs to the tables."""
    return arrival_ms - event_time > horizon_ms or arrival_ms > LAST_MS


def evaluation(event_id: str, event_time: int, scored: Scored, label: Label, previous: bool | None) -> Evaluation:
    """What ``label`` makes of a prediction; ``previous`` is what the one that counted before it said."""
    identity = prediction_id(scored.model, event_id, event_time)
    return Evaluation(evaluation_id(identity, label.revision), identity, event_id, event_time, scored.subject, scored.model,
                      scored.model_version, scored.score, scored.threshold, scored.alert, scored.degraded, label.label, previous,
                      label.revision, scored.predicted_ms, label.outcome_ms, max(scored.predicted_ms, label.outcome_ms))


def evaluations(event_id: str, event_time: int, scored: Scored, labels: Sequence[Label]) -> list[Evaluation]:
    """One for each of ``labels``, those of the event that count."""
    previous: list[bool | None] = [None, *(label.label for label in labels)]
    return [evaluation(event_id, event_time, scored, label, before) for label, before in zip(labels, previous, strict=False)]


def encode(evaluation: Evaluation) -> bytes:
    return ENCODE(evaluation)


def headers_of(evaluation: Evaluation) -> Headers:
    return [*HEADERS, ("ce_id", evaluation.evaluation_id.encode())]
