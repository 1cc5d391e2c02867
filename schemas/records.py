"""The records of the fraud use case as they travel: transaction, outcome, prediction, dead letter.

Times are integers, UTC milliseconds since 1970. Money is an integer count of minor units (cents). A producer that sends an event
again must send the same ``event_id`` and the same ``event_time``: together they are its identity.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from schemas.contracts import Contract

__all__ = ["CONTRACTS", "DEAD_LETTER", "MAX_AMOUNT_MINOR", "OUTCOME", "PREDICTION", "TRANSACTION", "DeadLetter", "Outcome",
           "Prediction", "Transaction", "ViewStamp"]

MAX_AMOUNT_MINOR = 10**11
"""Ten million records of this size still sum within int64 (semantics: sums are exact integers)."""

Id = Annotated[str, Meta(min_length=1, max_length=128)]
TimeMs = Annotated[int, Meta(ge=0, le=4_102_444_800_000)]
AmountMinor = Annotated[int, Meta(ge=0, le=MAX_AMOUNT_MINOR)]
Revision = Annotated[int, Meta(ge=0, le=1_000_000)]


class Transaction(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    event_id: Id
    event_time: TimeMs
    card_id: Id
    terminal_id: Id
    amount_minor: AmountMinor


class Outcome(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What became known of a transaction: ``event_id`` and ``event_time`` are the transaction's own."""

    event_id: Id
    event_time: TimeMs
    card_id: Id
    terminal_id: Id
    fraud: bool
    revision: Revision = 0


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


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """One scored event. ``features`` is in the order of the feature service that ``service_hash`` names; null is "no value".

    ``applied`` holds, per view, the last source offset applied to the online store in each partition when the read began.
    """

    prediction_id: Id
    event_id: Id
    event_time: TimeMs
    card_id: Id
    terminal_id: Id
    source_partition: int
    source_offset: int
    arrival_ms: int
    model: str
    model_version: str | None
    service_hash: str
    score: float | None
    threshold: float | None
    alert: bool | None
    degraded: bool
    late: bool
    features: list[float | None]
    stamps: list[ViewStamp]
    applied: dict[str, list[int]]
    read_ms: int


class DeadLetter(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """How a dead letter reads in ``headrace dlq``; on the topic the value is the original bytes and this travels as headers."""

    reason: str
    fact: str
    hint: str
    topic: str
    partition: int
    offset: int
    arrival_ms: int


TRANSACTION = Contract("transaction", 1, Transaction, "payments", "card_id", "backward", frozenset({"card_id"}),
                       "A card payment at a terminal. A retry keeps event_id and event_time.")
OUTCOME = Contract("outcome", 1, Outcome, "fraud-operations", "card_id", "backward", frozenset({"card_id"}),
                   "Whether a transaction was fraud, sent when it is known; a correction has a higher revision.")
PREDICTION = Contract("prediction", 1, Prediction, "fraud-scoring", "card_id", "backward", frozenset({"card_id"}),
                      "The score of one transaction with the features it was made from and their provenance.")
DEAD_LETTER = Contract("dead-letter", 1, DeadLetter, "headrace", "topic", "full", frozenset(),
                       "Why and from where a record was refused.")
CONTRACTS = (TRANSACTION, OUTCOME, PREDICTION, DEAD_LETTER)
