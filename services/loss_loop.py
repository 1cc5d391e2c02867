"""The loop that watches fraud, over one stream of losses: detector, policy and governor, in stream time, without engines.

It decides; who fits and judges a candidate is the caller, who takes what is granted and answers as a runner does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from feature_repo.models import DriftPolicy
from streams.budget import Budget, design_effect, solve
from streams.detectors.losses import LossBatch, LossDetector, LossReference
from streams.governor import Ask, Beat, Claim, Governor, Input, Outcome, Result, Rules, Tick, govern
from streams.policy import History, Signal, Window, decide, labels_missing

__all__ = ["LossLoop", "Said"]

STREAM, RUNNER = "error", "in-process"


@dataclass(frozen=True, slots=True)
class Said:
    """One event of the loop, at ``at_ms`` of stream time, about the champion ``version``."""

    at_ms: int
    by: Literal["detector", "policy", "governor"]
    what: str
    reason: str
    version: str
    facts: dict[str, Any]


class LossLoop:
    """``said`` is everything so far. ``per_day``: losses of a day, which the budget counts by and the design effect is measured on."""

    def __init__(self, model: str, policy: DriftPolicy, per_day: int) -> None:
        self.said: list[Said] = []
        self._model, self._policy, self._per_day = model, policy, per_day
        self._rules = Rules(per_week=policy.retrains_per_week, cooldown_ms=policy.cooldown_ms, labels=policy.labels)
        self._governor = Governor()
        self._last_ms: int | None = None
        self._episode_matured = 0
        self._number = 0

    def crown(self, version: str, at_ms: int, losses: Any) -> None:
        """``version`` is live: its reference is frozen from ``losses`` on rows that it was not trained on; all else begins anew."""
        cluster = design_effect(losses, self._per_day)
        reference = LossReference(version, (float(losses.sum()),), (len(losses),), cluster=cluster)
        arl = solve(Budget(self._policy.false_alarms, self._policy.days), {STREAM: self._per_day})[STREAM]
        self._version, self._detector = version, LossDetector(reference, arl)
        self._state, self._history, self._alarming = self._detector.start(), History(last_ms=self._last_ms), False
        self._began_ms: int | None = None
        self._say(at_ms, "detector", "reference", f"error {reference.rate:.3f}, at most {reference.level_bound:.3f}; "
                  f"{cluster:.1f} losses come together",
                  {"rate": reference.rate, "bound": reference.level_bound, "cluster": cluster, "n": reference.n, "arl": arl})

    def close(self, until_ms: int, losses: Any, times_ms: Any, matured: int) -> str | None:
        """Judge the window that ends at ``until_ms`` with the losses that have come of age in it. The episode of a retrain, if granted."""
        self._last_ms = until_ms
        self._state = self._detector.update(self._state, LossBatch(losses, times_ms))
        verdict = self._detector.judge(self._state)
        alarm = verdict.status == "ALARM"
        if alarm and not self._alarming:
            self._say(until_ms, "detector", "alarm", f"error {verdict.effect:+.3f} against the reference", asdict(verdict))
            starts = [ms for ms in (self._began_ms, verdict.suspected_start_ms) if ms is not None]
            self._began_ms = min(starts, default=None)
        self._alarming = alarm
        judged = len(losses) > 0 and verdict.status != "INSUFFICIENT_DATA"
        signal = Signal(STREAM, "concept", alarm, verdict.statistic / verdict.threshold, judged)
        open_ms = self._history.episode_ms
        self._history, decision = decide(self._history, Window(until_ms, (signal,)))
        if self._history.episode_ms != open_ms:
            self._episode_matured = matured
        if self._history.episode_ms is None:
            self._began_ms = None
        self._govern(Tick("windows", until_ms, until_ms, matured))
        granted = None
        if decision.request and decision.episode is not None:
            waits = labels_missing(until_ms, self._policy.age_ms, self._policy.labelled_ms, self._began_ms)
            if waits:
                self._say(until_ms, "policy", "waits", waits, {})
            else:
                granted = self._ask("policy", until_ms, matured, decision.episode, decision.reason, self._episode_matured)
        period = self._policy.calendar_ms
        if period is not None and (until_ms - self._policy.window_ms) // period != until_ms // period:
            granted = self._ask("calendar", until_ms, matured, f"calendar:{until_ms // period}", "the calendar says so") or granted
        return granted

    def answer(self, at_ms: int, matured: int, outcome: Outcome) -> None:
        """What a runner says that took the retrain, trained a candidate and judged it."""
        retrain, lease = self._governor.retrain, self._governor.lease + 1
        for given in (Claim(*self._place(at_ms, matured), RUNNER), Beat(*self._place(at_ms, matured), retrain, lease, True),
                      Result(*self._place(at_ms, matured), retrain, lease, outcome)):
            self._govern(given)

    def _place(self, at_ms: int, matured: int) -> tuple[str, int, int, int]:
        self._number += 1
        return "runs", self._number, at_ms, matured

    def _ask(self, source: str, at_ms: int, matured: int, episode: str, why: str, began: int | None = None) -> str | None:
        given = Ask(source, at_ms, at_ms, matured, self._model, self._version, self._version, episode, why, (("labels/0", matured),),
                    began)
        return episode if "requested" in self._govern(given) else None

    def _govern(self, given: Input) -> list[str]:
        self._governor, events = govern(self._governor, given, self._rules)
        for event in events:
            self._say(event.at_ms, "governor", event.what, event.reason, {"retrain_id": event.retrain, "lease": event.lease})
        return [event.what for event in events]

    def _say(self, at_ms: int, by: Literal["detector", "policy", "governor"], what: str, reason: str, facts: dict[str, Any]) -> None:
        self.said.append(Said(at_ms, by, what, reason, self._version, facts))


