"""Publishes predictions and knows what of the source is done: acknowledged by all replicas, in the order it was read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Producer

from schemas.envelope import CE_TYPE, PROBE, SENT_NS, SOURCE_OFFSET
from schemas.errors import LogError
from schemas.topics import PREDICTION_TOPICS
from services.scoring import Arrived, Scored

__all__ = ["Batch", "PredictionWriter"]

@dataclass(slots=True)
class Batch:
    """Published together; done when ``outstanding`` is 0. ``scored`` is partition -> (source offset, arrival ms)."""

    outstanding: int = 0
    positions: dict[int, int] = field(default_factory=dict)
    scored: dict[int, tuple[int, int]] = field(default_factory=dict)

    def acknowledged(self, error: Any, _: Any) -> None:
        if error is not None:
            raise LogError(f"broker refused a prediction: {error}", hint="see the broker's log")
        self.outstanding -= 1

    def forget(self, partitions: Iterable[int]) -> None:
        """They belong to another scorer now."""
        for partition in partitions:
            self.positions.pop(partition, None)
            self.scored.pop(partition, None)


class PredictionWriter:
    """One producer to ``topic`` and the batches that wait for its acknowledgements."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._headers = [("ce_specversion", b"1.0"), (CE_TYPE, PREDICTION_TOPICS[topic].type_bytes), ("ce_source", b"headrace/scorer"),
                         ("content-type", b"application/json")]
        self._producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 1,
                                   "compression.type": "lz4", "message.timeout.ms": 0, "queue.buffering.max.messages": 100_000,
                                   "queue.buffering.max.kbytes": 65_536})
        self._batches: deque[Batch] = deque()

    @property
    def waiting(self) -> bool:
        """Whether something is not acknowledged yet."""
        return bool(self._batches)

    def write(self, batch: Batch, arrived: Sequence[Arrived], results: Sequence[Scored]) -> None:
        """Queue the ``results`` of the events that ``arrived``; waits where the broker is slower."""
        batch.outstanding = len(results)
        produce, done = self._producer.produce, batch.acknowledged
        for origin, result in zip(arrived, results, strict=True):
            headers: Any = [*self._headers, ("ce_id", result.prediction_id.encode()), (SOURCE_OFFSET, b"%d" % origin.offset)]
            if origin.sent_ns is not None:
                headers.append((SENT_NS, origin.sent_ns))
            if result.probe is not None:
                headers.append((PROBE, result.probe))
            while True:
                try:
                    produce(self._topic, result.value, result.key, origin.partition, on_delivery=done, timestamp=origin.arrival_ms,
                            headers=headers)
                    break
                except BufferError:
                    self._producer.poll(0.1)
        self._batches.append(batch)

    def done(self) -> Iterator[Batch]:
        """The batches that have been acknowledged meanwhile, with all before them. Raises LogError where one was refused."""
        self._producer.poll(0)
        while self._batches and self._batches[0].outstanding == 0:
            yield self._batches.popleft()

    def flush(self, seconds: float) -> bool:
        """Whether everything is acknowledged within ``seconds``."""
        return self._producer.flush(seconds) == 0

    def forget(self, partitions: Iterable[int]) -> None:
        for batch in self._batches:
            batch.forget(partitions)
