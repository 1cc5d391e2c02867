"""What every detector is: a start, an update that takes a batch, and a verdict that carries its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

__all__ = ["Detector", "Status", "Verdict"]

Status = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]
State = TypeVar("State")
Batch = TypeVar("Batch", contravariant=True)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a detector says of the stream so far.

    Parameters
    ----------
    statistic, threshold
        It alarms where the first reaches the second.
    effect
        How large the change is, in the signal's own unit (a difference of rates, a PSI without its null mean).
    n
        Events behind ``effect``; ``first_ms`` to ``last_ms`` (stream time) is where they lie.
    reference
        Name of what the stream is compared with.
    suspected_start_ms
        Where the evidence begins to gather; None where there is none.
    false_alarms_per_step
        Upper bound of the rate of alarms on a stream that has not changed (per loss, or per closed window); None: nothing is promised.
    contributors
        (name, share of the evidence), largest first.
    """

    detector: str
    status: Status
    statistic: float
    threshold: float
    effect: float
    n: int
    first_ms: int | None
    last_ms: int | None
    reference: str
    suspected_start_ms: int | None
    false_alarms_per_step: float | None
    contributors: tuple[tuple[str, float], ...] = ()


class Detector(Protocol[State, Batch]):
    """``state`` is a dataclass of numbers and tuples; how a stream is cut into batches changes no bit of it."""

    def start(self) -> State: ...

    def update(self, state: State, batch: Batch) -> State: ...

    def judge(self, state: State) -> Verdict: ...
