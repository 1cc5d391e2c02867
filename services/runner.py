"""The runner: claims a granted retrain, carries it out on Spark, releases the candidate if every gate is passed, and says how it ended.

``python -m services.runner``. It holds no state of its own: requests, claims, results and releases are on topics, verdicts beside
the tables. So it may die at any point, and a stop ends the job that is under way; when it comes back it goes on with the lease that it
holds, or claims again, and the ids of what it does are those of the retrain: one candidate, one release, one result that counts.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from feature_repo.bundle import champion
from feature_repo.models import ModelSpec
from feature_repo.use_cases import models
from jobs.archive import archive
from jobs.registry import make_live
from jobs.retraining import Asked, Plan, Verdict, retrain
from schemas.errors import BundleError, CheckError, DefinitionError, HeadraceError, JobError, LogError, SettingsError
from schemas.monitoring import DETECTIONS, RUNS, Detection, RetrainRequest, RunRecord
from schemas.releases import Release
from schemas.settings import Settings
from services.approvals import missing_approval
from services.control_log import ControlLog
from services.leases import Lease, LeaseLost, Leases
from services.process import run_until_stopped, say_ready
from services.release_log import ReleaseLog
from services.release_machine import Move, Refusal
from streams.policy import change_began

__all__ = ["Runner", "main"]

log = logging.getLogger("runner")
LOOK_EVERY_S = 1.0
BEAT_EVERY_S = 30.0
TRIES, TRY_EVERY_S = 5, 30.0
"""A runner that is killed over and over by what it works on comes back each time, under the lease that it holds."""
LASTING = (BundleError, CheckError, DefinitionError, SettingsError)
"""What waiting does not mend; all other errors may be a machine that is down."""


class Runner:
    """One runner, ``name``d so that it knows its own claims again. ``tell`` hears what happens."""

    def __init__(self, settings: Settings, name: str, plan: Plan, tell: Callable[[str], None]) -> None:
        if settings.kafka is None:
            raise SettingsError("a runner needs HEADRACE_KAFKA", hint="the brokers that the workers have")
        self._settings, self._kafka, self._plan, self._name, self._tell = settings, settings.kafka, plan, name, tell
        self._models: dict[str, ModelSpec] = {spec.name: spec for spec in models(settings)}
        self._log = ControlLog(settings.kafka)
        self.stopping = threading.Event()
        self._leases = Leases(self._log, name, self._models, self.stopping.is_set)

    def run(self) -> None:
        """Carry out what is granted until ``stopping`` is set."""
        say_ready(self._settings)
        while not self.stopping.is_set():
            wait_s = LOOK_EVERY_S
            try:
                self.step()
            except HeadraceError as error:
                wait_s = TRY_EVERY_S
                log.warning("trying again in %.0f s: %s", wait_s, error)
            self.stopping.wait(wait_s)
        self.close()

    def step(self, spark: Any = None) -> Verdict | None:
        """Carry out the retrain that is granted and not ended, if there is one and it can be had. Returns its verdict.

        An error that may pass leaves the lease as it is, so that it can be tried again. What lasts, or was tried often enough, is said to
        have failed; but not what is released already.
        """
        lease = self._leases.take()
        if lease is None:
            return None
        request = lease.request
        self._tell(f"retrain {request.retrain_id} of {request.model}, lease {lease.number}: {request.why}")
        begun = self._leases.begin(lease)
        history = self._releases(request.model)
        released = any(release.release_id == request.retrain_id for release in history)
        if begun > TRIES and not released:
            self._say(lease, "failed", f"begun {begun - 1} times, and never ended")
            return None
        try:
            if history and not released and history[-1].champion != request.champion:
                self._say(lease, "inconclusive", f"version {request.champion}, which it was to be compared with, is not live any more")
                return None
            with self._beating(lease):
                verdict = self._carry_out(lease, spark)
            lease = self._leases.renewed(lease)
        except LeaseLost as error:
            self._tell(str(error))
            return None
        except HeadraceError as error:
            if not released and (begun == TRIES or isinstance(error, LASTING)):
                self._say(lease, "failed", error.fact)
            raise
        self._say(lease, *self._outcome(request, verdict))
        return verdict

    def finish(self, spark: Any = None) -> list[Verdict]:
        """Carry out every retrain that is granted by now; returns when the governor has heard how each ended. Raises JobError where one
        does not end here."""
        verdicts = []
        while open_ := self._leases.open():
            verdict = self.step(spark)
            verdicts += [verdict] if verdict is not None else []
            if not self._log.wait(partial(self._moved, open_), self.stopping.is_set):
                raise JobError(f"retrain {open_[0].retrain_id} does not end", hint="does another runner hold it? does the loop run?")
        return verdicts

    def close(self) -> None:
        self._log.close()

    def _moved(self, before: list[RetrainRequest]) -> bool:
        return self._leases.open() != before

    def _outcome(self, request: RetrainRequest, verdict: Verdict) -> tuple[str, str]:
        last = verdict.evidence[-1]
        why = f"{last.gate}: {last.why}"
        if verdict.needs_approval:  # no verdict on the cause: it stays open
            return "inconclusive", f"{request.model}@{verdict.version} waits for approval of evidence {verdict.evidence_hash}"
        if not verdict.passed:
            return "inconclusive" if last.outcome == "INCONCLUSIVE" else "rejected", why
        if self._release(request, verdict):
            return "promoted", why
        return "inconclusive", f"another version was made live meanwhile, releases are paused, or it waits for approval; {why}"

    def _carry_out(self, lease: Lease, spark: Any) -> Verdict:
        request, spec = lease.request, self._models[lease.request.model]
        live = champion(self._settings.models, spec.name)
        if live is None:
            raise JobError(f"{spec.name} has no champion to be compared with", hint="train the first model by hand: `headrace train`")
        archived = archive(self._settings, self._kafka, spark)
        self._tell(f"archived up to version {archived.version}")
        asked = Asked(request.retrain_id, request.at_ms, self._since_ms(request), self._settings.models / spec.name / request.champion)

        def tell(line: str) -> None:
            self._tell(line)
            self._leases.check(lease)
            if line.startswith("gate artifact"):
                self._say(lease, "evaluating", line)

        return retrain(self._settings, spec, asked, self._plan, spark, tell)

    def _since_ms(self, request: RetrainRequest) -> int | None:
        """When the change that this is to cure is suspected to have begun; None where there is none."""
        wanted = set(request.detections)
        found = [each for _, each in self._log.records(DETECTIONS, Detection) if each.detection_id in wanted and each.family != "feed"]
        began_ms = change_began((each.family, each.suspected_start_ms) for each in found)
        return began_ms if began_ms is not None else min((each.from_ms for each in found), default=None)

    def _releases(self, model: str) -> list[Release]:
        releases = ReleaseLog(self._kafka)
        try:
            return releases.catch_up().history(model)
        finally:
            releases.close()

    def _release(self, request: RetrainRequest, verdict: Verdict) -> bool:
        """Whether the candidate is live or in canary now, or was made so before. It may only follow the champion that it was judged
        against."""
        assert verdict.version is not None
        risk_class = self._models[request.model].risk_class
        if (refusal := missing_approval(self._settings, self._kafka, risk_class, request.model, verdict.version)) is not None:
            self._tell(f"version {verdict.version} is not released: {refusal.fact}")
            return False
        releases = ReleaseLog(self._kafka)
        try:
            release = releases.act(self._move(request, verdict.version, verdict.evidence_hash))
            live = releases.chain.current(request.model)
        finally:
            releases.close()
        if isinstance(release, Refusal):
            self._tell(f"version {verdict.version} is not released: {release.fact}")
            return False
        if live == release:  # else a person has decided otherwise since
            make_live(self._settings, request.model, release.champion)  # of a runner that was overtaken it may be another candidate
        self._tell(f"{request.model} version {release.champion} is epoch {release.epoch}"
                   + (f", version {release.canary.version} is in canary" if release.canary is not None else ""))
        return True

    def _move(self, request: RetrainRequest, version: str, evidence: str) -> Move:
        """A canary where the model's policy has one and there is a champion to compare with."""
        policy = self._models[request.model].canary
        move = Move("champion", request.retrain_id, request.model, "runner", request.at_ms, request.why, version,
                    instead_of=request.champion, evidence=evidence)
        if policy is None:
            return move
        return replace(move, action="canary", steps=policy.steps, hold_ms=policy.hold_ms, deadline_ms=policy.deadline_ms,
                       alpha=policy.alpha)

    @contextmanager
    def _beating(self, lease: Lease) -> Iterator[None]:
        """Signs of life while the job runs: a lease that is not renewed is given to the next.

        One that cannot be sent is no reason to end.
        """
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_EVERY_S):
                try:
                    self._say(lease, "beat", "")
                except LogError as error:
                    log.warning("no sign of life of lease=%d: %s", lease.number, error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _say(self, lease: Lease, what: Any, reason: str) -> None:
        request = lease.request
        self._log.publish(RUNS, RunRecord(request.model, self._name, what, request.retrain_id, lease.number, reason), request.at_ms)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.runner", description="Carry out granted retrains until stopped.",
                                     epilog="example: python -m services.runner --name runner-1")
    parser.add_argument("--name", default=socket.gethostname(), help="keep it over restarts: held leases are known by it")
    return run_until_stopped(parser, lambda settings, arguments: Runner(settings, arguments.name, Plan(), log.info), at_once=True)


if __name__ == "__main__":
    sys.exit(main())
