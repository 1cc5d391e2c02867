"""Idle partitions of a source are told the time, in live mode. In a replay whoever replays tells it.

Windows of monitors, labels that mature, trims and tiles wait until every partition has passed a time. One that gets nothing passes none: as
long as a partition of outcomes is silent, nobody would hear of drift. So the worker that owns it sends it a clock record, whose time is
the broker's; workers, scorers and joins pass it like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

from confluent_kafka import KafkaException, Producer

from feature_repo.marks import HEARD_MS, NOTHING
from feature_repo.wire import Wire
from schemas.envelope import CLOCK_HEADERS, clock
from schemas.errors import LogError, StoreError

__all__ = ["BEHIND_MS", "TILES_BEHIND_MS", "IdleClock", "arrival_is_ours"]

log = logging.getLogger(__name__)
ASK_S, TRY_MS, STORE_MS = 5.0, 5_000, 500
BEHIND_MS, TILES_BEHIND_MS = 60_000, 5_000
"""So far an idle partition may be behind the newest event; the second where a view has tiles, for what is not passed stays raw."""


class IdleClock:
    """Of the partitions of ``topic`` that one worker owns. One thread.

    A clock record is a favour: nothing waits for its acknowledgement, and what fails is told to the log and tried at another look. It
    goes only where the broker says when a record arrived: a producer's clock may be wrong, and is heard as little.
    """

    def __init__(self, topic: str, bootstrap: str, redis: str) -> None:
        self._topic, self._bootstrap, self._wire = topic, bootstrap, Wire(redis, STORE_MS)
        self._producer: Producer | None = None
        self._stamped: bool | None = None  # by the broker
        self._passed_ms: dict[int, int] = {}  # partition -> when the last of what was worked through arrived
        self._event_ms: dict[int, int] = {}  # the same of the last that is no clock record
        self._told: dict[int, int] = {}  # partition -> the newest event of all when it was last told

    def passed(self, partition: int, records: Sequence[Any]) -> None:
        """``records`` of ``partition`` are worked through."""
        self._passed_ms[partition] = records[-1].timestamp
        events = (record.timestamp for record in reversed(records) if record.value or not clock(record.headers))
        if (event_ms := next(events, None)) is not None:
            self._event_ms[partition] = event_ms

    def look(self, partition: int, idle: bool, most_ms: int) -> None:
        """Say when the newest event of ``partition`` arrived; if it is idle and more than ``most_ms`` behind, or nothing is known of it,
        tell it the time: once about one newest event, whatever has become of the record.
        """
        try:
            if self._stamped is None:
                self._stamped = not arrival_is_ours(self._bootstrap, [self._topic])
                if not self._stamped:
                    log.warning("idle partitions are not told the time, for producers stamp arrival topic=%s", self._topic)
            if self._stamped:
                self._look(partition, idle, most_ms)
        except (StoreError, LogError, KafkaException, BufferError) as error:
            log.warning("idle partition not told the time topic=%s partition=%d: %s", self._topic, partition, error)

    def _look(self, partition: int, idle: bool, most_ms: int) -> None:
        if partition in self._event_ms:  # again and again, for the store may have gone back in time
            self._wire.call("HSET", HEARD_MS, f"{self._topic}/{partition}", self._event_ms[partition])
        if not idle:
            return
        # The newest event's, not a clock record's: who was told the time has passed it, so a system that sleeps falls silent.
        newest_ms = max(map(int, self._wire.call("HVALS", HEARD_MS)), default=NOTHING)
        behind_ms = newest_ms - self._passed_ms.get(partition, NOTHING)
        if newest_ms > self._told.get(partition, NOTHING) and behind_ms > most_ms:
            self._send(partition)
            self._told[partition] = newest_ms

    def forget(self, partition: int) -> None:
        """The partition has, or had, another owner."""
        for known in (self._passed_ms, self._event_ms, self._told):
            known.pop(partition, None)
        self._stamped = None

    def _send(self, partition: int) -> None:
        if self._producer is None:
            self._producer = Producer({"bootstrap.servers": self._bootstrap, "acks": "all", "message.timeout.ms": TRY_MS, "log_level": 0})
        self._producer.produce(self._topic, b"", None, partition, headers=cast(Any, CLOCK_HEADERS), on_delivery=self._heard)
        self._producer.poll(0)

    def _heard(self, error: Any, message: Any) -> None:
        if error is not None:
            log.warning("clock record refused topic=%s partition=%d: %s", self._topic, message.partition(), error)


def arrival_is_ours(bootstrap: str, topics: Iterable[str]) -> bool:
    """Whether the publisher, not the broker, says when a record of ``topics`` arrived. Raises LogError without an answer."""
    from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    asked = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic) for topic in topics], request_timeout=ASK_S)
    try:
        answers = [cast(Any, answer.result(2 * ASK_S)) for answer in asked.values()]
    except (KafkaException, TimeoutError) as error:
        raise LogError(f"Kafka at {bootstrap} does not say how its topics are set: {error}",
                       hint="`headrace topics` creates the catalogue's topics") from error
    return all(answer["message.timestamp.type"].value == "CreateTime" for answer in answers)
