"""``headrace archive`` as a process, and who publishes what it archives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from jobs.archive import STREAMS
from schemas.fraud import OUTCOMES, PREDICTIONS, TRANSACTIONS
from schemas.settings import Settings
from schemas.topics import catalogue

EXIST = {topic.name for topic in catalogue(Settings())}
TOPICS = [topic for topics in STREAMS.values() for topic in topics if topic in EXIST]
Place = tuple[str, int, int]


@dataclass
class Ledger:
    """Publishes, and records a place only when the broker has acknowledged it."""

    bootstrap: str
    acknowledged: list[Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": self.bootstrap, "acks": "all", "enable.idempotence": True, "log_level": 0,
                                   "topic.metadata.refresh.interval.ms": 200})

    def partitions(self, topic: str) -> int:
        """As many as whoever publishes here knows of, asked anew."""
        return len(self._producer.list_topics(topic, timeout=10).topics[topic].partitions)

    def publish(self, topic: str, values: list[bytes], partition: int = -1) -> list[Place]:
        places: list[Place] = []

        def placed(error: Any, message: Any) -> None:
            assert error is None, error
            places.append((topic, message.partition(), message.offset()))

        for value in values:
            self._producer.produce(topic, value, partition=partition, on_delivery=placed)
        assert self._producer.flush(30) == 0
        self.acknowledged += places
        return places

    def publish_all(self, number: int) -> None:
        for topic in TOPICS:
            self.publish(topic, [os.urandom(200) for _ in range(number)])

    def transact(self) -> None:
        """A transaction, and then, as a scorer does, its prediction, which says where that lies."""
        ((_, partition, offset),) = self.publish(TRANSACTIONS, [b"{}"])
        self.publish(PREDICTIONS, [b"%d/%d" % (partition, offset)])
        self.publish(OUTCOMES, [b"{}"])


def start(home: Path, kafka: str, *words: str) -> tuple[subprocess.Popen[bytes], Path]:
    """``headrace archive`` in a process group of its own, and the file that it says its rounds in."""
    home.mkdir(exist_ok=True)
    said = home / "said.json"
    with said.open("wb") as out, (home / "errors").open("ab") as errors:
        environment = {**os.environ, "HEADRACE_HOME": str(home), "HEADRACE_KAFKA": kafka}
        return subprocess.Popen([sys.executable, "-m", "services.cli", "archive", *words, "--json"], stdout=out, stderr=errors,
                                env=environment, start_new_session=True), said


def rounds(said: Path) -> list[dict[str, Any]]:
    """A line each; the last may be being written."""
    return [json.loads(line) for line in said.read_text().splitlines(keepends=True) if line.endswith("\n")]


def kill(process: subprocess.Popen[bytes]) -> None:
    """The driver with its JVM, at once; nothing of it can still write."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
