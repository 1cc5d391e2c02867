"""What `headrace apply` would do: changes of definitions, versions to build, their size, models that would no longer fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feature_repo.bounds import MOST_RAW, raw_records
from feature_repo.bundle import champion
from feature_repo.changes import ServiceChange, changes, to_build
from feature_repo.manifest import MANIFEST_FILE, Manifest, decode, read_plain
from feature_repo.use_cases import declared, models, services
from feature_repo.version_keys import VersionKeys
from feature_repo.versions import read_registry, retired
from feature_repo.views import FeatureService, FeatureView
from schemas.settings import Settings

__all__ = ["LAG_MS", "Affected", "Build", "Plan", "affected_models", "champions", "make_plan"]

LAG_MS = 60_000
"""How far workers and scorers may be behind for the size that a view is held to."""


@dataclass(frozen=True)
class Build:
    """A version to be built. Keys and bytes are estimates from the version that is live; None where there is none.

    ``raw_records`` are those of one entity at its declared peak (0: none declared); more than ``MOST_RAW`` are refused.
    """

    version: str
    beside: str | None
    keys: int | None
    memory_bytes: int | None
    raw_records: float
    too_large: bool


@dataclass(frozen=True)
class Affected:
    """A model whose champion was trained on other features than are declared. ``ready`` is the newest bundle that fits, below the models
    folder."""

    model: str
    champion: str
    service_hash: str
    ready: str | None


@dataclass(frozen=True)
class Plan:
    """``adopt`` are services that were never applied: they are live as declared, and apply only records that.

    ``give_up`` are versions that were being built and are declared no more; ``collect`` are retired ones whose grace is over.
    """

    epoch: int
    adopt: list[str]
    services: list[ServiceChange]
    builds: list[Build]
    models: list[Affected]
    give_up: list[str]
    collect: list[str]

    @property
    def anything(self) -> bool:
        return bool(self.adopt or self.services or self.give_up)

    def facts(self) -> dict[str, Any]:
        return asdict(self) | {"changes": self.anything}


def make_plan(settings: Settings, redis: str) -> Plan:
    """Changes nothing. Raises StoreError where the store does not answer."""
    registry, code = read_registry(settings), [service for case in declared(settings) for service in case.services]
    live = {view.name: view for service in services(settings) for view in service.views}
    views = to_build(registry, code)
    wanted, keys = {view.versioned_name for view in views}, VersionKeys(redis)
    try:
        sizes = keys.sizes(live[view.name].versioned_name for view in views if view.name in live)
        now_ms = keys.arrived_ms(live.values())
    finally:
        keys.close()
    builds = []
    for view in views:
        old = live.get(view.name)
        size = sizes[old.versioned_name] if old else None
        raw = raw_records(view, max((s.scored_lateness_ms for s in code if view in s.views), default=0), LAG_MS)
        memory_bytes = round(size.memory_bytes * _growth(old, view)) if old and size else None
        builds.append(Build(view.versioned_name, old.versioned_name if old else None, size.keys if size else None, memory_bytes,
                            raw, raw > MOST_RAW))
    found = changes(registry, code)
    return Plan(registry.epoch, [service.name for service in code if service.name not in registry.services], found, builds,
                affected_models(settings, code), [name for name in registry.names("building") if name not in wanted],
                retired(registry, now_ms) if now_ms is not None else [])


def champions(settings: Settings) -> dict[str, str]:
    """Model -> its champion's folder, below the models folder. Where one was promoted for a switch that did not come, the one before."""
    leaving, found = read_registry(settings).leaving, {}
    for spec in models(settings):
        folder = champion(settings.models, spec.name)
        if folder is not None:
            fits = _manifest(folder).service_hash == spec.service.definition_hash
            now = folder.relative_to(settings.models).as_posix()
            found[spec.name] = now if fits else leaving.get(spec.name, now)
    return found


def affected_models(settings: Settings, code: Iterable[FeatureService]) -> list[Affected]:
    """Models with a champion that does not fit the declared service. Raises BundleError where a champion is damaged."""
    of_name, found = {service.name: service for service in code}, []
    for spec in models(settings):
        folder, service = champion(settings.models, spec.name), of_name[spec.service.name]
        if folder is None:
            continue
        held = _manifest(folder)
        if held.service_hash != service.definition_hash:
            fits = [path.parent for path in (settings.models / spec.name).glob(f"*/{MANIFEST_FILE}")
                    if _manifest(path.parent).service_hash == service.definition_hash]
            newest = max(fits, key=lambda path: (path / MANIFEST_FILE).stat().st_mtime, default=None)
            ready = newest.relative_to(settings.models).as_posix() if newest else None
            found.append(Affected(spec.name, held.version, held.service_hash, ready))
    return found


def _manifest(folder: Path) -> Manifest:
    return decode(read_plain(folder, MANIFEST_FILE), Manifest, folder / MANIFEST_FILE)


def _growth(old: FeatureView, new: FeatureView) -> float:
    """How many times the bytes: longer records, and more of them over a longer retention."""
    return new.record_words / old.record_words * new.retention_ms / old.retention_ms
