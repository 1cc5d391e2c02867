"""Processes die, rebalance and come back: nothing is lost, nothing counts twice. Real Kafka, Redis, workers and scorer."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import redis
from confluent_kafka import Producer

from feature_repo.fraud import CARD_SPEND, SERVICE
from feature_repo.layout import entity_key
from schemas.envelope import SOURCE_OFFSET, header
from schemas.errors import LogError
from schemas.settings import Settings
from schemas.topics import valid_topic
from services.ledger import end_offsets, read_events
from services.runtime.embedded import Runtime
from streams.publisher import last_source_offset
from tests.deadline import eventually
from tests.world_check import Sent, publish, read_predictions, small_world, wrong_sets

EVENTS = 24_000
KILLS = 10


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("faults")
    with Runtime(Settings(home=home, time="replay", workers=2), ("worker", "scorer")) as runtime:
        yield runtime, home


def caught_up(runtime: Runtime) -> bool:
    """All sources are applied and everything valid is published and scored."""
    store = redis.Redis.from_url(runtime.redis)
    for source, views in (("transactions", SERVICE.views[:2]), ("outcomes", SERVICE.views[2:])):
        for partition, (low, high) in end_offsets(runtime.kafka, source).items():
            marks = [store.hget(f"applied:{view.versioned_name}", partition) for view in views]
            marks += [store.hget(f"scored:{SERVICE.name}", partition)] if source == "transactions" else []
            if high > low and any(mark is None or int(mark) < high - 1 for mark in marks):
                return False
            if source == "outcomes" and high > low and last_source_offset(runtime.kafka, valid_topic(source), partition) < high - 1:
                return False  # sets have a record before the valid topic has it
    return True


def send_while(runtime: Runtime, sent: Sent, disturb) -> None:
    """Publish everything in slices, calling ``disturb(slice number)`` between them."""
    producer = Producer({"bootstrap.servers": runtime.kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 5})
    size = len(sent.transactions) // (KILLS + 2)
    for number, start in enumerate(range(0, len(sent.transactions), size)):
        publish(producer, "transactions", sent.transactions[start : start + size])
        publish(producer, "outcomes", sent.outcomes[start : start + size])
        producer.flush(60)
        disturb(number)


@pytest.mark.slow
def test_ten_kills_of_workers_and_scorer_lose_nothing_and_count_nothing_twice(running) -> None:
    runtime, _ = running
    r, killed = random.Random(5), []

    def kill(number: int) -> None:
        if number >= KILLS:
            return
        name = r.choice(["worker-1", "worker-2", "scorer"])
        pid = eventually(lambda: runtime.pid(name))
        kind = r.choice([signal.SIGKILL, signal.SIGTERM])
        os.kill(pid, kind)
        killed.append((name, kind.name))

    sent = small_world(EVENTS, seed=1, step_ms=13_000)
    send_while(runtime, sent, kill)
    assert len(killed) == KILLS
    eventually(lambda: caught_up(runtime))
    store = redis.Redis.from_url(runtime.redis)
    assert wrong_sets(store, sent) == []
    predictions = read_predictions(runtime.kafka)
    assert {p.event_id for p in predictions.first.values()} == {e.event_id for e, _ in sent.transactions}
    assert len(predictions.first) == EVENTS
    assert predictions.reordered == 0
    print(f"killed {killed}; predictions published again: {predictions.copies}")

    # Negative control: the comparison sees one lost append.
    key = entity_key(CARD_SPEND, sent.transactions[0][0].card_id)
    value = store.get(key)
    last = value[-8 * CARD_SPEND.record_words :]
    store.set(key, value.replace(last, b""))
    assert wrong_sets(store, sent) == [key]
    store.set(key, value)


@pytest.mark.slow
def test_a_killed_broker_comes_back_and_nothing_acknowledged_is_lost(running) -> None:
    runtime, _ = running
    sent = small_world(3_000, seed=2, cards=500, step_ms=13_000)
    known = small_world(EVENTS, seed=1, step_ms=13_000)

    def kill(number: int) -> None:
        if number == 2:
            os.kill(eventually(lambda: runtime.pid("kafka")), signal.SIGKILL)

    send_while(runtime, sent, kill)
    eventually(lambda: caught_up(runtime))
    assert wrong_sets(redis.Redis.from_url(runtime.redis), both(known, sent)) == []


@pytest.mark.slow
def test_nothing_is_lost_with_the_broker_because_senders_wait_for_it(tmp_path: Path) -> None:
    """With the negative control of the one above: ``acks=0`` takes for acknowledged what lies in the socket of a dead broker.

    The broker is frozen before it dies, so that is where the records stay: all of them are lost, every time.
    """
    with Runtime(Settings(home=tmp_path, time="replay"), ("worker", "scorer")) as runtime:
        store = redis.Redis.from_url(runtime.redis)
        safe, unsafe = small_world(100, seed=7, step_ms=13_000), small_world(100, seed=8, step_ms=13_000)
        send_to_a_dying_broker(runtime, safe.transactions, acks="all")
        eventually(lambda: caught_up(runtime))
        assert wrong_sets(store, Sent(safe.transactions)) == []

        send_to_a_dying_broker(runtime, unsafe.transactions, acks="0")
        eventually(lambda: caught_up(runtime))
        arrived = Sent(safe.transactions + unsafe.transactions[:1])
        assert wrong_sets(store, arrived) == []
        assert wrong_sets(store, both(arrived, Sent(unsafe.transactions[1:])))


def send_to_a_dying_broker(runtime: Runtime, records, acks: str) -> None:
    """Send the first record; the others when the broker is frozen, which then dies and comes back. All are acknowledged in the end."""
    producer = Producer({"bootstrap.servers": runtime.kafka, "acks": acks, "linger.ms": 0, "error_cb": lambda error: None})
    before = written(runtime)
    publish(producer, "transactions", records[:1])
    assert producer.flush(30) == 0
    eventually(lambda: written(runtime) > before)
    pid = eventually(lambda: runtime.pid("kafka"))
    os.kill(pid, signal.SIGSTOP)
    publish(producer, "transactions", records[1:])
    assert (producer.flush(30) if acks == "0" else 0) == 0
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: runtime.pid("kafka") not in (None, pid))
    assert producer.flush(60) == 0
    eventually(lambda: broker_answers(runtime))  # acks=0 does not wait for that


def broker_answers(runtime: Runtime) -> bool:
    try:
        return written(runtime) >= 0
    except LogError:
        return False


def written(runtime: Runtime) -> int:
    return sum(high for _, high in end_offsets(runtime.kafka, "transactions").values())


@pytest.mark.slow
def test_redis_back_from_an_older_file_makes_workers_seek_back(running) -> None:
    runtime, home = running
    older, files = home / "older-aof", find_append_only(home)
    before, after = small_world(2_000, seed=3, step_ms=13_000), small_world(2_000, seed=4, step_ms=13_000)
    send_while(runtime, before, lambda _: None)
    eventually(lambda: caught_up(runtime))
    copy(files, older)
    send_while(runtime, after, lambda _: None)
    eventually(lambda: caught_up(runtime))
    everything = both(both(small_world(EVENTS, seed=1, step_ms=13_000), small_world(3_000, seed=2, cards=500, step_ms=13_000)),
                      both(before, after))
    store = redis.Redis.from_url(runtime.redis)
    assert wrong_sets(store, everything) == []

    os.kill(runtime.pid("redis"), signal.SIGKILL)
    runtime.hold("redis")
    copy(older, files)
    runtime.release("redis")
    eventually(lambda: answers(store))
    eventually(lambda: caught_up(runtime))
    eventually(lambda: not wrong_sets(store, everything))


@pytest.mark.slow
def test_redis_back_from_an_older_file_under_load_while_a_worker_dies_loses_nothing(tmp_path: Path) -> None:
    older, sent, r = tmp_path / "older-aof", small_world(24_000, seed=6, cards=300, step_ms=13_000), random.Random(6)
    with Runtime(Settings(home=tmp_path / "home", time="replay", workers=2), ("worker", "scorer")) as runtime:
        files = find_append_only(tmp_path / "home")

        def go_back(number: int) -> None:
            if number in (2, 6):
                copy(files, older)
            if number in (4, 8):
                os.kill(runtime.pid("redis"), signal.SIGKILL)
                runtime.hold("redis")
                copy(older, files)
                runtime.release("redis")
                os.kill(eventually(lambda: runtime.pid(r.choice(["worker-1", "worker-2"]))), signal.SIGKILL)

        send_while(runtime, sent, go_back)
        store = redis.Redis.from_url(runtime.redis)
        eventually(lambda: answers(store))
        eventually(lambda: caught_up(runtime) and not wrong_sets(store, sent))
        for source in ("transactions", "outcomes"):
            published = {(message.partition(), header(message.headers(), SOURCE_OFFSET))
                         for message in read_events(runtime.kafka, valid_topic(source))}
            assert len(published) == len(sent.transactions)
        predictions = read_predictions(runtime.kafka)
        assert (len(predictions.first), predictions.reordered) == (len(sent.transactions), 0)


def both(a: Sent, b: Sent) -> Sent:
    return Sent(a.transactions + b.transactions, a.outcomes + b.outcomes)


def answers(store: redis.Redis) -> bool:
    try:
        return bool(store.ping())
    except redis.RedisError:
        return False


def find_append_only(home: Path) -> Path:
    found = [path for path in home.rglob("*") if path.name.startswith("appendonly")]
    return min(found, key=lambda path: len(path.parts))


def copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
