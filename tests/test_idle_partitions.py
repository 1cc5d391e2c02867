"""A partition that gets nothing passes time all the same in live mode, with real processes; and a system that sleeps falls silent."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from confluent_kafka import Producer

from feature_repo.fraud import SERVICE, VIEWS
from feature_repo.join_marks import joined_ms_key
from feature_repo.marks import HEARD_MS, NOTHING, applied_ms_key, offsets, scored_ms_key
from schemas.envelope import CLOCK_HEADERS, clock
from schemas.fraud import OUTCOMES, PREDICTIONS, TRANSACTIONS
from schemas.settings import Settings
from schemas.topics import valid_topic
from services.ledger import read_topic
from services.runtime.embedded import Runtime
from streams.agents import CHECK_EVERY_S
from streams.clock import BEHIND_MS, TILES_BEHIND_MS, IdleClock
from tests.deadline import eventually

PARTITIONS = range(4)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    home = tmp_path_factory.mktemp("idle")
    with Runtime(Settings(home=home, kafka=None, redis=None, workers=2), ("worker", "loop", "scorer")) as runtime:
        yield runtime


def clocks(runtime: Runtime) -> Counter[tuple[str, int]]:
    """Clock records by source and partition."""
    return Counter((topic, message.partition()) for topic in (TRANSACTIONS, OUTCOMES) for message in read_topic(runtime.kafka, topic)
                   if clock(message.headers()))


def test_one_card_pays_and_every_partition_of_every_topic_passes_the_time(running: Runtime) -> None:
    """Nobody tells an outcome, yet what waits for outcomes goes on: drift is judged in the weeks before the first of them."""
    store = redis.Redis.from_url(running.redis)
    waiting = [*(applied_ms_key(view) for view in VIEWS), scored_ms_key(SERVICE.name), joined_ms_key(valid_topic(OUTCOMES)),
               joined_ms_key(PREDICTIONS)]
    now_ms = time.time_ns() // 1_000_000
    event = {"event_id": "e1", "event_time": now_ms, "card_id": "c1", "terminal_id": "t1", "amount_minor": 100}
    producer = Producer({"bootstrap.servers": running.kafka, "acks": "all"})
    producer.produce(TRANSACTIONS, json.dumps(event), "c1")
    producer.flush()

    def passed() -> bool:
        marks = [offsets(store.hgetall(key)) for key in waiting]
        return all(mark.keys() == set(PARTITIONS) and min(mark.values()) >= now_ms for mark in marks)

    eventually(passed)
    told = clocks(running)
    assert len(told) == 2 * len(PARTITIONS) - 1, "all partitions but that of the card"
    assert set(told.values()) == {1}
    time.sleep(3 * CHECK_EVERY_S["live"])  # as long as it takes to look twice at everything: silence cannot be waited for
    assert clocks(running) == told, "nothing has come since: nobody is told anything"


def event(at_ms: int) -> Any:
    return SimpleNamespace(timestamp=at_ms, value=b"{}", headers=())


def told_at(at_ms: int) -> Any:
    """A clock record."""
    return SimpleNamespace(timestamp=at_ms, value=b"", headers=CLOCK_HEADERS)


class Recorded(IdleClock):
    """Keeps what it would send."""

    def __init__(self, topic: str, bootstrap: str, redis_url: str) -> None:
        super().__init__(topic, bootstrap, redis_url)
        self.sent: list[int] = []

    def _send(self, partition: int) -> None:
        self.sent.append(partition)


@pytest.fixture(autouse=True)
def nothing_heard(redis_url: str) -> None:
    redis.Redis.from_url(redis_url).delete(HEARD_MS)


def test_who_is_near_is_told_nothing_and_who_was_told_only_when_more_has_come(kafka: str, redis_url: str) -> None:
    told, other = Recorded(OUTCOMES, kafka, redis_url), Recorded(TRANSACTIONS, kafka, redis_url)
    told.look(3, True, BEHIND_MS)
    assert told.sent == [], "nothing has come to anybody"
    other.passed(0, [event(1_000_000)])
    other.look(0, False, BEHIND_MS)
    told.look(3, False, BEHIND_MS)
    told.passed(3, [event(5), told_at(1_000_000 - BEHIND_MS)])
    told.look(3, True, BEHIND_MS)
    assert told.sent == [], "it is not idle, or near enough"
    told.passed(3, [told_at(1_000_000 - BEHIND_MS - 1)])
    for _ in range(2):
        told.look(3, True, BEHIND_MS)
    assert told.sent == [3], "on its way, or lost"
    other.passed(0, [event(1_000_001), told_at(2_000_000)])
    other.look(0, False, BEHIND_MS)
    told.look(3, True, BEHIND_MS)
    assert told.sent == [3, 3]
    told.forget(3)
    told.look(3, True, BEHIND_MS)
    assert told.sent == [3, 3, 3], "who owned it meanwhile may have died before it came"
    assert other.sent == []


@pytest.mark.parametrize(("partitions", "turn_ms"), [(2, 100), (8, 2_000), (256, 40_000)])
def test_a_system_that_sleeps_falls_silent_however_slow_it_is(kafka: str, redis_url: str, partitions: int, turn_ms: int) -> None:
    """Clock records have later times than what they answer. Were they events, the slowest would tell each other the time for ever."""
    assert asleep(kafka, redis_url, partitions, turn_ms) <= 1


def test_it_would_not_if_clock_records_counted_as_events(kafka: str, redis_url: str) -> None:
    assert asleep(kafka, redis_url, 256, 40_000, as_events=True) > 1


def asleep(kafka: str, redis_url: str, partitions: int, turn_ms: int, *, as_events: bool = False) -> int:
    """How often one partition is told the time, at most, in four turns of looks after the last event."""
    r, told, now_ms = random.Random(partitions), Recorded(TRANSACTIONS, kafka, redis_url), 1_000_000
    passed = [now_ms, *(r.choice((NOTHING, now_ms - r.randrange(3 * TILES_BEHIND_MS))) for _ in range(partitions - 1))]
    for partition, ms in enumerate(passed):
        if ms != NOTHING:
            told.passed(partition, [event(ms) if partition == 0 else told_at(ms)])
    for turn in range(4):
        for partition in range(partitions):
            before = len(told.sent)
            told.look(partition, True, TILES_BEHIND_MS)
            if len(told.sent) > before:
                passed[partition] = now_ms + turn * turn_ms + partition * turn_ms // partitions
                told.passed(partition, [(event if as_events else told_at)(passed[partition])])
    assert all(now_ms - ms <= TILES_BEHIND_MS for ms in passed)
    return max(Counter(told.sent).values())


def test_a_clock_that_is_a_producers_is_told_to_nobody_and_not_heard(kafka: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Recorded(TRANSACTIONS, kafka, redis_url)
    with monkeypatch.context() as patch:
        patch.setattr("streams.clock.arrival_is_ours", lambda bootstrap, topics: True)
        wrong.passed(0, [event(1 << 60)])
        wrong.look(0, True, BEHIND_MS)
    other = Recorded(OUTCOMES, kafka, redis_url)
    other.look(3, True, BEHIND_MS)
    assert wrong.sent == other.sent == []


def test_a_worker_goes_on_where_a_favour_fails(kafka: str, redis_url: str, caplog: pytest.LogCaptureFixture,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.clock.ASK_S", 0.2)
    IdleClock(OUTCOMES, "127.0.0.1:1", redis_url).look(3, True, BEHIND_MS)
    IdleClock(OUTCOMES, kafka, "redis://127.0.0.1:1").look(3, True, BEHIND_MS)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all(line.startswith("idle partition not told the time topic=outcomes partition=3: ") for line in told)
