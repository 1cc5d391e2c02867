"""The topics of one partition on which monitors, governor, runners and people speak: whole records in and out, and answers by position."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from confluent_kafka import Producer

from schemas.errors import LogError
from schemas.monitoring import DECISIONS, RetrainDecision
from services.log_tail import LogTail

__all__ = ["ControlLog"]

ANSWER_S = 60.0
LOOK_EVERY_S = 0.2
Record = TypeVar("Record", bound=msgspec.Struct)
Found = TypeVar("Found")


class ControlLog:
    """Says things on control topics, hears what is said there, and waits for the governor's answer. Any thread may say something."""

    def __init__(self, kafka: str) -> None:
        self._kafka, self._lock = kafka, threading.Lock()
        self._read: dict[str, tuple[LogTail, list[tuple[int, Any]]]] = {}
        self._producer = Producer({"bootstrap.servers": kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 0, "log_level": 0})

    def records(self, topic: str, kind: type[Record]) -> list[tuple[int, Record]]:
        """(offset, record) of all that ``topic`` holds by now; what is no ``kind`` is passed over."""
        tail, found = self._read.setdefault(topic, (LogTail(self._kafka, topic), []))
        for message in tail.read():
            with suppress(msgspec.MsgspecError):
                found.append((message.offset(), msgspec.json.decode(message.value() or b"", type=kind)))
        return found

    def publish(self, topic: str, record: Any, at_ms: int) -> int:
        """The offset at which ``record``, which has a ``model``, lies. Raises LogError where the broker does not take it.

        ``at_ms`` is stream time; brokers of live topics stamp records themselves.
        """
        told: list[tuple[Any, Any]] = []
        with self._lock:
            self._producer.produce(topic, msgspec.json.encode(record), record.model.encode(), 0, timestamp=at_ms,
                                   on_delivery=lambda error, message: told.append((error, message)))
            left = self._producer.flush(ANSWER_S)
        if left or told[0][0] is not None:
            raise LogError(f"broker did not take a record of {topic}: {told}", hint="is Kafka up?")
        return int(told[0][1].offset())

    def answer(self, topic: str, offset: int, wanted: Container[str],
               stopped: Callable[[], bool] = lambda: False) -> RetrainDecision | None:
        """Which of ``wanted`` the governor said of the record at ``offset`` of ``topic``; None where nothing in time, or ``stopped``."""
        return self.wait(lambda: next((each for _, each in self.records(DECISIONS, RetrainDecision) if each.what in wanted
                                       and (each.by, each.source, each.offset) == ("governor", topic, offset)), None), stopped)

    def wait(self, found: Callable[[], Found | None], stopped: Callable[[], bool] = lambda: False) -> Found | None:
        """The first thing that is ``found``; None where nothing is in time, or ``stopped``."""
        give_up, pause = time.monotonic() + ANSWER_S, threading.Event()
        while time.monotonic() < give_up and not stopped():
            if (one := found()):
                return one
            pause.wait(LOOK_EVERY_S)
        return None

    def close(self) -> None:
        for tail, _ in self._read.values():
            tail.close()
