"""Event rows as Kafka records: JSON values by the contracts, CloudEvents headers, arrival times as timestamps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from schemas.envelope import Headers, cloud_event_headers
from schemas.topics import SOURCES
from services.timeline import Arrivals

__all__ = ["Encoder", "Record"]

NO_HEADERS: Headers = []


class Record(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    arrival_ms: int
    headers: Headers


class Encoder:
    """Makes records of ``topic``; ``source`` says in their headers where they come from.

    A refused row keeps its key where that can be read, so it stays among the entity's events; it has no headers, for it is not
    known to be an event.
    """

    def __init__(self, topic: str, source: str) -> None:
        self._topic, self._contract = topic, SOURCES[topic]
        self._headers = cloud_event_headers(self._contract, source)

    def records(self, pieces: Iterable[Arrivals]) -> Iterator[Record]:
        topic, headers, make = self._topic, self._headers, self._contract.record
        names = make.__struct_fields__
        identity, time, key_at = (names.index(name) for name in ("event_id", "event_time", self._contract.key))
        encode = msgspec.json.Encoder().encode
        for piece in pieces:
            columns = [piece.rows[name].to_pylist() for name in names if name in piece.rows.schema.names]  # without those with defaults
            refusals = piece.rows[f"refused.{topic}"].to_pylist()
            for values, refused, arrival in zip(zip(*columns, strict=True), refusals, piece.arrival_ms.tolist(), strict=True):
                key = None if values[key_at] is None else values[key_at].encode()
                if refused is None:
                    yield Record(topic, key, encode(make(*values)), arrival, headers(values[identity], values[time]))
                else:
                    yield Record(topic, key, refused, arrival, NO_HEADERS)
