"""A small hostile log for the jobs' tests: what producers sent, what the worker made of it, what the scorer served from it.

Written apart from the product's own code where it is the judge: JSON by ``json``, admission by comparison, features by the oracle.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from feature_repo.bundle import Model
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.layout import hash_id, hash_text, packer
from feature_repo.online import Reading
from feature_repo.oracle import Record, feature_values
from feature_repo.vector import VectorBuilder
from feature_repo.views import DAY_MS, HOUR_MS, FeatureView
from schemas.fraud import TRANSACTION
from services.scoring import Arrived, predict

START = 1_530_000_000_000 // DAY_MS * DAY_MS
DAYS, PARTITIONS = 45, 2
MINUTE = 60_000
FIELDS = {"transactions": {"event_id", "event_time", "card_id", "terminal_id", "amount_minor"},
          "outcomes": {"event_id", "event_time", "card_id", "terminal_id", "fraud"}}
HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))


@dataclass
class Logged:
    """A record on a topic. ``event`` is None where the worker must send it to the dead letters."""

    topic: str
    partition: int
    offset: int
    arrival_ms: int
    value: bytes | None
    headers: list[tuple[str, bytes]] | None
    event: dict[str, Any] | None

    @property
    def order(self) -> tuple[int, int, int, int]:
        return self.arrival_ms, ("transactions", "outcomes").index(self.topic), self.partition, self.offset

    def admitted(self, view: FeatureView) -> bool:
        return (view.source == self.topic and self.event is not None
                and self.arrival_ms - self.event["event_time"] <= view.allowed_lateness_ms)

    def record(self, view: FeatureView) -> Record:
        assert self.event is not None
        columns = [signed(hash_text(self.event[c.field])) if c.hashed else int(self.event.get(c.field, 0)) for c in view.columns]
        return Record(self.event["event_time"], signed(hash_id(self.event["event_id"])), tuple(columns))


def signed(word: int) -> int:
    return int(np.uint64(word).astype(np.int64))


@dataclass
class World:
    """The source topics, in order of offset, and the predictions as bytes."""

    records: list[Logged]
    predictions: list[bytes] = field(default_factory=list)

    def of(self, topic: str) -> list[Logged]:
        return [record for record in self.records if record.topic == topic]

    def scored(self) -> list[Logged]:
        """The first valid record of each transaction."""
        first: dict[tuple[str, int], Logged] = {}
        for record in sorted(self.of("transactions"), key=lambda r: r.order):
            if record.event is not None:
                first.setdefault((record.event["event_id"], record.event["event_time"]), record)
        return list(first.values())

    def vector(self, scored: Logged, *, ideal: bool) -> list[float]:
        """What the oracle says of one transaction."""
        assert scored.event is not None
        values: list[float] = []
        for view in SERVICE.views:
            entity = scored.event[view.entity]
            seen = [r.record(view) for r in self.of(view.source)
                    if r.admitted(view) and r.event is not None and r.event[view.entity] == entity and (ideal or r.order < scored.order)]
            current = scored.record(view) if view.source == SERVICE.source else None
            values += feature_values(view, seen, scored.event["event_time"], current)
        x = {name: np.array([value]) for name, value in zip(SERVICE.feature_names, values, strict=False)}
        x |= {name: np.array([scored.event[name]]) for name in SERVICE.event_columns}
        return [*values, *(float(feature.function(x)[0]) for feature in SERVICE.request)]

    def label(self, scored: Logged) -> int | None:
        assert scored.event is not None
        known = [(r.event.get("revision", 0), r.event["fraud"]) for r in self.of("outcomes") if r.event is not None
                 and r.event["event_id"] == scored.event["event_id"] and r.event["event_time"] == scored.event["event_time"]]
        return int(max(known)[1]) if known else None

    def bronze(self) -> pa.Table:
        rows: list[Any] = [(r.topic, r.partition, r.offset, r.arrival_ms, b"key", r.value, r.headers) for r in self.records]
        last = max(r.arrival_ms for r in self.records)
        rows += [("predictions", i % PARTITIONS, i, last, b"key", value, None) for i, value in enumerate(self.predictions)]
        types = {"topic": pa.string(), "partition": pa.int32(), "offset": pa.int64(), "arrival_ms": pa.int64(), "key": pa.binary(),
                 "value": pa.binary(), "headers": HEADERS}
        rows = [(*row[:-1], row[-1] and [{"key": key, "value": value} for key, value in row[-1]]) for row in rows]
        columns = zip(*rows, strict=True)
        return pa.table({name: pa.array(column, kind) for (name, kind), column in zip(types.items(), columns, strict=True)})


def hostile_world(seed: int, size: int = 260) -> World:
    """Transactions and their outcomes with everything that goes wrong on the way: late, twice, corrected, contradictory, broken."""
    r = random.Random(seed)
    sent: list[tuple[str, int, int, bytes | None, list[tuple[str, bytes]] | None]] = []  # topic, partition, arrival, value, headers
    for i in range(size):
        time = START + r.randrange(DAYS * DAY_MS) if i % 5 else START + 20 * DAY_MS + r.randrange(2 * HOUR_MS)
        tx = {"event_id": f"t{i}", "event_time": time, "card_id": f"c{r.randrange(4)}", "terminal_id": f"p{r.randrange(4)}",
              "amount_minor": r.choice([0, 1, r.randrange(100_000)])}
        delay = r.choice([0, 0, 0, 1, 900, 5 * MINUTE, DAY_MS, DAY_MS + 1, 3 * DAY_MS, -5 * MINUTE, -5 * MINUTE - 1])
        partition = hash_text(tx["card_id"]) % PARTITIONS
        headers = r.choice([None, [], [("ce_specversion", b"1.0"), ("ce_type", b"headrace.transaction.v1")],
                            [("other", b"x"), ("ce_type", b"headrace.transaction.v1")]])
        sent.append(("transactions", partition, time + delay, json.dumps(tx).encode(), headers))
        if r.random() < 0.1:
            sent.append(("transactions", partition, time + delay + r.randrange(HOUR_MS), json.dumps(tx).encode(), None))
        if r.random() < 0.1:
            other = {**tx, "amount_minor": tx["amount_minor"] + 7}
            sent.append(("transactions", partition, time + max(delay, 0) + r.randrange(HOUR_MS), json.dumps(other).encode(), None))
        outcome = {key: tx[key] for key in ("event_id", "event_time", "card_id", "terminal_id")} | {"fraud": r.random() < 0.3}
        if r.random() < 0.95:
            at = time + 7 * DAY_MS + r.choice([0, 0, 1, 2 * DAY_MS, 15 * DAY_MS, 54 * DAY_MS])
            sent.append(("outcomes", r.randrange(PARTITIONS), at, json.dumps(outcome).encode(), None))
            if r.random() < 0.2:
                corrected = {**outcome, "fraud": not outcome["fraud"], "revision": 1}
                sent.append(("outcomes", r.randrange(PARTITIONS), at + r.randrange(-DAY_MS, DAY_MS), json.dumps(corrected).encode(), None))
    for i, broken in enumerate((b"{", b"", None, b"[]", b"\xff", b'{"event_id":"x"}', b'{"event_time":1e400}',
                                json.dumps({**tx, "amount_minor": 1.5}).encode(), json.dumps({**tx, "extra": 1}).encode(),
                                json.dumps({**tx, "amount_minor": -1}).encode(), json.dumps({**tx, "event_time": 2**62}).encode())):
        sent.append((("transactions", "outcomes")[i % 2], 0, START + i * DAY_MS, broken, None))
    sent.append(("transactions", 0, START + DAY_MS, json.dumps(tx).encode(),
                 [("ce_type", b"somebody.else.v1"), ("ce_type", b"headrace.transaction.v1")]))
    ends: dict[tuple[str, int], int] = {}
    records = []
    for topic, partition, arrival, value, headers in sorted(sent, key=lambda s: s[2]):
        offset = ends[topic, partition] = ends.get((topic, partition), -1) + r.choice([1, 1, 1, 3])
        records.append(Logged(topic, partition, offset, arrival, value, headers, judged(topic, arrival, value, headers)))
    return World(records)


def judged(topic: str, arrival: int, value: bytes | None, headers: list[tuple[str, bytes]] | None) -> dict[str, Any] | None:
    """The event, if the worker must take it."""
    if any(name == "ce_type" and stated != f"headrace.{topic[:-1]}.v1".encode() for name, stated in headers or ()):
        return None
    try:
        event = json.loads(value or b"")
    except ValueError:
        return None
    if not isinstance(event, dict) or set(event) - {"revision"} != FIELDS[topic] or not isinstance(event["event_time"], int):
        return None
    amount = event.get("amount_minor", 0)
    usable = isinstance(amount, int) and amount >= 0 and 0 <= event["event_time"] <= arrival + 5 * MINUTE
    return event if usable else None


def serve(world: World, seed: int, *, drop: bool = False, model: Model | None = None) -> Logged | None:
    """Apply and score the world's records with a worker and a scorer that overtake one another, and fill ``predictions``.

    With ``drop`` one append of a card's record is lost although the marks move on; returns that record.
    """
    r = random.Random(seed)
    builder = VectorBuilder(SERVICE)
    pack = {view.name: packer(view) for view in SERVICE.views}
    sets: dict[str, dict[str, bytes]] = {view.name: {} for view in SERVICE.views}
    applied = {view.name: [-1] * PARTITIONS for view in SERVICE.views}
    queues: dict[tuple[str, int], list[Logged]] = {}
    for record in world.records:
        queues.setdefault((record.topic, record.partition), []).append(record)
    todrop = r.choice([x for x in world.of("transactions")[20:60] if x.admitted(SERVICE.views[0])]) if drop else None
    valid: list[Logged] = []

    def apply_next() -> None:
        head = min((q for q in queues.values() if q), key=lambda q: q[0].order) if r.random() < 0.8 else r.choice(
            [q for q in queues.values() if q])
        record = head.pop(0)
        event = decoded(record)
        for view in SERVICE.views:
            if record.admitted(view) and not (record is todrop and view is SERVICE.views[0]):
                entity = getattr(event, view.entity)
                sets[view.name][entity] = sets[view.name].get(entity, b"") + pack[view.name](event)
            if view.source == record.topic:
                applied[view.name][record.partition] = record.offset
        if record.topic == "transactions" and event is not None:
            valid.append(record)

    def score(record: Logged) -> Iterator[bytes]:
        marks = tuple(tuple(applied[view.name]) for view in SERVICE.views)
        for _ in range(r.choice([0, 0, 0, 1, 2])):
            if any(queues.values()):
                apply_next()
        event = decoded(record)
        reading = Reading(marks, tuple({getattr(event, v.entity): sets[v.name].get(getattr(event, v.entity))} for v in SERVICE.views))
        arrived = Arrived(event, record.partition, record.offset, record.arrival_ms, False)
        for scored in predict(FRAUD.name, builder, [arrived], reading, model, record.arrival_ms):
            yield scored.value

    while any(queues.values()) or valid:
        if any(queues.values()) and r.random() < 0.6:
            apply_next()
        elif valid:
            world.predictions += score(valid.pop(0))
    return todrop


def decoded(record: Logged) -> Any:
    from schemas.topics import SOURCES

    return SOURCES[record.topic].decode(record.value) if record.event is not None else None


def degraded(record: Logged) -> bytes:
    """The prediction made of ``record`` when the store does not answer."""
    arrived = Arrived(TRANSACTION.decode(record.value), record.partition, record.offset, record.arrival_ms, False)
    return predict("other", VectorBuilder(SERVICE), [arrived], None, None, 0)[0].value
