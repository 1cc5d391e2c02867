"""What the records of all use cases have in common: field types, the shape of a prediction, dead letters.

Times are integers, UTC milliseconds since 1970. Money is an integer count of minor units (cents). A producer that sends an event
again must send the same ``event_id`` and the same ``event_time``: together they are its identity.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.contracts import Contract

__all__ = ["DEAD_LETTER", "DeadLetter", "Id", "Revision", "TimeMs", "ViewStamp", "prediction_record"]

Id = Annotated[str, Meta(min_length=1, max_length=128)]
TimeMs = Annotated[int, Meta(ge=0, le=4_102_444_800_000)]
Revision = Annotated[int, Meta(ge=0, le=1_000_000)]


class ViewStamp(msgspec.Struct, frozen=True, gc=False):
    """What one view's values were computed from.

    ``n`` records were used, ``fingerprint`` is the xor of the hashes of their bytes (16 hex digits), ``newest_ms`` the latest
    event time among them (null: none), ``merged`` whether the scored event itself had to be added by the reader,
    ``refused`` whether the history asked for lay below the trim floor.
    """

    view: str
    n: int
    fingerprint: str
    newest_ms: int | None
    merged: bool
    refused: bool = False


def prediction_record(name: str, module: str, entities: tuple[str, ...]) -> type[msgspec.Struct]:
    """The record of one scored event whose views are of ``entities``; ``module`` is where it is assigned to ``name``.

    ``features`` is in the order of the feature service that ``service_hash`` names; null is "no value". ``applied`` holds, per
    view, the last source offset applied to the online store in each partition when the read began. ``epoch`` is that of the release that
    made the model live; null where nothing was released. ``candidate``: a canary's version made it, not the champion.
    """
    return msgspec.defstruct(name, [
        ("prediction_id", Id), ("event_id", Id), ("event_time", TimeMs), *((entity, Id) for entity in entities),
        ("source_partition", int), ("source_offset", int), ("arrival_ms", int), ("model", str), ("model_version", str | None),
        ("service_hash", str), ("score", float | None), ("threshold", float | None), ("alert", bool | None), ("degraded", bool),
        ("late", bool), ("features", list[float | None]), ("stamps", list[ViewStamp]), ("applied", dict[str, list[int]]),
        ("read_ms", int), ("epoch", int | None, None), ("candidate", bool, False),
    ], module=module, frozen=True, gc=False)


class DeadLetter(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """How a dead letter reads in ``headrace dlq``; on the topic the value is the original bytes and this travels as headers."""

    reason: str
    fact: str
    hint: str
    topic: str
    partition: int
    offset: int
    arrival_ms: int


DEAD_LETTER = Contract("dead-letter", 1, DeadLetter, "headrace", "topic", "full", frozenset(),
                       "Why and from where a record was refused.")
