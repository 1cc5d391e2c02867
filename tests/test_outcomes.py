"""Predictions of a real scorer meet outcomes on real Kafka and Redis, while workers are killed and Redis comes back older."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis
from confluent_kafka import Producer

from feature_repo.fraud import FRAUD
from feature_repo.join_marks import evaluated_ms, joined_key, joined_ms_key
from feature_repo.pair_bytes import model_tag, pair_key, place_of
from feature_repo.pending import read_layout
from feature_repo.views import DAY_MS
from feature_repo.wire import Wire
from schemas.evaluations import EVALUATION, EVALUATIONS
from schemas.fraud import Outcome
from schemas.settings import Settings
from services.ledger import end_offsets, read_topic
from services.publisher import Publisher
from services.runtime.embedded import Runtime
from tests.deadline import eventually
from tests.join_oracle import VALID, Logs, expected
from tests.test_faults import answers, caught_up, copy, find_append_only
from tests.world_check import Sent, publish, small_world

HORIZON_MS = Settings().outcome_horizon_ms


def hostile_outcomes(sent: Sent, seed: int) -> list[tuple[Any, int]]:
    """Those of ``sent`` in order of arrival, some never, some twice, corrected or of an event that nobody knows."""
    r, found = random.Random(seed), []
    for outcome, arrival_ms in sent.outcomes:
        if r.random() < 0.9:
            found.append((outcome, arrival_ms))
        for chance, change in ((0.1, {"revision": 1, "fraud": not outcome.fraud}), (0.05, {}), (0.05, {"fraud": not outcome.fraud}),
                               (0.05, {"event_id": f"unknown-{outcome.event_id}"})):
            if r.random() < chance:
                found.append((msgspec.structs.replace(outcome, **change), arrival_ms + r.randrange(3_600_000)))
    return sorted(found, key=lambda pair: pair[1])


def logs(kafka: str) -> Logs:
    """What there is to join, as it lies in Kafka."""
    found: Logs = {}
    for topic in ("predictions", VALID):
        for message in read_topic(kafka, topic):
            if message.value():
                record = SimpleNamespace(timestamp=message.timestamp()[1], value=message.value())
                found.setdefault((topic, message.partition()), []).append(record)
    return found


def published(kafka: str) -> dict[str, set[tuple[int, bytes, bytes]]]:
    """Evaluation id -> the (partition, key, value) triples that were published for it."""
    found: dict[str, set[tuple[int, bytes, bytes]]] = {}
    for message in read_topic(kafka, EVALUATIONS):
        found.setdefault(EVALUATION.decode(message.value()).evaluation_id, set()).add((message.partition(), message.key(), message.value()))
    return found


def joined(store: redis.Redis, kafka: str, topic: str) -> bool:
    """Everything of ``topic`` is; what meets nothing is seen in the marks alone."""
    return all(store.hget(joined_key(topic), partition) == b"%d" % (high - 1)
               for partition, (low, high) in end_offsets(kafka, topic).items() if high > low)


def check_all(kafka: str) -> int:
    """Wait for as many evaluations as there must be, and hold each to the oracle. Returns how many there are."""
    right = expected(logs(kafka), HORIZON_MS)
    eventually(lambda: len(published(kafka)) >= len(right))
    found = published(kafka)
    told = {name: [(partition, json.loads(value)) for partition, _, value in triples] for name, triples in found.items()}
    wrong = {name: (told.get(name), right.get(name)) for name in told.keys() | right.keys() if told.get(name) != [right.get(name)]}
    assert not wrong, f"{len(wrong)} of {len(right)}: {dict(islice(wrong.items(), 3))}"
    assert all(key.decode() == json.loads(value)["subject"] for triples in found.values() for _, key, value in triples)
    return len(right)


@pytest.mark.slow
def test_kills_and_an_older_redis_leave_the_evaluations_that_brute_force_finds(tmp_path: Path) -> None:
    r, older = random.Random(11), tmp_path / "older-aof"
    sent = small_world(6_000, seed=11, cards=300, step_ms=13_000)
    outcomes = hostile_outcomes(sent, 11)
    with Runtime(Settings(home=tmp_path / "home", time="replay", workers=2), ("worker", "loop", "scorer")) as runtime:
        store, files = redis.Redis.from_url(runtime.redis), find_append_only(tmp_path / "home")
        producer = Producer({"bootstrap.servers": runtime.kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 5})
        kills = 0
        for number in range(12):  # the first half's outcomes overtake their transactions, the second half's come after
            events = sent.transactions[number * 500:(number + 1) * 500]
            half = len(outcomes) // 2
            told = outcomes[number * half // 6:(number + 1) * half // 6] if number < 6 else []
            publish(producer, "outcomes", told)
            producer.flush(60)
            publish(producer, "transactions", events)
            producer.flush(60)
            if number in (2, 3, 8):
                os.kill(eventually(lambda: runtime.pid(r.choice(["worker-1", "loop"]))), signal.SIGKILL)
                kills += 1
            if number == 4:
                copy(files, older)
            if number == 6:
                os.kill(eventually(lambda: runtime.pid("redis")), signal.SIGKILL)
                runtime.hold("redis")
                copy(older, files)
                runtime.release("redis")
        publish(producer, "outcomes", outcomes[len(outcomes) // 2:])
        producer.flush(60)
        os.kill(eventually(lambda: runtime.pid("loop")), signal.SIGKILL)
        eventually(lambda: answers(store))
        eventually(lambda: caught_up(runtime))
        found = check_all(runtime.kafka)
        assert found > 5_000
        copies = sum(1 for _ in read_topic(runtime.kafka, EVALUATIONS)) - found
        print(f"{found} evaluations, {kills + 1} kills, published again: {copies}; "
              f"{store.hgetall('pairs:outcomes:counts')}")

        eventually(lambda: all(joined(store, runtime.kafka, topic) for topic in ("predictions", VALID)))
        assert_status(runtime, tmp_path / "home")

        # A reader is told that nothing more will come, on partitions without traffic too.
        wire, clock_ms = Wire(runtime.redis, 5000), outcomes[-1][1] + 1
        assert max(evaluated_ms(wire, FRAUD, 4).values()) < clock_ms
        clocks = Publisher(runtime.kafka, ["transactions", "outcomes"])
        for source in ("transactions", "outcomes"):
            clocks.clock(source, clock_ms)
        clocks.flush()
        eventually(lambda: evaluated_ms(wire, FRAUD, 4) == dict.fromkeys(range(4), clock_ms))
        assert check_all(runtime.kafka) == found

        # Negative control: a prediction that the store lost behind its marks is missed, and that is seen.
        identities = {record["event_id"] for _, record in expected(logs(runtime.kafka), HORIZON_MS).values()}
        event = next(event for event, _ in reversed(sent.transactions) if event.event_id not in identities)
        layout = read_layout(wire, "outcomes")
        assert layout is not None
        place = place_of(event.event_id, event.event_time, layout.slice_ms, layout.buckets)
        assert store.hdel(pair_key("outcomes", *place[:2]), place.field + model_tag("fraud")) == 1
        publish(producer, "outcomes", [(Outcome(event.event_id, event.event_time, event.card_id, event.terminal_id, True), clock_ms + 1)])
        clocks.clock("outcomes", clock_ms + 2)
        clocks.flush()
        producer.flush(60)
        eventually(lambda: min(map(int, store.hvals(joined_ms_key(VALID)))) == clock_ms + 2)
        assert len(expected(logs(runtime.kafka), HORIZON_MS)) == len(published(runtime.kafka)) + 1


def assert_status(runtime: Runtime, home: Path) -> None:
    """``headrace outcomes status`` against what lies in Kafka."""
    at = {"HEADRACE_HOME": str(home), "HEADRACE_KAFKA": runtime.kafka, "HEADRACE_REDIS": runtime.redis, "HEADRACE_TIME": "replay"}
    done = subprocess.run([sys.executable, "-m", "services.cli", "outcomes", "status", "--json"], env={**os.environ, **at},
                          capture_output=True, text=True, check=True)
    (told,) = json.loads(done.stdout)
    of_events: dict[str, set[tuple[str, int]]] = {"predictions": set(), VALID: set()}
    first: dict[tuple[str, int], int] = {}
    for (topic, _), records in logs(runtime.kafka).items():
        for record in records:
            event = json.loads(record.value)
            of_events[topic].add((event["event_id"], event["event_time"]))
            if topic == VALID:
                first.setdefault((event["event_id"], event["event_time"]), record.timestamp - event["event_time"])
    predicted, outcomes = of_events["predictions"], of_events[VALID]
    assert told["looked_at"] == 1.0
    assert (told["predictions"], told["outcomes"]) == (len(predicted), len(outcomes))
    assert (told["predictions_unmatched"], told["outcomes_unmatched"]) == (len(predicted - outcomes), len(outcomes - predicted))
    days = Counter(time // DAY_MS * DAY_MS for _, time in predicted)
    labelled = Counter(time // DAY_MS * DAY_MS for _, time in predicted & outcomes)
    assert {day["day_ms"]: (day["predictions"], day["labelled"]) for day in told["cohorts"]} == {
        day: (n, labelled[day]) for day, n in days.items()}
    delays = sorted(first.values())
    assert told["delay_ms"] == {f"p{q}": delays[-(-q * len(delays) // 100) - 1] for q in (50, 90, 99)}
    assert told["counts"]["conflicting"] > 0
    assert told["counts"]["repeated"] > 0
    print({key: value for key, value in told.items() if key != "cohorts"})
