"""Takes a release back where the version that it replaced was better, as labels mature: the judge of the reverse shadow.

It holds no state of its own: pairs, evaluations and releases are on topics, and the answer follows from them. So it may die at any
point and there may be several: the release's id is that of the trial, evidence is written before it under the name of its hash, and
pointer and aliases follow the chain afterwards, again and again until that has worked.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from feature_repo.delta_files import write_file
from feature_repo.join_marks import evaluated_ms
from feature_repo.models import ModelSpec, Outcomes
from feature_repo.wire import Wire
from schemas.errors import ContractError, HeadraceError, SettingsError
from schemas.evaluations import EVALUATION, EVALUATIONS
from schemas.releases import Release
from schemas.settings import Settings
from schemas.shadow import SHADOW, ShadowScore
from schemas.topics import shadow_topic
from services.pair_book import PairBook
from services.paired import ALPHA, BLOCK_MS, Trial, confidence, enough, should_roll_back
from services.release_log import ReleaseLog
from services.shadow_list import TAKEN_BACK, evidence_path, maturity_ms, trial
from services.shadow_report import decided
from services.topic_tail import TopicTail

__all__ = ["ReverseShadow", "judging"]

log = logging.getLogger("shadow")
LOOK_EVERY_S, TRY_EVERY_S = 2.0, 30.0


@contextmanager
def judging(settings: Settings, spec: ModelSpec, stopping: threading.Event) -> Iterator[None]:
    """Releases of ``spec`` are judged in a thread, where somebody tells its labels and there is a store to ask how far they are.

    An error there that is none of ours sets ``stopping``, and is raised in the end.
    """
    failed: list[BaseException] = []

    def judge() -> None:
        try:
            ReverseShadow(settings, spec).run(stopping)
        except BaseException as error:
            failed.append(error)
            stopping.set()

    thread = threading.Thread(target=judge)
    if isinstance(spec.labels, Outcomes) and settings.redis is not None:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        if thread.ident is not None:
            thread.join()
    if failed:
        raise failed[0]


class ReverseShadow:
    """Of one model. ``run`` until ``stopping``, or ``look`` once."""

    def __init__(self, settings: Settings, spec: ModelSpec, alpha: float = ALPHA) -> None:
        if settings.kafka is None or settings.redis is None:
            raise SettingsError("a reverse shadow needs HEADRACE_KAFKA and HEADRACE_REDIS", hint="`headrace up` starts it with both set")
        self._settings, self._kafka, self._spec, self._alpha = settings, settings.kafka, spec, alpha
        self._age_ms = maturity_ms(spec)
        self._releases = ReleaseLog(settings.kafka)
        self._wire = Wire(settings.redis.get_secret_value(), 5000)
        self._begun: Release | None = None
        self._book = PairBook(lambda pair: False, self._age_ms)
        self._tails: tuple[TopicTail, TopicTail] | None = None
        self._threshold = 0.5
        self._over = False
        self._followed = ""

    def run(self, stopping: threading.Event) -> None:
        """Judge until ``stopping``. What does not answer is tried again."""
        wait_s = 0.0
        while not stopping.wait(wait_s):
            wait_s = LOOK_EVERY_S
            try:
                self.look()
            except HeadraceError as error:
                wait_s = TRY_EVERY_S
                log.warning("reverse shadow tries again in %.0f s: %s", wait_s, error)
        self.close()

    def look(self) -> Trial | None:
        """One look: read on, judge, roll back where that is due. Returns what was found of the trial that is open; None where none is."""
        history = self._releases.catch_up().history(self._spec.name)
        if not history:
            return None
        self._follow(history[-1])
        begun = trial(history, history[-1].epoch)
        if begun is None or begun.previous is None:
            self._close_tails()
            return None
        if self._begun != begun or self._tails is None:
            self._begin(begun)
        self._read(begun)
        until = evaluated_ms(self._wire, self._spec, self._settings.partitions)
        matured, of_age_ms = (decided(told, begun.previous) for told in self._book.matured(until)), self._book.of_age_ms(until)
        found = should_roll_back(matured, self._threshold, of_age_ms, self._alpha)
        if found.worse:
            self._roll_back(begun, found, paused=history[-1].paused)
        elif not self._over and of_age_ms > begun.at_ms + self._age_ms + BLOCK_MS:
            self._over = True
            log.info("trial over epoch=%d kept=%s against=%s subjects=%d blocks=%d e_value=%.2f", begun.epoch, begun.champion,
                     begun.previous, len(found.ids), found.blocks, found.e_value)
        return found

    def close(self) -> None:
        self._close_tails()
        self._releases.close()
        self._wire.close()

    def _begin(self, begun: Release) -> None:
        self._close_tails()
        first, last, versions = begun.at_ms, begun.at_ms + self._age_ms, (begun.champion, begun.previous)

        def wanted(pair: ShadowScore) -> bool:
            return (pair.champion, pair.shadow_version) == versions and pair.epoch >= begun.epoch and first <= pair.predicted_ms <= last \
                and pair.alert != pair.champion_alert

        self._begun, self._book, self._over = begun, PairBook(wanted, self._age_ms), False
        self._tails = (TopicTail(self._kafka, shadow_topic(self._spec.service.predictions), first),
                       TopicTail(self._kafka, EVALUATIONS, first))
        log.info("trial of version=%s, which replaced version=%s, epoch=%d", begun.champion, begun.previous, begun.epoch)

    def _read(self, begun: Release) -> None:
        assert self._tails is not None
        pairs, evaluations = self._tails
        for message in pairs.read():
            with suppress(ContractError):
                pair = SHADOW.decode(message.value())
                if (pair.model, pair.shadow_version) == (begun.model, begun.previous):
                    self._threshold = pair.threshold
                    self._book.take_pair(message.partition(), pair)
        for message in evaluations.read():
            with suppress(ContractError):
                one = EVALUATION.decode(message.value())
                if (one.model, one.model_version) == (begun.model, begun.champion) and 0 <= one.predicted_ms - begun.at_ms <= self._age_ms:
                    self._book.take_evaluation(message.partition(), one)

    def _roll_back(self, begun: Release, found: Trial, *, paused: bool) -> None:
        assert begun.previous is not None
        assert found.last_ms is not None
        if paused:
            log.warning("version=%s is worse than version=%s, but releases are paused", begun.champion, begun.previous)
            return
        facts = self._facts(begun, found)
        text = msgspec.json.encode(facts, order="deterministic")
        evidence = hashlib.sha256(text).hexdigest()
        write_file(evidence_path(self._settings, begun.model, evidence), text.decode())
        why = (f"version {begun.champion} is worse than {begun.previous}, which it replaced: wrong on {facts['wrong']} of "
               f"{facts['subjects']} where they first disagreed, in {found.blocks} half days; e-value {found.e_value:.0f}, "
               f"{enough(self._alpha):.0f} suffice")
        name, at_ms = f"{TAKEN_BACK}{begun.model}:{begun.epoch}", found.last_ms + self._age_ms
        release = self._releases.release(name, begun.model, begun.previous, at_ms, why, "reverse shadow", evidence,
                                         instead_of=begun.champion)
        if release is not None:
            log.warning("rolled back to version=%s epoch=%d: %s", release.champion, release.epoch, release.why)
            live = self._releases.chain.current(begun.model)
            assert live is not None
            self._follow(live)

    def _facts(self, begun: Release, found: Trial) -> dict[str, Any]:
        bounds = confidence(found.values)
        return {"model": begun.model, "epoch": begun.epoch, "version": begun.champion, "instead": begun.previous, "alpha": self._alpha,
                "e_value": found.e_value, "blocks": found.blocks, "enough": enough(self._alpha), "threshold": self._threshold,
                "subjects": len(found.values), "wrong": sum(value > 0 for value in found.values),
                "mean": bounds.mean, "low": bounds.low, "high": bounds.high,
                "from_ms": begun.at_ms, "to_ms": found.last_ms, "age_ms": self._age_ms,
                "predictions": [[name, value] for name, value in zip(found.ids, found.values, strict=True)]}

    def _follow(self, live: Release) -> None:
        """Pointer and MLflow say what the chain says where its last word is ours; once a life, for the one before may have died before."""
        if live.release_id.startswith(TAKEN_BACK) and self._followed != live.release_id:
            from jobs.registry import make_live  # loads mlflow, which is seldom needed

            make_live(self._settings, live.model, live.champion)
            self._followed = live.release_id

    def _close_tails(self) -> None:
        for tail in self._tails or ():
            tail.close()
        self._tails = self._begun = None
