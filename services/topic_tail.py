"""Reads all partitions of a topic from a time on, and goes on from where it was: what was read once is not read again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.errors import LogError

__all__ = ["TopicTail"]

ASK_S, AT_ONCE = 10.0, 500


class TopicTail:
    """One consumer, one thread. It begins with the first record of each partition whose timestamp is ``from_ms`` or later."""

    def __init__(self, bootstrap: str, topic: str, from_ms: int) -> None:
        self._topic = topic
        self._consumer: Any = Consumer({
            "bootstrap.servers": bootstrap, "group.id": "headrace-tail", "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 100, "queued.max.messages.kbytes": 8192, "log_level": 0})
        try:
            found = self._consumer.list_topics(topic, timeout=ASK_S).topics[topic].partitions
            begun = self._consumer.offsets_for_times([TopicPartition(topic, partition, from_ms) for partition in found], timeout=ASK_S)
            ends = self._ends(found)
        except KafkaException as error:
            self._consumer.close()
            raise LogError(f"cannot read {topic}: {error}", hint="is Kafka up? is the topic there?") from error
        self._next = {each.partition: each.offset if each.offset >= 0 else ends[each.partition] for each in begun}
        self._consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in self._next.items()])

    def read(self) -> Iterator[Any]:
        """The messages from where the last call ended to the ends as they are now. Raises LogError where none answers."""
        try:
            ends, give_up = self._ends(self._next), time.monotonic() + 3 * ASK_S
        except KafkaException as error:
            raise LogError(f"cannot read the end of {self._topic}: {error}", hint="is Kafka up?") from error
        while any(self._next[partition] < end for partition, end in ends.items()):
            for message in self._consumer.consume(AT_ONCE, 0.1):
                if message.error() is None and message.offset() >= self._next[message.partition()]:
                    self._next[message.partition()] = message.offset() + 1
                    give_up = time.monotonic() + 3 * ASK_S
                    yield message
            if time.monotonic() > give_up:
                raise LogError(f"reading {self._topic} stopped before its end", hint="is Kafka up?")

    def close(self) -> None:
        self._consumer.close()

    def _ends(self, partitions: Any) -> dict[int, int]:
        return {partition: self._consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=ASK_S)[1]
                for partition in partitions}
