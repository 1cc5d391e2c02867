"""Event to prediction through Kafka in real time: due times are fixed beforehand, so a slow system cannot hide behind a slow sender."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from feature_repo.models import UseCase
from schemas.envelope import SENT_NS, header
from schemas.errors import LogError
from services.ledger import end_offsets
from services.paced import publish_paced

__all__ = ["Latency", "measure_latency", "one_a_millisecond"]

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Latency:
    """``p50``, ``p99`` and ``most`` in ms from when an event was due to be sent to when its prediction was read."""

    events: int
    rate: float
    p50: float
    p99: float
    most: float
    behind_ms: float

    def facts(self) -> dict[str, float]:
        return {"p50": round(self.p50, 2), "p99": round(self.p99, 2), "max": round(self.most, 2), "events": self.events,
                "rate": self.rate, "sender_behind_ms": round(self.behind_ms, 2)}


def measure_latency(bootstrap: str, batches: list[pa.RecordBatch], rate: float, case: UseCase, warm_up_s: float = 3.0) -> Latency:
    """Publish the rows of ``batches`` at ``rate`` a second in open loop and read the predictions of ``case``'s first model.

    What was due in the first ``warm_up_s`` is not counted. Raises LogError when predictions stay away for half a minute.
    """
    expected = sum(batch.num_rows for batch in batches)
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "headrace-latency", "enable.auto.commit": False,
                         "fetch.wait.max.ms": 5, "fetch.min.bytes": 1})
    predictions = case.services[0].predictions
    consumer.assign([TopicPartition(predictions, p, high) for p, (_, high) in end_offsets(bootstrap, predictions).items()])
    sender: dict[str, Any] = {}

    def send() -> None:
        sender["result"] = publish_paced(bootstrap, iter(batches), rate, source="/headrace/latency", emissions=case.emissions,
                                         stamp=True)

    thread = threading.Thread(target=send, name="latency-sender")
    thread.start()
    try:
        due, took = _read(consumer, expected)
    finally:
        thread.join()
        consumer.close()
    counted = took[due >= due.min() + warm_up_s * 1e9] / 1e6
    p50, p99 = np.percentile(counted, [50, 99])
    return Latency(len(counted), rate, float(p50), float(p99), float(counted.max()), sender["result"].behind_ms)


def _read(consumer: Any, expected: int) -> tuple[Any, Any]:
    """(due ns, ns until read) of ``expected`` predictions."""
    due, took = np.empty(expected, np.int64), np.empty(expected, np.int64)
    read, heard = 0, time.monotonic()
    while read < expected:
        first = consumer.poll(0.5)
        now = time.time_ns()
        for message in [first, *consumer.consume(1000, 0)] if first is not None else []:
            sent = header(message.headers(), SENT_NS) if not message.error() else None
            if sent is not None:
                due[read], took[read] = int(sent), now - int(sent)
                read, heard = read + 1, time.monotonic()
        if time.monotonic() - heard > PATIENCE_S:
            raise LogError(f"{expected - read} of {expected} predictions did not come within {PATIENCE_S:.0f} s",
                           hint="`headrace status` says who lags")
    return due, took


def one_a_millisecond(batch: pa.RecordBatch, start_ms: int, rows: int) -> Iterator[pa.RecordBatch]:
    """The first ``rows`` rows of ``batch``, row n happening n ms after ``start_ms``: simulated time at the pace of a clock."""
    cut = batch.slice(0, rows)
    times = pa.array(np.arange(start_ms, start_ms + cut.num_rows, dtype=np.int64))
    yield cut.set_column(cut.schema.get_field_index("event_time"), "event_time", times)
