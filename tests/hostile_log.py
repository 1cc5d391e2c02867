"""One source's log, its workers and its scorer in one thread, where everything goes wrong that can: only Redis and our code are real.

Workers crash at any point of a chunk, lose replies, are zombies of partitions that others own; chunks from before a seek come after
it with the new epoch, or a fetch under way undoes the seek; Redis goes back to an older state at any time; the log has gaps.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import redis

from feature_repo.appends import floor_ms
from feature_repo.kernel import REFUSED
from feature_repo.layout import packer, rows
from feature_repo.online import SetReader
from feature_repo.oracle import Record, feature_values
from feature_repo.vector import VectorBuilder
from feature_repo.views import DAY_MS, HOUR_MS, FeatureView
from schemas.admission import admit
from schemas.fraud import OUTCOME, OUTCOMES, Outcome
from schemas.topics import dead_letter_topic, valid_topic
from streams.sort import Outgoing
from tests.hostile_worker import PARTITIONS, RECENT, SERVICE, Crash, Rules, Worker
from tests.world_check import event_time, stored_sets

RECORDS, FIRST_OFFSET = 160, 7


@dataclass
class World:
    """``run`` goes on at random, then heals everything and returns what is wrong, by name."""

    url: str
    seed: int
    rules: Rules = field(default_factory=Rules)
    calm: bool = False
    wrong: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.r = random.Random(self.seed)
        self.store = redis.Redis.from_url(self.url)
        self.store.flushdb()
        self.log: dict[int, list[Any]] = {p: [] for p in range(PARTITIONS)}
        self.ends = dict.fromkeys(range(PARTITIONS), FIRST_OFFSET)
        self.committed = dict(self.ends)
        self.published: dict[tuple[str, int], list[Outgoing]] = defaultdict(list)
        self.scored = dict.fromkeys(range(PARTITIONS), 0)  # index into the valid topic
        self.scored_offset = dict.fromkeys(range(PARTITIONS), -1)
        self.snapshots: list[dict[bytes, bytes]] = [{}]
        self.restored = False
        self.now_ms, self.sent = 40 * DAY_MS, []
        self.reader, self.builder = SetReader(self.url, 30_000, PARTITIONS), VectorBuilder(SERVICE)
        self.owner = {p: Worker(self) for p in range(PARTITIONS)}
        self.zombies: list[tuple[Worker, int]] = []
        for partition, worker in self.owner.items():
            worker.assign(partition)

    def fault(self, kinds: Sequence[str], rate: float = 0.02) -> str | None:
        return self.r.choice(kinds) if not self.calm and self.r.random() < rate else None

    def next_record(self, partition: int, offset: int) -> int:
        return next((record.offset for record in self.log[partition] if record.offset >= offset), self.ends[partition])

    def run(self) -> Counter[str]:
        actions = (self.arrive, self.fetch, self.deliver, self.check, self.move, self.haunt, self.remember, self.go_back, self.score)
        weights = (20, 25, 30, 5, 0.7, 4, 2, 0.7, 12)
        while sum(map(len, self.log.values())) < RECORDS:
            self._survive(self.r.choices(actions, weights)[0])
        self.calm = True
        self.heal()
        while any(len(self.published[valid_topic(OUTCOMES), p]) > self.scored[p] for p in range(PARTITIONS)):
            self.score()
        self._judge()
        for worker in (*self.owner.values(), *(worker for worker, _ in self.zombies)):
            worker.writer.close()
        self.reader.close()
        self.store.close()
        return self.wrong

    def _survive(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Crash:
            self.seen["crashes"] += 1
            dead = self.acting
            dead.writer.close()
            self.zombies = [pair for pair in self.zombies if pair[0] is not dead]
            for partition, worker in list(self.owner.items()):
                if worker is dead:
                    self._give(partition, Worker(self))

    def _give(self, partition: int, worker: Worker) -> None:
        self.owner[partition] = worker
        worker.assign(partition)

    def _any(self) -> tuple[Worker, int]:
        partition = self.r.randrange(PARTITIONS)
        self.acting = self.owner[partition]
        return self.acting, partition

    def arrive(self) -> None:
        """Some records: late, early, copies, corrections, broken ones; sometimes an offset that is none of ours."""
        r = self.r
        for _ in range(r.randrange(1, 6)):
            partition = r.randrange(PARTITIONS)
            self.now_ms += r.randrange(0, 2 * HOUR_MS)
            if self.sent and r.random() < 0.2:
                event = r.choice(self.sent[-20:])
                event = msgspec.structs.replace(event, revision=event.revision + r.randrange(2), fraud=r.random() < 0.5)
            else:
                age = r.choice((0, 0, 0, r.randrange(30 * HOUR_MS), -r.randrange(10 * 60_000)))
                event = Outcome(f"e{len(self.sent)}", self.now_ms - age, f"c{r.randrange(3)}", f"t{r.randrange(3)}", r.random() < 0.5)
                self.sent.append(event)
            self.ends[partition] += r.choice((0,) * 9 + (1, 3))
            value = b"{" if r.random() < 0.03 else msgspec.json.encode(event)
            self.log[partition].append(SimpleNamespace(topic=OUTCOMES, partition=partition, offset=self.ends[partition],
                                                       timestamp=self.now_ms, key=None, value=value, headers=()))
            self.ends[partition] += 1
        self.ends[partition] += r.choice((0,) * 9 + (2,))  # control records at the end

    def fetch(self) -> None:
        worker, partition = self._any()
        worker.fetch(partition)

    def deliver(self) -> None:
        worker, partition = self._any()
        mine = [other for other, owner in self.owner.items() if owner is worker]
        worker.deliver(*mine if self.r.random() < 0.5 else (partition,))

    def check(self) -> None:
        worker, partition = self._any()
        worker.check(partition)

    def move(self) -> None:
        """Another worker gets the partition; the one before may not know yet."""
        worker, partition = self._any()
        self.seen["moves"] += 1
        others = [other for other in self.owner.values() if other is not worker]
        self._give(partition, self.r.choice([*others, Worker(self)]))
        if self.owner[partition] is not worker:
            self.zombies.append((worker, partition))

    def haunt(self) -> None:
        if self.zombies:
            self.acting, partition = self.r.choice(self.zombies)
            if self.owner[partition] is self.acting or self.r.random() < 0.1:
                self.zombies.remove((self.acting, partition))
            else:
                self.r.choice((self.acting.fetch, self.acting.deliver, self.acting.check))(partition)

    def remember(self) -> None:
        keys = self.store.keys()
        self.snapshots.append({key: value for key in keys if (value := self.store.dump(key)) is not None})

    def go_back(self) -> None:
        """Redis comes back with an older state: as of some snapshot, at times with nothing."""
        self.seen["restores"] += 1
        self.restored = True
        self.store.flushdb()
        for key, value in self.snapshots[self.r.randrange(max(0, len(self.snapshots) - 6), len(self.snapshots))].items():
            self.store.restore(key, 0, value)
        if self.r.random() < 0.1:
            self.store.flushdb()

    def heal(self) -> None:
        """No more faults: read to the end until two looks at every idle partition find nothing to do."""
        for partition in range(PARTITIONS):
            quiet, worker = 0, self.owner[partition]
            for _ in range(2000):
                worker.fetch(partition)
                worker.deliver(partition)
                idle = not worker.queue[partition] and worker.position[partition] > max((x.offset for x in self.log[partition]), default=0)
                if idle:
                    worker.position[partition] = self.ends[partition]
                quiet = quiet + 1 if idle and worker.check(partition) is None else 0
                if quiet == 3:
                    break
            else:
                self.wrong["no end"] += 1
        self.restored = False

    def score(self) -> None:
        """A scorer reads a few records of a partition's valid topic, however long ago they came, and says how far it is."""
        partition = self.r.randrange(PARTITIONS)
        log = self.published[valid_topic(OUTCOMES), partition]
        for record in log[self.scored[partition]:][:self.r.randrange(1, 6)]:
            self.scored[partition] += 1
            if record.offset > self.scored_offset[partition]:
                self._read(partition, record)
                self.scored_offset[partition] = record.offset
                if self.r.random() < 0.8:
                    self.reader.publish_scored(SERVICE.name, {partition: (record.offset, record.arrival_ms)})

    def _read(self, partition: int, record: Outgoing) -> None:
        event = OUTCOME.decode(record.value)
        reading = self.reader.read(self.builder.wanted([event]))
        vectors = self.builder.build([event], reading)
        on_time = record.arrival_ms - event.event_time <= SERVICE.scored_lateness_ms
        self.seen["reads"] += 1
        for v, view in enumerate(SERVICE.views):
            if vectors.stamps[v][0, REFUSED]:
                self.seen["refused"] += 1
                self.wrong["refused"] += on_time
                continue
            if not self.restored and reading.applied[v][partition] < record.offset:
                self.wrong["scored before applied"] += 1
            edge = event.event_time - view.delay_ms
            held = {row.tobytes() for row in rows(view, reading.sets[v][getattr(event, view.entity)] or b"") if row[1] != 0}
            window = {row for row in held if edge - view.longest_window_ms < event_time(row) <= edge}
            every, must = self._expected(view, getattr(event, view.entity), reading.applied[v])
            if not {row for row in must if edge - view.longest_window_ms < event_time(row) <= edge} <= window or not window <= every:
                self.wrong["read"] += 1
            own = as_record(view, packer(view)(event))
            value = feature_values(view, [as_record(view, row) for row in window], event.event_time, own)
            if not np.array_equal(vectors.matrix[0, SERVICE.view_slice(view)], value, equal_nan=True):
                self.wrong["value"] += 1

    def _expected(self, view: FeatureView, entity: str, applied: Sequence[int]) -> tuple[set[bytes], set[bytes]]:
        """The entity's admitted records, and those at or below ``applied``."""
        every, must, pack_record = set(), set(), packer(view)
        for partition, event, record in self._valid():
            if getattr(event, view.entity) == entity and is_admitted(view, event, record):
                every.add(pack_record(event))
                if record.offset <= applied[partition]:
                    must.add(pack_record(event))
        return every, must

    def _valid(self) -> list[tuple[int, Outcome, Any]]:
        found = []
        for partition, log in self.log.items():
            for record in log:
                if record.value != b"{":
                    event = OUTCOME.decode(record.value)
                    if event.event_time - record.timestamp <= RECENT.max_skew_ms:
                        found.append((partition, event, record))
        return found

    def _judge(self) -> None:
        valid = self._valid()
        for partition, log in self.log.items():
            out = [record.offset for record in self.published[valid_topic(OUTCOMES), partition]]
            self.wrong["unpublished"] += len({record.offset for p, _, record in valid if p == partition} - set(out))
            dead = {record.offset for record in self.published[dead_letter_topic(OUTCOMES), partition]}
            self.wrong["vanished"] += len({record.offset for record in log} - set(out) - dead)
            self.wrong["published twice"] += bool(set(out) & dead)
        for view in SERVICE.views:
            stored = stored_sets(self.store, view)
            for entity in {getattr(event, view.entity) for _, event, _ in valid}:
                held, floor = stored.get(entity, (set(), 0))
                every, _ = self._expected(view, entity, [0] * PARTITIONS)
                self.seen["trimmed"] += floor > 0
                self.wrong["floor"] += floor > floor_ms(view, self.now_ms, SERVICE.scored_lateness_ms)
                self.wrong["lost"] += len({row for row in every if event_time(row) > floor} - held)
                self.wrong["phantom"] += len({row for row in held if event_time(row) > floor} - every)
        self.wrong += Counter()


def is_admitted(view: FeatureView, event: Outcome, record: Any) -> bool:
    return admit(event.event_time, record.timestamp, view.allowed_lateness_ms, view.max_skew_ms) == "admitted"


def as_record(view: FeatureView, row: bytes) -> Record:
    time, identity, *columns = rows(view, row).tolist()[0]
    return Record(time, identity, tuple(columns))
