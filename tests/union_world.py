"""A backfill's world in one thread on real Redis: a worker that appends and trims, a store that goes back, a driver that is killed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import redis

from feature_repo.appends import ADVANCE, TRIM, floor_ms
from feature_repo.fills import DONE, Fills, Plan, fill_key
from feature_repo.layout import entity_key, floor_record, packer
from feature_repo.union import Pace, SetUnion, missing_records
from feature_repo.views import DAY_MS, HOUR_MS
from feature_repo.wire import Wire, pack
from schemas.errors import StoreError
from schemas.fraud import Outcome
from tests.hostile_worker import RECENT, SERVICE, Crash
from tests.world_check import event_time, stored_sets

UNITS, ENTITIES, RECORDS = 3, 7, 120
NOW = 40 * DAY_MS
FAST = Pace(1, float("inf"))
PACK = packer(RECENT)


class World:
    """An archive, a log that holds the later half of it, a worker that appends and trims, and a store that goes back in time.

    ``run`` is the driver of a backfill, killed and started again until it says that it is done.
    """

    def __init__(self, url: str, seed: int, union: type[SetUnion] = SetUnion, progress_in_store: bool = True) -> None:
        self.url, self.r, self.union, self.in_store = url, random.Random(seed), union, progress_in_store
        self.store = redis.Redis.from_url(url)
        self.store.flushdb()
        self.wire = Wire(url, 30_000, (TRIM,))
        self.seen: Counter[str] = Counter()
        events = [Outcome(f"e{i}", NOW + i * HOUR_MS // 2, f"c{self.r.randrange(ENTITIES)}", "t", self.r.random() < 0.5)
                  for i in range(RECORDS)]
        self.archive: list[tuple[str, bytes]] = [(event.card_id, PACK(event)) for event in events]
        self.live = [(f"c{self.r.randrange(ENTITIES)}", PACK(Outcome(f"l{i}", NOW + RECORDS * HOUR_MS // 2 + i, "c", "t", True)))
                     for i in range(200)]
        self.log_from, self.sent, self.scored_ms = RECORDS // 2, 0, NOW
        self.snapshots: list[dict[bytes, bytes]] = [{}]
        self.quiet = False
        for name, record in self.archive[: self.r.randrange(RECORDS)]:
            if self.r.random() < 0.8:
                self.append(name, record)

    def append(self, name: str, record: bytes) -> None:
        self.wire.call("APPEND", entity_key(RECENT, name), record)

    @property
    def allowed_floor(self) -> int:
        return floor_ms(RECENT, self.scored_ms, SERVICE.scored_lateness_ms)

    def meanwhile(self) -> None:
        """What happens between two exchanges of the backfill."""
        if self.quiet:
            return
        for _ in range(self.r.choice((0, 0, 1, 3))):
            self.r.choices((self.work, self.replay, self.trim, self.remember, self.go_back, self.other), (8, 4, 3, 2, 1, 1))[0]()

    def work(self) -> None:
        if self.sent < len(self.live):
            self.append(*self.live[self.sent])
            self.sent += 1

    def replay(self) -> None:
        self.append(*self.r.choice(self.archive[self.log_from:]))

    def trim(self) -> None:
        self.scored_ms += self.r.randrange(6 * HOUR_MS)
        mark = floor_record(RECENT, self.allowed_floor)
        key = entity_key(RECENT, f"c{self.r.randrange(ENTITIES)}")
        self.wire.call("EVALSHA", TRIM.sha, 1, key, self.allowed_floor, len(mark), mark, 1000)

    def remember(self) -> None:
        self.snapshots.append({key: value for key in self.store.scan_iter() if (value := self.store.dump(key)) is not None})

    def go_back(self) -> None:
        self.seen["restores"] += 1
        self.store.flushdb()
        if self.r.random() < 0.7:
            for key, value in self.r.choice(self.snapshots[-5:]).items():
                self.store.restore(key, 0, value)
        for name, record in self.live[: self.sent]:  # the worker goes back in the log, and the log has these
            self.append(name, record)

    def other(self) -> None:
        """A second backfill does a unit of the same run, or of one that it thinks is new."""
        self.quiet = True
        fills = Fills(self.url, RECENT)
        union = SetUnion(self.url, RECENT, fills.begin(self.plan()), FAST)
        unit = self.r.randrange(UNITS)
        union.unit(unit, self.entities(unit))
        union.close()
        fills.close()
        self.quiet = False

    def plan(self) -> Plan:
        return Plan(0, UNITS, self.allowed_floor if self.r.random() < 0.5 else None, None, None)

    def entities(self, unit: int) -> list[tuple[str, list[bytes]]]:
        found: dict[str, list[bytes]] = defaultdict(list)
        for name, record in self.archive:
            if int(name[1:]) % UNITS == unit:
                found[name].append(record)
        return list(found.items())

    def run(self) -> None:
        elsewhere: set[int] = set()
        for _ in range(200):
            fills = Fills(self.url, RECENT)
            try:
                fill = fills.begin(self.plan())
                done = set(fills.done(fill)) if self.in_store else elsewhere
                for unit in set(range(UNITS)) - done:
                    union = self.union(self.url, RECENT, fill, FAST)
                    union._wire = FaultyWire(self.url, self)
                    if union.unit(unit, self.entities(unit)) is not None:
                        elsewhere.add(unit)
                    union.close()
                if fills.finish(fill, UNITS, {}) or (not self.in_store and len(elsewhere) == UNITS):
                    return
            except Crash:
                self.seen["crashes"] += 1
            finally:
                fills.close()
        raise AssertionError("no end")

    def wrong(self) -> Counter[str]:
        """What the sets lack, or have too much of, at the moment that the run said it was done."""
        wrong: Counter[str] = Counter()
        stored = stored_sets(self.store, RECENT)
        every: dict[str, set[bytes]] = defaultdict(set)
        for name, record in [*self.archive, *self.live[: self.sent]]:
            every[name].add(record)
        for name, records in every.items():
            held, floor = stored.get(name, (set(), 0))
            wrong["floor"] += floor > self.allowed_floor
            wrong["lost"] += len({record for record in records if event_time(record) > max(floor, self.allowed_floor)} - held)
            wrong["phantom"] += len(held - records)
        return +wrong

    def close(self) -> None:
        self.wire.close()
        self.store.flushdb()
        self.store.close()


class FaultyWire(Wire):
    """Before, within or after an exchange the process dies, or the reply is lost; and the world goes on."""

    def __init__(self, url: str, world: World) -> None:
        super().__init__(url, 2000, (ADVANCE,))
        self._world = world

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        self._world.meanwhile()
        fault = self._world.r.choices((None, "before", "partial", "after", "lost"), (60, 1, 1, 1, 1))[0]
        if fault == "before":
            raise Crash
        if fault == "partial":
            super().exchange([*commands[: self._world.r.randrange(len(commands))], pack(("PING",))])
            raise Crash if self._world.r.random() < 0.5 else StoreError("cut off")
        replies = super().exchange(commands)
        if fault == "after":
            raise Crash
        if fault == "lost":
            raise StoreError("reply lost")
        self._world.meanwhile()
        return replies


class HopefulUnion(SetUnion):
    """Says what it has done without asking whether what it did before is still there."""

    def _moved(self, field: str, mark: bytes, commands: Sequence[bytes] = ()) -> bool:
        done = [pack(("HSET", fill_key(self._view), field, mark))] if mark.startswith(DONE) else []
        self._wire.exchange([*commands, *done, pack(("PING",))])
        return True


class RewritingUnion(SetUnion):
    """Reads a set, and writes it whole: what is appended in between is gone."""

    def _bring(self, batch: Sequence[Any], field: str, counts: Any) -> bool:
        for name, wanted in batch:
            key = entity_key(self._view, name)
            held = self._wire.call("GET", key) or b""
            _, lacking, _ = missing_records(wanted, held, self._size)
            self._wire.call("SET", key, held + b"".join(lacking))
        return self._moved(field, b"x%d" % counts.entities)
