"""P5: workers come and go under load, eleven of them; nothing is lost, nothing counts twice, no card's events change places."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from confluent_kafka import Producer

from feature_repo.fraud import CARD_SPEND, VIEWS
from feature_repo.layout import entity_key
from feature_repo.marks import Progress
from schemas.envelope import SOURCE_OFFSET, header
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings
from schemas.topics import valid_topic
from services.ledger import read_topic
from services.runtime.embedded import Runtime
from tests.deadline import eventually
from tests.world_check import Sent, publish, small_world, wrong_sets

MOST = 40_000
SLICE = 50
CHANGES = (("hold", 2), ("release", 2, 3), ("hold", 1, 3), ("release", 1, 3), ("hold", 1, 2), ("release", 1, 2))


@contextmanager
def load(bootstrap: str, world: Sent) -> Iterator[Sent]:
    """Publish ``world`` until the block ends; what is yielded holds by then what was acknowledged."""
    sent, over = Sent(), threading.Event()

    def send() -> None:
        producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 0})
        for start in range(0, len(world.transactions), SLICE):
            part = world.transactions[start : start + SLICE]
            publish(producer, TRANSACTIONS, part)
            assert producer.flush(60) == 0
            sent.transactions += part
            if over.wait(0.05):
                return

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            yield sent
        finally:
            over.set()
        sending.result()


@contextmanager
def watched(progress: Progress) -> Iterator[list[float]]:
    """The longest time in which nothing was applied, in seconds."""
    longest, over = [0.0], threading.Event()

    def watch() -> None:
        seen, since = progress.reached(TRANSACTIONS), time.monotonic()
        while not over.wait(0.02):
            if (now := progress.reached(TRANSACTIONS)) != seen:
                longest[0], seen, since = max(longest[0], time.monotonic() - since), now, time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield longest
        finally:
            over.set()
        watching.result()


@pytest.mark.slow
def test_workers_that_come_and_go_under_load_lose_nothing_and_change_no_order(tmp_path: Path) -> None:
    world = small_world(MOST, seed=11, step_ms=13_000)
    with Runtime(Settings(home=tmp_path, time="replay", workers=3), ("worker",)) as runtime:
        progress = Progress(runtime.redis, VIEWS[:2], [])
        with load(runtime.kafka, world) as sent, watched(progress) as longest, ThreadPoolExecutor(2) as pool:
            for kind, *workers in CHANGES:
                list(pool.map(getattr(runtime, kind), [f"worker-{number}" for number in workers]))
                before = len(sent.transactions)
                eventually(lambda: len(sent.transactions) > before + 2 * SLICE)  # noqa: B023
        assert len(sent.transactions) < MOST, "the load ended before the changes did"
        store = redis.Redis.from_url(runtime.redis)
        eventually(lambda: not wrong_sets(store, sent), timeout_s=60)
        print(f"{len(sent.transactions)} events; the longest pause took {longest[0]:.1f} s")

        published = [(message.partition(), int(header(message.headers(), SOURCE_OFFSET)))
                     for message in read_topic(runtime.kafka, valid_topic(TRANSACTIONS))]
        first = list(dict.fromkeys(published))
        assert len(first) == len(sent.transactions)
        for partition in {place for place, _ in first}:
            offsets = [offset for place, offset in first if place == partition]
            assert offsets == sorted(offsets)

        # Negative control: the comparison sees one append that is gone.
        key = entity_key(CARD_SPEND, sent.transactions[0][0].card_id)
        value = store.get(key)
        store.set(key, value[: -8 * CARD_SPEND.record_words])
        assert wrong_sets(store, sent) == [key]
        progress.close()
