"""Topics are created from the catalogue, never by a first record."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from schemas.errors import LogError
from schemas.topics import Topic

__all__ = ["create_topics"]

TIMEOUT_S = 15.0


def create_topics(bootstrap: str, topics: Sequence[Topic], grow: bool = False) -> list[str]:
    """Create those of ``topics`` that Kafka does not have; return their names once every partition has a leader.

    Raises LogError when Kafka does not answer or refuses, or a topic exists with other partitions or settings: changing those
    under data is a decision that a command must not take. With ``grow`` it was taken: topics with fewer partitions get more.
    """
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic, ResourceType  # type: ignore[attr-defined]

    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        present = admin.list_topics(timeout=TIMEOUT_S).topics
        missing = [topic for topic in topics if topic.name not in present]
        new = [NewTopic(topic.name, topic.partitions, topic.replication, config=topic.config) for topic in missing]
        for made in (admin.create_topics(new, request_timeout=TIMEOUT_S) if new else {}).values():
            try:
                _result(made)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # made by somebody else, meanwhile
                    raise
        small = [topic for topic in topics if topic.name in present and len(present[topic.name].partitions) < topic.partitions]
        if grow and small:
            more = [NewPartitions(topic.name, topic.partitions) for topic in small]
            for made in admin.create_partitions(more, request_timeout=TIMEOUT_S).values():
                _result(made)
        _wait_for_leaders(admin, missing + (small if grow else []))
        present = admin.list_topics(timeout=TIMEOUT_S).topics
        told = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic.name) for topic in topics], request_timeout=TIMEOUT_S)
        configs = {resource.name: {name: entry.value for name, entry in _result(answer).items()} for resource, answer in told.items()}
    except KafkaException as error:
        raise LogError(f"Kafka at {bootstrap} did not make the topics: {error.args[0].str()}",
                       hint="`headrace doctor` asks Kafka the same way") from error
    for topic in topics:
        wanted = {"partitions": str(topic.partitions), **topic.config}
        actual = {"partitions": str(len(present[topic.name].partitions)), **configs[topic.name]}
        if unlike := [f"{key} {actual.get(key)} (catalogue: {value})" for key, value in wanted.items() if actual.get(key) != value]:
            raise LogError(f"topic {topic.name} exists with {', '.join(unlike)}",
                           hint="a log keeps the settings it was made with: use those, or another HEADRACE_HOME")
    return [topic.name for topic in missing]


def _result(future: Future[Any]) -> Any:
    return future.result(TIMEOUT_S)


def _wait_for_leaders(admin: Any, topics: Sequence[Topic]) -> None:
    give_up = time.monotonic() + TIMEOUT_S
    while topics:
        known = admin.list_topics(timeout=TIMEOUT_S).topics
        led = {name for name, topic in known.items() if all(partition.leader >= 0 for partition in topic.partitions.values())}
        if all(topic.name in led and len(known[topic.name].partitions) == topic.partitions for topic in topics):
            return
        if time.monotonic() > give_up:
            raise LogError(f"the new topics have no leader after {TIMEOUT_S:.0f} s", hint="look at the broker's log")
        threading.Event().wait(0.02)
