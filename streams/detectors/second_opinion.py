"""river's ADWIN and PageHinkley behind our contract: shown beside a decision, never the reason for one.

Their state is the losses themselves, as runs, up to a bound: river's objects are fed again from it, so the state is plain data and a
worker that died goes on as if it had not. Bounds are at fixed positions of the stream: how it was cut into batches changes nothing.
ADWIN (Bifet and Gavalda 2007) looks both ways; an alarm counts here only where its estimate rose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from river.drift import ADWIN, PageHinkley

from streams.detectors.contract import Verdict
from streams.detectors.losses import LossBatch

__all__ = ["OpinionState", "SecondOpinion", "adwin", "page_hinkley"]

HOLD = 1_000
"""Losses for which an alarm is shown."""
MEMORY = 20_000
"""Losses that a detector is fed again at most; the older half is forgotten there. ADWIN on 0/1 losses needs a few hundred runs of it."""


@dataclass(frozen=True, slots=True)
class OpinionState:
    """``runs``: (loss, how often) since the last alarm or forgetting; ``alarms_ms``: of the last 100 alarms."""

    runs: tuple[tuple[float, int], ...] = ()
    n: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    alarms: int = 0
    alarm_n: int | None = None
    alarms_ms: tuple[int, ...] = ()
    effect: float = 0.0


@dataclass(frozen=True)
class SecondOpinion:
    """``make`` builds river's detector. An alarm counts where the ``recent`` losses are worse than all since the last one."""

    name: str
    make: Callable[[], Any]
    recent: Callable[[Any, list[float]], float]

    def start(self) -> OpinionState:
        return OpinionState()

    def update(self, state: OpinionState, batch: LossBatch) -> OpinionState:
        losses, times = np.asarray(batch.losses, float).tolist(), np.asarray(batch.times_ms).tolist()
        if not losses:
            return state
        held = [loss for loss, times_ in state.runs for _ in range(times_)]
        detector = self._fed(held)
        alarms, alarm_n, alarms_ms, effect = state.alarms, state.alarm_n, list(state.alarms_ms), state.effect
        for n, (loss, at) in enumerate(zip(losses, times, strict=True), state.n + 1):
            detector.update(loss)
            held.append(loss)
            if detector.drift_detected:
                rise = self.recent(detector, held) - sum(held) / len(held)
                if rise > 0:
                    alarms, alarm_n, effect = alarms + 1, n, rise
                    alarms_ms.append(at)
                held, detector = [], self.make()
            elif len(held) == MEMORY:
                held = held[MEMORY // 2:]
                detector = self._fed(held)
        return OpinionState(_runs(held), state.n + len(losses), times[0] if state.first_ms is None else state.first_ms, times[-1],
                            alarms, alarm_n, tuple(alarms_ms[-100:]), effect)

    def judge(self, state: OpinionState) -> Verdict:
        """ALARM for 1,000 losses from the one that raised it. river promises no rate of false alarms."""
        alarm = state.alarm_n is not None and state.n - state.alarm_n < HOLD
        return Verdict(self.name, "ALARM" if alarm else "OK" if state.n else "INSUFFICIENT_DATA", float(state.alarms), 1.0, state.effect,
                       state.n, state.first_ms, state.last_ms, "its own past", state.alarms_ms[-1] if state.alarms_ms else None, None)

    def _fed(self, losses: list[float]) -> Any:
        detector = self.make()
        for loss in losses:
            detector.update(loss)
        return detector


def adwin() -> SecondOpinion:
    return SecondOpinion("adwin", lambda: ADWIN(delta=0.002),  # type: ignore[no-untyped-call]
                         lambda detector, held: float(detector.estimation))


def page_hinkley() -> SecondOpinion:
    return SecondOpinion("page-hinkley", lambda: PageHinkley(mode="up"), lambda detector, held: sum(held[-30:]) / len(held[-30:]))


def _runs(losses: list[float]) -> tuple[tuple[float, int], ...]:
    if not losses:
        return ()
    values = np.array(losses)
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate([[0], edges])
    return tuple(zip(values[starts].tolist(), np.diff(np.append(starts, len(values))).tolist(), strict=True))
