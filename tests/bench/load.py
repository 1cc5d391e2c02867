"""Events as dense as real ones, whatever their number: thirty days, two transactions a card and one a terminal each day."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from confluent_kafka import Producer

from feature_repo.views import DAY_MS
from schemas.envelope import Headers, cloud_event_headers
from schemas.fraud import OUTCOMES, TRANSACTION, TRANSACTIONS

__all__ = ["START_MS", "Events", "publish_outcomes", "publish_transactions"]

START_MS = 1_530_403_200_000  # a midnight
DAYS = 30
FRAUD_SHARE = 0.02
NO_HEADERS: Headers = []


@dataclass(frozen=True)
class Events:
    """Columns of n transactions in order of time."""

    first: int
    times: Any
    cards: Any
    terminals: Any
    amounts: Any
    frauds: Any

    @classmethod
    def draw(cls, n: int, days: float = DAYS, first: int = 0, start_ms: int = START_MS, population: int = 0) -> Events:
        """``n`` events over ``days``; ``population`` events (default n) in thirty days are what cards and terminals are counted for."""
        r = np.random.default_rng([17, first])
        cards = max(1, round((population or n) / (2 * DAYS)))
        step = days * DAY_MS / n
        times = start_ms + ((np.arange(n) + r.random(n)) * step).astype(np.int64)
        return cls(first, times, r.integers(0, cards, n), r.integers(0, 2 * cards, n), r.gamma(2.0, 2_500.0, n).astype(np.int64) + 1,
                   r.random(n) < FRAUD_SHARE)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def end_ms(self) -> int:
        return int(self.times[-1]) + 1

    def transactions(self) -> Iterator[tuple[str, int, bytes, bytes]]:
        """(event id, event time, key, value), the value as the contract says."""
        value = b'{"event_id":"%d","event_time":%d,"card_id":"%d","terminal_id":"%d","amount_minor":%d}'
        columns = (column.tolist() for column in (self.times, self.cards, self.terminals, self.amounts))
        for number, (time, card, terminal, amount) in enumerate(zip(*columns, strict=True), self.first):
            yield str(number), time, b"%d" % card, value % (number, time, card, terminal, amount)

    def outcomes(self) -> Iterator[tuple[str, int, bytes, bytes]]:
        value = b'{"event_id":"%d","event_time":%d,"card_id":"%d","terminal_id":"%d","fraud":%b}'
        columns = (column.tolist() for column in (self.times, self.cards, self.terminals, self.frauds))
        for number, (time, card, terminal, fraud) in enumerate(zip(*columns, strict=True), self.first):
            yield str(number), time, b"%d" % card, value % (number, time, card, terminal, b"true" if fraud else b"false")


def publish_transactions(bootstrap: str, events: Events, headers: bool = False) -> None:
    """All of them, arriving when they happen; with CloudEvents ``headers`` if asked."""
    attributes = cloud_event_headers(TRANSACTION, "/bench")
    _publish(bootstrap, TRANSACTIONS, ((time, key, value, attributes(name, time) if headers else NO_HEADERS)
                                       for name, time, key, value in events.transactions()))


def publish_outcomes(bootstrap: str, events: Events, after_ms: int) -> None:
    """What became of them, arriving ``after_ms`` later."""
    _publish(bootstrap, OUTCOMES, ((time + after_ms, key, value, NO_HEADERS) for _, time, key, value in events.outcomes()))


def _publish(bootstrap: str, topic: str, records: Iterator[tuple[int, bytes, bytes, Any]]) -> None:
    refused: list[Any] = []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "compression.type": "lz4",
                         "linger.ms": 20, "batch.num.messages": 10_000, "queue.buffering.max.messages": 200_000,
                         "delivery.report.only.error": True, "on_delivery": lambda error, _: refused.append(error)})
    for time, key, value, headers in records:
        while True:
            try:
                producer.produce(topic, value, key, timestamp=time, headers=headers)
                break
            except BufferError:
                producer.poll(0.05)
    assert producer.flush(60) == 0, "the broker did not take everything"
    assert not refused, refused[0]
