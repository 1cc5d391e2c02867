"""The first model of a system that replays: trained while the simulated clock stands still, released, and served before time goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feature_repo.bundle import champion
from feature_repo.models import ModelSpec
from schemas.errors import SettingsError
from schemas.settings import Settings
from services.release_log import ReleaseLog
from services.retrain_hold import wait_served
from services.runtime.endpoints import Endpoints

if TYPE_CHECKING:
    from jobs.registry import Registered
    from jobs.train import TrainResult
    from jobs.training_rows import Period

__all__ = ["FirstModel", "train_first"]


@dataclass(frozen=True)
class FirstModel:
    """What a replay trains of its own accord, on what was known by ``at_ms``: as soon as the labels of the test days are."""

    settings: Settings
    at: Endpoints
    spec: ModelSpec
    train: Period
    test: Period
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        from jobs.training_rows import check_gap

        check_gap(self.train, self.test, self.spec.label_delay_ms)
        if champion(self.settings.models, self.spec.name) is not None:
            raise SettingsError(f"{self.spec.name} has a champion already", hint="replay into a fresh HEADRACE_HOME, or without --train")

    @property
    def at_ms(self) -> int:
        return self.test.end_ms + self.spec.label_delay_ms

    def run(self) -> None:
        from jobs.archive import archive
        from jobs.spark import session

        self.tell(f"the simulated clock waits: archive, training set, first model of {self.spec.name}")
        with session(self.settings, "headrace-replay") as spark:
            archive(self.settings, self.at.kafka, spark=spark)
            registered, result = train_first(self.settings, self.at, self.spec, self.train, self.test, self.at_ms, "replay", spark)
        found = result.manifest.metrics["model"]
        self.tell(f"{registered.model} version {registered.version} is live: average precision {found['average_precision']:.3f}, "
                  f"AUC {found['auc']:.3f} on {self.test}")


def train_first(settings: Settings, at: Endpoints, spec: ModelSpec, train_period: Period, test_period: Period, at_ms: int, by: str,
                spark: Any) -> tuple[Registered, TrainResult]:
    """On the archive as it is; returns when every partition is served by it."""
    from jobs.registry import register
    from jobs.train import train
    from jobs.training_set import build_training_set

    built = build_training_set(settings, spec, train_period.start_ms, test_period.end_ms, "known", spark)
    result = train(built.path, spec, train_period, test_period, settings, data=built.manifest, spark=spark)
    registered = register(settings, result)
    log = ReleaseLog(at.kafka)
    try:
        log.release("first", registered.model, registered.version, at_ms, "the first", by)
    finally:
        log.close()
    wait_served(settings, at, registered.model)
    return registered, result
