"""How far everybody is: lag in events and seconds per group, rates, model, dead letters, memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from feature_repo.marks import NOTHING, Progress, scored_key
from feature_repo.use_cases import models, services, views
from feature_repo.wire import Wire
from schemas.errors import LogError
from schemas.settings import Settings
from schemas.topics import dead_letter_topic, sources, valid_topic
from services.ledger import end_offsets
from services.releasing import live_bundle, read_chain
from services.runtime.endpoints import Endpoints
from services.scoring import scorer_group
from services.set_memory import SetMemory, set_memory
from services.shadow_place import read_dropped, shadow_group

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
    """``shadow_dropped``: model -> predictions that its shadow skipped, of all time, because it was too far behind."""

    groups: list[Group]
    predictions: int
    dead_letters: dict[str, int]
    model: str | None
    shadow_dropped: dict[str, int]
    redis_mb: float
    redis_keys: int
    sets: list[SetMemory]

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def read_status(settings: Settings, at: Endpoints, interval_s: float = 1.0) -> Status:
    """One look at everything; the rates are over ``interval_s``."""
    from streams.loop import GROUP as LOOP
    from streams.loop import loop_topics

    progress = Progress(at.redis, views(settings), services(settings))
    scorers = {scored_key(spec.service.name): scorer_group(spec.name) for spec in models(settings)}
    wire = Wire(at.redis, 5000)
    try:
        before = {source: progress.groups(source) for source in sources(settings)}
        looped = _committed(at.kafka, LOOP, loop_topics(settings))
        shadows = {group: _committed(at.kafka, group, [spec.service.predictions])
                   for spec in models(settings) for group in (shadow_group(spec.name),)}
        threading.Event().wait(interval_s)
        groups: list[Group] = []
        for source in before:
            for name, marks in progress.groups(source).items():
                done = sum(marks.values()) - sum(before[source].get(name, {}).get(p, NOTHING) for p in marks)
                reads = valid_topic(source) if name in scorers else source
                position = _committed(at.kafka, scorers[name], [reads])[reads] if name in scorers else {p: m + 1 for p, m in marks.items()}
                left = {p: (max(low, position.get(p, 0)), high) for p, (low, high) in end_offsets(at.kafka, reads).items()}
                groups.append(Group(name, reads, sum(high - low for low, high in left.values()),
                                    _lag_s(at.kafka, reads, left), round(done / interval_s, 1)))
        groups += _moved(at.kafka, LOOP, looped, interval_s)
        for group, shadowed in shadows.items():
            if any(shadowed.values()):  # it has begun
                groups += _moved(at.kafka, group, shadowed, interval_s)
        memory = wire.call("INFO", "memory")
        text = memory.decode() if isinstance(memory, bytes) else str(memory)
        used = int(next(line.split(":")[1] for line in text.splitlines() if line.startswith("used_memory:")))
        keys = int(wire.call("DBSIZE"))
        sets = set_memory(wire, views(settings))
    finally:
        progress.close()
        wire.close()
    chain = read_chain(at.kafka)
    live = [bundle[0] for spec in models(settings) if (bundle := live_bundle(settings.models, spec.name, chain)) is not None]
    return Status(groups, sum(_count(at.kafka, service.predictions) for service in services(settings)),
                  {source: _count(at.kafka, dead_letter_topic(source)) for source in before},
                  ", ".join(f"{folder.parent.name} {folder.name}" for folder in live) or None,
                  {spec.name: read_dropped(at.kafka, spec.name, spec.service.predictions, range(settings.partitions))
                   for spec in models(settings)}, round(used / 2**20, 1), keys, sets)


def _moved(kafka: str, group: str, before: dict[str, dict[int, int]], interval_s: float) -> list[Group]:
    """How far ``group`` is in each topic that it reads, by what it commits, once a second; where it has read nothing, all is left."""
    found, now = [], _committed(kafka, group, list(before))
    for topic, was in before.items():
        position = now[topic]
        left = {p: (max(low, position.get(p, 0)), high) for p, (low, high) in end_offsets(kafka, topic).items()}
        done = sum(position.values()) - sum(was.values())
        found.append(Group(group, topic, sum(high - low for low, high in left.values()), _lag_s(kafka, topic, left),
                           round(done / interval_s, 1)))
    return found


def _count(kafka: str, topic: str) -> int:
    return sum(high - low for low, high in end_offsets(kafka, topic).values())


def _committed(kafka: str, group: str, topics: Sequence[str]) -> dict[str, dict[int, int]]:
    """Topic -> partition -> offset that ``group`` reads next; only partitions of which it has read."""
    consumer: Any = Consumer({"bootstrap.servers": kafka, "group.id": group, "enable.auto.commit": False})  # never joins it
    try:
        known = consumer.list_topics(timeout=10.0).topics
        asked = [TopicPartition(topic, partition) for topic in topics if topic in known for partition in known[topic].partitions]
        found: dict[str, dict[int, int]] = {topic: {} for topic in topics}
        for each in consumer.committed(asked, timeout=10.0) if asked else ():
            if each.offset >= 0:
                found[each.topic][each.partition] = each.offset
        return found
    except KafkaException as error:
        raise LogError(f"cannot read how far {group} is: {error}", hint="is Kafka up?") from error
    finally:
        consumer.close()


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
