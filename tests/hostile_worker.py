"""A worker of the hostile log: what Faust and ``streams.app`` do around an applier, with crashes, lost replies and rules left out.

The applier and the write side of the store are the real ones; the world says when something fails.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from faust.types import TP

from feature_repo.appends import ADVANCE, TRIM, AppliedMarks, SetWriter
from feature_repo.marks import applied_key
from feature_repo.views import DAY_MS, HOUR_MS, Column, Feature, FeatureService, FeatureView
from feature_repo.wire import Wire, pack
from schemas.errors import StoreError
from schemas.fraud import OUTCOME, OUTCOMES
from streams.agents import Lane
from streams.applier import Applier
from streams.chunks import Chunk
from streams.sort import Outgoing

PARTITIONS = 2
COLUMNS = (Column("revision", revision=True), Column("fraud"))
RECENT = FeatureView("recent", "card_id", OUTCOMES, COLUMNS, (Feature("n", "count", DAY_MS), Feature("s", "sum", 2 * DAY_MS, "fraud")),
                     allowed_lateness_ms=12 * HOUR_MS)
DELAYED = FeatureView("delayed", "terminal_id", OUTCOMES, COLUMNS, (Feature("m", "mean", DAY_MS, "fraud"),), delay_ms=6 * HOUR_MS,
                      allowed_lateness_ms=DAY_MS)
SERVICE = FeatureService("hostile", OUTCOMES, (RECENT, DELAYED))



class Crash(BaseException):
    """The process is gone."""


class Patient(threading.Event):
    """Lets ``Applier`` try again at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return False


@dataclass(frozen=True)
class Rules:
    """What a negative control leaves out."""

    compare_and_set: bool = True
    trim_waits_for_scorer: bool = True
    epochs: bool = True
    gaps_are_confirmed: bool = True
    commit_done_only: bool = True


class Around(Protocol):
    """What a worker needs of its world."""

    url: str
    rules: Rules
    r: random.Random
    calm: bool
    seen: Counter[str]
    log: dict[int, list[Any]]
    committed: dict[int, int]
    owner: dict[int, Worker]
    published: dict[tuple[str, int], list[Outgoing]]

    def fault(self, kinds: Sequence[str], rate: float = 0.02) -> str | None: ...
    def next_record(self, partition: int, offset: int) -> int: ...
    def go_back(self) -> None: ...


class FaultyWire(Wire):
    """Before, within or after an exchange the process dies, or the reply is lost; before some Redis goes back."""

    def __init__(self, url: str, world: Around) -> None:
        super().__init__(url, 2000, (ADVANCE, TRIM))
        self._world = world

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        if self._world.fault(("back",), 0.005):
            self._world.go_back()
        fault = self._world.fault(("before", "partial", "after", "lost"))
        if fault == "before":
            raise Crash
        if fault == "partial":
            super().exchange(commands[:self._world.r.randrange(len(commands) + 1)] or [pack(("PING",))])
            raise Crash if self._world.r.random() < 0.5 else StoreError("cut off")
        replies = super().exchange(commands)
        if fault == "after":
            raise Crash
        if fault == "lost":
            raise StoreError("reply lost")
        return replies


class PlainMarks(AppliedMarks):
    """Marks moved by a plain HSET."""

    def commands(self, partition: int, offset: int, began: tuple[int, int] | None = None, arrival_ms: int | None = None) -> list[bytes]:
        return [pack(("HSET", applied_key(view), partition, offset)) for view in self.views]

    def take(self, partition: int, offset: int, answers: Sequence[bytes]) -> bool:
        self._written[partition] = [offset for _ in self.views]
        return True


class HastyWriter(SetWriter):
    """Trims by what it has applied itself."""

    def apply(self, partition: int, offset: int, events: Sequence[Sequence[tuple[Any, int]]], began: tuple[int, int] | None = None,
              arrival_ms: int | None = None) -> bool:
        self._scored_up_to_ms = dict.fromkeys(self._scored_up_to_ms, max((arrival for _, arrival in events[0]), default=None))
        return super().apply(partition, offset, events, began, arrival_ms)


class Recorder:
    """What ``streams.publisher.Publisher`` does, into the world's lists; a crash leaves a prefix."""

    def __init__(self, world: Around) -> None:
        self._world, self._published = world, {}
        self._queued: list[tuple[tuple[str, int], Outgoing]] = []

    def publish(self, topic: str, partition: int, records: Sequence[Outgoing]) -> None:
        place = (topic, partition)
        log = self._world.published[place]
        mark = self._published.setdefault(place, log[-1].offset if log else -1)
        self._queued += [(place, record) for record in records if record.offset > mark]
        self._published[place] = max([mark, *(record.offset for record in records)])

    def wait(self) -> None:
        self._queued.sort(key=lambda queued: queued[0], reverse=self._world.r.random() < 0.5)  # whichever partition comes first
        for place, record in self._queued:
            if self._world.fault(("crash",), 0.004):
                raise Crash
            self._world.published[place].append(record)
        self._queued = []
        if self._world.fault(("crash",)):
            raise Crash

    def forget(self, partition: int) -> None:
        self._published = {place: mark for place, mark in self._published.items() if place[1] != partition}


class Worker:
    """What Faust, streams.chunks and streams.app do around an applier, for the partitions that it thinks are its own."""

    def __init__(self, world: Around) -> None:
        self.world, rules = world, world.rules
        writer = (SetWriter if rules.trim_waits_for_scorer else HastyWriter)(world.url, SERVICE.views, [SERVICE], PARTITIONS)
        writer._wire = FaultyWire(world.url, world)
        if not rules.compare_and_set:
            writer.marks = PlainMarks(SERVICE.views)
        ask: Callable[[int, int], int] = world.next_record if rules.gaps_are_confirmed else (lambda partition, offset: 1 << 40)
        self.writer = writer
        self.applier = Applier(OUTCOMES, OUTCOME, SERVICE.views, writer, Recorder(world), ask, lambda partition: 0, Patient())
        self.lane = Lane(OUTCOMES, self.applier)
        self.position: dict[int, int] = {}
        self.begun: dict[int, int] = {}
        self.epoch: Counter[int] = Counter()
        self.queue: dict[int, deque[tuple[list[Any], int]]] = defaultdict(deque)

    def assign(self, partition: int) -> None:
        self.applier.forget(partition)
        self.queue[partition].clear()  # as Faust does when a partition is taken away
        self.position[partition] = self.begun[partition] = self.world.committed[partition]
        self.epoch[partition] += 1

    def fetch(self, partition: int) -> None:
        log, r = self.world.log[partition], self.world.r
        chunk = [record for record in log if record.offset >= self.position[partition]][:r.randrange(1, 12)]
        if chunk:
            late_label = r.random() < 0.1  # aiokafka's thread had it before the seek; we hear of it after
            self.queue[partition].append((chunk, -1 if late_label else self.epoch[partition]))
            self.position[partition] = chunk[-1].offset + 1

    def deliver(self, *partitions: int) -> None:
        """The next chunk of each, as one step of a lane."""
        part: list[Chunk] = []
        for partition in partitions:
            if self.queue[partition]:
                chunk, epoch = self.queue[partition].popleft()
                if not self.world.rules.epochs or epoch in (-1, self.epoch[partition]):
                    part.append(Chunk(TP(OUTCOMES, partition), chunk, self.epoch[partition]))
                elif not self.world.rules.commit_done_only:
                    self._commit(partition, chunk)
        resumes = self.lane.apply(part, [self.begun[chunk.tp.partition] for chunk in part])
        for (tp, records, _), resume in zip(part, resumes, strict=True):
            if resume is None or not self.world.rules.commit_done_only:
                self._commit(tp.partition, records)
            self._seek(tp.partition, resume)

    def _commit(self, partition: int, chunk: Sequence[Any]) -> None:
        if self.world.owner[partition] is self:
            self.world.committed[partition] = max(self.world.committed[partition], chunk[-1].offset + 1)

    def check(self, partition: int) -> int | None:
        resume = self.applier.check(partition, self.position[partition], self.begun[partition])
        self._seek(partition, resume)
        return resume

    def _seek(self, partition: int, offset: int | None) -> None:
        if offset is not None:
            self.world.seen["seeks"] += 1
            self.epoch[partition] += 1
            if not self.world.calm and self.world.r.random() < 0.1:
                return  # a fetch under way moved the position on after it
            self.position[partition] = offset
