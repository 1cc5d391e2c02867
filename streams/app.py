"""The feature workers: ``faust -A streams.app worker``. One agent per source; what becomes of a chunk is in ``streams.applier``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from feature_repo.appends import SetWriter
from feature_repo.use_cases import fed_services, fed_views
from feature_repo.version_keys import VersionKeys
from feature_repo.views import DAY_MS, FeatureView
from schemas.errors import DefinitionError
from schemas.settings import Settings, read_settings
from schemas.topics import VALID_DAYS, sources
from streams.agents import build_app
from streams.applier import Applier
from streams.clock import IdleClock, arrival_is_ours
from streams.publisher import Publisher, log_start, next_offset

__all__ = ["build"]

log = logging.getLogger(__name__)
GROUP = "headrace-features"


class FedApplier(Applier):
    """An applier that goes on with other versions of its views when the registry says so (docs/versions.md)."""

    def __init__(self, source: str, settings: Settings, stopping: threading.Event) -> None:
        assert settings.kafka is not None
        self._settings = settings
        self._fed = _fed(settings, source)
        publisher = Publisher(settings.kafka, stopping.is_set)
        super().__init__(source, sources(settings)[source], self._fed, _writer(settings, self._fed), publisher,
                         partial(next_offset, settings.kafka, source), partial(log_start, settings.kafka, source), stopping,
                         _clock(settings, source, publisher) if settings.time == "live" else None)

    def check(self, partition: int, position: int, committed: int) -> int | None:
        self._renew()
        return super().check(partition, position, committed)

    def _renew(self) -> None:
        try:
            views = _fed(self._settings, self.topic)
        except DefinitionError as error:
            log.error("definitions refused, those before them stay: %s", error)
            return
        if views != self._fed:
            log.info("feeding source=%s views=%s", self.topic, ",".join(view.versioned_name for view in views))
            self._fed = views
            self.feed(views, _writer(self._settings, views))


def build(settings: Settings) -> Any:
    """The app with an agent per source."""
    return build_app(GROUP, settings, {source: partial(FedApplier, source, settings) for source in sources(settings)})


def _fed(settings: Settings, source: str) -> list[FeatureView]:
    return [view for view in fed_views(settings) if view.source == source]


def _writer(settings: Settings, views: Sequence[FeatureView]) -> SetWriter:
    assert settings.redis is not None
    forgotten_ms = VALID_DAYS * DAY_MS if settings.time == "live" else None
    return SetWriter(settings.redis.get_secret_value(), views, fed_services(settings), settings.partitions, forgotten_ms=forgotten_ms)


def _clock(settings: Settings, source: str, publisher: Publisher) -> IdleClock:
    assert settings.kafka is not None
    assert settings.redis is not None
    kafka, keys = settings.kafka, VersionKeys(settings.redis.get_secret_value())
    return IdleClock(source, partial(fed_views, settings), keys, lambda: not arrival_is_ours(kafka, [source]), publisher)


def __getattr__(name: str) -> Any:
    if name == "app":  # built when ``faust -A streams.app`` asks for it, not at import
        globals()["app"] = build(read_settings())
        return globals()["app"]
    raise AttributeError(name)
