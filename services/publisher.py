"""One producer for event records and clock records, acknowledged by all replicas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from confluent_kafka import KafkaException, Producer

from schemas.envelope import CLOCK_HEADERS
from schemas.errors import LogError
from schemas.topics import BROKER_MAX_BYTES
from services.events import Record

__all__ = ["Publisher"]

ASK_S = 5.0
SERVE_EVERY = 10_000
ROOM_S = 0.05


class Publisher:
    """Sends records to ``topics`` in order; what is not acknowledged is an error, at the latest in ``flush``. One thread."""

    def __init__(self, bootstrap: str, topics: Sequence[str], linger_ms: float = 1.0) -> None:
        self._producer = Producer({
            "bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "compression.type": "lz4",
            "linger.ms": linger_ms, "partitioner": "murmur2",  # Java's; it gives all records without a key to one partition
            "message.max.bytes": BROKER_MAX_BYTES, "queue.buffering.max.messages": 500_000,
            "log_level": 0,  # what fails is raised
        })
        self._partitions = {topic: self._count(topic) for topic in topics}
        self._failed: list[Any] = []
        self._clocked: dict[str, dict[int, int]] = {topic: {} for topic in topics}

    def send(self, records: Iterable[Record]) -> int:
        """Queue ``records``, waiting for room where the broker is slower. Returns how many they were."""
        number = 0
        for number, record in enumerate(records, 1):
            self.queue(record)
            if number % SERVE_EVERY == 0:
                self.serve()
        return number

    def queue(self, record: Record) -> None:
        topic, key, value, arrival_ms, headers = record
        while True:
            try:
                self._producer.produce(topic, value, key, timestamp=arrival_ms, headers=cast(Any, headers), on_delivery=self._delivered)
                return
            except BufferError:
                self.serve(ROOM_S)
            except KafkaException as error:
                raise LogError(f"a record of {len(value)} bytes for {topic} cannot be sent: {error.args[0].str()}",
                               hint=f"records are at most {BROKER_MAX_BYTES} bytes") from error

    def clock(self, source: str, at_ms: int) -> None:
        """Say on each partition of ``source`` that everything that arrived up to ``at_ms`` has been sent."""
        for partition in range(self._partitions[source]):
            self._producer.produce(source, b"", None, partition, timestamp=at_ms, headers=cast(Any, CLOCK_HEADERS),
                                   on_delivery=self._clock_delivered)

    def partitions(self, source: str) -> int:
        """How many partitions ``source`` has now."""
        self._partitions[source] = self._count(source)
        return self._partitions[source]

    def serve(self, wait_s: float = 0.0) -> None:
        """Hear what was delivered. Raises LogError when something was not."""
        self._producer.poll(wait_s)
        if self._failed:
            raise LogError(f"broker refused a record: {self._failed[0]}", hint="see the broker's log; topics come from the catalogue")

    def flush(self) -> None:
        """Return when everything is acknowledged. Raises LogError when something cannot be, within five minutes."""
        while self._producer.flush(0.5):
            self.serve()
        self.serve()

    def clocked(self, source: str) -> dict[int, int]:
        """Partition -> offset of the last acknowledged clock record."""
        return self._clocked[source]

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._failed.append(error)

    def _clock_delivered(self, error: Any, message: Any) -> None:
        if error is not None:
            self._failed.append(error)
        else:
            self._clocked[message.topic()][message.partition()] = message.offset()

    def _count(self, source: str) -> int:
        try:
            found = self._producer.list_topics(source, timeout=ASK_S).topics[source]
        except KafkaException as error:
            raise LogError(f"Kafka does not answer: {error.args[0].str()}", hint="is it up? `headrace status`") from error
        if found.error is not None:
            raise LogError(f"topic {source} is not there: {found.error}", hint="`headrace topics` creates the catalogue's topics")
        return len(found.partitions)
