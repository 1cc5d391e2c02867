"""Reads whole topics from their beginning to their end as it was when asked: for checks, dead letters and reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.envelope import clock
from schemas.errors import LogError

__all__ = ["end_offsets", "read_events", "read_topic"]

LEADERLESS = {KafkaError._UNKNOWN_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION}


def end_offsets(bootstrap: str, topic: str, timeout_s: float = 10.0) -> dict[int, tuple[int, int]]:
    """Partition -> (first offset, offset after the last) of ``topic``."""
    consumer = _consumer(bootstrap)
    try:
        return _bounds(consumer, topic, timeout_s)
    finally:
        consumer.close()


def read_topic(bootstrap: str, topic: str, timeout_s: float = 30.0, *, last: int | None = None) -> Iterator[Any]:
    """Every record that ``topic`` holds now, partition by partition in offset order; with ``last`` those of so many last offsets.

    Raises LogError when the broker stops answering for ``timeout_s``.
    """
    consumer = _consumer(bootstrap)
    try:
        for partition, (low, high) in sorted(_bounds(consumer, topic, timeout_s).items()):
            if last is not None:
                low = max(low, high - last)
            if low == high:
                continue
            consumer.assign([TopicPartition(topic, partition, low)])
            position = low
            while position < high:
                # consume(n) waits for n; poll then consume at once takes what is there
                for message in (consumer.poll(timeout_s), *consumer.consume(1000, 0)):
                    if message is None or message.error():
                        raise LogError(f"reading {topic}[{partition}] stopped at offset {position} of {high}", hint="is Kafka up?")
                    if message.offset() < high:
                        yield message
                    position = message.offset() + 1
    finally:
        consumer.close()


def read_events(bootstrap: str, topic: str, *, last: int | None = None) -> Iterator[Any]:
    """As ``read_topic``, without the clock records that tell a source's partitions the time."""
    return (message for message in read_topic(bootstrap, topic, last=last) if not clock(message.headers()))


def _consumer(bootstrap: str) -> Any:
    # A fetch that waits at the end of one partition holds up the first of the next.
    return Consumer({"bootstrap.servers": bootstrap, "group.id": "headrace-ledger", "enable.auto.commit": False,
                     "auto.offset.reset": "earliest", "fetch.wait.max.ms": 10, "queued.max.messages.kbytes": 16384,
                     "isolation.level": "read_committed"})


def _bounds(consumer: Any, topic: str, timeout_s: float) -> dict[int, tuple[int, int]]:
    """As ``end_offsets``. A partition without a leader, as after a broker's start, is waited for."""
    give_up, pause = time.monotonic() + timeout_s, threading.Event()
    while True:
        try:
            found = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
            if found.error is not None:
                raise LogError(f"topic {topic} is not there: {found.error}", hint="`headrace topics` creates the catalogue's topics")
            return {p: consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=timeout_s) for p in found.partitions}
        except KafkaException as error:
            if time.monotonic() > give_up or error.args[0].code() not in LEADERLESS:
                raise LogError(f"cannot read topic {topic}: {error}", hint="is Kafka up?") from error
            pause.wait(0.1)
