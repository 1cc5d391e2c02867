"""From verdicts to a request, or to the reason why there is none. A pure function of the history and one window's signals.

OK becomes WARNING with the first alarm, DRIFT when it is confirmed: a signal in two of the last three windows that could be judged, or
two families of signals within them. Only DRIFT with measured loss, or with two confirmed families without it, asks for a retrain; while
a feed is at fault nothing does. A level is left only after ``CALM`` windows in which every signal lies well below its threshold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from schemas.errors import DefinitionError

__all__ = ["Decision", "History", "Level", "Signal", "Window", "change_began", "decide", "labels_missing"]

Level = Literal["OK", "WARNING", "DRIFT"]
Family = Literal["feed", "data", "prediction", "concept", "performance"]
HARM: frozenset[str] = frozenset({"concept", "performance"})
DAY_MS = 86_400_000
REMEMBERED = 3
CONFIRMING = 2
CALM = 3
CALM_SHARE = 0.5
"""A statistic below this share of its threshold is calm; between the two a level neither rises nor falls."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What one detector says at the close of a window: ``strength`` is statistic / threshold. ``judged``: it had data enough."""

    name: str
    family: Family
    alarm: bool
    strength: float
    judged: bool = True


@dataclass(frozen=True, slots=True)
class Window:
    """All signals of one model at the close of a window, at ``end_ms`` of stream time."""

    end_ms: int
    signals: tuple[Signal, ...]


@dataclass(frozen=True, slots=True)
class History:
    """What a model's policy remembers. ``recent``: (name, family) of the alarms of the last judged windows, newest last."""

    level: Level = "OK"
    recent: tuple[tuple[tuple[str, str], ...], ...] = ()
    calm: int = 0
    episode_ms: int | None = None
    last_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One per window. ``request`` False says why not; ``episode`` names the change, None where none is open."""

    at_ms: int
    level: Level
    request: bool
    reason: str
    episode: str | None
    evidence: tuple[str, ...]


def decide(history: History, window: Window) -> tuple[History, Decision]:
    """A request is repeated in every window of its episode that earns it: the governor knows which it has served.

    Raises DefinitionError for a window that does not follow the last one.
    """
    if history.last_ms is not None and window.end_ms <= history.last_ms:
        raise DefinitionError(f"a window that ends at {window.end_ms} ms after one at {history.last_ms} ms",
                              hint="judge each window once, in the order of stream time")
    faults = sorted(signal.name for signal in window.signals if signal.family == "feed" and signal.alarm)
    judged = [signal for signal in window.signals if signal.judged and signal.family != "feed"]
    history = replace(history, last_ms=window.end_ms)
    if faults:
        return _say(history, False, f"pipeline: {', '.join(faults)}", faults)
    if not judged:
        return _say(history, False, "insufficient data", ())
    alarms = sorted({(signal.name, signal.family) for signal in judged if signal.alarm})
    history = _move(replace(history, recent=(*history.recent, tuple(alarms))[-REMEMBERED:]), judged, window.end_ms)
    evidence = [name for name, _ in alarms]
    if history.level != "DRIFT":
        return _say(history, False, "not confirmed" if alarms else "no alarm", evidence)
    if not alarms:
        return _say(history, False, "no alarm in this window", ())
    confirmed = _confirmed_families(history.recent)
    if harm := sorted(HARM & {family for _, family in alarms} & confirmed):
        return _say(history, True, f"measured loss: {', '.join(harm)}", evidence)
    if any(family in HARM for _, family in alarms) and len(_families(history.recent)) > 1:
        return _say(history, True, "measured loss beside another signal", evidence)
    if len(confirmed) > 1:
        return _say(history, True, f"two signals: {', '.join(sorted(confirmed))}", evidence)
    return _say(history, False, "no measured loss, and one family of signals only", evidence)


def change_began(alarms: Iterable[tuple[str, int | None]]) -> int | None:
    """When the change began that the (family, suspected start) of some alarms speak of; None where no start is known.

    Where a loss is measured that loss is what is to be cured: an alarm beside it may be older, and of something else.

    >>> change_began([("data", 10), ("concept", 50), ("performance", 60)]), change_began([("data", 10), ("prediction", 20)])
    (50, 10)
    """
    known = [(family, start) for family, start in alarms if start is not None]
    return min([start for family, start in known if family in HARM] or [start for _, start in known], default=None)


def labels_missing(until_ms: int, age_ms: int, labelled_ms: int, began_ms: int | None) -> str:
    """What a request waits for: that ``labelled_ms`` since the change have come of age. Nothing where they have, or no start is known."""
    of_age_ms = until_ms - age_ms - (began_ms or 0)
    if of_age_ms >= labelled_ms:
        return ""
    return f"waits for labels: {max(of_age_ms, 0) / DAY_MS:.1f} of {labelled_ms / DAY_MS:g} days since it began have come of age"


def _move(history: History, judged: Sequence[Signal], at_ms: int) -> History:
    """The level after this window; an episode opens with the first alarm and closes with the return to OK."""
    quiet = all(not signal.alarm and signal.strength < CALM_SHARE for signal in judged)
    calm = history.calm + 1 if quiet else 0
    if history.level != "OK" and calm >= CALM:
        return History(last_ms=at_ms)
    level = history.level
    if history.recent[-1]:
        confirmed = _confirmed_families(history.recent) or len(_families(history.recent)) > 1
        level = "DRIFT" if confirmed or level == "DRIFT" else "WARNING"
    opened = at_ms if level != "OK" and history.episode_ms is None else history.episode_ms
    return replace(history, level=level, calm=calm, episode_ms=opened)


def _families(recent: Sequence[Sequence[tuple[str, str]]]) -> set[str]:
    return {family for alarms in recent for _, family in alarms}


def _confirmed_families(recent: Sequence[Sequence[tuple[str, str]]]) -> set[str]:
    """Families of which one and the same signal alarmed in two of the windows."""
    every = [alarm for alarms in recent for alarm in alarms]
    return {family for name, family in set(every) if every.count((name, family)) >= CONFIRMING}


def _say(history: History, request: bool, reason: str, evidence: Sequence[str]) -> tuple[History, Decision]:
    assert history.last_ms is not None
    episode = None if history.episode_ms is None else f"drift:{history.episode_ms}"
    return history, Decision(history.last_ms, history.level, request, reason, episode, tuple(evidence))
