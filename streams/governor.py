"""Who may retrain, and when: IDLE, PENDING, RUNNING, EVALUATING, COOLDOWN, in stream time. A pure function of state and input.

Every request for a retrain, be it for drift, for the calendar, for labels or by hand, gets exactly one decision, with its reason.
What asks about the same change has the same ``retrain_id``, so ten alarms are one retrain; an input at or below a source's mark has been
decided before and changes nothing, so a replay is one too. Only where a candidate could not be judged for want of labels does its cause
get another retrain, once there are twice as many. At most one retrain is in flight; a runner holds it by a lease, and speaks
with the lease's number, so that one that was given up for dead cannot answer for its successor.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Literal, assert_never

from schemas.errors import DefinitionError

__all__ = ["Ask", "Beat", "Claim", "Event", "Governor", "Input", "Outcome", "Pins", "Result", "Rules", "Tick", "govern", "retrain_id"]

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
Phase = Literal["IDLE", "PENDING", "RUNNING", "EVALUATING", "COOLDOWN"]
Outcome = Literal["promoted", "rejected", "inconclusive", "failed"]
"""Of a retrain: its candidate is live, or is not better, or could not be shown to be either; ``failed`` says nothing of any candidate."""
Pins = tuple[tuple[str, int], ...]
"""(topic/partition, offset): what the retrain may read, up to and without these offsets."""


@dataclass(frozen=True, slots=True)
class Rules:
    """A model's retrain policy. ``labels``: how many must mature after a retrain before the next."""

    per_week: int = 2
    cooldown_ms: int = 2 * DAY_MS
    labels: int = 1_000
    lease_ms: int = 3_600_000
    attempts: int = 3
    longest_doubling: int = 4


@dataclass(frozen=True, slots=True)
class Input:
    """``source`` and ``offset`` say where it stands in the log; within a source offsets only grow. ``at_ms`` is stream time."""

    source: str
    offset: int
    at_ms: int
    matured: int
    """Labels matured so far, over all time."""


@dataclass(frozen=True, slots=True)
class Ask(Input):
    """``episode`` names the cause: ``drift:<ms>``, ``calendar:<number of the period>``, ``labels:<matured / label_volume>``,
    ``manual:<id>``. ``began`` is how many labels had matured when it began (None: as many as now)."""

    model: str
    champion: str
    reference: str
    episode: str
    why: str
    pins: Pins
    began: int | None = None


@dataclass(frozen=True, slots=True)
class Claim(Input):
    """A runner takes what is pending."""

    runner: str


@dataclass(frozen=True, slots=True)
class Beat(Input):
    """A runner lives; ``evaluating``: the candidate is trained and stands before its gates."""

    retrain: str
    lease: int
    evaluating: bool = False


@dataclass(frozen=True, slots=True)
class Result(Input):
    retrain: str
    lease: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Tick(Input):
    """Time has passed, or labels have matured."""


@dataclass(frozen=True, slots=True)
class Event:
    """``what`` happened, and why. ``lease`` numbers the attempt; ``pins`` are those of the request."""

    what: Literal["requested", "declined", "started", "evaluating", "promoted", "rejected", "inconclusive", "failed", "lease-expired",
                  "ignored", "cooled-down", "person-asked"]
    at_ms: int
    retrain: str
    reason: str
    lease: int = 0
    pins: Pins = ()
    source: str = ""
    offset: int = -1


@dataclass(frozen=True)
class Governor:
    """One model's state. ``served`` keeps every cause that was granted a retrain; ``requests`` the times of the grants of the last week.

    ``unsettled``: cause -> how many inconclusive retrains it had, and how many labels must have matured for the next. Of the retrain in
    flight ``cause`` is what it is for, ``tries`` its number, ``began`` and ``asked`` the labels when its cause began and when it
    was granted. ``ended`` counts outcomes; ``rejected`` those in a row.
    """

    phase: Phase = "IDLE"
    now_ms: int = 0
    matured: int = 0
    marks: dict[str, int] = field(default_factory=dict)
    served: tuple[str, ...] = ()
    requests: tuple[int, ...] = ()
    retrain: str = ""
    pins: Pins = ()
    lease: int = 0
    lease_until_ms: int = 0
    attempts: int = 0
    ended_ms: int = 0
    ended_matured: int = 0
    rejected: int = 0
    cause: str = ""
    tries: int = 0
    began: int = 0
    asked: int = 0
    unsettled: dict[str, tuple[int, int]] = field(default_factory=dict)
    ended: dict[Outcome, int] = field(default_factory=dict)


def retrain_id(model: str, champion: str, reference: str, episode: str) -> str:
    """The same cause against the same champion and reference is the same retrain.

    >>> retrain_id("fraud", "7", "v12", "drift:1")
    '19e0a3d60f2b34f5'
    """
    return hashlib.sha256(json.dumps([model, champion, reference, episode]).encode()).hexdigest()[:16]


def govern(state: Governor, given: Input, rules: Rules) -> tuple[Governor, tuple[Event, ...]]:
    """The next state and what is to be published. Time never runs back: an input from the past is judged at the latest time seen."""
    if given.offset <= state.marks.get(given.source, -1):
        return state, ()
    now, matured = max(state.now_ms, given.at_ms), max(state.matured, given.matured)
    state = replace(state, now_ms=now, matured=matured, marks={**state.marks, given.source: given.offset},
                    requests=tuple(ms for ms in state.requests if ms > now - WEEK_MS))
    state, events = _pass_time(state, rules)
    match given:
        case Ask():
            state, said = _ask(state, given, rules)
        case Claim():
            state, said = _claim(state, given, rules)
        case Beat() | Result():
            state, said = _hear(state, given, rules)
        case Tick():
            said = ()
        case _:
            raise DefinitionError(f"a governor was given a {type(given).__name__}", hint="give an Ask, Claim, Beat, Result or Tick")
    return state, tuple(replace(event, source=given.source, offset=given.offset) for event in (*events, *said))


def _pass_time(state: Governor, rules: Rules) -> tuple[Governor, tuple[Event, ...]]:
    """What happens because it is later: a lease runs out, a cool-down ends."""
    match state.phase:
        case "RUNNING" | "EVALUATING" if state.now_ms >= state.lease_until_ms:
            expired = Event("lease-expired", state.now_ms, state.retrain, f"no sign of life since lease {state.lease}", state.lease)
            if state.attempts < rules.attempts:
                return replace(state, phase="PENDING"), (expired,)
            state, events = _end(state, "failed", f"{state.attempts} attempts died", rules)
            return state, (expired, *events)
        case "COOLDOWN" if not _cooling(state, rules):
            return replace(state, phase="IDLE"), (Event("cooled-down", state.now_ms, state.retrain, "time and labels suffice"),)
        case "IDLE" | "PENDING" | "RUNNING" | "EVALUATING" | "COOLDOWN":
            return state, ()
        case never:
            assert_never(never)


def _cooling(state: Governor, rules: Rules) -> str:
    """What the cool-down waits for; nothing where it is over. Each rejection in a row doubles the time."""
    doubling = min(state.rejected, rules.longest_doubling)
    until = state.ended_ms + (rules.cooldown_ms << doubling)
    labels = state.ended_matured + rules.labels
    waits = [f"until {until} ms"] if state.now_ms < until else []
    waits += [f"for {labels - state.matured} more labels"] if state.matured < labels else []
    return " and ".join(waits)


def _ask(state: Governor, given: Ask, rules: Rules) -> tuple[Governor, tuple[Event, ...]]:
    cause = name = retrain_id(given.model, given.champion, given.reference, given.episode)
    tries, labels = state.unsettled.get(cause, (0, 0))
    if tries:
        name = retrain_id(given.model, given.champion, given.reference, f"{given.episode}#{tries + 1}")
    if cause in state.served and not tries:
        reason = "this cause has had its retrain"
    elif state.matured < labels:
        reason = f"retrain {tries} of this cause was inconclusive; waits for {labels - state.matured} more labels"
    elif state.phase == "COOLDOWN":
        reason = f"cooling down {_cooling(state, rules)}"
    elif state.phase != "IDLE":
        reason = f"retrain {state.retrain} is in flight"
    elif len(state.requests) >= rules.per_week:
        reason = f"budget of {rules.per_week} a week is spent"
    else:
        began = state.matured if given.began is None else min(given.began, state.matured)
        state = replace(state, phase="PENDING", retrain=name, pins=given.pins, attempts=0, requests=(*state.requests, state.now_ms),
                        served=state.served if tries else (*state.served, cause), cause=cause, tries=tries + 1, began=began,
                        asked=state.matured, unsettled={each: what for each, what in state.unsettled.items() if each != cause})
        return state, (Event("requested", state.now_ms, name, given.why, state.lease, given.pins),)
    return state, (Event("declined", state.now_ms, name, reason),)


def _claim(state: Governor, given: Claim, rules: Rules) -> tuple[Governor, tuple[Event, ...]]:
    if state.phase != "PENDING":
        return state, (Event("ignored", state.now_ms, state.retrain, f"{given.runner} claims, but the phase is {state.phase}"),)
    state = replace(state, phase="RUNNING", lease=state.lease + 1, attempts=state.attempts + 1,
                    lease_until_ms=state.now_ms + rules.lease_ms)
    return state, (Event("started", state.now_ms, state.retrain, f"{given.runner}, attempt {state.attempts}", state.lease, state.pins),)


def _hear(state: Governor, given: Beat | Result, rules: Rules) -> tuple[Governor, tuple[Event, ...]]:
    if state.phase not in ("RUNNING", "EVALUATING") or (given.retrain, given.lease) != (state.retrain, state.lease):
        return state, (Event("ignored", state.now_ms, given.retrain, f"lease {given.lease} is not held", given.lease),)
    if isinstance(given, Result):
        return _end(state, given.outcome, f"said by lease {given.lease}", rules)
    first = given.evaluating and state.phase == "RUNNING"
    state = replace(state, phase="EVALUATING" if given.evaluating else state.phase, lease_until_ms=state.now_ms + rules.lease_ms)
    return state, (Event("evaluating", state.now_ms, state.retrain, "the candidate is trained", state.lease),) if first else ()


def _end(state: Governor, outcome: Outcome, reason: str, rules: Rules) -> tuple[Governor, tuple[Event, ...]]:
    rejected = 0 if outcome == "promoted" else state.rejected + (outcome == "rejected")
    unsettled = {} if outcome == "promoted" else state.unsettled
    if outcome == "inconclusive":
        labels = max(2 * state.asked - state.began, state.asked + rules.labels)  # twice as many since it began
        unsettled = {**unsettled, state.cause: (state.tries, labels)}
    ended = replace(state, phase="COOLDOWN", ended_ms=state.now_ms, ended_matured=state.matured, rejected=rejected, unsettled=unsettled,
                    ended={**state.ended, outcome: state.ended.get(outcome, 0) + 1})
    events = [Event(outcome, state.now_ms, state.retrain, reason, state.lease)]
    if outcome == "failed" or (outcome == "rejected" and rejected >= 2):
        asked = "the run failed" if outcome == "failed" else f"{rejected} candidates in a row were rejected"
        events.append(Event("person-asked", state.now_ms, state.retrain, f"{asked}; cooling down {_cooling(ended, rules)}"))
    return ended, tuple(events)
