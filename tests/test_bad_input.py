"""One record in a hundred is bad: each is a dead letter that its producer understands, and everything else goes on untouched.

Over 300 lines: one run of the whole path serves all of it, and the kinds of bad records are a table of their own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from confluent_kafka import Producer

from feature_repo.fraud import VIEWS
from feature_repo.pairs import prediction_id
from schemas.contracts import MAX_VALUE_BYTES
from schemas.errors import DefinitionError
from schemas.fraud import TRAFFIC, Transaction
from schemas.settings import Settings
from schemas.topics import BROKER_MAX_BYTES, dead_letter_topic
from services.dead_letters import find_letter, read_letters
from services.ledger import end_offsets, read_topic
from services.runtime.embedded import Runtime
from services.status import read_status
from streams.loop import GROUP as LOOP
from tests.deadline import eventually
from tests.world_check import Sent, read_predictions, small_world, wrong_sets

EVENTS = 4_200
WAITED_FOR = len(VIEWS) + 2
"""Groups: of each view, the scorer and the shadow."""
SKEW_MS = max(view.max_skew_ms for view in VIEWS)
HOUR_MS = 3_600_000
HUGE = "12 MB that were sent compressed"
FAST_CLOCK = "a clock an hour fast"
FAR_FUTURE = "a clock forty years fast"

Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Bad:
    """A way to spoil a good record: what becomes of its value, the headers it travels with, and the reason it must be refused for."""

    name: str
    reason: str
    spoil: Callable[[dict[str, Any]], bytes | None]
    headers: Headers = field(default_factory=list)


@dataclass
class Refused:
    """What was sent, and where the broker put it."""

    bad: Bad
    key: bytes | None
    value: bytes | None
    arrival_ms: int
    place: str = ""


def text(record: dict[str, Any]) -> bytes:
    return msgspec.json.encode(record)


def changed(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda record: text({**record, **fields})


def literal(name: str, value: bytes) -> Callable[[dict[str, Any]], bytes]:
    """``value`` where the field's JSON stands, whatever it is."""
    return lambda record: text({**record, name: "@@"}).replace(b'"@@"', value)


def without(name: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda record: text({key: value for key, value in record.items() if key != name})


def later(ms: int) -> Callable[[dict[str, Any]], bytes]:
    return lambda record: text({**record, "event_time": record["event_time"] + ms})


def common(own_type: str, other_type: str) -> list[Bad]:
    """What can be wrong with any event."""
    return [
        Bad("no JSON", "not-json", lambda _: b"hello"),
        Bad("nothing", "not-json", lambda _: b""),
        Bad("half a record", "not-json", lambda record: text(record)[:-9]),
        Bad("two records", "not-json", lambda record: text(record) * 2),
        Bad("a byte order mark", "not-json", lambda record: b"\xef\xbb\xbf" + text(record)),
        Bad("no UTF-8", "not-json", literal("card_id", b'"\xff\xfe"')),
        Bad("half a surrogate pair", "not-json", literal("card_id", b'"\\ud800"')),
        Bad("a tombstone", "no-value", lambda _: None),
        Bad("an array", "wrong-type", lambda record: b"[%b]" % text(record)),
        Bad("ten thousand brackets", "wrong-type", lambda _: b"[" * 10_000),
        Bad("null", "wrong-type", lambda _: b"null"),
        Bad("a number for a name", "wrong-type", changed(terminal_id=17)),
        Bad("a null key", "wrong-type", changed(card_id=None)),
        Bad("time as text", "wrong-type", changed(event_time="2018-06-18T00:00:00Z")),
        Bad("another type in ce_type", "wrong-type", text, [("ce_type", other_type.encode()), ("x", None)]),
        Bad("two types in ce_type", "wrong-type", text, [("ce_type", b"headrace.clock.v1"), ("ce_type", own_type.encode())]),
        Bad("an event that calls itself a clock", "wrong-type", text, [("ce_type", own_type.encode()), ("ce_type", b"headrace.clock.v1")]),
        Bad("another CloudEvents version", "wrong-type", text, [("ce_type", own_type.encode()), ("ce_specversion", b"0.3")]),
        Bad("no terminal", "missing-field", without("terminal_id")),
        Bad("no time", "missing-field", without("event_time")),
        Bad("an unknown field", "unknown-field", changed(currency="EUR")),
        Bad("an unknown field with a name of 20 kB", "unknown-field", changed(**{"é" * 10_000: 1})),
        Bad("an empty id", "out-of-range", changed(event_id="")),
        Bad("an id of 129 characters", "out-of-range", changed(event_id="x" * 129)),
        Bad("a time before 1970", "out-of-range", changed(event_time=-1)),
        Bad("5 MB of blanks", "too-large", lambda record: text(record) + b" " * 5_000_000),
        Bad("5 MB of noise", "too-large", lambda _: random.Random(7).randbytes(5_000_000)),
        Bad(HUGE, "too-large", lambda record: text(record) + b" " * (BROKER_MAX_BYTES + (4 << 20))),
        Bad("one byte too many", "too-large", lambda record: text(record).ljust(MAX_VALUE_BYTES + 1)),
        Bad(FAST_CLOCK, "clock-skew", later(HOUR_MS), [("ce_type", own_type.encode()), ("trace", b"\x00\xff")]),
        Bad(FAR_FUTURE, "clock-skew", later(40 * 365 * 24 * HOUR_MS)),
        Bad("a clock one ms too fast", "clock-skew", later(SKEW_MS + 1)),
    ]


BAD = {
    "transactions": [
        *common("headrace.transaction.v1", "headrace.outcome.v1"),
        Bad("not a number", "not-json", literal("amount_minor", b"NaN")),
        Bad("infinity", "not-json", literal("amount_minor", b"-Infinity")),
        Bad("a quoted amount", "wrong-type", changed(amount_minor="12")),
        Bad("cents with a fraction", "wrong-type", changed(amount_minor=12.5)),
        Bad("a negative amount", "out-of-range", changed(amount_minor=-1)),
        Bad("an amount beyond int64", "out-of-range", literal("amount_minor", b"9" * 30)),
        Bad("no amount", "missing-field", without("amount_minor")),
    ],
    "outcomes": [
        *common("headrace.outcome.v1", "headrace.transaction.v1"),
        Bad("a verdict in words", "wrong-type", changed(fraud="yes")),
        Bad("a verdict as a number", "wrong-type", changed(fraud=1)),
        Bad("no verdict", "missing-field", without("fraud")),
        Bad("a negative revision", "out-of-range", changed(revision=-1)),
    ],
}

# Headers that a producer may set and that mean nothing from a producer.
HOSTILE: list[Headers] = [
    [("hr_source_offset", b"soon")],
    [("hr_source_offset", None), ("hr_late", b"1")],
    [("hr_reason", b"none"), ("__streams.errors.offset", b"-1"), ("hr_sent_ns", None)],
]


@dataclass
class Sending:
    runtime: Runtime
    home: Path
    good: Sent
    refused: dict[str, list[Refused]]
    pids: dict[str, int | None]


@pytest.fixture(scope="module")
def sending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sending]:
    """Everything is sent and done with."""
    home = tmp_path_factory.mktemp("bad")
    with Runtime(Settings(home=home, time="replay", workers=2)) as runtime:
        pids = {process.name: process.pid for process in runtime.state.processes}
        sent = Sending(runtime, home, small_world(EVENTS, seed=9), {}, pids)
        for source, records in (("transactions", sent.good.transactions), ("outcomes", sent.good.outcomes)):
            sent.refused[source] = send(runtime.kafka, source, records)
        eventually(lambda: idle(sent))
        yield sent


def send(bootstrap: str, source: str, good: list[tuple[Any, int]]) -> list[Refused]:
    """The good records in their order with bad ones among them, and bad ones last in every partition."""
    r, ways, refused = random.Random(source), BAD[source], []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 5,
                         "message.max.bytes": 32 << 20, "compression.type": "lz4"})

    def delivered(error: Any, _: Any) -> None:
        assert error is None, error

    def spoil(record: Any, arrival_ms: int, bad: Bad, partition: int = -1) -> None:
        fields = {**msgspec.to_builtins(record), "event_id": f"bad-{source}-{len(refused)}", "event_time": arrival_ms}
        key = r.choice([record.card_id.encode(), None, b"\xff\x00", b""])
        one = Refused(bad, key, bad.spoil(fields), arrival_ms)
        refused.append(one)

        def placed(error: Any, message: Any) -> None:
            delivered(error, message)
            one.place = f"{source}/{message.partition()}/{message.offset()}"

        producer.produce(source, one.value, one.key, partition, timestamp=arrival_ms, headers=bad.headers, on_delivery=placed)

    for number, (record, arrival_ms) in enumerate(good):
        producer.produce(source, text(msgspec.to_builtins(record)), record.card_id.encode(), timestamp=arrival_ms,
                         headers=HOSTILE[number // 10 % len(HOSTILE)] if number % 10 == 0 else [], on_delivery=delivered)
        if number % 100 == 50:
            spoil(record, arrival_ms, ways[number // 100 % len(ways)])
        producer.poll(0)
    assert producer.flush(60) == 0
    for partition in range(4):
        spoil(*good[-1], ways[partition], partition)
    assert producer.flush(60) == 0
    return refused


def idle(sending: Sending, more: int = 0) -> bool:
    """Nobody has anything to do, and what is applied has been published, with ``more`` events than were sent at first."""
    status = read_status(Settings(home=sending.home, time="replay"), sending.runtime.endpoints, interval_s=0.01)
    return (status.dead_letters == {source: len(refused) for source, refused in sending.refused.items()}
            and status.predictions >= len(sending.good.transactions) + more
            and sum(group.group != LOOP for group in status.groups) == WAITED_FOR
            and all(group.lag_events == 0 and group.lag_s == 0 for group in status.groups))


def headrace(sending: Sending, *words: str) -> dict[str, Any]:
    """The answer of the real command."""
    environment = {**os.environ, "HEADRACE_HOME": str(sending.home), "HEADRACE_TIME": "replay"}
    done = subprocess.run([sys.executable, "-m", "services.cli", *words, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_every_way_to_be_bad_was_sent(sending: Sending) -> None:
    for source, ways in BAD.items():
        assert {one.bad.name for one in sending.refused[source]} == {bad.name for bad in ways}
        assert len(sending.refused[source]) >= EVENTS / 100


@pytest.mark.parametrize("source", sorted(TRAFFIC.sources))
def test_dead_letters_are_the_bad_records_as_they_came_with_a_reason_and_their_place(sending: Sending, source: str) -> None:
    letters = {letter.id: letter for letter in read_letters(sending.runtime.kafka, TRAFFIC.sources) if letter.source == source}
    refused = {one.place: one for one in sending.refused[source]}
    assert {place: letter.reason for place, letter in letters.items()} == {place: one.bad.reason for place, one in refused.items()}
    assert len(list(read_topic(sending.runtime.kafka, dead_letter_topic(source)))) == len(refused)
    for place, one in refused.items():
        letter = letters[place]
        assert (letter.reason, letter.key, letter.headers) == (one.bad.reason, one.key, one.bad.headers), one.bad.name
        assert letter.value == (one.value if one.bad.name != HUGE else None), one.bad.name
        assert letter.arrival_ms == one.arrival_ms
        assert letter.fact, one.bad.name
        assert letter.hint, one.bad.name
        assert len(letter.fact) <= 1000


def test_the_good_around_them_are_all_in_the_sets_and_scored_once(sending: Sending) -> None:
    store = redis.Redis.from_url(sending.runtime.redis)
    assert wrong_sets(store, sending.good) == []
    predictions = read_predictions(sending.runtime.kafka)
    assert {p.event_id for p in predictions.first.values()} == {event.event_id for event, _ in sending.good.transactions}
    assert (predictions.copies, predictions.reordered) == (0, 0)
    assert not any(p.late or p.degraded for p in predictions.first.values())

    # Negative control: the comparison sees one record more.
    event, arrival_ms = sending.good.transactions[-1]
    more = [(msgspec.structs.replace(event, event_id="one more"), arrival_ms)]
    assert len(wrong_sets(store, Sent(sending.good.transactions + more, sending.good.outcomes))) == 2


def test_no_process_ended_and_no_lag_is_left(sending: Sending) -> None:
    state = sending.runtime.state
    assert {process.name: process.pid for process in state.processes} == sending.pids
    assert {process.restarts for process in state.processes} == {0}
    status = headrace(sending, "status")
    waited_for = [group for group in status["groups"] if group["group"] != LOOP]
    assert len(waited_for) == WAITED_FOR
    assert {(group["lag_events"], group["lag_s"]) for group in waited_for} == {(0, 0.0)}
    assert status["dead_letters"] == {source: len(refused) for source, refused in sending.refused.items()}


def test_the_command_line_lists_and_shows_what_was_refused(sending: Sending) -> None:
    refused = [one for of_source in sending.refused.values() for one in of_source]
    listed = headrace(sending, "dlq", "list", "--limit", "1000")
    assert listed["reasons"] == Counter(one.bad.reason for one in refused)
    assert {letter["id"]: letter["reason"] for letter in listed["letters"]} == {one.place: one.bad.reason for one in refused}
    few = headrace(sending, "dlq", "list", "--reason", "clock-skew", "--limit", "2")
    assert (few["count"], len(few["letters"])) == (listed["reasons"]["clock-skew"], 2)

    one = next(one for one in refused if one.bad.name == "another type in ce_type" and one.place.startswith("transactions/"))
    shown = headrace(sending, "dlq", "show", one.place)
    assert one.value is not None
    assert (shown["reason"], shown["value"]) == ("wrong-type", one.value.decode())
    assert shown["headers"] == {"ce_type": "headrace.outcome.v1", "x": ""}
    assert "headrace.outcome.v1" in shown["fact"]
    assert "its own topic" in shown["hint"]


def test_a_dead_letter_that_is_not_there_is_an_error_with_a_hint(sending: Sending) -> None:
    with pytest.raises(DefinitionError, match="no dead letter 'transactions/0/987654'") as caught:
        find_letter(sending.runtime.kafka, TRAFFIC.sources, "transactions/0/987654")
    assert "dlq list" in caught.value.hint


def test_what_is_valid_by_now_is_replayed_once_and_predicted_once(sending: Sending) -> None:
    """The clock of the replay has gone on: two of the fast clocks are in the past by now, the others are not."""
    runtime = sending.runtime
    mended = [one for one in sending.refused["transactions"] if one.bad.reason == "clock-skew" and one.bad.name != FAR_FUTURE]
    ends, predicted = end_offsets(runtime.kafka, "transactions"), read_predictions(runtime.kafka)

    rehearsal = headrace(sending, "dlq", "replay", "--dry-run")
    assert sorted(rehearsal["sent"]) == sorted(one.place for one in mended)
    assert end_offsets(runtime.kafka, "transactions") == ends
    still = {one.place for of_source in sending.refused.values() for one in of_source} - set(rehearsal["sent"])
    assert rehearsal["refused"].keys() == still
    assert all(rehearsal["refused"].values())

    first = headrace(sending, "dlq", "replay")
    assert (first["sent"], first["sent_before"]) == (rehearsal["sent"], [])
    second = headrace(sending, "dlq", "replay")
    assert (second["sent"], sorted(second["sent_before"])) == ([], sorted(first["sent"]))
    assert second["refused"] == first["refused"]

    eventually(lambda: idle(sending, len(mended)))
    events = [msgspec.json.decode(one.value or b"", type=Transaction) for one in mended]
    predictions = read_predictions(runtime.kafka)
    assert predictions.first.keys() - predicted.first.keys() == {prediction_id("fraud", e.event_id, e.event_time) for e in events}
    assert predictions.copies == 0
    now_ms = sending.good.transactions[-1][1]
    replayed = [predictions.first[prediction_id("fraud", e.event_id, e.event_time)] for e in events]
    assert [p.arrival_ms for p in replayed] == [now_ms] * len(mended)
    arrived = Sent(sending.good.transactions + [(event, now_ms) for event in events], sending.good.outcomes)
    assert wrong_sets(redis.Redis.from_url(runtime.redis), arrived) == []
    assert len(list(read_letters(runtime.kafka, TRAFFIC.sources))) == sum(map(len, sending.refused.values())), "a replay made a dead letter"
