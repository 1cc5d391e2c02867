"""The shadow of one model: versions that decide nothing score the vectors that its predictions carry. One or many processes.

``python -m services.shadow [--model NAME]``. It reads predictions after they were published, so no event waits for it. Where it is
more than ``shadow_behind`` predictions of a partition behind it skips ahead and counts what it skipped; not in a replay. A pair is
written to the partition of its prediction, in order, so the last one there tells a process that was started again where to go on.
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
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from feature_repo.bundle import Model, bundle_folder, load_bundle
from feature_repo.use_cases import find_model
from feature_repo.versions import read_registry
from schemas.envelope import CE_TYPE, SOURCE_OFFSET, Headers
from schemas.errors import BundleError, DefinitionError, LogError, SettingsError
from schemas.settings import Settings
from schemas.shadow import SHADOW, ShadowScore
from schemas.topics import shadow_topic
from services.process import run_until_stopped, say_ready
from services.release_log import ReleaseLog
from services.reverse_shadow import judging
from services.shadow_list import NOBODY, Watched, maturity_ms, watched
from services.shadow_place import Place, committed, last_written, shadow_group, to_commit
from services.shadow_scores import paired, prediction_decoder, scored_pairs
from streams.publisher import Publisher

__all__ = ["Shadow", "main"]

log = logging.getLogger("shadow")
BATCH = 500
LOOK_EVERY_S = COMMIT_EVERY_S = 1.0
HEADERS: Headers = [("ce_specversion", b"1.0"), (CE_TYPE, SHADOW.type_bytes), ("ce_source", b"headrace/shadow"),
                    ("content-type", b"application/json")]
ENCODE = msgspec.json.Encoder().encode


class Shadow:
    """One shadow process. ``run`` until ``stopping`` is set."""

    def __init__(self, settings: Settings, model: str | None = None) -> None:
        if settings.kafka is None:
            raise SettingsError("a shadow needs HEADRACE_KAFKA", hint="`headrace up` starts it with that set")
        self._settings, self._kafka = settings, settings.kafka
        self._definitions = read_registry(settings).epoch
        self.spec = find_model(settings, model)
        self._source = self.spec.service.predictions
        self._topic, self._decode = shadow_topic(self._source), prediction_decoder(self.spec).decode
        self._releases = ReleaseLog(settings.kafka)
        self._watched: dict[int, Watched] = {}
        self._models: dict[str, Model | None] = {}
        self.stopping = threading.Event()
        self._publisher = Publisher(settings.kafka, self.stopping.is_set)
        self._consumer = Consumer({
            "bootstrap.servers": settings.kafka, "group.id": shadow_group(self.spec.name), "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "session.timeout.ms": 6000, "heartbeat.interval.ms": 1000,
            "queued.max.messages.kbytes": 8192, "partition.assignment.strategy": "range",
        })
        self._places: dict[int, Place] = {}
        self._written: dict[int, tuple[int, str]] = {}
        self._turns = 0
        self._moved: set[int] = set()
        self._next_look = self._next_commit = 0.0

    def run(self) -> None:
        """Score, and judge releases, until stopped. Raises LogError where Kafka refuses what must not be lost."""
        with judging(self._settings, self.spec, self.stopping):
            self._run()

    def _run(self) -> None:
        self._releases.catch_up()
        self._consumer.subscribe([self._source], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        try:
            while not self.stopping.is_set():
                self._step()
            self._commit(wait=True)
        finally:
            self._consumer.close()
            self._releases.close()

    def _step(self) -> None:
        self._look()
        messages = self._fetch()
        if messages:
            scored = self._score(messages)
            if scored and self._settings.time == "live":  # where nobody is in shadow there is nothing to drop
                self._keep_up()
        if time.monotonic() >= self._next_commit:
            self._commit(wait=False)

    def _look(self) -> None:
        """Once a second: releases and definitions that are new. A bundle that was refused is tried again with the next release."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_EVERY_S
        self._releases.poll()
        try:
            if (epoch := read_registry(self._settings).epoch) != self._definitions:
                self._definitions, self.spec, self._models = epoch, find_model(self._settings, self.spec.name), {}
        except DefinitionError as error:
            log.error("definitions refused, those before them stay: %s", error)

    def _fetch(self) -> list[Any]:
        first, turn = self._consumer.poll(0.1), self._turns
        if first is None:
            return []
        more = self._consumer.consume(BATCH - 1, 0)
        return [first, *more] if turn == self._turns else more  # after a rebalance the first is somebody else's, or comes again

    def _score(self, messages: Sequence[Any]) -> bool:
        """Write the pairs of ``messages`` and wait until they are acknowledged; only then they count as read. Whether there were any."""
        origins, predictions, wanted = [], [], []
        read: dict[int, int] = {}
        for message in messages:
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF or error.retriable():
                    continue
                raise LogError(f"cannot read {self._source}: {error}", hint="is Kafka up? is the topic there?")
            partition, offset = message.partition(), message.offset()
            place = self._places.get(partition)
            if place is None or offset < read.get(partition, place.offset):  # taken away, or skipped
                continue
            read[partition] = offset + 1
            if (found := self._wanted(message, partition, offset)) is not None:
                origins.append((partition, offset))
                predictions.append(found[0])
                wanted.append(found[1])
        models = {version: model for version in {each for versions in wanted for each in versions} if (model := self._model(version))}
        for (partition, offset), pairs in zip(origins, scored_pairs(predictions, wanted, models), strict=True):
            for pair in pairs:
                self._write(partition, offset, pair)
        if origins:
            self._publisher.wait()
        for partition, offset in read.items():
            self._places[partition] = Place(offset, self._places[partition].dropped)
            self._moved.add(partition)
        return bool(origins)

    def _wanted(self, message: Any, partition: int, offset: int) -> tuple[Any, tuple[str, ...]] | None:
        """The prediction and the versions that are to score it and, by a life before, have not; None where there are none."""
        written, last = self._written.get(partition, (-1, ""))
        if offset < written:
            return None
        try:
            prediction = self._decode(message.value() or b"")
        except (msgspec.DecodeError, UnicodeDecodeError):  # not one of ours
            return None
        if not paired(prediction, self.spec):
            return None
        versions = self._of_epoch(prediction.epoch).versions(prediction.arrival_ms, prediction.model_version)
        if offset == written:
            versions = tuple(version for version in versions if version > last)
        return (prediction, versions) if versions else None

    def _of_epoch(self, epoch: int) -> Watched:
        if epoch not in self._watched:
            history = self._releases.chain.history(self.spec.name)
            if epoch > len(history):
                history = self._releases.catch_up().history(self.spec.name)
            if epoch > len(history):
                log.warning("no release is epoch=%d, which a prediction names", epoch)
                return NOBODY
            self._watched[epoch] = watched(history, epoch, maturity_ms(self.spec))
            self._models = {version: model for version, model in self._models.items() if model is not None}
        return self._watched[epoch]

    def _model(self, version: str) -> Model | None:
        if version not in self._models:
            try:
                folder = bundle_folder(self._settings.models, self.spec.name, version)
                self._models[version] = load_bundle(folder, self.spec.service, self._settings.key_folder)
                log.info("shadowing with model=%s version=%s", self.spec.name, version)
            except BundleError as error:
                self._models[version] = None
                log.error("bundle refused, no shadow: %s", error)
        return self._models[version]

    def _write(self, partition: int, offset: int, pair: ShadowScore) -> None:
        self._publisher.send(self._topic, partition, pair.subject.encode(), ENCODE(pair), pair.predicted_ms,
                             [*HEADERS, ("ce_id", pair.shadow_id.encode()), (SOURCE_OFFSET, b"%d" % offset)])

    def _keep_up(self) -> None:
        """Skip what is too much: half of what may wait stays. That it was skipped is committed before anything after it is read."""
        for partition, place in list(self._places.items()):
            if partition not in self._moved:  # it may not be fetched yet
                continue
            _, end = self._consumer.get_watermark_offsets(TopicPartition(self._source, partition), cached=True)
            target = end - self._settings.shadow_behind // 2
            if end - place.offset > self._settings.shadow_behind:
                skipped = Place(target, place.dropped + target - place.offset)
                try:
                    self._consumer.commit(offsets=[to_commit(self._source, partition, skipped)], asynchronous=False)
                    self._consumer.seek(TopicPartition(self._source, partition, target))
                except KafkaException as error:
                    log.warning("could not skip ahead partition=%d: %s", partition, error)
                    continue
                self._places[partition] = skipped
                log.warning("too far behind, skipped partition=%d predictions=%d", partition, target - place.offset)

    def _commit(self, wait: bool) -> None:
        self._next_commit = time.monotonic() + COMMIT_EVERY_S
        places = [to_commit(self._source, partition, self._places[partition]) for partition in self._moved]
        self._moved.clear()
        try:
            if places and wait:
                self._consumer.commit(offsets=places, asynchronous=False)
            elif places:
                self._consumer.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            log.warning("commit failed, its predictions are looked at again: %s", error)

    def _assigned(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        self._turns += 1
        mine = [each.partition for each in partitions]
        written = last_written(self._kafka, self._topic)
        self._written.update({partition: written[partition] for partition in mine if partition in written})
        held = committed(self._consumer, self._source, mine)
        self._places.update({partition: held.get(partition, Place(0)) for partition in mine})
        say_ready(self._settings)
        log.info("assigned partitions=%s", sorted(mine))

    def _revoked(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        self._commit(wait=True)
        self._lost(_, partitions)

    def _lost(self, _: Any, partitions: Sequence[TopicPartition]) -> None:
        self._turns += 1
        for each in partitions:
            self._places.pop(each.partition, None)
            self._written.pop(each.partition, None)
            self._moved.discard(each.partition)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.shadow", description="Score beside the champion until stopped.",
                                     epilog="example: python -m services.shadow --model fraud")
    parser.add_argument("--model", help="default: the first model of the use cases that are on")
    return run_until_stopped(parser, lambda settings, arguments: Shadow(settings, arguments.model))


if __name__ == "__main__":
    sys.exit(main())
