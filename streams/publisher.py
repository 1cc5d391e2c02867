"""Publishing what was derived, acknowledged by all replicas, and not again what a former life of this worker published."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.envelope import SOURCE_OFFSET, Headers, header
from schemas.errors import LogError
from streams.batches import Batches
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
    """What goes out by one thread. ``stopping``: see Batches."""

    def __init__(self, bootstrap: str, stopping: Callable[[], bool]) -> None:
        self._bootstrap = bootstrap
        self._batches = Batches(bootstrap, stopping)
        self._published: dict[tuple[str, int], int] = {}

    def publish(self, topic: str, partition: int, records: Sequence[Outgoing]) -> None:
        """Queue ``records`` that have not been published before, to partition ``partition``. ``wait`` then waits for all."""
        if not records:
            return
        place = (topic, partition)
        if place not in self._published:
            self._published[place] = last_source_offset(self._bootstrap, topic, partition)
        mark = self._published[place]
        self._batches.add_all(topic, partition, ((record.key, record.value, record.arrival_ms, record.headers)
                                                 for record in records if record.offset > mark))
        self._published[place] = max(mark, records[-1].offset)

    def send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, at_ms: int, headers: Headers) -> None:
        """Queue one record, published before or not."""
        self._batches.add(topic, partition, key, value, at_ms, headers)

    def wait(self) -> None:
        """Return when everything queued is acknowledged; LogError when one was refused or the worker is stopping."""
        try:
            self._batches.wait()
        except BaseException:
            self._published.clear()
            raise

    def forget(self, partition: int) -> None:
        """The partition may have had another owner meanwhile."""
        for place in [place for place in self._published if place[1] == partition]:
            del self._published[place]
