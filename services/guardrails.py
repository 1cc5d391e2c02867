"""What guardrails of a canary have seen, and what follows from it. Pure: predictions and evaluations in, an action with its facts out.

    errors    a prediction that is degraded, has no score, or was not made by the version that it was due from
    alerts    an alert: many more are harm, and so are many fewer
    losses    a decision that turned out wrong, told when it is old enough for its label (``age_ms``)
    latency   the candidate took longer than ``SLOWER`` times the champion for the same row (``services.canary.Probe``)

Of the first three an entity counts once, and arms are by the bucket, whoever answered: ``streams.detectors.arms`` says why that bounds
false rollbacks. The strongest of the four is compared with 4/alpha (Bonferroni): an entity that told its arm to one guardrail tosses no
coin for another, so their values may not be averaged while one looks all the time.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from typing import Any

import msgspec

from schemas.evaluations import Evaluation
from schemas.releases import BUCKETS, Action, Canary, Release
from services.canary import bucket
from services.rails import RAILS, Track
from streams.detectors.arms import FEWER, Evidence

__all__ = ["Guardrails", "Predicted", "Verdict"]

SLOWER = 1.5
RARE, RARE_SPILL = 0.005, 0.001
"""The error rate of candidates below which it is of no interest whose is higher, the more the smaller the step."""
PENDING = 1_000_000
"""So many evaluations wait at most until they are of age; what comes then is not counted."""


class Predicted(msgspec.Struct, frozen=True, gc=False):
    """What is read of a prediction; ``subject`` is the entity that arms are drawn by."""

    subject: str
    model_version: str | None
    score: float | None
    alert: bool | None
    degraded: bool
    arrival_ms: int
    epoch: int | None


@dataclass(frozen=True)
class Verdict:
    """``action`` None: go on. ``facts`` are plain values."""

    action: Action | None
    why: str
    facts: dict[str, Any]

    @property
    def evidence(self) -> str:
        """sha256 in hex of the facts."""
        return hashlib.sha256(msgspec.json.encode(self.facts, order="deterministic")).hexdigest()


class Guardrails:
    """Of one canary of a model with champion ``champion``. ``age_ms`` is how old a decision must be to be judged."""

    def __init__(self, canary: Canary, champion: str, age_ms: int) -> None:
        self.canary, self._champion, self._age_ms = canary, champion, age_ms
        shares = tuple(share / BUCKETS for share in canary.steps)
        self.tracks = {rail.name: Track(rail, shares) for rail in RAILS}
        self._rare = {_rare(share): Evidence.start(FEWER) for share in shares}
        self.now_ms = canary.began_ms
        self.predictions = [0, 0]
        self._steps: dict[int, tuple[int, float]] = {}
        self._pending: dict[str, Evaluation] = {}
        self._due: list[tuple[int, str]] = []
        self._first: set[str] = set()

    def step(self, release: Release) -> None:
        """``release`` belongs to this canary: its epoch has that one's share."""
        if release.canary is not None:
            self.canary = release.canary
            self._steps[release.epoch] = release.at_ms, release.canary.share / BUCKETS

    def predicted(self, one: Predicted) -> None:
        """Of another epoch it only tells the time."""
        self._pass(one.arrival_ms)
        share = self._steps.get(one.epoch or 0, (0, 0.0))[1]
        if not share:
            return
        mine = self._mine(one.subject, share)
        self.predictions[mine] += 1
        due = self.canary.version if mine else self._champion
        failed = one.degraded or one.score is None or one.model_version != due
        if mine and one.subject not in self._first:
            self._first.add(one.subject)
            self._rare = {rate: each.after(failed, rate) for rate, each in self._rare.items()}
        if failed:
            self.tracks["errors"].count(one.subject, mine, share)
        if one.alert:
            self.tracks["alerts"].count(one.subject, mine, share)

    def probed(self, epoch: int | None, champion_ns: int, candidate_ns: int) -> None:
        """A fair coin, where the candidate is as fast as is tolerated."""
        if epoch in self._steps:
            track = self.tracks["latency"]
            slow = candidate_ns > SLOWER * champion_ns
            track.draw(slow, 0.5)
            name = f"probe-{len(track.mine) + len(track.control)}"
            if slow:
                track.mine.add(name)
            else:
                track.control[name] = 0.5

    def evaluated(self, one: Evaluation) -> None:
        """Kept until it is of age; a later revision takes the place of an earlier one."""
        self.now_ms = max(self.now_ms, one.at_ms)
        if one.alert is None or one.predicted_ms < self.canary.began_ms or one.model_version not in (self._champion, self.canary.version):
            return
        held = self._pending.get(one.prediction_id)
        if held is None and len(self._pending) < PENDING:
            heapq.heappush(self._due, (one.predicted_ms + self._age_ms, one.prediction_id))
            self._pending[one.prediction_id] = one
        elif held is not None and held.revision < one.revision:
            self._pending[one.prediction_id] = one

    def judge(self, live: Release) -> Verdict:
        """What to do in the state that is live."""
        self._mature()
        canary, facts = self.canary, self.facts()
        evidence, limit = facts["evidence"], 1 / canary.alpha
        if evidence >= limit:
            worst = max(self.tracks.values(), key=lambda each: each.harm)
            return Verdict("rollback", f"{worst.rail.name}: {self._words(worst)}; evidence {evidence:.3g} of {limit:.3g}", facts)
        held_ms = self.now_ms - canary.since_ms
        missing = self._missing(limit)
        if live.paused:
            return Verdict(None, "paused", facts)
        if canary.rule != "person" and held_ms >= canary.hold_ms and not missing:
            return Verdict("advance", f"held at {canary.share / 100:g} % for {held_ms / 3_600_000:.1f} h, guardrails kept", facts)
        if held_ms >= canary.deadline_ms:
            lacks = ", ".join(missing) or "a person's word"
            return Verdict("pause", f"no answer by the deadline at {canary.share / 100:g} %, missing: {lacks}", facts)
        return Verdict(None, f"waits for {', '.join(missing) or 'time'}", facts)

    def facts(self) -> dict[str, Any]:
        rails = {name: track.facts(self.canary.share / BUCKETS) for name, track in self.tracks.items()}
        return {"version": self.canary.version, "share": self.canary.share, "step": self.canary.step, "at_ms": self.now_ms,
                "alpha": self.canary.alpha, "evidence": max(track.harm for track in self.tracks.values()) / len(self.tracks),
                "predictions": {"champion": self.predictions[0], "candidate": self.predictions[1]}, "rails": rails}

    def _missing(self, limit: float) -> list[str]:
        """What is not shown yet."""
        if self.canary.rule == "losses":
            return [] if self.tracks["losses"].better.value >= limit else ["that its decisions are better"]
        share = self.canary.share / BUCKETS
        kept = {name: track.safe(share) >= limit for name, track in self.tracks.items() if track.rail.needed}
        kept["errors"] |= self._rare[_rare(share)].value >= limit
        return [name for name, shown in kept.items() if not shown]

    def _mature(self) -> None:
        """Count what is of age now. A step's first seconds are left out: who was in then is not known from the time alone."""
        while self._due and self._due[0][0] <= self.now_ms:
            one = self._pending.pop(heapq.heappop(self._due)[1])
            share = self._share_at(one.predicted_ms)
            if share and one.alert != one.label:
                self.tracks["losses"].count(one.subject, self._mine(one.subject, share), share)

    def _share_at(self, at_ms: int) -> float:
        """0 where it is not certain."""
        share = 0.0
        for since_ms, of_step in self._steps.values():
            if since_ms <= at_ms:
                share = of_step if at_ms >= since_ms + SETTLE_MS else 0.0
        return share

    def _mine(self, subject: str, share: float) -> bool:
        return bucket(self.canary.salt, subject) < round(share * BUCKETS)

    def _pass(self, at_ms: int) -> None:
        self.now_ms = max(self.now_ms, at_ms)

    def _words(self, track: Track) -> str:
        if track.rail.name == "latency":
            return f"slower than {SLOWER:g} times the champion in {len(track.mine)} of {len(track.mine) + len(track.control)} probes"
        return f"{len(track.mine)} entities of the candidate, {track.expected:.1f} expected, {len(track.control)} of the champion"


def _rare(share: float) -> float:
    return max(RARE, RARE_SPILL / share)


SETTLE_MS = 10_000
"""After a step every scorer has taken it up."""
