"""How far everybody is: lag in events and seconds per group, rates, model, dead letters, memory."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from feature_repo.bundle import champion
from feature_repo.fraud import FRAUD, VIEWS
from feature_repo.marks import NOTHING, Progress, scored_key
from feature_repo.wire import Wire
from schemas.errors import LogError
from schemas.settings import Settings
from schemas.topics import PREDICTIONS, SOURCES, dead_letter_topic, valid_topic
from services.ledger import end_offsets
from services.runtime.endpoints import Endpoints
from services.scoring import scorer_group

__all__ = ["Group", "Status", "read_status"]


@dataclass(frozen=True)
class Group:
    """``lag_s`` is from the arrival of the oldest record not done to that of the newest; 0 where nothing is left to do.

    ``source`` is what it reads: the scorer reads ``transactions.valid``, for a dead letter is nothing to score.
    """

    group: str
    source: str
    lag_events: int
    lag_s: float
    events_per_s: float


@dataclass(frozen=True)
class Status:
    groups: list[Group]
    predictions: int
    dead_letters: dict[str, int]
    model: str | None
    redis_mb: float
    redis_keys: int

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def read_status(settings: Settings, at: Endpoints, interval_s: float = 1.0) -> Status:
    """One look at everything; the rates are over ``interval_s``."""
    progress = Progress(at.redis, VIEWS, FRAUD.service.name, FRAUD.service.source)
    wire = Wire(at.redis, 5000)
    try:
        before = {source: progress.groups(source) for source in SOURCES}
        threading.Event().wait(interval_s)
        groups = []
        for source in SOURCES:
            for name, marks in progress.groups(source).items():
                done = sum(marks.values()) - sum(before[source].get(name, {}).get(p, NOTHING) for p in marks)
                scorer = name == scored_key(FRAUD.service.name)
                reads = valid_topic(source) if scorer else source
                position = _committed(at.kafka, scorer_group(FRAUD.name), reads) if scorer else {p: m + 1 for p, m in marks.items()}
                left = {p: (max(low, position.get(p, 0)), high) for p, (low, high) in end_offsets(at.kafka, reads).items()}
                groups.append(Group(name, reads, sum(high - low for low, high in left.values()),
                                    _lag_s(at.kafka, reads, left), round(done / interval_s, 1)))
        memory = wire.call("INFO", "memory")
        text = memory.decode() if isinstance(memory, bytes) else str(memory)
        used = int(next(line.split(":")[1] for line in text.splitlines() if line.startswith("used_memory:")))
        keys = int(wire.call("DBSIZE"))
    finally:
        progress.close()
        wire.close()
    return Status(groups, _count(at.kafka, PREDICTIONS), {source: _count(at.kafka, dead_letter_topic(source)) for source in SOURCES},
                  _model(settings.models), round(used / 2**20, 1), keys)


def _count(kafka: str, topic: str) -> int:
    return sum(high - low for low, high in end_offsets(kafka, topic).values())


def _committed(kafka: str, group: str, topic: str) -> dict[int, int]:
    """Partition -> offset that ``group`` reads next; only partitions of which it has read."""
    consumer: Any = Consumer({"bootstrap.servers": kafka, "group.id": group, "enable.auto.commit": False})  # never joins it
    try:
        asked = [TopicPartition(topic, partition) for partition in end_offsets(kafka, topic)]
        return {each.partition: each.offset for each in consumer.committed(asked, timeout=10.0) if each.offset >= 0}
    except KafkaException as error:
        raise LogError(f"cannot read how far {group} is: {error}", hint="is Kafka up?") from error
    finally:
        consumer.close()


def _model(models: Path) -> str | None:
    folder = champion(models, FRAUD.name)
    return folder.name if folder is not None else None


def _lag_s(kafka: str, topic: str, left: dict[int, tuple[int, int]]) -> float:
    """The longest time span of what is left in any partition, by the records' own timestamps."""
    longest = 0.0
    for partition, (first, end) in left.items():
        if first < end:
            oldest, newest = _arrival_ms(kafka, topic, partition, first), _arrival_ms(kafka, topic, partition, end - 1)
            longest = max(longest, (newest - oldest) / 1000)
    return longest


def _arrival_ms(kafka: str, topic: str, partition: int, offset: int) -> int:
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": "headrace-status", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, partition, offset)])
        message = consumer.poll(5.0)
        return 0 if message is None or message.error() else int(message.timestamp()[1])
    finally:
        consumer.close()
