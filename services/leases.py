"""Which granted retrain a runner may carry out: what it holds, what it can claim, and whether it still may."""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from schemas.errors import JobError
from schemas.monitoring import DECISIONS, REQUESTS, RUNS, RetrainDecision, RetrainRequest, RunRecord
from services.control_log import ControlLog

__all__ = ["Lease", "LeaseLost", "Leases"]

CLAIM_EVERY_S = 60.0
BEGINS = "begins"
ENDED = ("promoted", "rejected", "inconclusive", "failed")


@dataclass(frozen=True)
class Lease:
    request: RetrainRequest
    number: int


class LeaseLost(JobError):
    """Another runner carries this retrain out by now, or it has ended."""


class Leases:
    """Those of one ``runner`` on retrains of ``models``. What it holds is on the log: a runner that died finds it again by its name.

    So two that are called the same find the same lease. Whoever began last goes on with it, and the other leaves it alone from then on.
    """

    def __init__(self, log: ControlLog, runner: str, models: Container[str], stopped: Callable[[], bool]) -> None:
        self._log, self._runner, self._models, self._stopped = log, runner, models, stopped
        self._next_claim: dict[str, float] = {}
        self._begun: dict[tuple[str, int], int] = {}
        self._left: set[tuple[str, int]] = set()

    def open(self) -> list[RetrainRequest]:
        """What is granted and has not ended, oldest first."""
        ended = {each.retrain_id for each in self._decisions() if each.what in ENDED}
        return [each for _, each in self._log.records(REQUESTS, RetrainRequest)
                if each.retrain_id not in ended and each.model in self._models]

    def take(self) -> Lease | None:
        """The lease on the oldest retrain that this runner holds or, where it holds none, is given now."""
        decisions, open_ = self._decisions(), self.open()
        if not open_:
            return None
        own = {offset for offset, record in self._log.records(RUNS, RunRecord) if record.runner == self._runner}
        for request in open_:
            number = _held(decisions, request.retrain_id, own)
            if number is not None and (request.retrain_id, number) not in self._left:
                return Lease(request, number)
        for request in open_:
            if time.monotonic() >= self._next_claim.get(request.retrain_id, 0.0):
                self._next_claim[request.retrain_id] = time.monotonic() + CLAIM_EVERY_S  # another runner may hold it for long
                if (given := self._claim(request)) is not None:
                    return given
        return None

    def begin(self, lease: Lease) -> int:
        """Say that work on ``lease`` begins; how often it was begun on this retrain, by whom ever, this time included."""
        request = lease.request
        self._begun[request.retrain_id, lease.number] = self._log.publish(
            RUNS, RunRecord(request.model, self._runner, "beat", request.retrain_id, lease.number, BEGINS), request.at_ms)
        return sum((record.retrain_id, record.reason) == (request.retrain_id, BEGINS) for _, record in self._log.records(RUNS, RunRecord))

    def check(self, lease: Lease) -> None:
        """Raise LeaseLost where it is of no use to go on. A lease that only ran out may be had again."""
        for each in self._decisions():
            overtaken = each.what == "started" and each.lease > lease.number
            if each.retrain_id == lease.request.retrain_id and (overtaken or each.what in ENDED):
                raise LeaseLost(f"retrain {each.retrain_id} went on without lease {lease.number}: {each.what}, {each.reason}")
        held = lease.request.retrain_id, lease.number
        begun = self._begun.get(held)
        if begun is not None and any(offset > begun and (record.retrain_id, record.lease, record.reason) == (*held, BEGINS)
                                     for offset, record in self._log.records(RUNS, RunRecord)):
            self._left.add(held)
            raise LeaseLost(f"another runner that is called {self._runner} began on lease {held[1]} of retrain {held[0]}")

    def renewed(self, lease: Lease) -> Lease:
        """``lease``, or another on the same retrain where it ran out. Raises LeaseLost where there is none to be had."""
        self.check(lease)
        name = lease.request.retrain_id
        if not any((each.what, each.retrain_id, each.lease) == ("lease-expired", name, lease.number) for each in self._decisions()):
            return lease
        if (again := self._claim(lease.request)) is None:
            raise LeaseLost(f"lease {lease.number} of retrain {name} ran out, and no other was to be had")
        return again

    def _claim(self, request: RetrainRequest) -> Lease | None:
        claim = self._log.publish(RUNS, RunRecord(request.model, self._runner, "claim", request.retrain_id), request.at_ms)
        answer = self._log.answer(RUNS, claim, ("started", "ignored"), self._stopped)
        if answer is None or (answer.what, answer.retrain_id) != ("started", request.retrain_id):
            return None
        return Lease(request, answer.lease)

    def _decisions(self) -> list[RetrainDecision]:
        return [each for _, each in self._log.records(DECISIONS, RetrainDecision) if each.by == "governor"]


def _held(decisions: list[RetrainDecision], retrain_id: str, own: set[int]) -> int | None:
    """The lease on ``retrain_id`` that was given to a claim of ``own`` and has not run out, of what a governor decided."""
    lease = None
    for each in decisions:
        if each.retrain_id == retrain_id:
            if each.what == "started" and each.source == RUNS:
                lease = each.lease if each.offset in own else None
            elif each.what == "lease-expired" and each.lease == lease:
                lease = None
    return lease
