"""The streaming path: what becomes of each record, and that no fault, in any order, loses one or serves a wrong feature."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from feature_repo.fraud import CARD_SPEND, TERMINAL_ACTIVITY
from feature_repo.layout import entity_key
from feature_repo.online import SetReader
from schemas.envelope import CLOCK_HEADERS, LATE, SOURCE_OFFSET, VALUE_BYTES, header
from schemas.fraud import TRANSACTION, TRANSACTIONS, Transaction
from schemas.settings import Settings
from schemas.topics import BROKER_MAX_BYTES, catalogue, dead_letter_topic
from services.ledger import read_topic
from services.runtime.topics import create_topics
from streams.publisher import Publisher, last_source_offset, log_start, next_offset
from streams.sort import sort_chunk
from tests.deadline import eventually
from tests.hostile_log import World
from tests.hostile_worker import Rules

NOW_MS = 1_530_000_000_000
PATIENT = dataclasses.replace(TERMINAL_ACTIVITY, allowed_lateness_ms=3 * CARD_SPEND.allowed_lateness_ms)
VIEWS = (CARD_SPEND, PATIENT)
SEEDS = range(60)
PLACE = (TRANSACTIONS, 3)


def record(value: bytes | None, offset: int = 5, headers: tuple[tuple[str, Any], ...] = (), key: bytes | None = b"c1") -> Any:
    return SimpleNamespace(offset=offset, timestamp=NOW_MS, key=key, value=value, headers=headers)


def event(age_ms: int = 0) -> Transaction:
    return Transaction("e1", NOW_MS - age_ms, "c1", "t1", 100)


def encoded(age_ms: int = 0) -> bytes:
    return msgspec.json.encode(event(age_ms))


def test_a_valid_record_goes_into_every_set_and_on_with_its_bytes_key_time_and_origin() -> None:
    headers = (("trace", b"7"), ("empty", None))
    found = sort_chunk(TRANSACTION, VIEWS, PLACE, [record(encoded(), 5, headers)])
    assert found.admitted == [[(event(), NOW_MS)], [(event(), NOW_MS)]]
    (out,) = found.valid
    assert (out.offset, out.key, out.value, out.arrival_ms) == (5, b"c1", encoded(), NOW_MS)
    assert out.headers == [*headers, (SOURCE_OFFSET, b"5")]
    assert found.dead == []


@pytest.mark.parametrize(("age_ms", "admitted", "late"), [
    (CARD_SPEND.allowed_lateness_ms, (1, 1), None),
    (CARD_SPEND.allowed_lateness_ms + 1, (0, 1), b"1"),
    (PATIENT.allowed_lateness_ms, (0, 1), b"1"),
    (PATIENT.allowed_lateness_ms + 1, (0, 0), b"1"),
    (-CARD_SPEND.max_skew_ms, (1, 1), None),
])
def test_a_late_record_is_kept_out_of_the_sets_that_are_closed_to_it_and_scored_all_the_same(
    age_ms: int, admitted: tuple[int, int], late: bytes | None,
) -> None:
    found = sort_chunk(TRANSACTION, VIEWS, PLACE, [record(encoded(age_ms))])
    assert tuple(map(len, found.admitted)) == admitted
    assert [header(out.headers, LATE) for out in found.valid] == [late]
    assert found.dead == []


def test_a_record_from_the_future_is_a_dead_letter_and_in_no_set() -> None:
    found = sort_chunk(TRANSACTION, VIEWS, PLACE, [record(encoded(-CARD_SPEND.max_skew_ms - 1))])
    assert found.admitted == [[], []]
    assert found.valid == []
    assert [header(out.headers, "hr_reason") for out in found.dead] == [b"clock-skew"]


def test_a_clock_record_goes_on_without_a_value_and_is_no_event() -> None:
    found = sort_chunk(TRANSACTION, VIEWS, PLACE, [record(b"", 9, tuple(CLOCK_HEADERS))])
    assert (found.admitted, found.dead) == ([[], []], [])
    assert [(out.value, out.arrival_ms, out.headers) for out in found.valid] == [
        (b"", NOW_MS, [*CLOCK_HEADERS, (SOURCE_OFFSET, b"9")])]


def test_a_dead_letter_keeps_the_original_bytes_and_says_why_and_from_where_as_kip_1034_does() -> None:
    records = [record(b"\xff{", 12, (("trace", b"7"),), key=None), record(None, 13), record(encoded(), 14)]
    found = sort_chunk(TRANSACTION, VIEWS, PLACE, records)
    assert [out.offset for out in found.valid] == [14]
    first, tombstone = found.dead
    assert (first.key, first.value, first.arrival_ms, first.headers[0]) == (None, b"\xff{", NOW_MS, ("trace", b"7"))
    told = dict(first.headers)
    assert [told[f"__streams.errors.{name}"] for name in ("topic", "partition", "offset")] == [b"transactions", b"3", b"12"]
    assert told["__streams.errors.exception"] == b"ContractError"
    assert told["__streams.errors.message"].startswith(b"value is not JSON")
    assert (told["hr_reason"], told["hr_arrival_ms"], told[SOURCE_OFFSET]) == (b"not-json", str(NOW_MS).encode(), b"12")
    assert (tombstone.value, header(tombstone.headers, "hr_reason")) == (None, b"no-value")


def test_a_dead_letter_that_was_sent_compressed_and_is_too_large_for_the_broker_says_how_large_it_was() -> None:
    (out,) = sort_chunk(TRANSACTION, VIEWS, PLACE, [record(bytes(BROKER_MAX_BYTES + 1))]).dead
    assert out.value is None
    assert header(out.headers, VALUE_BYTES) == str(BROKER_MAX_BYTES + 1).encode()


@pytest.mark.parametrize("value", [encoded(), b"{"])
def test_a_producer_cannot_say_for_us_where_a_record_came_from(value: bytes) -> None:
    forged = ((SOURCE_OFFSET, b"many"), (LATE, b"1"), (SOURCE_OFFSET, None))
    found = sort_chunk(TRANSACTION, VIEWS, PLACE, [record(value, 5, forged)])
    (out,) = found.valid + found.dead
    assert [pair for pair in out.headers if pair[0] in (SOURCE_OFFSET, LATE)] == [(SOURCE_OFFSET, b"5")]


def test_an_answer_that_nobody_took_is_not_taken_for_the_next_one(redis_url: str) -> None:
    """Else a rebalance in the middle of a read would give one card the history of another."""
    store, reader = redis.Redis.from_url(redis_url), SetReader(redis_url, 30_000, 1)
    for card in ("mine", "yours"):
        store.set(entity_key(CARD_SPEND, card), card)
    reader.ask([(CARD_SPEND, ["mine"])])
    assert reader.read([(CARD_SPEND, ["yours"])]).sets == ({"yours": b"yours"},)
    store.delete(*(entity_key(CARD_SPEND, card) for card in ("mine", "yours")))


@pytest.fixture
def dead_letters(kafka: str) -> str:
    """A topic of this test alone, as the catalogue has that of dead letters."""
    listed = next(topic for topic in catalogue(Settings()) if topic.name == dead_letter_topic(TRANSACTIONS))
    own = dataclasses.replace(listed, name=f"{listed.name}.{os.urandom(4).hex()}")
    create_topics(kafka, [own])
    return own.name


def test_a_worker_that_comes_back_publishes_neither_events_nor_dead_letters_again(kafka: str, dead_letters: str) -> None:
    assert last_source_offset(kafka, dead_letters, 2) == -1
    dead = sort_chunk(TRANSACTION, VIEWS, PLACE, [record(b"{", offset) for offset in (0, 1, 2)]).dead
    for life in (dead[:2], dead, dead[1:]):
        publisher = Publisher(kafka, lambda: False)
        publisher.publish(dead_letters, 2, life)
        publisher.wait()
    assert Counter(m.partition() for m in read_topic(kafka, dead_letters)) == Counter({2: 3})
    assert last_source_offset(kafka, dead_letters, 2) == 2


def test_the_largest_record_that_a_source_takes_has_room_among_the_dead_letters(kafka: str, dead_letters: str) -> None:
    """Else it would stop its partition for ever."""
    value = os.urandom(BROKER_MAX_BYTES - 100)
    publisher = Publisher(kafka, lambda: False)
    publisher.publish(dead_letters, 1, sort_chunk(TRANSACTION, VIEWS, PLACE, [record(value, 0)]).dead)
    publisher.wait()
    assert [m.value() == value for m in read_topic(kafka, dead_letters)] == [True]


def test_the_log_tells_its_own_gaps_from_records_that_were_not_delivered(kafka: str) -> None:
    topic = f"gaps-{os.urandom(4).hex()}"
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": topic})
    producer.init_transactions(30)
    for ending in (producer.commit_transaction, producer.abort_transaction, producer.commit_transaction):
        producer.begin_transaction()
        producer.produce(topic, b"x")
        producer.flush()
        ending()
    eventually(lambda: next_offset(kafka, topic, 0, 5) == 6)
    assert [next_offset(kafka, topic, 0, offset) for offset in range(6)] == [0, 2, 2, 4, 4, 6]


def test_a_log_that_has_lost_its_beginning_says_where_it_starts(kafka: str) -> None:
    topic = f"lost-{os.urandom(4).hex()}"
    admin, producer = AdminClient({"bootstrap.servers": kafka}), Producer({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    for _ in range(5):
        producer.produce(topic, b"x", partition=0)
    producer.flush()
    assert log_start(kafka, topic, 0) == 0
    admin.delete_records([TopicPartition(topic, 0, 3)])[TopicPartition(topic, 0)].result()
    eventually(lambda: log_start(kafka, topic, 0) == 3)


def worlds(redis_url: str, rules: Rules) -> Iterator[World]:
    """One world per seed, after it has run."""
    for seed in SEEDS:
        world = World(redis_url.rsplit("/", 1)[0] + "/9", seed, rules)  # a database of its own: it is emptied all the time
        world.run()
        yield world


def test_no_crash_zombie_seek_gap_or_step_back_of_redis_loses_an_event_or_serves_a_wrong_feature(redis_url: str) -> None:
    seen: Counter[str] = Counter()
    for world in worlds(redis_url, Rules()):
        assert not world.wrong, world.seed
        seen += world.seen
    assert all(seen[fault] >= len(SEEDS) // 2 for fault in ("crashes", "restores", "moves", "seeks", "trimmed", "reads")), seen
    print(dict(seen))


@pytest.mark.parametrize(("left_out", "damage"), [
    ("compare_and_set", {"lost", "read"}),
    ("trim_waits_for_scorer", {"refused"}),
    ("gaps_are_confirmed", {"lost", "read", "unpublished"}),
    ("commit_done_only", {"unpublished"}),
])
def test_a_rule_that_is_left_out_shows(redis_url: str, left_out: str, damage: set[str]) -> None:
    wrong: Counter[str] = Counter()
    for world in worlds(redis_url, Rules(**{left_out: False})):
        wrong += world.wrong
        if damage <= wrong.keys():
            return
    raise AssertionError(f"without {left_out} only {dict(wrong)}")


def test_epochs_spare_work_and_promise_nothing(redis_url: str) -> None:
    for world in islice(worlds(redis_url, Rules(epochs=False)), 15):
        assert not world.wrong, world.seed
