"""P5: workers come and go under load, ten of them; nothing is lost, nothing counts twice, no card's events change places."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
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
from services.ledger import read_events
from services.runtime.embedded import Runtime
from tests.deadline import eventually
from tests.world_check import Sent, publish, small_world, wrong_sets

MOST = 120_000
SLICE = 50
CHANGES = (("hold", 2), ("release", 2), ("hold", 1, 3), ("release", 1, 3), ("hold", 1, 2), ("release", 1, 2))


@contextmanager
def beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """``work`` in a thread for as long as the block lasts; it is told by its event that that is over."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work, over)
        try:
            yield
        finally:
            over.set()
        working.result()


def send(bootstrap: str, world: Sent, sent: Sent, over: threading.Event) -> None:
    """Publish ``world`` piece by piece; ``sent`` holds what was acknowledged."""
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 0})
    for start in range(0, len(world.transactions), SLICE):
        part = world.transactions[start : start + SLICE]
        publish(producer, TRANSACTIONS, part)
        assert producer.flush(60) == 0
        sent.transactions += part
        if over.wait(0.05):
            return


def watch(progress: Progress, longest: list[float], over: threading.Event) -> None:
    """Put into ``longest`` the longest time, in seconds, in which nothing was applied."""
    seen, since = progress.reached(TRANSACTIONS), time.monotonic()
    while not over.wait(0.02):
        if (now := progress.reached(TRANSACTIONS)) != seen:
            longest[0], seen, since = max(longest[0], time.monotonic() - since), now, time.monotonic()


@pytest.mark.slow
def test_workers_that_come_and_go_under_load_lose_nothing_and_change_no_order(tmp_path: Path) -> None:
    world = small_world(MOST, seed=11, step_ms=13_000)
    with Runtime(Settings(home=tmp_path, time="replay", workers=3), ("worker",)) as runtime:
        progress, sent, longest = Progress(runtime.redis, VIEWS[:2], []), Sent(), [0.0]
        with beside(partial(send, runtime.kafka, world, sent)), beside(partial(watch, progress, longest)), ThreadPoolExecutor(2) as pool:
            for kind, *workers in CHANGES:
                list(pool.map(getattr(runtime, kind), [f"worker-{number}" for number in workers]))
                before = len(sent.transactions)
                eventually(lambda before=before: len(sent.transactions) > before + 2 * SLICE)
        assert len(sent.transactions) < MOST, "the load ended before the changes did"
        store = redis.Redis.from_url(runtime.redis)
        eventually(lambda: not wrong_sets(store, sent))
        print(f"{len(sent.transactions)} events; the longest pause took {longest[0]:.1f} s")

        def published() -> list[tuple[int, int]]:
            """The places of what is valid, in its order, each once."""
            return list(dict.fromkeys((message.partition(), int(header(message.headers(), SOURCE_OFFSET)))
                                      for message in read_events(runtime.kafka, valid_topic(TRANSACTIONS))))

        first = eventually(lambda: len(found := published()) >= len(sent.transactions) and found)  # it follows what is applied
        assert len(first) == len(sent.transactions)
        for partition in {place for place, _ in first}:
            offsets = [offset for place, offset in first if place == partition]
            assert offsets == sorted(offsets)

        # Negative control: the comparison sees one record that is gone, with the copies that a chunk applied again has left.
        key, size = entity_key(CARD_SPEND, sent.transactions[0][0].card_id), 8 * CARD_SPEND.record_words
        value = store.get(key)
        records = [value[at:at + size] for at in range(0, len(value), size)]
        store.set(key, b"".join(record for record in records if record != records[-1]))
        assert wrong_sets(store, sent) == [key]
        progress.close()
