"""Event rows as Kafka records: JSON values by the contracts, CloudEvents headers, arrival times as timestamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from schemas.envelope import Headers, cloud_event_headers
from schemas.records import OUTCOME, TRANSACTION, Outcome, Transaction
from schemas.topics import OUTCOMES, TRANSACTIONS
from services.timeline import Arrivals

__all__ = ["Encoder", "Record"]

NO_HEADERS: Headers = []
COMMON = ("event_id", "event_time", "card_id", "terminal_id")


class Record(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    arrival_ms: int
    headers: Headers


class Encoder:
    """Makes records; ``source`` says in their headers where they come from.

    A refused row keeps its key where the card can be read, so it stays among the card's events; it has no headers, for it is not
    known to be an event.
    """

    def __init__(self, source: str) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._transaction_headers = cloud_event_headers(TRANSACTION, source)
        self._outcome_headers = cloud_event_headers(OUTCOME, source)

    def transactions(self, pieces: Iterable[Arrivals]) -> Iterator[Record]:
        encode, headers = self._encode, self._transaction_headers
        for piece in pieces:
            columns = (piece.rows[name].to_pylist() for name in (*COMMON, "amount_minor", "refused"))
            for event_id, time, card, terminal, amount, refused, arrival in zip(*columns, piece.arrival_ms.tolist(), strict=True):
                key = None if card is None else card.encode()
                if refused is None:
                    value = encode(Transaction(event_id, time, card, terminal, amount))
                    yield Record(TRANSACTIONS, key, value, arrival, headers(event_id, time))
                else:
                    yield Record(TRANSACTIONS, key, refused, arrival, NO_HEADERS)

    def outcomes(self, pieces: Iterable[Arrivals]) -> Iterator[Record]:
        encode, headers = self._encode, self._outcome_headers
        for piece in pieces:
            columns = (piece.rows[name].to_pylist() for name in (*COMMON, "fraud", "refused_outcome"))
            for event_id, time, card, terminal, fraud, refused, arrival in zip(*columns, piece.arrival_ms.tolist(), strict=True):
                key = None if card is None else card.encode()
                if refused is None:
                    value = encode(Outcome(event_id, time, card, terminal, fraud))
                    yield Record(OUTCOMES, key, value, arrival, headers(event_id, time))
                else:
                    yield Record(OUTCOMES, key, refused, arrival, NO_HEADERS)
