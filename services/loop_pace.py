"""At the end of each window a replay's clock waits until the loop has judged it: so what is decided depends on the log alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import msgspec

from feature_repo.checkpoints import Checkpoints, monitor_key
from feature_repo.models import ModelSpec
from schemas.errors import LogError

__all__ = ["LoopPace"]

LOOK_EVERY_S = 0.05
OPEN = ("PENDING", "RUNNING", "EVALUATING")


class Governed(msgspec.Struct, frozen=True):
    phase: str = "IDLE"


class Judged(msgspec.Struct):
    """What is read of a monitor's state."""

    judged_ms: int | None = None
    governor: Governed = Governed()


class LoopPace:
    """Waits for the monitors of ``specs``.

    Parameters
    ----------
    ended
        Called with the end of each window once it is judged; the clock waits for that, too.
    patience_s
        How long no monitor may move while it is waited for.
    """

    def __init__(self, redis: str, specs: Iterable[ModelSpec], ended: Callable[[int], None] = lambda at_ms: None,
                 patience_s: float = 120.0) -> None:
        self._windows = {spec.name: spec.drift.window_ms for spec in specs if spec.drift is not None}
        self._checkpoints, self._ended, self._patience_s = Checkpoints(redis), ended, patience_s
        self._pause = threading.Event()
        self.waited_s = 0.0

    def next_ms(self, at_ms: int) -> int | None:
        """The first end of a window after ``at_ms``; None where nothing is watched."""
        return min((at_ms // size * size + size for size in self._windows.values()), default=None)

    def wait(self, at_ms: int) -> None:
        """Return when every window that ended by ``at_ms`` is judged. Raises LogError where monitors stand still."""
        began = moved = time.monotonic()
        behind: dict[str, int] = {}
        while True:
            before, behind = behind, {model: judged for model, size in self._windows.items()
                                      if (judged := self._state(model).judged_ms or 0) < at_ms // size * size}
            now = time.monotonic()
            if not behind:
                self.waited_s += now - began
                return self._ended(at_ms)
            if behind != before:
                moved = now
            elif now - moved > self._patience_s:
                raise LogError(f"the monitor of {min(behind)} has not judged the window that ended at {at_ms} for {self._patience_s:.0f} s",
                               hint="does the loop run? `headrace status`; --no-loop does not wait for it")
            self._pause.wait(LOOK_EVERY_S)

    def wait_retrained(self) -> set[str]:
        """Return when no retrain is granted and not ended: the models that one was. Raises LogError where nobody takes one up."""
        began = time.monotonic()
        found: set[str] = set()
        while open_ := {model: phase for model in self._windows if (phase := self._state(model).governor.phase) in OPEN}:
            if "PENDING" in open_.values() and time.monotonic() - began > self._patience_s:
                raise LogError(f"nobody carries out the retrain of {min(open_)} that was granted",
                               hint="does the runner run? `headrace status`; --no-loop does not wait for it")
            found |= open_.keys()
            self._pause.wait(LOOK_EVERY_S)
        return found

    def close(self) -> None:
        self._checkpoints.close()

    def _state(self, model: str) -> Judged:
        _, data = self._checkpoints.load(monitor_key(model))
        return msgspec.json.decode(data, type=Judged) if data is not None else Judged()
