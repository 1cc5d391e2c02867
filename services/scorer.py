"""The scorer of one model: reads what is valid of its service's source, writes its predictions. One or many processes.

``python -m services.scorer [--model NAME]``; without a name it is the first model of the use cases that are on.

An offset is committed, and told to the store as scored, when its prediction is acknowledged. What is scored again after a crash gets
the same id, and what the last record of ``predictions`` shows to be published is not published again.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from feature_repo.online import Asked, Reading, ScoredMarks, SetReader
from feature_repo.views import FeatureView
from schemas.envelope import CE_TYPE, CLOCK_TYPE, LATE, SENT_NS, SOURCE_OFFSET
from schemas.errors import LogError, SettingsError, StoreError
from schemas.settings import Settings
from schemas.topics import SOURCES, valid_topic
from services.judge import Judge
from services.prediction_writer import Batch, PredictionWriter
from services.process import run_until_stopped, say_ready
from services.scoring import Arrived, scorer_group
from streams.publisher import last_source_offset

__all__ = ["Scorer", "main"]

log = logging.getLogger("scorer")
BATCH = 500
COMMIT_EVERY_S = 1.0
SAY_EVERY_S = 2.0
IDLE_MS = 250
"""How long a fetch that finds nothing waits for the first byte. A rebalance may wait for it."""


@dataclass(slots=True)
class Work:
    """A batch whose sets are on their way from the store; ``asked`` None: it could not be asked, or needs nothing."""

    arrived: list[Arrived]
    batch: Batch
    wanted: list[tuple[FeatureView, list[str]]]
    asked: Asked | None


class Scorer:
    """One scoring process. ``run`` until ``stopping`` is set.

    While one batch is scored the store already answers for the next.
    """

    def __init__(self, settings: Settings, model: str | None = None) -> None:
        if settings.kafka is None or settings.redis is None:
            raise SettingsError("a scorer needs HEADRACE_KAFKA and HEADRACE_REDIS", hint="`headrace up` starts it with both set")
        self._settings, self._judge = settings, Judge(settings, model)
        spec = self._judge.spec
        self._contract, self._source = SOURCES[spec.service.source], valid_topic(spec.service.source)
        self._reader = SetReader(settings.redis.get_secret_value(), settings.redis_timeout_ms, settings.partitions)
        self._writer = PredictionWriter(settings.kafka, spec.service.predictions)
        wait_ms, least_bytes = settings.fetch_limits(IDLE_MS)
        self._consumer = Consumer({
            "bootstrap.servers": settings.kafka, "group.id": scorer_group(spec.name), "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "session.timeout.ms": 6000, "heartbeat.interval.ms": 1000, "fetch.wait.max.ms": wait_ms,
            "fetch.min.bytes": least_bytes, "queued.max.messages.kbytes": 8192, "partition.assignment.strategy": "range",
        })
        self.stopping = threading.Event()
        self._marks: dict[int, int] = {}
        self._work: Work | None = None
        self._turns = 0
        self._done: dict[int, int] = {}
        self._scored: dict[int, tuple[int, int]] = {}
        self._unsaid = False
        self._epoch: int | None = None
        self._next_commit = self._next_say = 0.0

    def run(self) -> None:
        """Score until stopped; raises LogError when Kafka refuses what must not be lost."""
        self._judge.refresh(self._complete)
        self._judge.warm_up()
        gc.freeze()  # what is loaded stays: walking through it again and again would hold up scoring
        self._consumer.subscribe([self._source], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        try:
            while not self.stopping.is_set():
                self._step()
            self._finish()
        finally:
            self._consumer.close()
            self._reader.close()

    def _step(self) -> None:
        self._judge.refresh(self._complete)
        messages = self._fetch(0.0 if self._work is not None else 0.001 if self._writer.waiting or self._unsaid else 0.05)
        work, self._work = self._work, None  # only now: a rebalance within the fetch has finished it
        reading = self._read(work) if work is not None else None
        if messages:
            self._work = self._begin(messages)
        if work is not None:
            self._score(work, reading)
        self._settle()

    def _fetch(self, wait_s: float) -> list[Message]:
        """What is there, after waiting for the first of it. (``consume(n)`` would wait for n.)"""
        first = self._consumer.poll(wait_s)
        if first is None:
            return []
        turn = self._turns
        more = self._consumer.consume(BATCH - 1, 0)
        return [first, *more] if turn == self._turns else more  # after a rebalance the first is somebody else's, or comes again

    def _begin(self, messages: Sequence[Message]) -> Work:
        arrived, batch = self._take(messages)
        work = Work(arrived, batch, self._judge.builder.wanted([one.event for one in arrived]), None)
        if arrived:
            try:
                work.asked = self._reader.ask(work.wanted, self._judge.spec.service.name, self._to_say(), self._judge.epoch)
            except StoreError as error:
                log.warning("could not ask the online store events=%d: %s", len(arrived), error)
        return work

    def _score(self, work: Work, reading: Reading | None) -> None:
        read_ms = time.time_ns() // 1_000_000
        results = self._judge.predict(work.arrived, reading, read_ms) if work.arrived else []
        self._writer.write(work.batch, work.arrived, results)

    def _take(self, messages: Sequence[Message]) -> tuple[list[Arrived], Batch]:
        """The events to score, and the positions that are passed with them: clock records and what was published before count."""
        arrived, batch, decode = [], Batch(), self._contract.decoder.decode
        for each in messages:
            message: Any = each  # its stubs call every field optional
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF or error.retriable():
                    continue
                raise LogError(f"cannot read {self._source}: {error}", hint="is Kafka up? is the topic there?")
            partition, headers = message.partition(), message.headers() or []
            if partition not in self._marks:  # taken away between ``poll`` and ``consume``: the next owner scores it
                continue
            offset, late, clock, sent_ns = -1, False, False, None
            for name, value in headers:
                if name == SOURCE_OFFSET:
                    offset = int(value)
                elif name == LATE:
                    late = True
                elif name == SENT_NS:
                    sent_ns = value
                elif name == CE_TYPE:
                    clock = value == CLOCK_TYPE  # of several, the last counts, as it does for the worker
            arrival = message.timestamp()[1]
            batch.positions[partition] = message.offset() + 1
            if offset > self._marks[partition]:
                self._marks[partition] = offset
                batch.scored[partition] = (offset, arrival)
                if not clock:
                    arrived.append(Arrived(decode(message.value()), partition, offset, arrival, late, sent_ns))
            elif offset == self._marks[partition] >= 0:  # published by a life before, which may have ended before it told the store
                batch.scored[partition] = (offset, arrival)
        return arrived, batch

    def _read(self, work: Work) -> Reading | None:
        """What the store says, within a bounded wait; None when it does not answer. A replay has no clock to hurry for."""
        if not work.arrived:
            return None
        asked, work.asked = work.asked, None
        for attempt in itertools.count(1 if asked is not None else 2):
            try:
                return self._reader.answer(asked) if attempt == 1 and asked is not None else self._reader.read(work.wanted)
            except StoreError as error:
                if self._settings.time == "live" and attempt == 2:
                    log.warning("scoring without the online store events=%d: %s", len(work.arrived), error)
                    return None
                if self._settings.time == "replay" and self.stopping.wait(0.2 * (attempt > 1)):
                    raise
        raise AssertionError

    def _settle(self) -> None:
        for batch in self._writer.done():
            self._done.update(batch.positions)
            self._scored.update(batch.scored)
            self._unsaid |= bool(batch.scored)
        if self._work is None:  # else it goes with the next read: this one's answer is still to come
            try:
                self._reader.publish_scored(self._judge.spec.service.name, self._to_say(), self._judge.epoch)
            except StoreError as error:
                log.warning("could not tell the store what is scored: %s", error)
        if self._done and time.monotonic() >= self._next_commit:
            self._commit(wait=False)

    def _to_say(self) -> ScoredMarks:
        """What the store is to be told now: news at once, and all again and again, for the store may have gone back in time. With it goes
        the release that is served from here on."""
        if not self._unsaid and time.monotonic() < self._next_say and self._judge.epoch == self._epoch:
            return {}
        self._epoch = self._judge.epoch
        self._next_say = time.monotonic() + SAY_EVERY_S
        self._unsaid = False  # a store that does not answer is told again then, it may not hold up scoring
        return self._scored

    def _commit(self, wait: bool) -> None:
        offsets = [TopicPartition(self._source, partition, position) for partition, position in self._done.items()]
        try:
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.warning("commit failed, its events are scored again: %s", error)
        self._done = {}
        self._next_commit = time.monotonic() + COMMIT_EVERY_S

    def _complete(self) -> None:
        """The batch under way is scored, by the definitions that it was begun with."""
        work, self._work = self._work, None
        if work is not None:
            self._score(work, self._read(work))

    def _finish(self) -> None:
        """Everything that was read is published and committed."""
        self._complete()
        if self._writer.flush(10):
            self._settle()
            if self._done:
                self._commit(wait=True)

    def _assigned(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        assert self._settings.kafka is not None
        predictions = self._judge.spec.service.predictions
        for each in partitions:
            self._marks[each.partition] = last_source_offset(self._settings.kafka, predictions, each.partition)
        say_ready(self._settings)
        log.info("assigned partitions=%s", sorted(each.partition for each in partitions))

    def _revoked(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        self._finish()
        self._lost(_, partitions)

    def _lost(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        self._turns += 1
        lost = {each.partition for each in partitions}
        self._writer.forget(lost)
        if self._work is not None:
            self._work.arrived = [one for one in self._work.arrived if one.partition not in lost]
            self._work.batch.forget(lost)
        states: list[dict[int, Any]] = [self._marks, self._done, self._scored]
        for state in states:
            for partition in lost:
                state.pop(partition, None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.scorer", description="Score events until stopped.")
    parser.add_argument("--model", help="default: the first model of the use cases that are on")
    return run_until_stopped(parser, lambda settings, arguments: Scorer(settings, arguments.model))


if __name__ == "__main__":
    sys.exit(main())
