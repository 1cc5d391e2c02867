"""Reads a topic of one partition from its beginning, and goes on from where it was: what was read once is not read again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.errors import LogError

__all__ = ["LogTail"]

RETRY_S = 0.1
PASSING = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)  # ``retriable`` is for transactions only


class LogTail:
    """One consumer, one thread. ``timeout_s`` bounds each wait for the broker."""

    def __init__(self, bootstrap: str, topic: str, timeout_s: float = 30.0) -> None:
        self._topic, self._timeout_s, self._position = topic, timeout_s, 0
        self._pause = threading.Event()
        self._consumer = Consumer({
            "bootstrap.servers": bootstrap, "group.id": "headrace-tail", "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 100, "queued.max.messages.kbytes": 1024,
            "log_level": 0})
        self._consumer.assign([TopicPartition(topic, 0, 0)])

    def read(self) -> Iterator[Any]:
        """The messages from where the last call ended to the end of the topic as it is now. Raises LogError where none answers."""
        give_up = time.monotonic() + self._timeout_s
        first, end = self._ends(give_up)
        self._position = max(self._position, first)
        while self._position < end:
            message: Any = self._consumer.poll(1.0)
            if message is None or (message.error() is not None and message.error().code() in PASSING):
                if time.monotonic() > give_up:
                    raise LogError(f"reading {self._topic} stopped at offset {self._position} of {end}", hint="is Kafka up?")
            elif message.error() is not None:
                raise LogError(f"cannot read {self._topic}: {message.error()}", hint="is Kafka up? is the topic there?")
            else:
                self._position = message.offset() + 1
                yield message

    def _ends(self, give_up: float) -> tuple[int, int]:
        """(first offset, end); a partition that is just being made, or moved, has no leader for a moment."""
        while True:
            try:
                return self._consumer.get_watermark_offsets(TopicPartition(self._topic, 0), timeout=self._timeout_s)
            except KafkaException as error:
                if error.args[0].code() not in PASSING or time.monotonic() > give_up:
                    raise LogError(f"cannot read the end of {self._topic}: {error}", hint="is Kafka up? is the topic there?") from error
                self._pause.wait(RETRY_S)

    def poll(self) -> Iterator[Any]:
        """What the client has fetched since; waits for nothing, so there may be more, or nothing because none answers."""
        for message in self._consumer.consume(100, 0):
            offset = message.offset()
            if message.error() is None and offset is not None:
                self._position = offset + 1
                yield message

    def close(self) -> None:
        self._consumer.close()
