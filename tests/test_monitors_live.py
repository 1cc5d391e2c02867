"""Monitors on real Kafka, Redis and workers that are killed: the same detections, decisions and requests as without."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from confluent_kafka import Producer

from feature_repo.checkpoints import monitor_key
from feature_repo.fraud import FRAUD
from feature_repo.reference import write_reference
from feature_repo.views import DAY_MS
from schemas.envelope import header
from schemas.evaluations import EVALUATIONS
from schemas.fraud import PREDICTIONS
from schemas.monitoring import DECISIONS, DETECTIONS, REQUESTS, RetrainDecision
from schemas.settings import Settings
from services.drift_status import read_drift, table
from services.ledger import read_topic
from services.runtime.embedded import Runtime
from streams.monitors.state import MonitorState
from tests.deadline import eventually
from tests.monitor_simulation import OUTPUTS, PASSED, Memory, Workers, end_of_time
from tests.monitor_world import START, Change, Stream, make_reference, make_stream, make_watch

DAYS, CHANGE = 16, 3
END = START + DAYS * DAY_MS
SLICES = 8


@pytest.fixture(scope="module")
def stream() -> Stream:
    """A concept that changes on the fourth day; its losses are of age eight days later."""
    return make_stream(DAYS, 600, change=Change(CHANGE, wrong=0.15), window_ms=DAY_MS, delay_ms=7 * DAY_MS)


@pytest.fixture(scope="module")
def undisturbed(stream: Stream) -> Memory:
    memory = Memory(stream)
    end_of_time(memory, END)
    Workers(memory, make_watch(read=lambda version: make_reference(spec=FRAUD), spec=FRAUD)).run()
    return memory


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Runtime]:
    settings = Settings(home=tmp_path, time="replay", partitions=2)
    write_reference(settings.models, make_reference(spec=FRAUD))
    with Runtime(settings, ("loop",)) as runtime:
        yield runtime


def publish(running: Runtime, stream: Stream, number: int) -> None:
    """One slice of the stream, by its time; then scorer and joiner say how far they are."""
    producer = Producer({"bootstrap.servers": running.kafka, "acks": "all", "enable.idempotence": True})
    low, high = START + number * (END - START) // SLICES, START + (number + 1) * (END - START) // SLICES
    for topic, by_partition in ((PREDICTIONS, stream.predictions), (EVALUATIONS, stream.evaluations)):
        for partition, log in enumerate(by_partition):
            for record in log:
                if low <= record.timestamp < high or (number == SLICES - 1 and record.timestamp >= high):
                    producer.produce(topic, record.value, b"c", partition, timestamp=record.timestamp)
                    producer.poll(0)
    assert producer.flush(60) == 0
    store: Any = redis.Redis.from_url(running.redis)
    for key in PASSED:
        store.hset(key, mapping=dict.fromkeys(range(2), high))


def said(kafka: str, topic: str) -> tuple[dict[str, str], int]:
    """By id, and how many were said again; what was said again was the same."""
    found: dict[str, str] = {}
    again = 0
    for message in read_topic(kafka, topic):
        key, value = header(message.headers(), "ce_id").decode(), message.value().decode()
        again += key in found
        assert found.setdefault(key, value) == value
    return found, again


def decided(kafka: str) -> int:
    return len(list(read_topic(kafka, DECISIONS)))


def finished(kafka: str, expected: Memory) -> bool:
    return all(said(kafka, topic)[0].keys() >= expected.said(topic).keys() for topic in OUTPUTS)


def nothing_to_say(store: Any) -> bool:
    """What is still in a state is said again by whoever reads it next, whether anything is read again or not."""
    state = store.hget(monitor_key(FRAUD.name), "state")
    return state is not None and not msgspec.json.decode(state, type=MonitorState).outbox


@pytest.mark.slow
@pytest.mark.parametrize("kills", [0, SLICES])
def test_workers_that_are_killed_say_the_same_as_one_that_is_not(running: Runtime, stream: Stream, undisturbed: Memory, tmp_path: Path,
                                                                  kills: int) -> None:
    store: Any = redis.Redis.from_url(running.redis)
    r, pid = random.Random(3), None
    for number in range(SLICES):
        done = decided(running.kafka)
        publish(running, stream, number)
        if number < kills:
            pid = eventually(lambda dead=pid: (now := running.pid("loop")) != dead and now)
            if r.random() < 0.5:  # half of them while it works, the others when it has decided something since
                eventually(lambda done=done: decided(running.kafka) > done)
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: finished(running.kafka, undisturbed))
    repeated = Counter()
    for topic in OUTPUTS:
        found, repeated[topic] = said(running.kafka, topic)
        assert found == undisturbed.said(topic)
    assert len(said(running.kafka, REQUESTS)[0]) == 1
    assert len(said(running.kafka, DETECTIONS)[0]) >= 1
    policy = [one for value in said(running.kafka, DECISIONS)[0].values()
              if (one := msgspec.json.decode(value, type=RetrainDecision)).by == "policy"]
    assert len(policy) == DAYS
    print(f"killed {kills} times; said again {dict(repeated)}")

    (told,) = read_drift(Settings(home=tmp_path, time="replay", partitions=2), running.redis)
    assert (told["windows"], told["champion"], told["reference"], told["governor"]["phase"]) == (DAYS, "1", "fraud@1", "PENDING")
    assert told["alarms"] == len(said(running.kafka, DETECTIONS)[0])
    assert told["alarms_in_90_days_bound"] > told["alarms_in_90_days"] > 0
    assert "fraud version 1 against fraud@1" in table([told])

    for _ in range(2 if not kills else 0):  # all that monitors knew is lost: they read everything again, and ask for nothing new
        before_ = said(running.kafka, REQUESTS)[1]
        store.delete(*eventually(lambda: list(store.scan_iter("monitor*")) if nothing_to_say(store) else None))
        eventually(lambda before_=before_: said(running.kafka, REQUESTS)[1] > before_)
    assert len(said(running.kafka, REQUESTS)[0]) == 1
