"""What must be true after any fault: computed from what was sent, compared with what the log and the store hold."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import redis
from confluent_kafka import Producer

from feature_repo.appends import floor_ms
from feature_repo.fraud import SERVICE, VIEWS
from feature_repo.layout import entity_key, packer, rows
from feature_repo.oracle import Record, feature_values
from feature_repo.views import FeatureView
from schemas.admission import admit
from schemas.fraud import Outcome, Prediction, Transaction
from services.ledger import read_topic

START_MS = 1_530_000_000_000


@dataclass
class Sent:
    """Records with their arrival times, in the order they were acknowledged."""

    transactions: list[tuple[Transaction, int]] = field(default_factory=list)
    outcomes: list[tuple[Outcome, int]] = field(default_factory=list)


def small_world(n: int, seed: int, cards: int = 60, terminals: int = 40, step_ms: int = 30_000) -> Sent:
    """``n`` transactions in arrival order, a tenth of them out of order, and an outcome for each a week after it."""
    r, sent = random.Random(seed), Sent()
    for i in range(n):
        arrival = START_MS + i * step_ms
        event_time = arrival - (r.randrange(0, 3_600_000) if r.random() < 0.1 else 0)
        event = Transaction(f"e{seed}-{i}", event_time, f"c{r.randrange(cards)}", f"t{r.randrange(terminals)}", r.randrange(1, 50_000))
        sent.transactions.append((event, arrival))
        known = event_time + 7 * 86_400_000
        sent.outcomes.append((Outcome(event.event_id, event_time, event.card_id, event.terminal_id, r.random() < 0.1), known))
    return sent


def publish(producer: Producer, topic: str, records: Iterable[tuple[Any, int]]) -> None:
    """Send (record, arrival ms) pairs; a refused one fails the test."""
    def delivered(error: Any, _: Any) -> None:
        assert error is None, error

    for record, arrival_ms in records:
        producer.produce(topic, msgspec.json.encode(record), record.card_id.encode(), timestamp=arrival_ms, on_delivery=delivered)
        producer.poll(0)


def expected_sets(view: FeatureView, records: Iterable[tuple[Any, int]]) -> dict[str, set[bytes]]:
    """The admitted records of each entity, as bytes."""
    pack, sets = packer(view), defaultdict(set)
    for record, arrival_ms in records:
        if admit(record.event_time, arrival_ms, view.allowed_lateness_ms, view.max_skew_ms) == "admitted":
            sets[getattr(record, view.entity)].add(pack(record))
    return sets


def stored_sets(store: redis.Redis, view: FeatureView) -> dict[str, tuple[set[bytes], int]]:
    """The records of each entity in the online store, copies dropped, and its trim floor."""
    size, sets = 8 * view.record_words, {}
    for key in store.scan_iter(match=f"{view.versioned_name}:*", count=1000):
        value = store.get(key)
        assert len(value) % size == 0, "a torn record"
        table = rows(view, value)
        floor = max(table[table[:, 1] == 0][:, 0].tolist(), default=0)
        sets[key.decode().split(":{", 1)[1][:-1]] = ({row.tobytes() for row in table if row[1] != 0}, floor)
    return sets


def wrong_sets(store: redis.Redis, sent: Sent) -> list[str]:
    """Keys whose set is not what was sent, above a floor that no read can be below; empty when the store is right."""
    wrong, newest_ms = [], max(arrival for _, arrival in sent.transactions)
    for view in VIEWS:
        expected = expected_sets(view, sent.transactions if view.source == "transactions" else sent.outcomes)
        stored = stored_sets(store, view)
        highest = floor_ms(view, newest_ms, SERVICE.scored_lateness_ms)
        for entity in expected.keys() | stored.keys():
            held, floor = stored.get(entity, (set(), 0))
            needed = {record for record in expected.get(entity, set()) if event_time(record) > floor}
            if floor > highest or {record for record in held if event_time(record) > floor} != needed:
                wrong.append(entity_key(view, entity))
    return wrong


def event_time(record: bytes) -> int:
    return int.from_bytes(record[:8], "little", signed=True)


@dataclass
class Predictions:
    """``first`` is the record with the lowest offset of each id: *the* prediction; ``copies`` are the others."""

    first: dict[str, Prediction]
    copies: int
    reordered: int


def read_predictions(bootstrap: str) -> Predictions:
    decode = msgspec.json.Decoder(Prediction).decode
    first, copies, order, reordered = {}, 0, Counter(), 0
    for message in read_topic(bootstrap, "predictions"):
        prediction = decode(message.value())
        if prediction.prediction_id in first:
            copies += 1
            continue
        first[prediction.prediction_id] = prediction
        reordered += prediction.source_offset < order[prediction.source_partition]
        order[prediction.source_partition] = prediction.source_offset
    return Predictions(first, copies, reordered)


def oracle_vector(event: Transaction, arrived: dict[str, Sequence[Any]]) -> list[float]:
    """The window features of ``event`` over everything in ``arrived`` (topic -> admitted records), in service order."""
    values: list[float] = []
    for view in SERVICE.views:
        pack = packer(view)
        members = [r for r in arrived[view.source] if getattr(r, view.entity) == getattr(event, view.entity)]
        table = rows(view, b"".join(pack(r) for r in members)).tolist()
        records = [Record(row[0], row[1], tuple(row[2:])) for row in table]
        own = rows(view, pack(event)).tolist()[0] if view.source == SERVICE.source else None
        values += feature_values(view, records, event.event_time, Record(own[0], own[1], tuple(own[2:])) if own else None)
    return values


def as_floats(features: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if x is None else x for x in features])
