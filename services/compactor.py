"""The compactor: folds old records of busy entities into tiles, behind everybody else. ``python -m services.compactor``, one or many.

How far it may go is the arrival time that every partition of the source has been applied to, and scored to by every service that
reads the view. A partition without traffic is told the time (``streams.clock``; in a replay by whoever replays).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from feature_repo import use_cases
from feature_repo.bounds import bounds
from feature_repo.compaction import EntityCompactor, Seen
from feature_repo.marks import lowest, offsets, scored_ms_key
from feature_repo.versions import read_registry
from feature_repo.views import FeatureService, FeatureView
from feature_repo.wire import Wire
from schemas.errors import LogError, SettingsError, StoreError
from schemas.settings import Settings, read_settings
from services.process import log_to_stderr, say_ready, set_by_signals
from services.publisher import Publisher
from streams.clock import arrival_is_ours

__all__ = ["Compactor", "Round", "compact", "main"]

log = logging.getLogger("compactor")
PAUSE_S = 1.0
MOST_AT_ONCE = 1_000
STEPS = 8
"""An entity is folded again when an eighth of what must stay raw has become old."""
ENTITIES_REMEMBERED = 200_000


@dataclass(frozen=True)
class Round:
    """What one round did to a view. ``b_ms`` None: some partition has not been applied or scored yet."""

    view: str
    b_ms: int | None
    entities: int = 0
    compacted: int = 0
    bytes_before: int = 0
    bytes_after: int = 0


class Compactor:
    """Compacts the views that have hops, for as long as ``run`` is let.

    Parameters
    ----------
    views, services
        Where nothing else is said all that are fed, but for versions that are being built: a backfill adds records that are older
        than those a fold leaves. The scorers of the services that read a view count.

    Raises SettingsError where producers say when a record arrived, LogError when Kafka does not answer.
    """

    def __init__(self, settings: Settings, views: Iterable[FeatureView] | None = None,
                 services: Sequence[FeatureService] | None = None) -> None:
        if settings.kafka is None or settings.redis is None:
            raise SettingsError("a compactor needs HEADRACE_KAFKA and HEADRACE_REDIS", hint="`headrace up` starts it with both set")
        self._settings, self._epoch = settings, read_registry(settings).epoch
        views = use_cases.fed_views(settings, built=True) if views is None else views
        services = use_cases.fed_services(settings) if services is None else services
        url = settings.redis.get_secret_value()
        self._views = {view: EntityCompactor(url, view) for view in views if view.hops}
        self._readers = {view: [service for service in services if view in service.views] for view in self._views}
        self._wire = Wire(url, 5000)
        sources = {view.source for view in self._views} | {service.source for service in services}
        self._publisher = Publisher(settings.kafka, sorted(sources))
        if settings.time == "live" and self._views and arrival_is_ours(settings.kafka, sorted(sources)):
            raise SettingsError("this Kafka's source topics take arrival times from producers, and a wrong clock would close every window",
                                hint="message.timestamp.type=LogAppendTime, or HEADRACE_TIME=replay for a replay")
        self._folded: dict[tuple[str, str], int] = {}  # B when the entity was last folded

    def run(self, stopping: threading.Event) -> None:
        """Round after round until ``stopping``, or other definitions are live; an engine that does not answer is asked again."""
        while not stopping.wait(PAUSE_S) and read_registry(self._settings).epoch == self._epoch:
            try:
                for done in self.round():
                    if done.compacted:
                        log.info("compacted view=%s entities=%d bytes=%d to=%d", done.view, done.compacted, done.bytes_before,
                                 done.bytes_after)
            except (StoreError, LogError) as error:
                log.warning("trying again: %s", error)

    def round(self, dry_run: bool = False) -> list[Round]:
        """Every view's long sets once; with ``dry_run`` nothing is written. Raises StoreError or LogError."""
        return [self._compact(view, dry_run) for view in self._views]

    def close(self) -> None:
        for of_view in self._views.values():
            of_view.close()
        self._wire.close()

    def _compact(self, view: FeatureView, dry_run: bool) -> Round:
        of_view = self._views[view]
        # Marks before partitions: what arrives on a partition that comes to be in between is later than every mark.
        applied = of_view.applied_ms()
        scored = {service: offsets(self._wire.call("HGETALL", scored_ms_key(service.name))) for service in self._readers[view]}
        sources = {source: self._publisher.partitions(source) for source in {view.source, *(service.source for service in scored)}}
        applied_ms = lowest(applied, sources[view.source])
        reads_ms = [_less(lowest(marks, sources[service.source]), service.scored_lateness_ms) for service, marks in scored.items()]
        reads_ms = reads_ms or [_less(applied_ms, view.allowed_lateness_ms)]
        if applied_ms is None or None in reads_ms:
            return Round(view.versioned_name, None)
        earliest_ms = min(ms for ms in reads_ms if ms is not None)
        b = bounds(view, applied_ms, earliest_ms)[1]
        step_ms = (applied_ms - b) // STEPS
        entities = compacted = before = after = 0
        for entity in of_view.hot(MOST_AT_ONCE, keep=dry_run):
            place = view.versioned_name, entity
            if 0 <= b - self._folded.get(place, b - step_ms) < step_ms:  # below 0 the store went back in time
                continue
            seen = of_view.look(entity, applied_ms, earliest_ms, sources[view.source])
            if seen is None:
                continue
            entities += 1
            done, size = self._fold(of_view, seen, dry_run)
            compacted += done
            before += len(seen.raw) + len(seen.tiles or b"")
            after += size
            if done and not dry_run:
                self._remember(place, b)
        return Round(view.versioned_name, b, entities, compacted, before, after)

    def _fold(self, of_view: EntityCompactor, seen: Seen, dry_run: bool) -> tuple[bool, int]:
        if dry_run:
            return False, sum(map(len, of_view.fold(seen)))
        done = of_view.compact(seen)
        if not done.done:
            of_view.put_back(seen.entity)
        return done.done, done.raw_after + done.tiles_after

    def _remember(self, place: tuple[str, str], b: int) -> None:
        if len(self._folded) >= ENTITIES_REMEMBERED:
            self._folded.clear()
        self._folded[place] = b


def _less(ms: int | None, lateness_ms: int) -> int | None:
    return None if ms is None else ms - lateness_ms


def compact(settings: Settings, stopping: threading.Event) -> None:
    """Compact what is to be compacted, by the definitions that are live, until ``stopping``."""
    while not stopping.is_set():
        compactor = Compactor(settings)
        say_ready(settings)
        try:
            compactor.run(stopping)
        finally:
            compactor.close()


def main() -> int:
    log_to_stderr()
    settings, stopping = read_settings(), threading.Event()
    set_by_signals(stopping)
    compact(settings, stopping)
    return 0


if __name__ == "__main__":
    sys.exit(main())
