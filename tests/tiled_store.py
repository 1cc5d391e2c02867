"""A view with hops in a real Redis, where everything goes wrong that can: our writer, reader, compactor and kernel against the oracle.

The log, workers' positions and scorers are simple here (``tests.tile_world`` has them in full); the store, its scripts and what lies
between a compactor's look and its script are real.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import redis

from feature_repo import kernel
from feature_repo.appends import SetWriter
from feature_repo.compaction import EntityCompactor, Seen
from feature_repo.layout import hash_id, join_sets, packer, rows
from feature_repo.marks import NOTHING, lowest, offsets, scored_ms_key
from feature_repo.online import SetReader
from feature_repo.oracle import Record, feature_values, members
from feature_repo.tiles import tiles_of
from feature_repo.views import FUNCTIONS, FeatureService
from schemas.admission import admit
from tests.tile_model import draw_view

UNIT = 600_000
PARTITIONS = 2
FOLDABLE = tuple(f for f in FUNCTIONS if not f.startswith("count_"))


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a negative control leaves out."""

    script_checks: bool = True
    marks_with_the_set: bool = True
    tiles_in_the_same_read: bool = True


class Careless(EntityCompactor):
    """Its script replaces the set without a look at what is there."""

    def script(self, seen: Seen, raw: bytes, tiles: bytes) -> tuple[Any, ...]:
        replace = "redis.call('SET', KEYS[1], ARGV[1]); redis.call('SET', KEYS[2], ARGV[2]); return 1"
        return ("EVAL", replace, 2, *super().script(seen, raw, tiles)[3:5], raw, tiles)


class TiledStore:
    """``run`` goes on at random and returns what is wrong, by name."""

    def __init__(self, url: str, seed: int, rules: Rules | None = None) -> None:
        self.r = r = random.Random(seed)
        self.rules = rules or Rules()
        self.store = redis.Redis.from_url(url)
        self.store.flushdb()
        self.view = dataclasses.replace(draw_view(r, UNIT, FOLDABLE), entity="entity")
        self.service = FeatureService("tiled", "s", (self.view,))
        self.url, self.pack = url, packer(self.view)
        self.reader = SetReader(url, 30_000, PARTITIONS)
        self.compactors = [(EntityCompactor if self.rules.script_checks else Careless)(url, self.view) for _ in range(2)]
        self.clock, self.identity = 100_000 * UNIT, 0
        self.log: dict[int, list[Any]] = {p: [] for p in range(PARTITIONS)}
        self.writers = {p: self.writer(p) for p in range(PARTITIONS)}
        self.position = dict.fromkeys(range(PARTITIONS), 0)
        self.scored: dict[int, tuple[int, int]] = {}
        self.told: list[Record] = []
        self.snapshots: list[tuple[dict[bytes, bytes], list[Record]]] = [({}, [])]
        self.pending: list[tuple[EntityCompactor, Seen]] = []
        self.stale: dict[str, bytes | None] | None = None
        self.wrong: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def writer(self, partition: int) -> SetWriter:
        writer = SetWriter(self.url, [self.view], [self.service], PARTITIONS, timeout_ms=30_000)
        writer.marks.adopt(partition, writer.held(partition))
        for of_view in writer.appends:
            of_view._long = 8 * self.view.record_words
        return writer

    def run(self, steps: int = 250) -> Counter[str]:
        actions = (self.arrive, self.apply, self.crash, self.score, self.look, self.begin, self.finish, self.remember, self.go_back)
        for _ in range(steps):
            self.r.choices(actions, (30, 25, 1, 25, 3, 8, 10, 2, 0.5))[0]()
        for each in (*self.writers.values(), *self.compactors, self.reader, self.store):
            each.close()
        return self.wrong

    def arrive(self) -> None:
        r, late = self.r, self.view.allowed_lateness_ms
        self.clock += r.choice((0, 0, 1, 1, 2, 30 if r.random() < 0.1 else 1)) * UNIT
        p = r.randrange(PARTITIONS)
        self.identity += 1
        event = SimpleNamespace(event_id=f"e{self.identity}", entity="x", a=r.randrange(-50, 10**11), rev=0,
                                event_time=self.clock - r.choice((0, 0, UNIT, late // 2, late, late + UNIT)))
        batch = [event]
        if self.log[p] and r.random() < 0.2:
            old = copy.copy(r.choice(self.log[p][-12:])[0] or event)
            if r.random() < 0.5:
                old.rev, old.a = old.rev + 1, r.randrange(100)
            batch.append(old)
        self.log[p] += [(each, self.clock) for each in batch]
        self.log[1 - p].append((None, self.clock))  # a clock record

    def apply(self) -> None:
        p = self.r.randrange(PARTITIONS)
        chunk = self.log[p][self.position[p]:][:self.r.randrange(1, 8)]
        if not chunk:
            return
        admitted = [(e, ms) for e, ms in chunk
                    if e and admit(e.event_time, ms, self.view.allowed_lateness_ms, self.view.max_skew_ms) == "admitted"]
        self.told += [self.record(e) for e, _ in admitted]
        last = self.position[p] + len(chunk) - 1
        if self.writers[p].apply(p, last, [admitted], arrival_ms=chunk[-1][1]):
            self.position[p] = last + 1
        else:
            self.restart(p)

    def crash(self) -> None:
        self.restart(self.r.randrange(PARTITIONS))

    def restart(self, p: int) -> None:
        self.writers[p].close()
        self.writers[p] = self.writer(p)
        self.position[p] = max(0, self.writers[p].marks.lowest(p) + 1 - self.r.choice((0, 0, 5, 20)))

    def record(self, event: Any) -> Record:
        return Record(event.event_time, hash_id(event.event_id) - (1 << 64 if hash_id(event.event_id) >> 63 else 0), (event.a, event.rev))

    def score(self) -> None:
        p = self.r.randrange(PARTITIONS)
        done, _ = self.scored.get(p, (-1, 0))
        applied = offsets(self.store.hgetall(f"applied:{self.view.versioned_name}")).get(p, NOTHING)
        for offset in range(done + 1, min(applied + 1, done + 5)):
            event, arrival = self.log[p][offset]
            if event:
                self.read(event, event.event_time, arrival - event.event_time <= self.service.scored_lateness_ms)
            self.scored[p] = (offset, arrival)
        self.reader.publish_scored("tiled", self.scored)

    def look(self) -> None:
        self.read(None, self.clock - self.r.choice((0, 1, 5, 30, 100)) * UNIT, False)

    def read(self, event: Any, t: int, on_time: bool) -> None:
        reading = self.reader.read([(self.view, ["x"])])
        tiles = reading.tiles[0]
        if not self.rules.tiles_in_the_same_read:
            tiles, self.stale = self.stale or tiles, tiles
        records, edges = join_sets(self.view, reading.sets[0].values())
        own = rows(self.view, self.pack(event)) if event else np.zeros((1, self.view.record_words), np.int64)
        values, stamps = kernel.read_sets(self.view, records, edges[:1], edges[1:], np.array([t]), own,
                                          np.array([kernel.INCLUDE if event else kernel.NONE]),
                                          tiles_of(self.view, tiles, np.zeros(1, np.int64)))
        self.seen["reads"] += 1
        if stamps[0, kernel.REFUSED]:
            self.seen["refused"] += 1
            self.wrong["refused"] += on_time
            return
        current = self.record(event) if event else None
        used = members(self.view, self.told, t, current)
        self.seen["tiled"] += len(used) > len(records)
        if not np.array_equal(values[0], feature_values(self.view, self.told, t, current), equal_nan=True):
            self.wrong["value"] += 1
        as_rows = np.array([[x.time, x.id, *x.columns] for x in used], np.int64).reshape(-1, self.view.record_words)
        _, whole = kernel.read_sets(self.view, as_rows, np.zeros(1, np.int64), np.array([len(used)]), np.array([t]),
                                    np.zeros_like(own), np.zeros(1, np.int64))
        self.wrong["fingerprint"] += (whole[0, :3] != stamps[0, :3]).any()

    def begin(self) -> None:
        """A compactor looks; its script comes later."""
        compactor = self.r.choice(self.compactors)
        if not compactor.hot(10, keep=self.r.random() < 0.9):
            return
        applied = lowest(compactor.applied_ms(), PARTITIONS)
        scored = lowest(offsets(self.store.hgetall(scored_ms_key("tiled"))), PARTITIONS)
        if applied is not None and scored is not None:
            seen = compactor.look("x", applied, scored - self.service.scored_lateness_ms, PARTITIONS)
            if seen is not None:
                self.pending.append((compactor, seen))

    def finish(self) -> None:
        if not self.pending:
            return
        compactor, seen = self.pending.pop(self.r.randrange(len(self.pending)))
        if self.r.random() < 0.1:
            return  # it died
        if not self.rules.marks_with_the_set:
            again = compactor.look("x", 0, 0, PARTITIONS)
            if again is None:
                return
            seen = dataclasses.replace(again, bounds=seen.bounds)
        done = compactor.compact(seen)
        self.seen["compactions" if done.done else "script refused"] += 1

    def remember(self) -> None:
        keys = self.store.keys()
        self.snapshots.append(({key: value for key in keys if (value := self.store.dump(key)) is not None}, list(self.told)))

    def go_back(self) -> None:
        self.seen["restores"] += 1
        self.store.flushdb()
        state, told = self.r.choice(self.snapshots[-6:]) if self.r.random() < 0.8 else ({}, [])
        for key, value in state.items():
            self.store.restore(key, 0, value)
        self.told = list(told)
