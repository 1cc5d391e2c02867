"""Readers of both stages: chunks in, states to Redis, what follows from them to Kafka. Each runs in one thread, beside Faust's event loop.

First stage: what has closed is published and acknowledged, then the state moves on; a worker that died between the two publishes the same
again, under the same ids. Second stage: state and what is to be said move in one step, then it is published, then forgotten.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from feature_repo.checkpoints import Checkpoints, collector_key, monitor_key
from feature_repo.join_marks import joined_ms_key
from feature_repo.marks import scored_ms_key
from schemas.evaluations import EVALUATIONS
from schemas.monitoring import CONTROL, WINDOWS, WindowPart
from streams.monitors.counts import Counts, count_evaluations, count_predictions, next_close_ms, pass_time
from streams.monitors.monitor import Monitor
from streams.monitors.state import MonitorState, Said
from streams.monitors.watch import Watch
from streams.patience import patiently

__all__ = ["CountReader", "Log", "MonitorReader", "Outlet"]

log = logging.getLogger(__name__)
SAVE_EVERY_S, SAVE_EVERY = 10.0, 50_000
"""A state is written when so much would have to be read again."""


class Outlet(Protocol):
    def send(self, said: Sequence[Said]) -> None:
        """Publish to partition 0 of each topic; all of it is acknowledged when this returns."""


class Log(Protocol):
    def next_offset(self, topic: str, partition: int, offset: int) -> int:
        """The offset of the first record at or after ``offset``; the partition's end where there is none."""

    def end(self, topic: str, partition: int) -> int: ...


class Reader(ABC):
    """What both stages' readers share: they read on from their states' offsets, whatever Kafka has as committed."""

    def __init__(self, topic: str, checkpoints: Checkpoints, outlet: Outlet, source: Log, stopping: threading.Event) -> None:
        self.topic = topic
        self._checkpoints, self._outlet, self._log, self._stopping = checkpoints, outlet, source, stopping
        self._empty: dict[int, tuple[int, int]] = {}
        self._seen: dict[int, tuple[int, int]] = {}

    def apply(self, partition: int, records: Sequence[Any], committed: int) -> int | None:
        """Take a chunk. None when it and all before it are taken; else the offset to seek to. ``committed`` is of no interest."""
        while True:
            done = self._offset(partition)
            if (resume := self._resume_before(partition, done, records[0].offset)) is not None:
                return resume
            fresh = [record for record in records if record.offset > done]
            if not fresh or self._take(partition, fresh):
                return None
            log.warning("state is another than was written topic=%s partition=%d", self.topic, partition)
            self.forget(partition)

    def flush(self) -> None:
        """See streams.agents.Worker."""
        return

    def check(self, partition: int, position: int, committed: int) -> int | None:
        """For a partition read up to ``position``: the offset to seek to where its state lacks records that do not come by themselves."""
        self._idle(partition)
        done = self._offset(partition)
        now = position, done
        before, self._seen[partition] = self._seen.get(partition), now
        return self._resume_before(partition, done, position) if before == now else None

    def tick(self, partition: int) -> None:
        """See streams.agents.Worker."""
        return

    def forget(self, partition: int) -> None:
        """The partition has, or had, another owner."""
        self._seen.pop(partition, None)

    @abstractmethod
    def _offset(self, partition: int) -> int:
        """Up to and with which everything is taken."""

    @abstractmethod
    def _take(self, partition: int, records: Sequence[Any]) -> bool:
        """False where another state than expected was found in the store."""

    @abstractmethod
    def _idle(self, partition: int) -> None:
        """What is to be done now and then."""

    def _resume_before(self, partition: int, done: int, offset: int) -> int | None:
        resume = done + 1
        low, high = self._empty.get(partition, (0, 0))
        if resume >= offset or low <= resume <= offset <= high:
            return None
        found = patiently(self._stopping, lambda: self._log.next_offset(self.topic, partition, resume))
        if found < offset:
            return found
        self._empty[partition] = resume, offset
        return None


class CountReader(Reader):
    """The first stage, of one topic of predictions or of evaluations."""

    def __init__(self, topic: str, watches: Mapping[str, Watch], checkpoints: Checkpoints, outlet: Outlet, source: Log,
                 stopping: threading.Event) -> None:
        super().__init__(topic, checkpoints, outlet, source, stopping)
        self._watches = {name: watch for name, watch in watches.items() if topic in (EVALUATIONS, watch.predictions)}
        self._held: dict[int, tuple[int, Counts]] = {}
        self._saved: dict[int, tuple[int, float]] = {}

    def forget(self, partition: int) -> None:
        super().forget(partition)
        self._held.pop(partition, None)

    def _state(self, partition: int) -> tuple[int, Counts]:
        if partition not in self._held:
            number, state = patiently(self._stopping, lambda: self._checkpoints.load(collector_key(self.topic, partition)))
            held = msgspec.json.decode(state, type=Counts) if state is not None else Counts()
            self._held[partition], self._saved[partition] = (number, held), (held.offset, time.monotonic())
        return self._held[partition]

    def _offset(self, partition: int) -> int:
        return self._state(partition)[1].offset

    def _take(self, partition: int, records: Sequence[Any]) -> bool:
        _, state = self._state(partition)
        if self.topic == EVALUATIONS:
            closed = count_evaluations(state, partition, records, self._watches)
        else:
            (watch,) = self._watches.values()
            closed = count_predictions(state, partition, records, watch)
        return self._settle(partition, closed)

    def _settle(self, partition: int, closed: Sequence[WindowPart]) -> bool:
        number, state = self._held[partition]
        if closed:
            said = [Said(WINDOWS, part.part_id, part.until_ms, msgspec.json.encode(part).decode()) for part in closed]
            patiently(self._stopping, lambda: self._outlet.send(said))
        offset, at = self._saved[partition]
        if not closed and (state.offset == offset or (state.offset - offset < SAVE_EVERY and time.monotonic() - at < SAVE_EVERY_S)):
            return True
        data = msgspec.json.encode(state)
        if not patiently(self._stopping, lambda: self._checkpoints.save(collector_key(self.topic, partition), number, data)):
            return False
        self._held[partition], self._saved[partition] = (number + 1, state), (state.offset, time.monotonic())
        return True

    def _idle(self, partition: int) -> None:
        """Write what is not written; close windows of a partition that has nothing more to come before their end."""
        number, state = self._state(partition)
        if patiently(self._stopping, lambda: self._checkpoints.number(collector_key(self.topic, partition))) != number:
            return self.forget(partition)
        closed: list[WindowPart] = []
        for watch in self._watches.values():
            passed = self._passed_ms(watch, partition)
            if passed is not None and passed >= next_close_ms(state, watch) and self._at_end(partition, state.offset):
                closed += pass_time(state, partition, passed, self.topic, [watch])
        if not self._settle(partition, closed):
            self.forget(partition)
        return None

    def _passed_ms(self, watch: Watch, partition: int) -> int | None:
        """Nothing of ``watch`` that comes later is for an earlier time. An outcome of any partition may complete a pair of any."""
        def times(key: str) -> dict[int, int]:
            return patiently(self._stopping, lambda: self._checkpoints.times_ms(key))

        if self.topic != EVALUATIONS:
            return times(scored_ms_key(watch.service)).get(partition)
        told = times(joined_ms_key(watch.labels)) if watch.labels is not None else {}
        predicted = times(joined_ms_key(watch.predictions)).get(partition)
        if predicted is None or not told.keys() >= set(range(watch.partitions)):
            return None
        return min(predicted, *told.values())

    def _at_end(self, partition: int, done: int) -> bool:
        """Whether everything is taken that is there now: asked after the mark was read, so all that came before the mark is."""
        end = patiently(self._stopping, lambda: self._log.end(self.topic, partition))
        return done + 1 >= end or patiently(self._stopping, lambda: self._log.next_offset(self.topic, partition, done + 1)) >= end


class MonitorReader(Reader):
    """The second stage, of one of its topics. Readers of its other topics move the same states: each goes on from what is there."""

    def __init__(self, topic: str, watches: Mapping[str, Watch], checkpoints: Checkpoints, outlet: Outlet, source: Log,
                 stopping: threading.Event) -> None:
        super().__init__(topic, checkpoints, outlet, source, stopping)
        self._monitors = {name: Monitor(watch) for name, watch in watches.items()}
        self._decode = CONTROL[topic].decoder.decode
        self._read_to: int | None = None
        self._marks: dict[str, int] = {}

    def forget(self, partition: int) -> None:
        super().forget(partition)
        self._read_to = None
        self._marks.clear()

    def _offset(self, partition: int) -> int:
        """The lowest of all models. What a model has no mark for is read from the beginning, once in a life of this worker."""
        if self._read_to is None:
            self._marks = {name: self._mark(self._settled(name)[1]) for name in self._monitors}
            self._read_to = min(self._marks.values(), default=-1)
        return self._read_to

    def _take(self, partition: int, records: Sequence[Any]) -> bool:
        found: dict[str, list[tuple[Any, Any]]] = {}
        for record in records:
            try:
                said = self._decode(record.value or b"")  # a part may be larger than what producers of events may send
            except (msgspec.MsgspecError, UnicodeError) as error:
                log.warning("passed over topic=%s offset=%d: %s", self.topic, record.offset, error)
                continue
            if said.model in self._monitors:
                found.setdefault(said.model, []).append((record, said))
        for model, given in found.items():
            number, state = self._settled(model)
            if self._mark(state) < self._marks[model]:
                return False  # it went back in time, and lacks what came before these
            for record, said in given:
                self._monitors[model].step(state, self.topic, record.offset, record.timestamp, said)
            if not self._save(model, number, state):
                return False
            self._marks[model] = self._mark(state)
            self._publish(model, number + 1, state)
        self._read_to = records[-1].offset
        return True

    def _idle(self, partition: int) -> None:
        """A state that went back in time has its records read again."""
        if any(self._mark(self._settled(model)[1]) < mark for model, mark in self._marks.items()):
            self.forget(partition)

    def _mark(self, state: MonitorState) -> int:
        return state.marks.get(self.topic, -1)

    def _settled(self, model: str) -> tuple[int, MonitorState]:
        """The state as it is there; what it had yet to say is said."""
        number, data = patiently(self._stopping, lambda: self._checkpoints.load(monitor_key(model)))
        state = msgspec.json.decode(data, type=MonitorState) if data is not None else MonitorState()
        return self._publish(model, number, state), state

    def _publish(self, model: str, number: int, state: MonitorState) -> int:
        """Say what the outbox holds and empty it; returns the state's number. Where another reader was faster, it goes on from there."""
        if not state.outbox:
            return number
        patiently(self._stopping, lambda: self._outlet.send(state.outbox))
        state.outbox = []
        return number + 1 if self._save(model, number, state) else -1

    def _save(self, model: str, number: int, state: MonitorState) -> bool:
        data = msgspec.json.encode(state)
        return patiently(self._stopping, lambda: self._checkpoints.save(monitor_key(model), number, data))


