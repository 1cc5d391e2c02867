"""The rules of compaction as a simulation: one entity in plain Python, where everything goes wrong that can; no Redis, no kernel.

Partitions fall idle and refill, producers send in batches, sometimes again, sometimes late; brokers' clocks go back; a worker crashes
between append and mark, or comes back at an old position; scorers lag; two compactors read, wait and write; Redis goes back to an older
state at any moment, or is emptied. ``Rules`` says which rule a negative control leaves out.

The judge is what the store was ever told (``Store.told``), folded by brute force: compaction changes nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from feature_repo.bounds import bounds
from feature_repo.views import floor_to
from tests.tile_model import NEVER, Event, Rules, Store, distinct, draw_view, planned, summary, window

STEPS = 400


class World:
    """``run`` returns what is wrong, by name; ``seen`` says what happened on the way."""

    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        self.r = r = random.Random(seed)
        self.rules = rules or Rules()
        self.wrong: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.partitions = r.choice((1, 2, 3))
        self.view = draw_view(r)
        self.scored_lateness = r.choice((0, 5, 20))
        self.own_source = r.random() < 0.7  # else readers score events of another log
        self.clock, self.identity = 1000, 0
        self.behind = [0] * self.partitions
        self.log: list[list[Event]] = [[] for _ in range(self.partitions)]
        self.sent: list[tuple[int, Event]] = []
        self.batch: list[tuple[int, Event]] = []
        self.other: list[list[Event]] = [[] for _ in range(self.partitions)]
        self.known = self.partitions
        self.store = Store()
        self.snapshots = [copy.deepcopy(self.store)]
        self.position = [0] * self.partitions
        self.committed = [0] * self.partitions
        self.published = [0] * self.partitions
        self.held = [-1] * self.partitions
        self.reached = [0] * self.partitions
        self.said: dict[int, int] = {}
        self.pending: list[Any] = []
        self.clean: Store | None = None

    def run(self) -> Counter[str]:
        actions: tuple[Callable[[], None], ...] = (self.produce, self.tick, self.apply, self.crash, self.commit, self.score, self.look,
                                                   self.trim, self.begin, self.finish, self.remember, self.go_back, self.grow)
        weights = (30, 5, 22, 1.5, 4, 22, 3, 1, 8, 8, 2, 0.4, 0.1)
        for _ in range(STEPS):
            self.clock += self.r.choice((0, 0, 1, 1, 3)) if self.r.random() > 0.02 else 60
            self.r.choices(actions, weights)[0]()
        return self.wrong

    # the log

    def arrival(self, partition: int) -> int:
        """What the partition's broker says of the time: up to a skew behind the clock, and a new leader may be further behind."""
        if self.r.random() < 0.1:
            self.behind[partition] = self.r.randrange(self.view.max_skew_ms + 1)
        return self.clock - self.behind[partition]

    def produce(self) -> None:
        r, late = self.r, self.view.allowed_lateness_ms
        self.identity += 1
        partition = r.randrange(self.partitions) if r.random() < 0.7 else 0
        age = r.choice((0, 0, 1, 2, late // 2, late, late, late + 1, late + 9, -1))
        event = Event(self.clock - age, self.identity, 0, (0, r.randrange(1, 50)))
        self.batch.append((partition, event))
        if self.sent and r.random() < 0.15:  # again, perhaps corrected, perhaps by another partition
            there, old = r.choice(self.sent[-30:])
            rank = (old.rank[0] + 1, r.randrange(1, 50)) if r.random() < 0.4 else old.rank
            self.batch.append((there if r.random() < 0.8 else partition, old._replace(rank=rank)))
        if r.random() < 0.6:
            for at, each in self.batch:
                self.log[at].append(each._replace(arrival=self.arrival(at)))
                self.sent.append((at, each))
            self.batch = []
        if not self.own_source and r.random() < 0.5:
            at = r.randrange(self.partitions)
            came = self.arrival(at)
            self.other[at].append(Event(came - r.choice((0, 1, self.scored_lateness)), -self.identity, came, (0, 0)))

    def tick(self) -> None:
        """A clock record on partitions of both logs, as the compactor asks for where one is idle."""
        for partition in range(self.partitions):
            for log in (self.log, self.other):
                log[partition].append(Event(0, 0, self.arrival(partition), (0, 0)))

    def admitted(self, event: Event) -> bool:
        return bool(event.id) and -self.view.max_skew_ms <= event.arrival - event.time <= self.view.allowed_lateness_ms

    def grow(self) -> None:
        """Another partition."""
        self.partitions += 1
        for logs in (self.log, self.other):
            logs.append([])
        for numbers in (self.behind, self.position, self.committed, self.published, self.reached):
            numbers.append(0)
        self.held.append(-1)

    # the worker

    def apply(self) -> None:
        p = self.r.randrange(self.partitions)
        chunk = self.log[p][self.position[p]:][:self.r.randrange(1, 8)]
        if not chunk:
            return
        last = self.position[p] + len(chunk) - 1
        stop = self.r.randrange(len(chunk) + 1) if self.r.random() < 0.05 else None
        for event in chunk[:stop]:
            if self.admitted(event):
                self.store.raw.append(event)
                self.store.told.append(event)
        if stop is not None:
            if self.r.random() < 0.5:
                self.remember()
            return self.restart(p)
        if not self.rules.arrival_moves_with_the_mark:
            self.store.applied_ms[p] = max(chunk[-1].arrival, self.store.applied_ms.get(p, NEVER))
        held = self.store.applied.get(p, -1)
        if held != self.held[p]:  # Redis went back, and the worker did not know
            self.held[p], self.position[p] = held, held + 1
            return
        if last > held:
            self.store.applied[p] = self.held[p] = last
            if self.rules.arrival_moves_with_the_mark:
                self.store.applied_ms[p] = chunk[-1].arrival
        self.position[p] = last + 1
        if self.r.random() < 0.05:
            return self.restart(p)  # before it is published
        self.published[p] = max(self.published[p], last + 1)

    def restart(self, p: int) -> None:
        """Another worker goes on at the lowest of what is committed, applied and published."""
        self.seen["crashes"] += 1
        self.held[p] = self.store.applied.get(p, -1)
        self.position[p] = min(self.committed[p], self.held[p] + 1, self.published[p])

    def crash(self) -> None:
        self.restart(self.r.randrange(self.partitions))

    def commit(self) -> None:
        self.committed = [min(a, b) for a, b in zip(self.position, self.published, strict=True)]

    # readers

    def score(self) -> None:
        p = self.r.randrange(self.partitions)
        log = self.log[p][:self.published[p]] if self.own_source else self.other[p]
        for event in log[self.reached[p]:][:self.r.randrange(1, 5)]:
            self.reached[p] += 1
            if event.id and event.arrival - event.time >= -self.view.max_skew_ms:
                on_time = event.arrival - event.time <= self.scored_lateness
                self.read(event.time, event if self.own_source else None, on_time)
            self.said[p] = event.arrival
        if self.r.random() < 0.7:
            self.store.scored_ms.update(self.said)

    def look(self) -> None:
        """Somebody asks for features at any time: refused, or right."""
        self.read(self.clock - self.r.choice((0, 1, 5, 30, 100, 200)), None, on_time=False)

    def read(self, t: int, current: Event | None, on_time: bool) -> None:
        self.seen["reads"] += 1
        found = self.value(t, current)
        if found is None:
            self.seen["refused"] += 1
            self.wrong["refused"] += on_time
        elif found != self.truth(t, current):
            self.wrong["value"] += 1

    def value(self, t: int, current: Event | None) -> list[Any] | None:
        """What a reader makes of the store; None where it refuses."""
        raw, tiles, at = self.store.raw, self.store.tiles, self.store.bounds
        if not self.rules.one_mget and self.clean is not None and self.r.random() < 0.5:
            tiles, at = self.clean.tiles, self.clean.bounds  # they were read a moment before the set
        b = at[1] if at else NEVER
        rungs = {0: b, **{hop: at[i + 2] if at and i + 2 < len(at) else NEVER for i, hop in enumerate(self.view.hops)}}
        floor = max(self.store.floor, at[0] if at else NEVER)
        windows = [window(self.view, feature, t) for feature in self.view.features]
        for feature, (left, _) in zip(self.view.features, windows, strict=True):
            if left < floor or left < rungs[feature.hop_ms]:
                return None
        if self.view.delay_ms == 0 and t < b:
            return None
        if current is not None and self.rules.current_below_b_is_refused:
            reach = min(left for left, _ in windows), max(right for _, right in windows)
            if reach[0] < current.time <= min(reach[1], b):
                return None
        raw = [e for e in raw if e.time > b or not self.rules.skip_at_b]
        chosen = distinct([*raw, *([current] if current is not None else [])])
        result = []
        for left, right in windows:
            inside = [e for e in chosen if left < e.time <= right]
            # Tiles are taken whole: what a wrong bound would do must show.
            inside += [e for (hop, end), held in tiles.items() if left < end and end - hop < right and end - hop >= left for e in held]
            result.append(summary(inside))
        return result

    def truth(self, t: int, current: Event | None) -> list[Any]:
        chosen = distinct([*self.store.told, *([current] if current is not None else [])])
        return [summary([e for e in chosen if left < e.time <= right])
                for left, right in (window(self.view, feature, t) for feature in self.view.features)]

    # compaction

    def bounds(self, store: Store) -> tuple[int, ...] | None:
        rules, view = self.rules, self.view
        known = range(self.partitions if rules.partitions_from_the_log else self.known)
        applied = [store.applied_ms.get(p, NEVER) for p in known]
        scored = [store.scored_ms.get(p, NEVER) for p in known]
        if not rules.idle_counts_by_clock:  # an idle partition holds nobody up
            applied = [ms for p, ms in enumerate(applied) if store.applied.get(p, -1) + 1 < len(self.log[p])] or [max(applied)]
            readers = [self.log[p][:self.published[p]] if self.own_source else self.other[p] for p in known]
            scored = [ms for p, ms in enumerate(scored) if self.reached[p] < len(readers[p])] or [max(scored)]
        if min(applied) == NEVER or min(scored) == NEVER:
            return None
        if not rules.scorers_in_low:
            scored = applied
        if not rules.skew_margin:
            view = dataclasses.replace(view, max_skew_ms=0)
        lateness = self.scored_lateness if rules.scored_lateness else view.allowed_lateness_ms
        a, s = min(applied) + (not rules.strictly_before), min(scored)
        if not rules.exact_windows_hold_b or not rules.delay_of_exact_windows:
            exact = [f for f in view.features if not f.hop_ms]
            hopped = dataclasses.replace(view, features=tuple(f for f in view.features if f.hop_ms))
            found = bounds(hopped, a, s - lateness)
            if exact and rules.exact_windows_hold_b:
                keep = min(found[1], s - lateness - view.max_skew_ms - max(f.window_ms for f in exact))
                found = (found[0], keep, *(min(x, floor_to(keep, h)) for x, h in zip(found[2:], view.hops[1:], strict=True)))
        else:
            found = bounds(view, a, s - lateness)
        if not rules.ladder_waits_for_windows:
            found = (*found[:2], *(floor_to(found[1], hop) for hop in view.hops[1:]))
        if not rules.floor_by_hop:
            longest = max(f.window_ms for f in view.features)
            found = (s - lateness - view.max_skew_ms - view.delay_ms - longest, *found[1:])
        return found

    def begin(self) -> None:
        """A compactor reads the marks, the set and the tiles, and thinks."""
        if not self.rules.marks_read_with_the_set and self.r.random() < 0.5:
            self.pending.append(("marks", self.bounds(self.store)))
            return
        self._plan(self.bounds(self.store))

    def _plan(self, found: tuple[int, ...] | None) -> None:
        if found is not None:
            self.pending.append(planned(self.store, self.view.hops, found, self.rules.skip_at_b))

    def finish(self) -> None:
        """Its script runs, perhaps long after; perhaps it never does."""
        if not self.pending:
            return
        plan = self.pending.pop(self.r.randrange(len(self.pending)))
        if plan[0] == "marks":
            return self._plan(plan[1])
        if self.r.random() < 0.1:
            return
        n, raw, tiles, at, kept, new_tiles, found = plan
        store = self.store
        same = store.raw[:n] == raw and store.tiles == tiles and store.bounds == at
        if not same and self.rules.script_checks_what_was_read:
            self.seen["script refused"] += 1
            return
        self.seen["compactions"] += 1
        self.clean = Store(raw=list(store.raw), tiles=store.tiles, bounds=store.bounds)
        store.raw = kept + (store.raw[n:] if self.rules.script_keeps_the_tail else [])
        store.tiles, store.bounds = new_tiles, found
        self.seen["tiles"] = max(self.seen["tiles"], len(new_tiles))
        self.seen["rungs"] = max(self.seen["rungs"], len({hop for hop, _ in new_tiles}))

    def trim(self) -> None:
        """The worker's trim of the raw set."""
        found = self.bounds(self.store)
        if found is not None:
            self.store.floor = max(self.store.floor, found[0])
            self.store.raw = [e for e in self.store.raw if e.time > self.store.floor]

    # Redis goes back

    def remember(self) -> None:
        self.snapshots.append(copy.deepcopy(self.store))

    def go_back(self) -> None:
        self.seen["restores"] += 1
        state = Store() if self.r.random() < 0.2 else self.r.choice(self.snapshots[-6:])
        self.store = copy.deepcopy(state)
