"""An online learner behind the loop that watches fraud: frozen, governed, or taught with every label, on the same rows.

A label is known ``delay`` rows after its row was predicted. The governed learner is frozen between releases; its losses go through
``services.loss_loop``, and a granted retrain is carried out at once, on labels known by then: the newest ``judge`` rows are for the gates,
the ``learn`` rows before them are learnt from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from feature_repo.models import DriftPolicy
from feature_repo.views import DAY_MS
from jobs.bootstrap import paired_hits
from jobs.gates import Evidence, GateRules, cure, non_inferiority, walk
from schemas.errors import SettingsError
from services.labelled_rows import LabelledRows
from services.loss_loop import LossLoop, Said

__all__ = ["Governed", "Plan", "Retrain", "frozen", "governed", "make_plan", "updating"]

MARGIN, TELLING_DAYS = 0.02, 7
"""Of the gates: how much accuracy may be lost where no drift asked; on how many days champion and candidate have to differ."""


class Teachable(Protocol):
    def learn(self, rows: Any, labels: Any) -> None: ...

    def predict(self, rows: Any) -> Any: ...


Make = Callable[[], Teachable]
Tell = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """Numbers of rows. ``follow``: after a release, on how many it is compared with the version before."""

    step_ms: int
    delay: int
    learn: int
    judge: int
    follow: int
    window: int

    @property
    def start(self) -> int:
        """The first row that is scored: a whole window, by when the labels of the first fit and of the first reference are known."""
        return -(-(self.learn + self.judge + self.delay - 1) // self.window) * self.window

    def known(self, row: int) -> int:
        """Labels of the rows before this one are known when ``row`` is predicted."""
        return max(row - self.delay + 1, 0)

    def check(self, rows: int) -> None:
        if rows < self.start + self.window:
            raise SettingsError(f"{rows:,} rows, and the first fit with its reference takes {self.start:,}", hint="give a longer file")


@dataclass(frozen=True)
class Retrain:
    """One that was granted, before ``row``. ``old`` and ``new``: accuracy of champion and candidate on the ``rows`` that followed, of a
    refused candidate, too: was that right?"""

    row: int
    at_ms: int
    episode: str
    version: str
    released: bool
    evidence: tuple[Evidence, ...]
    rows: int
    old: float
    new: float


@dataclass(frozen=True)
class Governed:
    """``predicted``: bool[n - start]."""

    predicted: Any
    said: list[Said]
    retrains: list[Retrain]


def make_plan(step_ms: int, delay: int) -> Plan:
    """Learn from 28 days, judge on 14, follow 28, look every day. Raises SettingsError where a day is no whole number of steps."""
    if step_ms <= 0 or DAY_MS % step_ms or delay < 1:
        raise SettingsError(f"steps of {step_ms} ms and labels {delay} steps late",
                            hint="a day is a whole number of steps, a delay is 1 or more")
    day = DAY_MS // step_ms
    return Plan(step_ms, delay, 28 * day, 14 * day, 28 * day, day)


def frozen(stream: LabelledRows, plan: Plan, make: Make) -> Any:
    """bool[n - start]: what is predicted by a learner that was fitted once."""
    return _fit(stream, make, 0, plan.learn).predict(stream.rows[plan.start:])


def updating(stream: LabelledRows, plan: Plan, make: Make, tell: Tell = lambda row: None) -> Any:
    """bool[n - start]: test, then train, with every label as soon as it is known."""
    learner, predicted = make(), np.zeros(len(stream.rows), bool)
    for row in range(len(stream.rows)):
        learner.learn(stream.rows[plan.known(row - 1):plan.known(row)], stream.labels[plan.known(row - 1):plan.known(row)])
        if row >= plan.start:
            predicted[row] = learner.predict(stream.rows[row:row + 1])[0]
        if row % plan.window == 0:
            tell(row)
    return predicted[plan.start:]


def governed(stream: LabelledRows, plan: Plan, policy: DriftPolicy, make: Make, tell: Tell = lambda row: None) -> Governed:
    """Frozen until the loop grants a retrain and its candidate passes the gates."""
    n, labels = len(stream.rows), stream.labels
    loop = LossLoop("online", policy, DAY_MS // plan.step_ms)
    champion, version, released = _fit(stream, make, 0, plan.learn), 1, plan.start
    loop.crown("1", plan.start * plan.step_ms, _losses(champion, stream, plan.learn, plan.learn + plan.judge))
    predicted, retrains = np.zeros(n, bool), []
    for first in range(plan.start, n, plan.window):
        last = min(first + plan.window, n)
        predicted[first:last] = champion.predict(stream.rows[first:last])
        tell(last)
        if last == n:  # nothing follows that a decision would be for
            break
        until_ms, known = last * plan.step_ms, plan.known(last)
        aged = np.arange(max(plan.known(first), released), max(known, released))
        episode = loop.close(until_ms, (predicted[aged] != labels[aged]).astype(float), aged * plan.step_ms, known)
        if episode is None:
            continue
        candidate = _fit(stream, make, known - plan.judge - plan.learn, known - plan.judge)
        evidence = _judge(stream, plan, champion, candidate, known, drift=episode.startswith("drift"))
        passed, failed = all(each.outcome == "PASS" for each in evidence), evidence[-1].outcome == "FAIL"
        loop.answer(until_ms, known, "promoted" if passed else "rejected" if failed else "inconclusive")
        ahead = slice(last, last + plan.follow)
        old, new = (float(np.mean(each.predict(stream.rows[ahead]) == labels[ahead])) for each in (champion, candidate))
        retrains.append(Retrain(last, until_ms, episode, str(version + 1), passed, evidence, len(labels[ahead]), old, new))
        if passed:
            champion, version, released = candidate, version + 1, last
            loop.crown(str(version), until_ms, _losses(candidate, stream, known - plan.judge, known))
    return Governed(predicted[plan.start:], loop.said, retrains)


def _fit(stream: LabelledRows, make: Make, first: int, last: int) -> Teachable:
    learner = make()
    learner.learn(stream.rows[first:last], stream.labels[first:last])
    return learner


def _losses(learner: Teachable, stream: LabelledRows, first: int, last: int) -> Any:
    return (learner.predict(stream.rows[first:last]) != stream.labels[first:last]).astype(float)


def _judge(stream: LabelledRows, plan: Plan, champion: Teachable, candidate: Teachable, known: int, drift: bool) -> tuple[Evidence, ...]:
    """On the newest labelled rows, that neither was trained on; drawn by day."""
    first, rules = known - plan.judge, GateRules(MARGIN, TELLING_DAYS)
    new, old = (_losses(each, stream, first, known) == 0 for each in (candidate, champion))
    found = paired_hits(np.arange(first, known) * plan.step_ms // DAY_MS, new, old)
    gates = {"quality": lambda: non_inferiority(found, rules), **({"cure": lambda: cure(found, rules)} if drift else {})}
    return tuple(walk(gates.items()))
