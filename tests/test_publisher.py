"""Publishing to a real Kafka: in lockstep with a real consumer, and at a rate."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, TopicPartition

from feature_repo.fraud import USE_CASE
from schemas.envelope import SENT_NS, check_cloud_event, clock, header
from schemas.errors import LogError, SettingsError
from schemas.fraud import OUTCOME, OUTCOMES, TRAFFIC, TRANSACTION, TRANSACTIONS
from schemas.settings import Settings
from services.inputs import event_rows
from services.ledger import end_offsets, read_events, read_topic
from services.lockstep import HOUR_MS, Lockstep
from services.paced import publish_paced
from services.runtime.embedded import Runtime
from services.world import World
from tests.deadline import eventually

DAY_MS = 24 * HOUR_MS
START_MS = 1_700_006_400_000
DELAY_MS = 7 * DAY_MS


class Follower:
    """A group that is done with a record as soon as it has read it; ``heard`` keeps the order in which that was."""

    def __init__(self, bootstrap: str) -> None:
        self.heard: list[Any] = []
        self.deaf = threading.Event()
        self._marks: dict[str, dict[int, int]] = {source: {} for source in TRAFFIC.sources}
        self._stop = threading.Event()
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "follower", "enable.auto.commit": False})
        self._consumer.assign([TopicPartition(source, partition, high) for source in TRAFFIC.sources
                               for partition, (_, high) in end_offsets(bootstrap, source).items()])
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def groups(self, source: str) -> dict[str, dict[int, int]]:
        return {"follower": dict(self._marks[source])}

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()

    def _follow(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(1000, 0.005):
                self.heard.append(message)
                if not self.deaf.is_set():
                    self._marks[message.topic()][message.partition()] = message.offset()


@pytest.fixture(scope="module")
def replay_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka whose topics leave arrival times to the publisher."""
    home = tmp_path_factory.mktemp("replay")
    with Runtime(Settings(home=home, kafka=None, redis=None, time="replay"), roles=()) as runtime:
        eventually(lambda: offsets_are_told(runtime.kafka))
        yield runtime.kafka


@pytest.fixture
def follower(replay_kafka: str) -> Iterator[Follower]:
    follower = Follower(replay_kafka)
    yield follower
    follower.close()


@pytest.fixture(scope="module")
def days() -> list[pa.RecordBatch]:
    return [event_rows(day) for day in World(seed=5, cards=60, terminals=20, start_ms=START_MS).days(9)]


def offsets_are_told(bootstrap: str) -> bool:
    """A leader that was just elected may not know it yet."""
    try:
        return all(end_offsets(bootstrap, source) for source in TRAFFIC.sources)
    except LogError:
        return False


def lockstep(bootstrap: str, batches: list[pa.RecordBatch], progress: Any, **options: Any) -> Lockstep:
    return Lockstep(bootstrap, batches, progress, **{"source": "/test", "emissions": USE_CASE.emissions, **options})


def test_transactions_and_what_became_known_of_them_arrive_in_simulated_time(
    replay_kafka: str, follower: Follower, days: list[pa.RecordBatch],
) -> None:
    published = lockstep(replay_kafka, days, follower)
    published.run()
    sent = [row for day in days for row in day.to_pylist()]
    events = [message for message in follower.heard if not clock(message.headers())]
    transactions = [message for message in events if message.topic() == TRANSACTIONS]
    outcomes = [message for message in events if message.topic() == OUTCOMES]

    read = {event.event_id: event for event in (TRANSACTION.decode(message.value()) for message in transactions)}
    assert len(read) == len(transactions) == len(sent) == published.sent[TRANSACTIONS]
    assert all(read[row["event_id"]].amount_minor == row["amount_minor"] for row in sent)
    assert all(message.timestamp()[1] == TRANSACTION.decode(message.value()).event_time for message in transactions)

    end_ms = published.now_ms
    assert end_ms == START_MS + 9 * DAY_MS
    known = {OUTCOME.decode(message.value()).event_id: message for message in outcomes}
    assert known.keys() == {row["event_id"] for row in sent if row["event_time"] + DELAY_MS <= end_ms}
    assert all(known[row["event_id"]].timestamp()[1] == row["event_time"] + DELAY_MS for row in sent if row["event_id"] in known)


def test_headers_are_cloud_events_and_one_card_keeps_to_one_partition(
    replay_kafka: str, follower: Follower, days: list[pa.RecordBatch],
) -> None:
    lockstep(replay_kafka, days[:1], follower).run()
    places = set()
    for message in follower.heard:
        if not clock(message.headers()):
            event = TRANSACTION.decode(message.value())
            check_cloud_event(message.headers(), TRANSACTION)
            assert header(message.headers(), "ce_id") == event.event_id.encode()
            assert header(message.headers(), "ce_source") == b"/test"
            assert message.key() == event.card_id.encode()
            places.add((event.card_id, message.partition()))
    assert len(places) == len({card for card, _ in places})
    assert len({partition for _, partition in places}) == 4


def test_every_partition_hears_the_clock_and_nothing_earlier_after_it(
    replay_kafka: str, follower: Follower, days: list[pa.RecordBatch],
) -> None:
    published = lockstep(replay_kafka, days[:2], follower, step_ms=6 * HOUR_MS)
    published.run()
    told: Counter[tuple[str, int]] = Counter()
    now: dict[tuple[str, int], int] = {}
    for message in follower.heard:
        place, at_ms = (message.topic(), message.partition()), message.timestamp()[1]
        if clock(message.headers()):
            assert (message.key(), message.value()) == (None, b"")
            assert at_ms % (6 * HOUR_MS) == 0
            now[place] = at_ms
            told[place] += 1
        else:
            assert now.get(place, 0) < at_ms <= now.get(place, START_MS) + 6 * HOUR_MS
    assert set(told.values()) == {published.steps} == {8}
    assert len(told) == 8


def test_a_step_is_sent_when_the_one_before_has_been_applied(replay_kafka: str, follower: Follower, days: list[pa.RecordBatch]) -> None:
    seen_at_step = []

    def tell(published: Lockstep) -> None:
        clocks = [m for m in follower.heard if clock(m.headers()) and m.timestamp()[1] == published.now_ms]
        seen_at_step.append((len(clocks), max(m.timestamp()[1] for m in follower.heard) == published.now_ms))

    lockstep(replay_kafka, days[:2], follower, tell=tell).run()
    assert set(seen_at_step) == {(8, True)}


def test_the_simulation_holds_where_it_is_told_and_goes_on(replay_kafka: str, follower: Follower, days: list[pa.RecordBatch]) -> None:
    published = lockstep(replay_kafka, days[:3], follower)
    hold_ms = START_MS + DAY_MS + 17 * 60_000
    published.run_until(hold_ms)
    assert published.now_ms == hold_ms
    before = [message for message in follower.heard if not clock(message.headers())]
    assert max(message.timestamp()[1] for message in before) <= hold_ms
    assert len(before) == sum(row["event_time"] <= hold_ms for day in days[:3] for row in day.to_pylist())
    published.run_until(hold_ms)
    assert len(before) == published.sent[TRANSACTIONS]
    published.run()
    assert published.sent[TRANSACTIONS] == sum(day.num_rows for day in days[:3])
    published.run_until(START_MS + 20 * DAY_MS)
    assert published.sent[OUTCOMES] == published.sent[TRANSACTIONS]


def test_drain_goes_on_until_every_outcome_is_known_and_passes_over_empty_steps(
    replay_kafka: str, follower: Follower, days: list[pa.RecordBatch],
) -> None:
    published = lockstep(replay_kafka, days[:1], follower)
    published.run(drain=True)
    assert published.sent[OUTCOMES] == published.sent[TRANSACTIONS] == days[0].num_rows
    last_ms = max(row["event_time"] for row in days[0].to_pylist()) + DELAY_MS
    assert 0 <= published.now_ms - last_ms < HOUR_MS
    assert published.steps <= 48


def test_a_group_that_stands_still_is_named(replay_kafka: str, follower: Follower, days: list[pa.RecordBatch]) -> None:
    follower.deaf.set()
    with pytest.raises(LogError, match=r"follower stands at offset -1 of outcomes\[0\]"):
        lockstep(replay_kafka, days, follower, patience_s=0.3).run()


def test_what_cannot_be_mapped_is_published_among_the_others(replay_kafka: str, follower: Follower, days: list[pa.RecordBatch]) -> None:
    rows = days[0].to_pylist()[:5]
    rows[2] |= {"refused.transactions": b'{"event_id":"x"}', "event_time": None, "card_id": None}
    published = lockstep(replay_kafka, [pa.RecordBatch.from_pylist(rows, schema=days[0].schema)], follower)
    published.run()
    events = [message for message in follower.heard if not clock(message.headers())]
    assert len(events) == 5
    (bad,) = [message for message in events if message.value() == b'{"event_id":"x"}']
    assert bad.timestamp()[1] == rows[1]["event_time"]
    assert (bad.key(), bad.headers()) == (None, None)


def test_lockstep_is_refused_where_the_broker_stamps_arrival(kafka: str, days: list[pa.RecordBatch]) -> None:
    with pytest.raises(SettingsError, match="take their times from the broker"):
        lockstep(kafka, days, None)


def test_a_kafka_that_is_not_there_is_said_not_to_answer() -> None:
    with pytest.raises(LogError, match="does not answer"):
        lockstep("127.0.0.1:1", [], None)


def test_paced_records_say_when_they_were_due_and_none_leaves_before(kafka: str, days: list[pa.RecordBatch]) -> None:
    already = {partition: high for partition, (_, high) in end_offsets(kafka, TRANSACTIONS).items()}
    began_ns = time.time_ns()
    result = publish_paced(kafka, [days[0], days[1]], 2_000, source="/paced", emissions=USE_CASE.emissions, restamp=True, stamp=True)
    number = days[0].num_rows + days[1].num_rows
    assert result.sent == {TRANSACTIONS: number}
    sent = [message for message in read_events(kafka, TRANSACTIONS) if message.offset() >= already[message.partition()]]
    due_ns = sorted(int(header(message.headers(), SENT_NS)) for message in sent)
    assert len(due_ns) == number
    assert due_ns[0] > began_ns
    assert due_ns[-1] - due_ns[0] == pytest.approx((number - 1) * 1e9 / 2_000, abs=1_000_000)
    for message in sent:
        at_ms = int(header(message.headers(), SENT_NS)) // 1_000_000
        assert message.timestamp()[1] >= at_ms  # the broker's clock is this machine's
        assert abs(TRANSACTION.decode(message.value()).event_time - at_ms) <= 1


def test_paced_events_keep_their_times_and_outcomes_their_place(replay_kafka: str, follower: Follower, days: list[pa.RecordBatch]) -> None:
    result = publish_paced(replay_kafka, days, 20_000, source="/paced", emissions=USE_CASE.emissions)
    last_ms = max(row["event_time"] for row in days[-1].to_pylist())
    assert result.sent == {TRANSACTIONS: sum(day.num_rows for day in days),
                           OUTCOMES: sum(row["event_time"] + DELAY_MS <= last_ms for day in days for row in day.to_pylist())}
    read = [message for message in read_topic(replay_kafka, TRANSACTIONS) if header(message.headers(), "ce_source") == b"/paced"]
    assert all(message.timestamp()[1] == TRANSACTION.decode(message.value()).event_time for message in read)
