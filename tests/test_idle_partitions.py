"""A partition that gets nothing passes time all the same in live mode, with real processes; and a system that sleeps falls silent."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import pytest
import redis
from confluent_kafka import Producer

from feature_repo.fraud import SERVICE, VIEWS
from feature_repo.join_marks import joined_ms_key
from feature_repo.marks import applied_ms_key, offsets, scored_ms_key
from feature_repo.version_keys import VersionKeys
from schemas.envelope import Headers, clock
from schemas.fraud import OUTCOMES, PREDICTIONS, TRANSACTIONS
from schemas.settings import Settings
from schemas.topics import valid_topic
from services.ledger import read_topic
from services.runtime.embedded import Runtime
from streams.agents import CHECK_EVERY_S
from streams.clock import BEHIND_MS, TILES_BEHIND_MS, IdleClock, behind
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

    eventually(passed, timeout_s=60)
    told = clocks(running)
    assert len(told) == 2 * len(PARTITIONS) - 1, "all partitions but that of the card"
    assert set(told.values()) == {1}
    time.sleep(3 * CHECK_EVERY_S["live"])
    assert clocks(running) == told, "nothing has come since: nobody is told anything"


@pytest.mark.parametrize("seed", range(100))
def test_a_system_that_sleeps_falls_silent(seed: int) -> None:
    assert late_words(seed, TILES_BEHIND_MS) == 0


def test_it_would_not_where_a_look_takes_longer_than_a_partition_may_be_behind() -> None:
    assert sum(late_words(seed, 500) for seed in range(100)) > 1000


def late_words(seed: int, most_ms: int) -> int:
    """Clock records later than 20 s after the last event: partitions are looked at by turns, marks are seen up to a second later."""
    r, now_ms, late = random.Random(seed), 100_000, 0
    partitions = range(r.randrange(2, 12))
    passed: list[int | None] = [now_ms, *(r.choice((None, now_ms - r.randrange(2 * most_ms))) for _ in partitions[1:])]
    seen_ms = list(passed)  # as they are in the store
    under_way: list[tuple[int, int, int]] = []
    look_ms = int(1000 * CHECK_EVERY_S["live"])
    for at_ms, partition in sorted((now_ms + r.randrange(look_ms) + turn * look_ms, p) for p in partitions for turn in range(30)):
        for visible_ms, p, mark_ms in [each for each in under_way if each[0] <= at_ms]:
            under_way.remove((visible_ms, p, mark_ms))
            passed[p] = seen_ms[p] = mark_ms
        waits = any(p == partition for _, p, _ in under_way)  # its last clock record has not come back: it does not stand still
        if not waits and behind(passed[partition], max(ms for ms in seen_ms if ms is not None), most_ms):
            under_way.append((at_ms + r.randrange(1000), partition, at_ms))
            late += at_ms > now_ms + 20_000
    return late


def test_a_clock_that_is_a_producers_is_told_to_nobody(redis_url: str) -> None:
    store, keys, sent = redis.Redis.from_url(redis_url), VersionKeys(redis_url), Sent()
    store.hset(applied_ms_key(VIEWS[0]), mapping={"0": 1_000_000})
    for stamped, told in ((False, []), (True, [(OUTCOMES, 3, 1_000_000)])):
        IdleClock(OUTCOMES, lambda: VIEWS, keys, partial(bool, stamped), cast(Any, sent)).tell(3, 1_000_000 - BEHIND_MS - 1)
        assert sent.clocks == told
    told_once = IdleClock(OUTCOMES, lambda: VIEWS, keys, lambda: True, cast(Any, sent))
    told_once.tell(3, 1_000_000 - BEHIND_MS)
    assert len(sent.clocks) == 1, "it is near enough"
    told_once.tell(3, None)
    told_once.tell(3, None)
    assert len(sent.clocks) == 2, "the first is on its way"
    told_once.forget(3)
    told_once.tell(3, None)
    assert len(sent.clocks) == 3, "who owned it meanwhile may have died before it came"
    store.delete(applied_ms_key(VIEWS[0]))
    keys.close()


class Sent:
    """In the place of a publisher."""

    def __init__(self) -> None:
        self.clocks: list[tuple[str, int, int]] = []

    def send(self, topic: str, partition: int, key: bytes | None, value: bytes | None, at_ms: int, headers: Headers) -> None:
        assert (key, value) == (None, b"")
        assert clock(headers)
        self.clocks.append((topic, partition, at_ms))

    def wait(self) -> None:
        return
