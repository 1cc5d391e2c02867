"""The feature workers: ``faust -A streams.app worker``. One agent per source; what becomes of a chunk is in ``streams.applier``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from feature_repo.appends import SetWriter
from feature_repo.use_cases import fed_services, fed_views
from feature_repo.views import DAY_MS, FeatureView
from schemas.errors import DefinitionError
from schemas.settings import Settings, read_settings
from schemas.topics import VALID_DAYS, sources
from streams.agents import build_app
from streams.applier import Applier
from streams.clock import BEHIND_MS, TILES_BEHIND_MS, IdleClock
from streams.publisher import Publisher, log_start, next_offset

__all__ = ["build"]

log = logging.getLogger(__name__)
GROUP = "headrace-features"


class FedApplier(Applier):
    """An applier that goes on with other versions of its views when the registry says so (docs/versions.md)."""

    def __init__(self, source: str, settings: Settings, stopping: threading.Event) -> None:
        assert settings.kafka is not None
        assert settings.redis is not None
        self._settings = settings
        self._all = fed_views(settings)
        self._fed = _of(source, self._all)
        self._clock = IdleClock(source, settings.kafka, settings.redis.get_secret_value()) if settings.time == "live" else None
        super().__init__(source, sources(settings)[source], self._fed, _writer(settings, self._fed),
                         Publisher(settings.kafka, stopping.is_set), partial(next_offset, settings.kafka, source),
                         partial(log_start, settings.kafka, source), stopping)

    def check(self, partition: int, position: int, committed: int) -> int | None:
        self._renew()
        seen, resume = self._seen.get(partition), super().check(partition, position, committed)
        idle = resume is None and seen is not None and seen == self._seen.get(partition)
        if self._clock is not None:
            most_ms = TILES_BEHIND_MS if any(view.hops for view in self._all) else BEHIND_MS
            self._clock.look(partition, idle, most_ms)
        return resume

    def _work(self, partition: int, records: Sequence[Any]) -> bool:
        done = super()._work(partition, records)
        if done and self._clock is not None:
            self._clock.passed(partition, records)
        return done

    def forget(self, partition: int) -> None:
        super().forget(partition)
        if self._clock is not None:
            self._clock.forget(partition)

    def _renew(self) -> None:
        try:
            self._all = fed_views(self._settings)
        except DefinitionError as error:
            log.error("definitions refused, those before them stay: %s", error)
            return
        views = _of(self.topic, self._all)
        if views != self._fed:
            log.info("feeding source=%s views=%s", self.topic, ",".join(view.versioned_name for view in views))
            self._fed = views
            self.feed(views, _writer(self._settings, views))


def build(settings: Settings) -> Any:
    """The app with an agent per source."""
    return build_app(GROUP, settings, {source: partial(FedApplier, source, settings) for source in sources(settings)})


def _of(source: str, views: Sequence[FeatureView]) -> list[FeatureView]:
    return [view for view in views if view.source == source]


def _writer(settings: Settings, views: Sequence[FeatureView]) -> SetWriter:
    assert settings.redis is not None
    forgotten_ms = VALID_DAYS * DAY_MS if settings.time == "live" else None
    return SetWriter(settings.redis.get_secret_value(), views, fed_services(settings), settings.partitions, forgotten_ms=forgotten_ms)


def __getattr__(name: str) -> Any:
    if name == "app":  # built when ``faust -A streams.app`` asks for it, not at import
        globals()["app"] = build(read_settings())
        return globals()["app"]
    raise AttributeError(name)
