"""Says why, for every alert: reads predictions, writes reasons. One process for all models, off every scorer's path.

``python -m services.reasons``. Partition p of a predictions topic becomes partition p of its reasons topic, in order, and each record says
which offset it came from. An offset is committed once its reasons are acknowledged; who comes after a crash skips what the last record of
the partition shows to be there. So every alert has its reasons once, and the scorer knows nothing of it.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from feature_repo.models import ModelSpec
from feature_repo.use_cases import models
from schemas.envelope import CE_TYPE, SOURCE_OFFSET
from schemas.errors import ContractError, LogError, SettingsError
from schemas.niceness import stand_back
from schemas.reasons import REASONS, Reasons
from schemas.settings import Settings
from schemas.topics import PREDICTION_TOPICS, reasons_topic
from services.explainers import Explainers
from services.process import run_until_stopped, say_ready
from streams.publisher import last_source_offset

__all__ = ["Reasoner", "main", "reasons_record"]

log = logging.getLogger("reasons")
BATCH = 500
COMMIT_EVERY_S = 1.0
NICE = 10
"""Scorers and workers come first: reasons may be a second late."""
ALERT = b'"alert":true'
ENCODE = msgspec.json.Encoder().encode
HEADERS = [("ce_specversion", b"1.0"), (CE_TYPE, REASONS.type_bytes), ("ce_source", b"headrace/reasons"),
           ("content-type", b"application/json")]
Place = tuple[str, int]


def reasons_record(spec: ModelSpec, prediction: Any, explainers: Explainers) -> Reasons:
    """What is published of one alert."""
    p = prediction
    why = explainers.explain(spec, p.model_version, p.service_hash, p.features, p.score)
    return Reasons(p.prediction_id, p.event_id, p.event_time, getattr(p, spec.subject), p.model, p.model_version, p.service_hash, p.score,
                   p.threshold, why.base, why.margin, why.reasons, why.rest, why.fault)


class Reasoner:
    """``run`` until ``stopping`` is set."""

    def __init__(self, settings: Settings) -> None:
        if settings.kafka is None:
            raise SettingsError("reasons need HEADRACE_KAFKA", hint="`headrace up` starts this with it set")
        self._settings, self._kafka = settings, settings.kafka
        self._specs = {spec.service.predictions: spec for spec in models(settings)}
        self._explainers = Explainers(settings)
        self._consumer = Consumer({
            "bootstrap.servers": settings.kafka, "group.id": "headrace-reasons", "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "session.timeout.ms": 6000, "heartbeat.interval.ms": 1000,
            "queued.max.messages.kbytes": 8192, "partition.assignment.strategy": "range"})
        self._producer = Producer({"bootstrap.servers": settings.kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 20,
                                   "compression.type": "lz4", "message.timeout.ms": 0, "on_delivery": self._delivered})
        self.stopping = threading.Event()
        self._marks: dict[Place, int] = {}
        self._done: dict[Place, int] = {}
        self._refused: list[Any] = []
        self._next_commit = 0.0

    def run(self) -> None:
        """Raises LogError when Kafka refuses what must not be lost."""
        self._consumer.subscribe(list(self._specs), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)
        try:
            while not self.stopping.is_set():
                first = self._consumer.poll(0.5)
                if first is not None:
                    self._take([first, *self._consumer.consume(BATCH - 1, 0)])
                if self._done and time.monotonic() >= self._next_commit:
                    self._commit()
            self._commit()
        finally:
            self._consumer.close()

    def _take(self, messages: Sequence[Message]) -> None:
        reached: dict[Place, int] = {}
        for each in messages:
            message: Any = each  # its stubs call every field optional
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF or error.retriable():
                    continue
                raise LogError(f"cannot read predictions: {error}", hint="is Kafka up? are the topics there?")
            place = message.topic(), message.partition()
            if place not in self._marks:
                continue  # taken away meanwhile: the next owner goes on from what is committed
            reached[place] = message.offset() + 1
            if message.offset() > self._marks[place] and ALERT in (message.value() or b""):
                self._say(message)
        if self._flushed():
            self._done |= {place: offset for place, offset in reached.items() if place in self._marks}

    def _say(self, message: Any) -> None:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        try:
            prediction = PREDICTION_TOPICS[topic].decode(message.value())
        except ContractError as error:
            log.warning("no prediction at %s/%d/%d: %s", topic, partition, offset, error)
            return
        if not prediction.alert or prediction.model != self._specs[topic].name:
            return
        told = reasons_record(self._specs[topic], prediction, self._explainers)
        headers: Any = [*HEADERS, ("ce_id", told.prediction_id.encode()), (SOURCE_OFFSET, b"%d" % offset)]
        while True:
            try:
                self._producer.produce(reasons_topic(topic), ENCODE(told), told.subject.encode(), partition, headers=headers,
                                       timestamp=message.timestamp()[1])
                break
            except BufferError:
                self._producer.poll(0.1)
        self._marks[topic, partition] = offset

    def _flushed(self) -> bool:
        """Whether everything is acknowledged; False only where this is to stop first."""
        while self._producer.flush(0.5):
            if self.stopping.is_set():
                return False
        if self._refused:
            raise LogError(f"broker refused reasons: {self._refused[0]}", hint="see the broker's log; topics come from the catalogue")
        return True

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._refused.append(error)

    def _commit(self) -> None:
        done, self._done, self._next_commit = self._done, {}, time.monotonic() + COMMIT_EVERY_S
        if not done:
            return
        try:
            self._consumer.commit(offsets=[TopicPartition(*place, offset) for place, offset in done.items()], asynchronous=False)
        except KafkaException as error:
            log.warning("commit failed, its alerts are looked at again: %s", error)

    def _assigned(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        for each in partitions:
            self._marks[each.topic, each.partition] = last_source_offset(self._kafka, reasons_topic(each.topic), each.partition)
        say_ready(self._settings)
        log.info("assigned %s", sorted((each.topic, each.partition) for each in partitions))

    def _revoked(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        self._commit()
        for each in partitions:
            self._marks.pop((each.topic, each.partition), None)
            self._done.pop((each.topic, each.partition), None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.reasons", description="Write the reasons of every alert until stopped.",
                                     epilog="example: HEADRACE_KAFKA=localhost:9092 python -m services.reasons")
    stand_back(NICE)
    return run_until_stopped(parser, lambda settings, _: Reasoner(settings))


if __name__ == "__main__":
    sys.exit(main())
