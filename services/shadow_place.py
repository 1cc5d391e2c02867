"""How far a model's shadow is: what its group has committed, with the number of predictions that it dropped, and what it wrote last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.envelope import SOURCE_OFFSET, header
from schemas.errors import LogError
from schemas.shadow import SHADOW
from services.ledger import read_topic

__all__ = ["Place", "committed", "last_written", "read_dropped", "shadow_group", "to_commit"]


class Place(msgspec.Struct, frozen=True):
    """The offset that is read next; ``dropped`` counts the predictions of the partition that were skipped, of all time."""

    offset: int
    dropped: int = 0


class Told(msgspec.Struct, frozen=True):
    """What travels with a committed offset, so that both are true of the same moment."""

    dropped: int = 0


def shadow_group(model: str) -> str:
    """The consumer group of a model's shadows."""
    return f"headrace-shadow-{model}"


def to_commit(topic: str, partition: int, place: Place) -> TopicPartition:
    return TopicPartition(topic, partition, place.offset, msgspec.json.encode(Told(place.dropped)).decode())


def committed(consumer: Any, topic: str, partitions: Iterable[int]) -> dict[int, Place]:
    """What ``consumer``'s group has committed; a partition of which it has not is left out. Raises LogError."""
    try:
        found = consumer.committed([TopicPartition(topic, partition) for partition in partitions], timeout=10.0)
    except KafkaException as error:
        raise LogError(f"cannot read how far the shadow of {topic} is: {error}", hint="is Kafka up?") from error
    return {each.partition: Place(each.offset, msgspec.json.decode(each.metadata or "{}", type=Told).dropped)
            for each in found if each.offset >= 0}


def read_dropped(kafka: str, model: str, topic: str, partitions: Iterable[int]) -> int:
    """How many predictions have no shadow score because the shadow of ``model`` was too far behind. Raises LogError."""
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": shadow_group(model), "enable.auto.commit": False})  # never joins it
    try:
        return sum(place.dropped for place in committed(consumer, topic, partitions).values())
    finally:
        consumer.close()


def last_written(kafka: str, topic: str) -> dict[int, tuple[int, str]]:
    """Partition of ``topic`` -> (offset of the prediction, version) of the last pair there. Raises LogError."""
    found = {}
    for message in read_topic(kafka, topic, last=1):
        offset = header(message.headers(), SOURCE_OFFSET)
        if offset is None:
            raise LogError(f"last record of {topic}[{message.partition()}] says no source offset",
                           hint="only headrace may write to this topic")
        found[message.partition()] = int(offset), str(SHADOW.decode(message.value()).shadow_version)
    return found
