"""The guard: watches canaries on the topics, takes back what harms, goes on where it is shown to be safe, stops and asks where it is not.

``python -m services.guard``. It keeps nothing: when it comes back it reads the topics again from where the canary began. What it does is
one record on the release chain, with its facts; the record's id is that of the state that was judged, so a guard that died after it had
written finds its own, and one that is late changes nothing. Then the pointer follows the chain. Time is the stream's.
"""

from __future__ import annotations

import argparse
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from feature_repo.models import ModelSpec
from feature_repo.use_cases import models
from schemas.envelope import PROBE, header
from schemas.errors import BundleError, HeadraceError, JobError, LogError, SettingsError
from schemas.evaluations import EVALUATIONS, Evaluation
from schemas.releases import Chain, Release
from schemas.settings import Settings
from schemas.topics import answered_topic
from services.approvals import missing_approval
from services.guardrails import Guardrails, Predicted, Verdict
from services.process import run_until_stopped, say_ready
from services.release_log import ReleaseLog
from services.release_machine import Move
from services.releasing import champion_of, follow_chain

__all__ = ["Guard", "main"]

log = logging.getLogger("guard")
LOOK_EVERY_S, TRY_EVERY_S, ANSWER_S = 0.5, 5.0, 30.0
BEFORE_MS = 60_000
"""Read from so much before a canary began: stamps of records are not the stream's time to the millisecond."""
CHUNK = 5_000


class Watch:
    """One canary of one model: what guardrails have seen of it, and what of the topics was read."""

    def __init__(self, settings: Settings, kafka: str, spec: ModelSpec, history: list[Release]) -> None:
        self.spec = spec
        live = history[-1]
        assert live.canary is not None
        age_ms = spec.drift.age_ms if spec.drift is not None else spec.label_delay_ms
        self.began_epoch = live.canary.began_epoch
        self.rails = Guardrails(live.canary, live.champion, age_ms)
        self._decode = _decoder(spec)
        self._consumer = Consumer({"bootstrap.servers": kafka, "group.id": "headrace-guard", "enable.auto.commit": False,
                                   "auto.offset.reset": "earliest", "fetch.wait.max.ms": 100, "queued.max.messages.kbytes": 8192,
                                   "log_level": 0})
        self._predictions = (spec.service.predictions, answered_topic(spec.service.predictions))
        from_ms = max(0, live.canary.began_ms - BEFORE_MS)
        try:
            places = [TopicPartition(topic, partition, from_ms) for topic in (*self._predictions, EVALUATIONS)
                      for partition in self._consumer.list_topics(topic, timeout=ANSWER_S).topics[topic].partitions]
            found = self._consumer.offsets_for_times(places, timeout=ANSWER_S)
            ends = [self._consumer.get_watermark_offsets(each, timeout=ANSWER_S)[1] for each in found]
            starts = [each.offset if each.offset >= 0 else end for each, end in zip(found, ends, strict=True)]
            self._consumer.assign([TopicPartition(each.topic, each.partition, start) for each, start in zip(found, starts, strict=True)])
            self._behind = {(each.topic, each.partition): end for each, start, end in zip(found, starts, ends, strict=True) if start < end}
        except KafkaException as error:
            self._consumer.close()
            raise LogError(f"the topics of {spec.name} cannot be read: {error}", hint="is Kafka up?") from error

    @property
    def caught_up(self) -> bool:
        """All is read that was there when this began. Before, a deadline would have passed that was kept."""
        if self._behind:
            for each in self._consumer.position([TopicPartition(*place) for place in self._behind]):
                if each.offset >= self._behind[each.topic, each.partition]:
                    del self._behind[each.topic, each.partition]
        return not self._behind

    def read(self, releases: list[Release]) -> bool:
        """Take a chunk; whether there was one. ``releases`` are those of this canary."""
        for release in releases:
            self.rails.step(release)
        messages = self._consumer.consume(CHUNK, 0.1)
        for message in messages:
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF or error.retriable():
                    continue
                raise LogError(f"cannot read {message.topic()}: {error}", hint="is Kafka up?")
            self._take(message)
        return bool(messages)

    def close(self) -> None:
        self._consumer.close()

    def _take(self, message: Any) -> None:
        try:
            if message.topic() == EVALUATIONS:
                one = msgspec.json.decode(message.value() or b"", type=Evaluation)
                if one.model == self.spec.name:
                    self.rails.evaluated(one)
                return
            predicted = self._decode(message.value() or b"")
        except (msgspec.MsgspecError, UnicodeError):
            return  # a clock record, or what is no prediction: it tells nothing of a version
        self.rails.predicted(predicted)
        if (probe := header(message.headers(), PROBE)) is not None:
            champion, _, candidate = probe.partition(b"/")
            self.rails.probed(predicted.epoch, int(champion), int(candidate))


class Guard:
    """``tell`` hears what is done, ``fails`` at which point of it: tests kill there."""

    def __init__(self, settings: Settings, tell: Callable[[str], None], fails: Callable[[str], None] = lambda point: None) -> None:
        if settings.kafka is None:
            raise SettingsError("a guard needs HEADRACE_KAFKA", hint="the brokers that the scorers have")
        self._settings, self._kafka, self._tell, self._fails = settings, settings.kafka, tell, fails
        self._specs: Mapping[str, ModelSpec] = {spec.name: spec for spec in models(settings)}
        self._releases = ReleaseLog(settings.kafka, ANSWER_S)
        self._watches: dict[str, Watch] = {}
        self._followed: dict[str, int] = {}
        self.stopping = threading.Event()

    def run(self) -> None:
        """Watch until ``stopping`` is set."""
        say_ready(self._settings)
        while not self.stopping.is_set():
            wait_s = LOOK_EVERY_S
            try:
                wait_s = 0.0 if self.step() else LOOK_EVERY_S
            except HeadraceError as error:
                wait_s = TRY_EVERY_S
                log.warning("trying again in %.0f s: %s", wait_s, error)
            self.stopping.wait(wait_s)
        self.close()

    def step(self) -> bool:
        """Read on, and act where it is time to. Returns whether there was anything to read."""
        chain, busy = self._releases.catch_up(), False
        for name, spec in self._specs.items():
            live = chain.current(name)
            if live is None:
                continue
            self._follow(live)
            if (watch := self._watch(spec, live, chain)) is None:
                continue
            busy |= watch.read(list(_of_canary(chain, live)))
            if watch.caught_up:
                self._act(live, watch.rails.judge(live))
        return busy

    def verdict(self, model: str) -> Verdict | None:
        """What it would say now of the canary of ``model`` as far as it has read."""
        live, watch = self._releases.chain.current(model), self._watches.get(model)
        return None if live is None or watch is None else watch.rails.judge(live)

    def close(self) -> None:
        for watch in self._watches.values():
            watch.close()
        self._releases.close()

    def _watch(self, spec: ModelSpec, live: Release, chain: Chain) -> Watch | None:
        held = self._watches.get(spec.name)
        began = live.canary.began_epoch if live.canary is not None else None
        if held is not None and held.began_epoch != began:
            self._watches.pop(spec.name).close()
            held = None
        if began is not None and held is None:
            held = self._watches[spec.name] = Watch(self._settings, self._kafka, spec, list(_of_canary(chain, live)))
        return held

    def _act(self, live: Release, verdict: Verdict) -> None:
        verdict = self._approved(live, verdict)
        if verdict.action is None:
            return
        self._fails("before the record")
        made = self._releases.act(Move(verdict.action, f"guard:{live.model}:{live.epoch}:{verdict.action}", live.model, "guard",
                                       verdict.facts["at_ms"], verdict.why, epoch=live.epoch, evidence=verdict.evidence,
                                       facts=verdict.facts))
        self._fails("after the record")
        if isinstance(made, Release):
            self._tell(f"{verdict.action} of {live.model}: {verdict.why}")
            self._follow(made)
        else:
            self._tell(f"no {verdict.action} of {live.model}: {made.fact}")

    def _approved(self, live: Release, verdict: Verdict) -> Verdict:
        """Nothing goes on whose approval does not hold any more: then a person is asked."""
        if verdict.action != "advance" or live.canary is None:
            return verdict
        spec = self._specs[live.model]
        refusal = missing_approval(self._settings, self._kafka, spec.risk_class, live.model, live.canary.version)
        return verdict if refusal is None else Verdict("pause", refusal.fact, verdict.facts)

    def _follow(self, live: Release) -> None:
        """Where whoever released died before the pointer followed, it follows now."""
        if self._followed.get(live.model) == live.epoch:
            return
        try:
            if champion_of(self._settings, live.model) not in (None, live.champion):
                follow_chain(self._settings, live)
        except (BundleError, JobError) as error:  # said once an epoch: it is for a person to mend, and no canary waits for it
            log.warning("the pointer does not follow the chain: %s", error)
        self._followed[live.model] = live.epoch


def _of_canary(chain: Chain, live: Release) -> Iterator[Release]:
    """The records of the canary that is under way, oldest first."""
    assert live.canary is not None
    return (each for each in chain.history(live.model)
            if each.canary is not None and each.canary.began_epoch == live.canary.began_epoch)


def _decoder(spec: ModelSpec) -> Callable[[bytes], Predicted]:
    """A prediction of ``spec``, read under the name that its subject has there."""
    kind = msgspec.defstruct("PredictedOf", [(name, kind) for name, kind in (
        (spec.subject, str), ("model_version", str | None), ("score", float | None), ("alert", bool | None), ("degraded", bool),
        ("arrival_ms", int), ("epoch", int | None, ))], frozen=True, gc=False)
    decode = msgspec.json.Decoder(kind).decode

    def read(value: bytes) -> Predicted:
        return Predicted(*msgspec.structs.astuple(decode(value)))

    return read


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.guard", description="Watch canaries until stopped.",
                                     epilog="example: python -m services.guard")
    return run_until_stopped(parser, lambda settings, _: Guard(settings, log.info))


if __name__ == "__main__":
    sys.exit(main())
