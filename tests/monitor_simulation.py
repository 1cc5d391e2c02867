"""Both stages' readers on logs and a store in memory, with crashes before, within and after everything that they do to either."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import msgspec

from feature_repo.join_marks import joined_ms_key
from feature_repo.marks import scored_ms_key
from schemas.evaluations import EVALUATIONS
from schemas.fraud import OUTCOMES, PREDICTIONS
from schemas.monitoring import ASKS, DECISIONS, DETECTIONS, REQUESTS, RUNS, WINDOWS, WindowPart
from schemas.topics import valid_topic
from streams.monitors.readers import CountReader, MonitorReader, Reader
from streams.monitors.state import MonitorState, Said
from streams.monitors.watch import Watch
from tests.monitor_world import SPEC, Record, Stream, logs

OUTPUTS = (DETECTIONS, DECISIONS, REQUESTS)
PASSED = (scored_ms_key(SPEC.service.name), joined_ms_key(PREDICTIONS), joined_ms_key(valid_topic(OUTCOMES)))
"""How far scorer and joiner are."""


class Crash(BaseException):
    """The process is gone."""


class Memory:
    """What ``Checkpoints`` is, in a dict, and what Kafka is, in lists. ``faults``: the share of actions that a crash meets."""

    def __init__(self, stream: Stream, seed: int = 0, faults: float = 0.0) -> None:
        self.random, self.faults, self.crashes = random.Random(seed), faults, 0
        self.store: dict[str, tuple[int, bytes | None]] = {}
        self.times: dict[str, dict[int, int]] = {}
        self.logs: dict[tuple[str, int], list[Record]] = logs(stream)
        for topic in (WINDOWS, RUNS, ASKS, *OUTPUTS):
            self.logs[topic, 0] = []

    def load(self, key: str) -> tuple[int, bytes | None]:
        return self.store.get(key, (0, None))

    def number(self, key: str) -> int:
        return self.load(key)[0]

    def save(self, key: str, number: int, state: bytes) -> bool:
        self.maybe_crash()
        if self.number(key) != number:
            return False
        self.store[key] = number + 1, state
        self.maybe_crash()
        return True

    def times_ms(self, key: str) -> dict[int, int]:
        return self.times.get(key, {})

    def send(self, said: Sequence[Said]) -> None:
        for one in said:
            self.maybe_crash()
            log = self.logs[one.topic, 0]
            log.append(Record(len(log), one.at_ms, one.value.encode(), (("ce_id", one.key.encode()),)))
        self.maybe_crash()

    def next_offset(self, topic: str, partition: int, offset: int) -> int:
        return min(max(offset, 0), self.end(topic, partition))

    def end(self, topic: str, partition: int) -> int:
        return len(self.logs[topic, partition])

    def maybe_crash(self) -> None:
        if self.random.random() < self.faults:
            self.crashes += 1
            raise Crash

    def said(self, topic: str) -> dict[str, str]:
        """By id; whatever was said again was the same."""
        found: dict[str, str] = {}
        for record in self.logs[topic, 0]:
            assert found.setdefault(record.headers[0][1].decode(), record.value.decode()) == record.value.decode()
        return found


class Workers:
    """One reader per topic; a crash makes all of them anew, at a committed offset that may lie anywhere before."""

    def __init__(self, memory: Memory, watch: Watch, counter: type[CountReader] = CountReader,
                 monitor: type[MonitorReader] = MonitorReader) -> None:
        self.memory, self._watch, self._counter, self._monitor = memory, watch, counter, monitor
        self.position = dict.fromkeys(memory.logs, 0)
        self._start()

    def _start(self) -> None:
        given: Any = {self._watch.model: self._watch}, self.memory, self.memory, self.memory, threading.Event()
        self.readers: dict[str, Reader] = {topic: self._counter(topic, *given) for topic in (PREDICTIONS, EVALUATIONS)}
        self.readers |= {topic: self._monitor(topic, *given) for topic in (WINDOWS, RUNS, ASKS)}

    def turn(self, topic: str, partition: int, most: int) -> bool:
        """Deliver the next chunk, of up to ``most`` records. Whether there was one."""
        log, at = self.memory.logs[topic, partition], self.position[topic, partition]
        chunk = log[at:at + most]
        if not chunk:
            return False
        try:
            resume = self.readers[topic].apply(partition, chunk, 0)
            self.position[topic, partition] = chunk[-1].offset + 1 if resume is None else resume
        except Crash:
            self._crashed()
        return True

    def check(self, topic: str, partition: int) -> None:
        try:
            resume = self.readers[topic].check(partition, self.position[topic, partition], 0)
            if resume is not None:
                self.position[topic, partition] = resume
        except Crash:
            self._crashed()

    def _crashed(self) -> None:
        self._start()
        for place in self.position:  # what Kafka has as committed is a hint, and may be late
            self.position[place] = max(0, self.position[place] - self.memory.random.randrange(200) * (self.memory.random.random() < 0.5))

    def run(self, most: int = 4000, lost: float = 0.0) -> None:
        """Everything, places by turns at random, to its end; then time passes, as far as it is known to have, at last without faults.

        ``lost``: how likely, in each turn, the store loses everything.
        """
        places = [place for place in self.memory.logs if place[0] in self.readers]
        while any(len(self.memory.logs[place]) > self.position[place] for place in places):
            topic, partition = self.memory.random.choice(places)
            self.turn(topic, partition, self.memory.random.randrange(1, most + 1))
            if self.memory.random.random() < 0.05:
                self.check(topic, partition)
            if self.memory.random.random() < lost:
                self.memory.store.clear()
        for faults in (self.memory.faults, *[0.0] * 4):
            self.memory.faults = faults
            for topic, partition in places:
                self.check(topic, partition)
                while self.turn(topic, partition, most):
                    pass


def end_of_time(memory: Memory, end_ms: int) -> None:
    """Scorer and joiner have passed ``end_ms`` on all partitions, with nothing more to come."""
    partitions = [partition for topic, partition in memory.logs if topic == PREDICTIONS]
    for key in PASSED:
        memory.times[key] = dict.fromkeys(partitions, end_ms)


def state_of(memory: Memory) -> MonitorState:
    data = memory.load("monitor:fraud")[1]
    return msgspec.json.decode(data, type=MonitorState) if data else MonitorState()


def parts_of(memory: Memory) -> list[WindowPart]:
    return [msgspec.json.decode(value, type=WindowPart) for value in memory.said(WINDOWS).values()]


