"""A simulated card world through a running system: history, a first model, then days with the loop closed. Demo and game day share it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import SecretStr

from feature_repo.fraud import FRAUD, SERVICE, USE_CASE, VIEWS
from feature_repo.marks import Progress
from feature_repo.views import DAY_MS, HOUR_MS
from jobs.training_rows import Period
from schemas.errors import SettingsError
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings
from services.first_model import train_first
from services.inputs import event_rows
from services.lockstep import Lockstep
from services.loop_pace import LoopPace
from services.planting import Plant, planted
from services.retrain_hold import RetrainHold
from services.runtime.embedded import Runtime
from services.world import World

__all__ = ["ROLES", "TRAIN_DAY", "Calendar", "Rehearsal", "Stage"]

ROLES = ("worker", "loop", "scorer", "compactor")
"""What has to run: everything but the runner, for retrains are carried out while the clock stands still."""
TRAIN_DAY = 52
"""The first model is trained when the longest window, 30 days and a label delay, is full in all that it is trained and judged on."""

STEP_MS = 3 * HOUR_MS
"""Of simulated time at once. Hours would be three times the rounds; of what meets at a terminal somewhat more is ``in_flight``."""


@dataclass(frozen=True)
class Stage:
    """What to simulate. ``start_ms`` is midnight of day 0."""

    days: int
    cards: int = 1_500
    terminals: int = 600
    seed: int = 7
    start_ms: int = 1_736_121_600_000  # 2025-01-06, a Monday

    def at_ms(self, day: int) -> int:
        return self.start_ms + day * DAY_MS


@dataclass(frozen=True)
class Calendar:
    """When the model is trained, on what: the labels of the test days are mature on the day of training, those of the train days
    were before the first test day."""

    train: Period
    test: Period
    train_at_ms: int

    @classmethod
    def of(cls, stage: Stage, train_days: int = 14, test_days: int = 6) -> Calendar:
        delay = FRAUD.label_delay_ms // DAY_MS
        test_first = TRAIN_DAY - delay - test_days
        train_first = test_first - delay - train_days
        if stage.days <= TRAIN_DAY:
            raise SettingsError(f"{stage.days} days are too few: the first model is trained on day {TRAIN_DAY}",
                                hint=f"more than {TRAIN_DAY} days")

        def period(first: int, days: int) -> Period:
            on = [datetime.fromtimestamp(stage.at_ms(day) / 1000, UTC).date() for day in (first, first + days - 1)]
            return Period(*on)

        return cls(period(train_first, train_days), period(test_first, test_days), stage.at_ms(TRAIN_DAY))


@dataclass
class Rehearsal:
    """One run. ``tell`` hears a line for each phase, ``step`` the simulated time and the transactions so far."""

    stage: Stage
    settings: Settings
    plants: Sequence[Plant]
    tell: Callable[[str], None]
    step: Callable[[int, int], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def on(self, runtime: Runtime) -> Iterator[None]:
        """Connected with ``runtime``, which runs no runner: retrains are carried out while the simulated clock stands still."""
        stage = self.stage
        self.at = runtime.endpoints
        self._own = self.settings.model_copy(update={"kafka": runtime.kafka, "redis": SecretStr(runtime.redis)})
        self.world = World(stage.seed, stage.cards, stage.terminals, stage.start_ms)
        rows = planted((event_rows(batch) for batch in self.world.days(stage.days)), self.plants, stage.seed)
        progress = Progress(runtime.redis, VIEWS, [SERVICE])
        self.lockstep = Lockstep(runtime.kafka, rows, progress, source=f"/headrace/simulate/{stage.seed}", emissions=USE_CASE.emissions,
                                 step_ms=STEP_MS, tell=lambda now: self.step(now.now_ms or 0, now.sent[TRANSACTIONS]))
        self.hold: RetrainHold | None = None
        try:
            yield
        finally:
            progress.close()
            if self.hold is not None:
                self.hold.close()

    def until_training(self) -> None:
        with self.timed("stream"):
            self.lockstep.run_until(Calendar.of(self.stage).train_at_ms)

    def train(self, spark: Any) -> Any:
        """The first model, served; from here on the clock waits for the loop. Returns (registered, result)."""
        from jobs.archive import archive
        from jobs.retraining import Plan

        calendar = Calendar.of(self.stage)
        self.tell("the simulated clock waits: archive, training set, first model")
        with self.timed("archive"):
            archive(self.settings, self.at.kafka, spark=spark)
        with self.timed("train"):
            registered, result = train_first(self._own, self.at, FRAUD, calendar.train, calendar.test, calendar.train_at_ms, "rehearsal",
                                             spark)
        self.tell(f"model {registered.model} version {registered.version} is live")
        self.hold = RetrainHold(self._own, Plan(), spark, self.tell)
        self.lockstep.pace = LoopPace(self.at.redis, [FRAUD], self._end_window)
        return registered, result

    def play(self) -> None:
        """The days that are left; what they bring late stays unsaid."""
        with self.timed("stream"):
            self.lockstep.run()
        self.seconds["stream"] -= self.seconds.get("retrain", 0.0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began

    def _end_window(self, at_ms: int) -> None:
        assert self.hold is not None
        with self.timed("retrain"):
            self.hold(at_ms)
