"""`headrace apply`: build new versions beside the old ones, compare, switch; go back.

Each step may be killed: the registry changes in one step at the switch, and everything before it is done again or found done. Who calls
holds ``feature_repo.versions.exclusive``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from feature_repo.bundle import promote
from feature_repo.changes import to_build
from feature_repo.use_cases import declared, fed_services, fed_views, services
from feature_repo.version_keys import VersionKeys
from feature_repo.versions import (
    Registry,
    adopted,
    building,
    read_registry,
    rolled_back,
    switched,
    write_registry,
)
from feature_repo.views import FeatureService, FeatureView, skew_ms
from schemas.errors import DefinitionError, JobError
from schemas.settings import Settings
from services.comparison import Compared, compare, recent_events
from services.planning import Plan, affected_models, champions, make_plan
from services.releasing import record_release
from services.runtime.endpoints import Endpoints

if TYPE_CHECKING:
    from jobs.backfill import Backfilled
    from jobs.coverage import Span

__all__ = ["Applied", "Built", "apply", "roll_back"]

FEED_PATIENCE_S = 120.0
LAST_EVENTS = 500

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A version as it stands before the switch. ``warm_fraction``: window in ms -> how much of its time is covered.

    A log that is younger than a window covers less than all of it, for any version. ``short_of``: partition -> offset before
    which records are missing that the log once had.
    """

    version: str
    backfill: Backfilled
    warm_fraction: dict[int, float]
    short_of: dict[int, int]


@dataclass
class Applied:
    """``refused`` says why nothing was switched."""

    epoch: int
    switched: bool
    adopted: list[str]
    given_up: list[str]
    built: list[Built] = field(default_factory=list)
    compared: list[Compared] = field(default_factory=list)
    promoted: dict[str, str] = field(default_factory=dict)
    without_model: list[str] = field(default_factory=list)
    retired_until_ms: int | None = None
    refused: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def apply(settings: Settings, at: Endpoints, *, grace_ms: int, anyway: bool = False, archive_first: bool = True,
          spark: Any = None, tell: Tell = lambda line: None) -> Applied:
    """Make what the code declares live.

    ``archive_first`` brings what Kafka has into the archive. With ``anyway`` it is switched in spite of what is said in ``refused``.
    Raises DefinitionError where a view is too large, changes the clock rule, or somebody else applies; JobError where workers do not
    feed a version.
    """
    code = [service for case in declared(settings) for service in case.services]
    plan = make_plan(settings, at.redis)
    _check(settings, plan, code, anyway)
    registry = read_registry(settings)
    if plan.adopt:
        registry = write_registry(settings, registry, adopted(registry, code))
    done = Applied(registry.epoch, False, plan.adopt, plan.give_up)
    if not plan.services:
        if plan.give_up:
            done.epoch = write_registry(settings, registry, building(registry, [])).epoch
        return done
    views = to_build(registry, code)
    if views:
        registry = _build(settings, at, registry, views, archive_first, spark, tell, done)
    keys = VersionKeys(at.redis)
    try:
        for view in views:
            _wait_fed(settings, keys, view)
        done.compared = _compare(settings, at, tell)
        done.refused += [f"{one.new} differs from {one.old} in {one.different} of {one.values} values" for one in done.compared
                         if one.different]
        done.refused += [f"{one.new} could be compared with {one.old} in none of {one.refused} events: reads are refused"
                         for one in done.compared if one.refused and not one.events]
        affected = affected_models(settings, code)
        done.without_model = [model.model for model in affected if model.ready is None]
        done.refused += [f"model {name} does not fit the new features, and none that fits was trained" for name in done.without_model]
        if done.refused and not anyway:
            return done
        now_ms = keys.arrived_ms(fed_views(settings)) or 0
    finally:
        keys.close()
    done.retired_until_ms = now_ms + grace_ms
    before = champions(settings)
    done.promoted = {model.model: model.ready for model in affected if model.ready}
    registry = _promote(settings, registry, before, done.promoted, "definitions were switched")
    done.epoch = write_registry(settings, registry, switched(registry, code, now_ms + grace_ms, before)).epoch
    done.switched = True
    return done


def _check(settings: Settings, plan: Plan, code: list[FeatureService], anyway: bool) -> None:
    if large := [build for build in plan.builds if build.too_large]:
        raise DefinitionError(f"{large[0].version} would hold {large[0].raw_records:,.0f} raw records of one entity at its peak",
                              hint="lower allowed_lateness_ms and max_skew_ms, and give long windows a hop")
    live, after = ([view for service in of for view in service.views] for of in (services(settings), code))
    for source in dict.fromkeys(view.source for view in live):
        was, will = skew_ms(live, source), skew_ms(after, source)
        if was != will and not anyway:  # while both are fed, workers refuse by the lesser one what the other's parity expects
            raise DefinitionError(f"max_skew_ms of {source} would change from {was} to {will}, and what was refused by the one would be "
                                  "missing by the other", hint="keep it, or --anyway: parity then calls such records unexplained")


def roll_back(settings: Settings, redis: str, *, grace_ms: int, dry_run: bool = False) -> dict[str, Any]:
    """Make live what was before the last switch. Raises DefinitionError where its sets are no longer kept."""
    registry, leaving, keys = read_registry(settings), champions(settings), VersionKeys(redis)
    try:
        until_ms = (keys.arrived_ms(fed_views(settings)) or 0) + grace_ms
    finally:
        keys.close()
    promoted, after = registry.champions, rolled_back(registry, until_ms, leaving)
    if not dry_run:
        registry = _promote(settings, registry, leaving, promoted, "definitions were rolled back")
        after = write_registry(settings, registry, rolled_back(registry, until_ms, leaving))
    return {"epoch": after.epoch, "dry_run": dry_run, "live": after.names("live"), "retired": after.names("retired"),
            "retired_until_ms": until_ms, "promoted": promoted}


def _build(settings: Settings, at: Endpoints, registry: Registry, views: list[FeatureView], archive_first: bool,
           spark: Any, tell: Tell, done: Applied) -> Registry:
    """Have ``views`` fed from where the archive ends, and bring in what lies before."""
    from jobs.archive import archive
    from jobs.backfill import backfill
    from jobs.coverage import coverage
    from jobs.spark import use_session

    keys = VersionKeys(at.redis)
    try:
        with use_session(spark, settings, "apply") as own:
            if archive_first:
                tell("archiving what Kafka has")
                archive(settings, at.kafka, own)
            spans = {source: coverage(own, settings, source) for source in dict.fromkeys(view.source for view in views)}
            for view in views:
                if view.versioned_name in registry.names("collected"):
                    keys.remove(view)  # what is left of it may be folded, and is behind the log
                keys.begin(view, {partition: (span.last, span.last_ms) for partition, span in spans[view.source].items() if partition >= 0})
            code = [service for case in declared(settings) for service in case.services]
            registry = write_registry(settings, registry, building(registry, views, code))
            for view in views:
                tell(f"building {view.versioned_name}")
                filled = backfill(settings, at.redis, view, fed_services(settings), spark=own)
                built = Built(view.versioned_name, filled, _warm(keys, view, spans[view.source]), filled.short_of)
                done.built.append(built)
                if filled.short_of and min(built.warm_fraction.values()) < 1:
                    done.refused.append(f"{built.version} lacks records that the archive does not have, partition -> offset: "
                                        f"{filled.short_of}")
    finally:
        keys.close()
    return registry


def _warm(keys: VersionKeys, view: FeatureView, spans: dict[int, Span]) -> dict[int, float]:
    """Window in ms -> which share of the window that ends now, less the view's delay, is covered."""
    now_ms = keys.arrived_ms([view]) or 0
    since_ms = min((span.first_ms for span in spans.values()), default=now_ms)
    for offset, arrival_ms in keys.shortages(view).values():
        since_ms = max(since_ms, arrival_ms + view.max_skew_ms if offset else since_ms)
    covered_ms = now_ms - view.delay_ms - since_ms
    windows = sorted({feature.window_ms for feature in view.features})
    return {window: round(min(max(covered_ms / window, 0.0), 1.0), 4) for window in windows}


def _wait_fed(settings: Settings, keys: VersionKeys, view: FeatureView) -> None:
    """Until ``view`` has all that the live views of its source have."""
    beside = [live for service in services(settings) for live in service.views if live.source == view.source]
    if not keys.passed([view, *dict.fromkeys(beside)], FEED_PATIENCE_S):
        raise JobError(f"workers do not bring {view.versioned_name} up to the live views within {FEED_PATIENCE_S:.0f} s",
                       hint="do workers run, and do they see the same home folder? `headrace status`; then apply again")


def _compare(settings: Settings, at: Endpoints, tell: Tell) -> list[Compared]:
    """Every version that is about to replace another, over the last events of the service that reads it."""
    live = {view.name: view for service in services(settings) for view in service.views}
    events: dict[str, list[Any]] = {}
    found: dict[str, Compared] = {}
    for service in (service for case in declared(settings) for service in case.services):
        for view in service.views:
            old = live.get(view.name)
            if old is None or old.versioned_name == view.versioned_name or view.versioned_name in found:
                continue
            if service.source not in events:
                events[service.source] = recent_events(at.kafka, service.source, LAST_EVENTS)
            tell(f"comparing {old.versioned_name} with {view.versioned_name}")
            found[view.versioned_name] = compare(at.redis, old, view, service.source, events[service.source], settings.partitions)
    return list(found.values())


def _promote(settings: Settings, registry: Registry, leaving: dict[str, str], bundles: dict[str, str], why: str) -> Registry:
    """First the models, then the features: a scorer keeps the model it has while the promoted one fits other features than are live,
    and one that starts just then finds the one before in ``leaving``."""
    if bundles:
        registry = write_registry(settings, registry, msgspec.structs.replace(registry, leaving=leaving))
    for model, bundle in bundles.items():
        folder = settings.models / bundle
        promote(settings.models, folder)
        record_release(settings, model, folder.name, why, by="apply")
    return registry
