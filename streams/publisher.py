"""Publishing what was derived, acknowledged by all replicas, and not again what a former life of this worker published."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.envelope import SOURCE_OFFSET, Headers, header
from schemas.errors import LogError
from schemas.topics import DERIVED_MAX_BYTES
from streams.sort import Outgoing

__all__ = ["LogEnds", "Publisher", "last_source_offset", "log_start", "next_offset"]

NOTHING = -1
ASK_S = 5.0


def last_source_offset(bootstrap: str, topic: str, partition: int, timeout_s: float = 30.0) -> int:
    """The source offset that the last record of ``topic`` partition came from; -1 where there is none.

    What derives a topic writes partition p from source partition p, in order, so this is how far it got. Raises LogError when
    the broker does not answer within ``timeout_s``; a leader that is being elected is waited for.
    """
    consumer = _peeker(bootstrap)
    give_up, pause = time.monotonic() + timeout_s, threading.Event()
    try:
        while True:
            try:
                return _last_source_offset(consumer, topic, partition)
            except KafkaException as error:
                if time.monotonic() > give_up:
                    raise LogError(f"cannot read the end of {topic}[{partition}]: {error}", hint="is Kafka up?") from error
            pause.wait(0.1)
    finally:
        consumer.close()


def _last_source_offset(consumer: Consumer, topic: str, partition: int) -> int:
    low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ASK_S)
    if high <= low:
        return NOTHING
    consumer.assign([TopicPartition(topic, partition, high - 1)])
    message = consumer.poll(ASK_S)
    if message is None or message.error():
        raise KafkaException(message.error() if message is not None else KafkaError(KafkaError._TIMED_OUT))
    found = header(cast(Any, message.headers()), SOURCE_OFFSET)
    if found is None:
        raise LogError(f"last record of {topic}[{partition}] says no source offset", hint="only headrace may write to this topic")
    return int(found)


def next_offset(bootstrap: str, topic: str, partition: int, offset: int) -> int:
    """The offset of the first record of ``topic`` partition at or after ``offset``; the partition's end where there is none.

    Raises LogError when the broker does not answer.
    """
    consumer = _peeker(bootstrap)
    try:
        consumer.assign([TopicPartition(topic, partition, offset)])
        message = consumer.poll(ASK_S)
        error = message.error() if message is not None else KafkaError(KafkaError._TIMED_OUT)
        if message is None or (error is not None and error.code() != KafkaError._PARTITION_EOF):
            raise KafkaException(error)
        return cast(int, message.offset())
    except KafkaException as error:
        raise LogError(f"cannot read {topic}[{partition}] from offset {offset}: {error}", hint="is Kafka up?") from error
    finally:
        consumer.close()


def log_start(bootstrap: str, topic: str, partition: int) -> int:
    """The offset below which ``topic`` partition has lost what it had. Raises LogError when the broker does not answer."""
    consumer = _peeker(bootstrap)
    try:
        return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ASK_S)[0]
    except KafkaException as error:
        raise LogError(f"cannot read where {topic}[{partition}] begins: {error}", hint="is Kafka up?") from error
    finally:
        consumer.close()


class LogEnds:
    """The ends of partitions, asked again and again over one connection. Not for two threads at once."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._consumer: Consumer | None = None

    def __call__(self, topic: str, partition: int) -> int:
        """The offset after the last record of ``topic`` partition. Raises LogError when the broker does not answer."""
        if self._consumer is None:
            self._consumer = _peeker(self._bootstrap)
        try:
            return self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ASK_S)[1]
        except KafkaException as error:
            self._consumer.close()
            self._consumer = None
            raise LogError(f"cannot read where {topic}[{partition}] ends: {error}", hint="is Kafka up?") from error


def _peeker(bootstrap: str) -> Consumer:
    """Sees what a worker's consumer sees: records of open transactions too, and the oldest there is where retention has been."""
    return Consumer({"bootstrap.servers": bootstrap, "group.id": "headrace-peek", "enable.auto.commit": False,
                     "enable.partition.eof": True, "auto.offset.reset": "earliest", "isolation.level": "read_uncommitted",
                     "queued.max.messages.kbytes": 1024})


class Publisher:
    """One producer. ``stopping`` is asked while waiting: a worker that is told to stop does not wait for a dead broker."""

    def __init__(self, bootstrap: str, stopping: Callable[[], bool]) -> None:
        self._bootstrap = bootstrap
        self._stopping = stopping
        self._producer = Producer({
            "bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "compression.type": "lz4",
            "linger.ms": 50,  # flush does not wait for it
            "message.timeout.ms": 0,  # for ever: the source offset is not committed before this is acknowledged
            "message.max.bytes": DERIVED_MAX_BYTES, "queue.buffering.max.messages": 200_000, "on_delivery": self._refused,
            "delivery.report.only.error": True,  # flush waits for all of them; a callback for each costs a third of produce
        })
        self._published: dict[tuple[str, int], int] = {}
        self._failed: list[Any] = []

    def publish(self, topic: str, partition: int, records: Sequence[Outgoing]) -> None:
        """Queue ``records`` that have not been published before, to partition ``partition``. ``wait`` then waits for all."""
        if not records:
            return
        place = (topic, partition)
        if place not in self._published:
            self._published[place] = last_source_offset(self._bootstrap, topic, partition)
        mark = self._published[place]
        for record in records:
            if record.offset > mark:
                self.send(topic, partition, record.key, record.value, record.arrival_ms, record.headers)
        self._published[place] = max(mark, records[-1].offset)

    def send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, at_ms: int, headers: Headers) -> None:
        """Queue one record, published before or not."""
        while True:
            try:
                self._producer.produce(topic, value, key, partition, timestamp=at_ms, headers=cast(Any, headers))
                return
            except BufferError:  # large records: there is room for a gigabyte
                self._producer.poll(0.1)
                if self._stopping():
                    raise

    def wait(self) -> None:
        """Return when everything queued is acknowledged; LogError when one was refused or the worker is stopping."""
        while self._producer.flush(0.5):
            if self._stopping():
                raise LogError("stopped while the broker had not acknowledged everything", hint="it is published again on restart")
        if self._failed:
            error = self._failed[0]
            self._failed.clear()
            self._published.clear()
            raise LogError(f"broker refused a record: {error}", hint="see the broker's log; topics come from the catalogue")

    def forget(self, partition: int) -> None:
        """The partition may have had another owner meanwhile."""
        for place in [place for place in self._published if place[1] == partition]:
            del self._published[place]

    def _refused(self, error: Any, _: Any) -> None:
        self._failed.append(error)
