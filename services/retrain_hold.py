"""Retrains while a replay's clock stands still: asked for by the loop, carried out here, served by every scorer before time goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from feature_repo.online import SetReader
from feature_repo.use_cases import find_model
from schemas.errors import LogError
from schemas.settings import Settings
from services.releasing import read_chain
from services.runtime.endpoints import Endpoints

if TYPE_CHECKING:
    from jobs.retraining import Plan, Verdict

__all__ = ["RetrainHold", "wait_served"]

LOOK_EVERY_S, PATIENCE_S = 0.05, 60.0


class RetrainHold:
    """Called at the end of each window (``services.loop_pace``). ``settings`` name both engines; ``spark`` is a session."""

    def __init__(self, settings: Settings, plan: Plan, spark: Any, tell: Callable[[str], None]) -> None:
        from services.runner import Runner

        assert settings.kafka is not None
        assert settings.redis is not None
        self._settings, self._spark = settings, spark
        self._at = Endpoints(settings.kafka, settings.redis.get_secret_value())
        self._runner = Runner(settings, "replay", plan, tell)
        self.verdicts: list[Verdict] = []

    def __call__(self, at_ms: int) -> None:
        done = self._runner.finish(self._spark)
        self.verdicts += done
        for model in {verdict.model for verdict in done}:
            wait_served(self._settings, self._at, model)

    def close(self) -> None:
        self._runner.close()


def wait_served(settings: Settings, at: Endpoints, model: str, patience_s: float = PATIENCE_S) -> float:
    """Until every partition that was scored before is served by what is live; returns the seconds. Raises LogError in the end."""
    release, service = read_chain(at.kafka).current(model), find_model(settings, model).service.name
    began, pause, reader = time.monotonic(), threading.Event(), SetReader(at.redis, 5000, settings.partitions)
    try:
        while release is not None:
            serving = reader.serving_epochs(service)
            if min(serving.values(), default=release.epoch) >= release.epoch:
                break
            if time.monotonic() - began > patience_s:
                raise LogError(f"scorers of {model} serve epochs {serving}, released is {release.epoch}",
                               hint="does the bundle load? see the scorer's log")
            pause.wait(LOOK_EVERY_S)
        return time.monotonic() - began
    finally:
        reader.close()
