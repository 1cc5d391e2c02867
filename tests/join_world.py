"""Predictions and outcomes in their logs, and workers that join them in one thread, where everything goes wrong that can.

Workers crash at any point, lose replies, go on as zombies; between any two commands of one another may run; Redis goes back to an older
state. Only Redis and our code are real.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import redis

from feature_repo.fraud import FRAUD
from feature_repo.join_marks import JoinMarks, joined_ms_key
from feature_repo.marks import offsets
from feature_repo.models import Outcomes
from feature_repo.pairs import prediction_id
from feature_repo.pending import Pending
from feature_repo.views import DAY_MS
from schemas.fraud import OUTCOME, OUTCOMES
from streams.outcomes import Joiner, OutcomeJoiner, PredictionJoiner
from tests.join_faults import Crash, FaultyWire, Hasty, OneMark, Patient, PlainMarks, ReadFirst, Recorder, Rules, Unlooking
from tests.join_oracle import HORIZON_MS, SPECS, VALID, expected

PARTITIONS = 2
TOPICS = (*SPECS, VALID)
START = 400 * DAY_MS
RECORDS = 120


@dataclass
class Worker:
    joiner: Joiner
    topic: str
    partition: int
    position: int
    begun: int
    busy: bool = False


@dataclass
class JoinWorld:
    url: str
    seed: int
    rules: Rules = field(default_factory=Rules)
    calm: bool = False
    records: int = RECORDS
    budget_bytes: int = 16 << 20
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.r = random.Random(self.seed)
        self.store = redis.Redis.from_url(self.url)
        self.store.flushdb()
        self.log: dict[tuple[str, int], list[Any]] = {(topic, p): [] for topic in TOPICS for p in range(PARTITIONS)}
        self.ends: Counter[tuple[str, int]] = Counter()
        self.committed: Counter[tuple[str, int]] = Counter()
        self.published: list[tuple[int, bytes, bytes]] = []
        self.snapshots: list[dict[bytes, bytes]] = [{}]
        self.now_ms, self.events, self.numbers = START, [], 0
        self.owner = {place: self._worker(*place) for place in self.log}
        self.zombies: list[Worker] = []

    def fault(self, rate: float) -> bool:
        return not self.calm and self.r.random() < rate

    def run(self) -> JoinWorld:
        actions = (self.arrive, self.deliver, self.check, self.move, self.haunt, self.remember, self.go_back, self.read)
        weights = (20, 40, 8, 1, 3, 3, 0.6, 4)
        while sum(map(len, self.log.values())) < self.records:
            self.r.choices(actions, weights)[0]()
        self.calm = True
        self.heal()
        return self

    def between(self) -> None:
        """Somebody else runs, or Redis dies, in the middle of what the acting one does."""
        if not self.calm and self.r.random() < 0.3:
            self.r.choices((self.deliver, self.remember, self.go_back), (30, 3, 1))[0]()

    def arrive(self) -> None:
        r = self.r
        for _ in range(r.randrange(1, 5)):
            self.now_ms += r.randrange(DAY_MS // 2)
            kind = r.random()
            if kind < 0.4 or not self.events:
                self.numbers += 1
                self.events.append((f"e{self.numbers}", self.now_ms - r.choice((0, 0, r.randrange(12 * DAY_MS))), f"c{r.randrange(3)}"))
                event = self.events[-1]
            else:
                event = r.choice(self.events[-12:])
            if r.random() < 0.5:
                self._predict(event, r.choice(list(SPECS)))
            else:
                self._tell(event)

    def _predict(self, event: tuple[str, int, str], topic: str) -> None:
        event_id, time, card = event
        r, model = self.r, SPECS[topic].name
        score = r.choice((None, r.random()))
        value = {"prediction_id": prediction_id(model, event_id, time), "event_id": event_id, "event_time": time, "card_id": card,
                 "terminal_id": "t", "arrival_ms": self.now_ms, "model": model, "model_version": r.choice((None, "1", "2")), "score": score,
                 "threshold": r.choice((None, 0.5)), "alert": r.choice((None, True, False)), "degraded": r.random() < 0.2,
                 "features": [1.5]}
        raw = b"{" if r.random() < 0.03 else json.dumps(value).encode()
        self._append(topic, hash_of(card), raw)

    def _tell(self, event: tuple[str, int, str]) -> None:
        event_id, time, card = event
        value = {"event_id": event_id, "event_time": time, "card_id": card, "terminal_id": "t", "fraud": self.r.random() < 0.5,
                 "revision": self.r.choice((0, 0, 1, 2))}
        self._append(VALID, hash_of(card), json.dumps(value).encode())

    def _append(self, topic: str, partition: int, value: bytes) -> None:
        place = topic, partition
        self.log[place].append(SimpleNamespace(topic=topic, partition=partition, offset=self.ends[place], timestamp=self.now_ms,
                                               key=None, value=value, headers=()))
        self.ends[place] += self.r.choice((1, 1, 1, 2))

    def deliver(self) -> None:
        idle = [worker for worker in self.owner.values() if not worker.busy]
        if idle:
            self._act(self.r.choice(idle), self._deliver)

    def check(self) -> None:
        idle = [worker for worker in self.owner.values() if not worker.busy]
        if idle:
            self._act(self.r.choice(idle), self._check)

    def haunt(self) -> None:
        if self.zombies:
            worker = self.r.choice(self.zombies)
            if self.r.random() < 0.2:
                self.zombies.remove(worker)
            elif not worker.busy:
                self._act(worker, self._deliver)

    def move(self) -> None:
        """Another worker gets the partition; the one before may not know yet."""
        place = self.r.choice(list(self.owner))
        self.zombies.append(self.owner[place])
        self.owner[place] = self._worker(*place)
        self.seen["moves"] += 1

    def remember(self) -> None:
        self.snapshots.append({key: value for key in self.store.keys("*") if (value := self.store.dump(key)) is not None})

    def go_back(self) -> None:
        """Redis comes back with an older state: as of some snapshot, at times with nothing."""
        self.seen["restores"] += 1
        self.store.flushdb()
        for key, value in self.snapshots[self.r.randrange(max(0, len(self.snapshots) - 4), len(self.snapshots))].items():
            self.store.restore(key, 0, value)
        if self.r.random() < 0.1:
            self.store.flushdb()

    def read(self) -> None:
        """A reader is told how far evaluations go: all before that are there."""
        found = {json.loads(value)["evaluation_id"] for _, _, value in self.published}
        right = expected(self.log)
        for spec in SPECS.values():
            marks = dict(zip(TOPICS, (offsets(self.store.hgetall(joined_ms_key(topic))) for topic in TOPICS), strict=True))
            if marks[VALID].keys() == set(range(PARTITIONS)):
                predicted = marks[next(topic for topic, other in SPECS.items() if other is spec)]
                until = {partition: min(at_ms, *marks[VALID].values()) for partition, at_ms in predicted.items()}
                told = {name for name, (partition, record) in right.items() if record["model"] == spec.name
                        and record["at_ms"] < until.get(partition, 0)}
                self.seen["told of"] += len(told)
                self.seen["told too soon"] += len(told - found)

    def heal(self) -> None:
        """No more faults: read to the end until looks at every partition find nothing to do."""
        for worker in self.owner.values():
            quiet = 0
            for _ in range(1000):
                before = worker.position
                self._act(worker, self._deliver)
                if worker.position == before:
                    worker.position = max(before, self.ends[worker.topic, worker.partition])
                self._act(worker, self._check)
                quiet = quiet + 1 if worker.position == before else 0
                if quiet == 4:
                    break
            else:
                raise AssertionError("no end")

    def _act(self, worker: Worker, what: Callable[[Worker], None]) -> None:
        worker.busy = True
        try:
            what(worker)
        except Crash:
            self.seen["crashes"] += 1
            place = worker.topic, worker.partition
            if self.owner[place] is worker:
                self.owner[place] = self._worker(*place)
            elif worker in self.zombies:
                self.zombies.remove(worker)
        finally:
            worker.busy = False

    def _deliver(self, worker: Worker) -> None:
        place = worker.topic, worker.partition
        records = [record for record in self.log[place] if record.offset >= worker.position][:self.r.randrange(1, 9)]
        if not records:
            return
        worker.position = records[-1].offset + 1
        resume = worker.joiner.apply(worker.partition, records, worker.begun)
        if resume is not None:
            self.seen["seeks"] += 1
            worker.position = resume
        elif self.owner[place] is worker:
            self.committed[place] = max(self.committed[place], records[-1].offset + 1)

    def _check(self, worker: Worker) -> None:
        resume = worker.joiner.check(worker.partition, worker.position, worker.begun)
        if resume is not None:
            self.seen["seeks"] += 1
            worker.position = resume

    def _worker(self, topic: str, partition: int) -> Worker:
        rules = self.rules
        marks = JoinMarks if rules.begun_is_marked and rules.compare_and_set else OneMark if rules.compare_and_set else PlainMarks
        pending = ReadFirst if not rules.write_then_read else Pending if rules.look_first else Unlooking
        pairs = pending(self.url, OUTCOMES, marks(topic), ["fraud", "other"], dict.fromkeys(TOPICS, PARTITIONS), HORIZON_MS,
                        self.budget_bytes)
        pairs._wire = FaultyWire(self.url, self)
        publisher: Any = (Recorder if rules.publish_then_move else Hasty)(self)
        common = (pairs, publisher, lambda p, offset: self._next(topic, p, offset), lambda p: 0, Patient())
        joiner: Joiner
        if topic == VALID:
            assert isinstance(FRAUD.labels, Outcomes)
            joiner = OutcomeJoiner(FRAUD.labels, OUTCOME, *common)
        else:
            joiner = PredictionJoiner(SPECS[topic], lambda p: self.ends[topic, p], *common)
        begun = self.committed[topic, partition]
        return Worker(joiner, topic, partition, begun, begun)

    def _next(self, topic: str, partition: int, offset: int) -> int:
        return next((record.offset for record in self.log[topic, partition] if record.offset >= offset), self.ends[topic, partition])


def hash_of(card: str) -> int:
    return int(card[1:]) % PARTITIONS
