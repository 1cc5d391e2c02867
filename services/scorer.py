"""The scorer: reads ``transactions.valid``, writes ``predictions``. ``python -m services.scorer``, one or many processes.

An offset is committed, and told to the store as scored, when its prediction is acknowledged. What is scored again after a crash gets
the same id, and what the last record of ``predictions`` shows to be published is not published again.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from feature_repo.bundle import Model, champion, load_bundle
from feature_repo.fraud import FRAUD, ModelSpec
from feature_repo.online import Reading, SetReader
from feature_repo.vector import VectorBuilder
from schemas.envelope import CE_TYPE, LATE, SENT_NS, SOURCE_OFFSET
from schemas.errors import BundleError, LogError, SettingsError, StoreError
from schemas.records import PREDICTION, TRANSACTION, Transaction
from schemas.settings import Settings, read_settings
from schemas.topics import PREDICTIONS, TRANSACTIONS_VALID
from services.scoring import Arrived, predict
from streams.publisher import last_source_offset

__all__ = ["Scorer", "main"]

log = logging.getLogger("scorer")
BATCH = 500
COMMIT_EVERY_S = 1.0
SAY_EVERY_S = 2.0
MODEL_EVERY_S = 1.0
FIXED_HEADERS = [("ce_specversion", b"1.0"), (CE_TYPE, PREDICTION.type.encode()), ("ce_source", b"headrace/scorer"),
                 ("content-type", b"application/json")]
CLOCK = ("ce_type", b"headrace.clock.v1")


@dataclass(slots=True)
class Batch:
    """Published together; done when ``outstanding`` is 0. ``scored`` is partition -> (source offset, arrival ms)."""

    outstanding: int = 0
    positions: dict[int, int] = field(default_factory=dict)
    scored: dict[int, tuple[int, int]] = field(default_factory=dict)

    def acknowledged(self, error: Any, _: Any) -> None:
        if error is not None:
            raise LogError(f"broker refused a prediction: {error}", hint="see the broker's log")
        self.outstanding -= 1


class Scorer:
    """One scoring process. ``run`` until ``stop`` is called."""

    def __init__(self, settings: Settings, spec: ModelSpec) -> None:
        if settings.kafka is None or settings.redis is None:
            raise SettingsError("a scorer needs HEADRACE_KAFKA and HEADRACE_REDIS", hint="`headrace up` starts it with both set")
        self._settings, self._spec = settings, spec
        self._builder = VectorBuilder(spec.service)
        self._reader = SetReader(settings.redis.get_secret_value(), settings.redis_timeout_ms, settings.partitions)
        self._producer = Producer({"bootstrap.servers": settings.kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 1,
                                   "compression.type": "lz4", "message.timeout.ms": 0, "queue.buffering.max.messages": 100_000,
                                   "queue.buffering.max.kbytes": 65_536})
        self._consumer = Consumer({
            "bootstrap.servers": settings.kafka, "group.id": f"headrace-scorer-{spec.name}", "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "session.timeout.ms": 6000, "heartbeat.interval.ms": 1000, "fetch.wait.max.ms": 20,
            "queued.max.messages.kbytes": 8192, "partition.assignment.strategy": "range",
        })
        self._stopping = threading.Event()
        self._marks: dict[int, int] = {}
        self._batches: deque[Batch] = deque()
        self._done: dict[int, int] = {}
        self._scored: dict[int, tuple[int, int]] = {}
        self._unsaid = False
        self._model: Model | None = None
        self._bundle: Path | None = None
        self._next_commit = self._next_model = self._next_say = 0.0

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        """Score until stopped; raises LogError when Kafka refuses what must not be lost."""
        self._refresh_model()
        self._warm_up()
        self._consumer.subscribe([TRANSACTIONS_VALID], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        try:
            while not self._stopping.is_set():
                self._step()
            self._finish()
        finally:
            self._consumer.close()
            self._reader.close()

    def _step(self) -> None:
        self._refresh_model()
        first = self._consumer.poll(0.001 if self._batches or self._unsaid else 0.05)
        if first is not None:
            # consume(n) waits for n; poll then consume at once takes what is there
            self._score([first, *self._consumer.consume(BATCH - 1, 0)])
        self._producer.poll(0)
        self._settle()

    def _score(self, messages: Sequence[Message]) -> None:
        arrived, batch = self._take(messages)
        if arrived:
            reading = self._read(arrived)
            results = predict(self._spec.name, self._builder, arrived, reading, self._model, time.time_ns() // 1_000_000)
            batch.outstanding = len(results)
            for origin, result in zip(arrived, results, strict=True):
                headers = [*FIXED_HEADERS, ("ce_id", result.prediction_id.encode()), (SOURCE_OFFSET, b"%d" % origin.offset)]
                if origin.sent_ns is not None:
                    headers.append((SENT_NS, origin.sent_ns))
                self._produce(result.value, result.key, origin, headers, batch)
        self._batches.append(batch)

    def _produce(self, value: bytes, key: bytes, origin: Arrived, headers: Any, batch: Batch) -> None:
        while True:
            try:
                self._producer.produce(PREDICTIONS, value, key, origin.partition, on_delivery=batch.acknowledged,
                                       timestamp=origin.arrival_ms, headers=headers)
                return
            except BufferError:
                self._producer.poll(0.1)

    def _take(self, messages: Sequence[Message]) -> tuple[list[Arrived], Batch]:
        """The events to score, and the positions that are passed with them: clock records and what was published before count."""
        arrived, batch, decode = [], Batch(), TRANSACTION.decoder.decode
        for each in messages:
            message: Any = each  # its stubs call every field optional
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF or error.retriable():
                    continue
                raise LogError(f"cannot read {TRANSACTIONS_VALID}: {error}", hint="is Kafka up? is the topic there?")
            partition, headers = message.partition(), message.headers() or []
            offset, late, clock, sent_ns = -1, False, False, None
            for name, value in headers:
                if name == SOURCE_OFFSET:
                    offset = int(value)
                elif name == LATE:
                    late = True
                elif name == SENT_NS:
                    sent_ns = value
                elif (name, value) == CLOCK:
                    clock = True
            arrival = message.timestamp()[1]
            batch.positions[partition] = message.offset() + 1
            if offset > self._marks.get(partition, -1):
                self._marks[partition] = offset
                batch.scored[partition] = (offset, arrival)
                if not clock:
                    arrived.append(Arrived(decode(message.value()), partition, offset, arrival, late, sent_ns))
        return arrived, batch

    def _read(self, arrived: Sequence[Arrived]) -> Reading | None:
        """What the store says, within a bounded wait; None when it does not answer. A replay has no clock to hurry for."""
        wanted = self._builder.wanted([one.event for one in arrived])
        for attempt in itertools.count(1):
            try:
                return self._reader.read(wanted)
            except StoreError as error:
                if self._settings.time == "live" and attempt == 2:
                    log.warning("scoring without the online store events=%d: %s", len(arrived), error)
                    return None
                if self._settings.time == "replay" and self._stopping.wait(0.2 * (attempt > 1)):
                    raise
        raise AssertionError

    def _settle(self) -> None:
        while self._batches and self._batches[0].outstanding == 0:
            batch = self._batches.popleft()
            self._done.update(batch.positions)
            self._scored.update(batch.scored)
            self._unsaid |= bool(batch.scored)
        if self._unsaid or time.monotonic() >= self._next_say:  # again and again: the store may have gone back in time
            self._next_say = time.monotonic() + SAY_EVERY_S
            try:
                self._reader.publish_scored(self._spec.service.name, self._scored)
                self._unsaid = False
            except StoreError as error:
                log.warning("could not tell the store what is scored: %s", error)
        if self._done and time.monotonic() >= self._next_commit:
            self._commit(wait=False)

    def _commit(self, wait: bool) -> None:
        offsets = [TopicPartition(TRANSACTIONS_VALID, partition, position) for partition, position in self._done.items()]
        try:
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            log.warning("commit failed, its events are scored again: %s", error)
        self._done = {}
        self._next_commit = time.monotonic() + COMMIT_EVERY_S

    def _finish(self) -> None:
        """Everything that was read is published and committed."""
        if self._producer.flush(10) == 0:
            self._settle()
            if self._done:
                self._commit(wait=True)

    def _assigned(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        assert self._settings.kafka is not None
        for each in partitions:
            self._marks[each.partition] = last_source_offset(self._settings.kafka, PREDICTIONS, each.partition)
        ready = self._settings.ready_file
        if ready is not None:
            ready.parent.mkdir(parents=True, exist_ok=True)
            ready.write_text(str(os.getpid()))
        log.info("assigned partitions=%s", sorted(each.partition for each in partitions))

    def _revoked(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        self._finish()
        self._lost(_, partitions)

    def _lost(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        for each in partitions:
            states: list[dict[int, Any]] = [self._marks, self._done, self._scored]
            for state in (*states, *(batch.positions for batch in self._batches), *(batch.scored for batch in self._batches)):
                state.pop(each.partition, None)

    def _refresh_model(self) -> None:
        if time.monotonic() < self._next_model:
            return
        self._next_model = time.monotonic() + MODEL_EVERY_S
        try:
            folder = champion(self._settings.models, self._spec.name)
            if folder is None or folder == self._bundle:
                return
            self._bundle = folder
            self._model = model = load_bundle(folder, self._spec.service)
            log.info("scoring with model=%s version=%s", model.name, model.version)
        except BundleError as error:
            log.error("bundle refused, the model before it stays: %s", error)

    def _warm_up(self) -> None:
        """Compile and load everything before joining the group: a rebalance must not wait for a compiler."""
        event = Transaction("warm-up", 0, "c", "t", 1)
        nothing: list[dict[str, bytes | None]] = [{getattr(event, view.entity): None} for view in self._spec.service.views]
        reading = Reading(((),) * len(nothing), tuple(nothing))
        predict(self._spec.name, self._builder, [Arrived(event, 0, 0, 0, False)], reading, self._model, 0)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    scorer = Scorer(read_settings(), FRAUD)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: scorer.stop())
    scorer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
