"""Redis slow, silent or gone never takes scoring down: a bounded wait, then the model's declared defaults, and nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
import redis
from confluent_kafka import Producer

from feature_repo.bundle import Model
from feature_repo.fraud import SERVICE, VIEWS
from feature_repo.marks import Progress
from feature_repo.online import Reading
from feature_repo.vector import VectorBuilder
from schemas.fraud import Prediction, Transaction
from schemas.settings import Settings
from services.ledger import end_offsets, read_events, read_topic
from services.runtime.embedded import Runtime
from services.scoring import Arrived, predict
from tests.deadline import eventually
from tests.small_model import promote_small_model
from tests.weak_link import Mood, WeakLink, weak_link
from tests.world_check import Sent, as_floats, oracle_vector, publish, read_predictions, wrong_sets

EVENTS = 600
TIMEOUT_MS, PATIENCE_MS = 500, 20_000
"""A busy machine takes a tenth of a second from anybody. Forty times the timeout: asserted is that nobody waits for a store."""
DEFAULTS = {"card_count_1d": 3.0, "card_amount_mean_30d": 20.0, "card_at_terminal_30d": 0.0}


@dataclass
class Scoring:
    """Engines and a worker in one runtime; the scorer in another, to whom they are external and Redis is behind a weak link."""

    engines: Runtime
    scorer: Runtime
    link: WeakLink
    model: Model
    pids: tuple[int | None, int | None]
    sent: Sent = field(default_factory=Sent)

    def send(self, n: int) -> list[Transaction]:
        """``n`` transactions of now, acknowledged."""
        events = []
        for i in range(n):
            now_ms, number = time.time_ns() // 1_000_000, len(self.sent.transactions)
            event = Transaction(f"e{number}", now_ms, f"c{i % 20}", f"t{i % 15}", 100 + number)
            events.append(event)
            self.sent.transactions.append((event, now_ms))
        producer = Producer({"bootstrap.servers": self.engines.kafka, "acks": "all", "enable.idempotence": True})
        publish(producer, "transactions", [(event, 0) for event in events])
        assert producer.flush(30) == 0
        return events

    def applied(self) -> bool:
        """The worker is done with everything; the marks move before it publishes, so the valid topic counts too."""
        progress = Progress(self.engines.redis, VIEWS, [])
        try:
            reached = progress.reached("transactions")
        finally:
            progress.close()
        ends = end_offsets(self.engines.kafka, "transactions")
        valid = sum(1 for _ in read_events(self.engines.kafka, "transactions.valid"))
        return all(reached.get(p, -1) == high - 1 for p, (_, high) in ends.items()) and valid == len(self.sent.transactions)

    def predicted(self, events: list[Transaction]) -> dict[str, tuple[Prediction, int]]:
        """Event id -> its prediction and how long after the event's arrival the broker had it, once all of them have one."""
        decode, wanted = msgspec.json.Decoder(Prediction).decode, {event.event_id for event in events}

        def look() -> dict[str, tuple[Prediction, int]]:
            if sum(high for _, high in end_offsets(self.engines.kafka, "predictions").values()) < len(self.sent.transactions):
                return {}
            read = [(decode(message.value()), message.timestamp()[1]) for message in read_topic(self.engines.kafka, "predictions")]
            found = {p.event_id: (p, at_ms - p.arrival_ms) for p, at_ms in read if p.event_id in wanted}
            return found if found.keys() == wanted else {}

        return eventually(look)


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scoring]:
    home = tmp_path_factory.mktemp("degraded")
    model = promote_small_model(home / "scorer" / "models", defaults=DEFAULTS)
    with Runtime(Settings(home=home / "engines"), roles=("worker",)) as engines, \
            weak_link(urlsplit(engines.redis).port or 0, delay_s=6 * TIMEOUT_MS / 1000) as link:
        behind = Settings(home=home / "scorer", kafka=engines.kafka, redis=f"redis://127.0.0.1:{link.port}/0",
                          redis_timeout_ms=TIMEOUT_MS)
        with Runtime(behind, roles=("scorer",)) as scorer:
            yield Scoring(engines, scorer, link, model, (engines.pid("worker-1"), scorer.pid("scorer")))


def degraded_vector(event: Transaction) -> np.ndarray:
    """The declared defaults, null for the rest, and what the event says of itself: written down here once more, by hand."""
    known = {**DEFAULTS, "amount": event.amount_minor / 100, "amount_to_mean_30d": event.amount_minor / 100 / 20, "new_terminal": 1.0}
    at = datetime.fromtimestamp(event.event_time / 1000, UTC)
    known |= {"weekend": float(at.weekday() >= 5), "night": float(at.hour < 7)}
    return np.array([known.get(name, np.nan) for name in SERVICE.feature_names])


def check_degraded(scoring: Scoring, event: Transaction, prediction: Prediction) -> None:
    assert prediction.degraded
    vector = degraded_vector(event)
    np.testing.assert_array_equal(as_floats(prediction.features), vector)
    assert prediction.score == scoring.model.score(vector.reshape(1, -1))[0]
    assert (prediction.model_version, prediction.stamps, prediction.applied) == ("1", [], {})


def check_well(scoring: Scoring) -> None:
    """The sets are whole, and a prediction now is the oracle's over everything ever sent, by the processes of the start."""
    store = redis.Redis.from_url(scoring.engines.redis)
    eventually(lambda: scoring.applied() and not wrong_sets(store, scoring.sent))
    event, = scoring.send(1)
    prediction, _ = scoring.predicted([event])[event.event_id]
    assert not prediction.degraded
    windows = len(SERVICE.feature_names) - len(SERVICE.request)
    expected = oracle_vector(event, {"transactions": [e for e, _ in scoring.sent.transactions], "outcomes": []})
    np.testing.assert_array_equal(as_floats(prediction.features)[:windows], expected)
    assert (scoring.engines.pid("worker-1"), scoring.scorer.pid("scorer")) == scoring.pids
    restarts = {p.name: p.restarts for runtime in (scoring.engines, scoring.scorer) for p in runtime.state.processes}
    assert restarts["worker-1"] == restarts["scorer"] == 0


def test_without_a_fault_nothing_is_degraded(scoring: Scoring) -> None:
    """The negative control of all that follows."""
    predictions = scoring.predicted(scoring.send(EVENTS))
    assert not any(prediction.degraded for prediction, _ in predictions.values())
    assert all(len(prediction.stamps) == len(VIEWS) for prediction, _ in predictions.values())
    check_well(scoring)


@pytest.mark.parametrize("mood", ["slow", "silent", "shut"])
def test_scoring_goes_on_within_a_bound_while_its_way_to_redis_is(scoring: Scoring, mood: Mood) -> None:
    scoring.link.mood = mood
    events = scoring.send(EVENTS)
    predictions = scoring.predicted(events)
    more = scoring.send(20)  # not the first ones only
    predictions |= scoring.predicted(more)
    scoring.link.mood = "well"
    for event in events + more:
        prediction, latency_ms = predictions[event.event_id]
        check_degraded(scoring, event, prediction)
        assert latency_ms < PATIENCE_MS
    check_well(scoring)


def test_a_redis_that_hangs_does_not_hold_up_what_is_to_be_scored(scoring: Scoring) -> None:
    """The real server stands still. The scorer does too until everything is applied: a worker waits for Redis, however long."""
    hung, scorer = scoring.engines.pid("redis"), scoring.scorer.pid("scorer")
    assert hung
    assert scorer
    os.kill(scorer, signal.SIGSTOP)
    events = scoring.send(EVENTS)
    eventually(scoring.applied)
    os.kill(hung, signal.SIGSTOP)
    try:
        began_ms = time.time_ns() // 1_000_000
        os.kill(scorer, signal.SIGCONT)
        predictions = scoring.predicted(events)
        for event in events:
            prediction, latency_ms = predictions[event.event_id]
            check_degraded(scoring, event, prediction)
            assert prediction.arrival_ms + latency_ms - began_ms < PATIENCE_MS
        waiting = scoring.send(50)
        assert scoring.engines.pid("redis") == hung, "a hung server is not killed"
    finally:
        os.kill(hung, signal.SIGCONT)
    assert scoring.predicted(waiting).keys() == {event.event_id for event in waiting}
    check_well(scoring)


def test_a_redis_that_is_down_does_not_hold_up_what_is_to_be_scored(scoring: Scoring) -> None:
    """Killed, so what its append-only file lacks is applied again."""
    server, scorer = scoring.engines.pid("redis"), scoring.scorer.pid("scorer")
    assert server
    assert scorer
    os.kill(scorer, signal.SIGSTOP)
    events = scoring.send(EVENTS)
    eventually(scoring.applied)
    os.kill(server, signal.SIGKILL)
    scoring.engines.hold("redis")
    os.kill(scorer, signal.SIGCONT)
    predictions = scoring.predicted(events)
    for event in events:
        check_degraded(scoring, event, predictions[event.event_id][0])
    waiting = scoring.send(50)  # a worker that finds no store waits for it
    scoring.engines.release("redis")
    assert scoring.predicted(waiting).keys() == {event.event_id for event in waiting}
    check_well(scoring)


def test_after_all_of_it_the_sets_are_whole_and_every_event_has_one_prediction(scoring: Scoring) -> None:
    eventually(scoring.applied)
    assert wrong_sets(redis.Redis.from_url(scoring.engines.redis), scoring.sent) == []
    predictions = read_predictions(scoring.engines.kafka)
    assert sorted(p.event_id for p in predictions.first.values()) == sorted(event.event_id for event, _ in scoring.sent.transactions)
    assert (predictions.copies, predictions.reordered) == (0, 0)


def test_a_store_that_lost_what_it_had_makes_scores_degraded_until_its_marks_are_back() -> None:
    """An event is published as valid after it was applied: a mark before it means that sets have been lost, whole or in part."""
    events = [Transaction(f"e{offset}", 1_000 * offset, "c", "t", 100) for offset in (4, 5)]
    batch = [Arrived(event, 0, offset, 10_000, False) for event, offset in zip(events, (4, 5), strict=True)]
    of_transactions = [view.source == SERVICE.source for view in SERVICE.views]

    def degraded(*marks: tuple[int, ...]) -> list[bool]:
        """``marks`` of the views of transactions, in order; those of outcomes are always behind."""
        given = iter(marks)
        reading = Reading(tuple(next(given) if own else (-1,) for own in of_transactions),
                          tuple({getattr(events[0], view.entity): None} for view in SERVICE.views))
        results = predict("fraud", VectorBuilder(SERVICE), batch, reading, None, 0)
        return [msgspec.json.decode(result.value)["degraded"] for result in results]

    whole: list[tuple[int, ...]] = [(5,)] * sum(of_transactions)
    assert degraded(*whole) == [False, False]
    assert degraded(*whole[1:], (4,)) == [False, True], "one view that is behind is enough"
    assert degraded(*whole[1:], (-1,)) == [True, True]
    assert degraded(*whole[1:], ()) == [True, True]
