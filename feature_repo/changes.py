"""What is different between the views and services that are live and those that the code declares. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from feature_repo.versions import Registry, service_of
from feature_repo.views import Feature, FeatureService, FeatureView

__all__ = ["ServiceChange", "ViewChange", "changes", "same_features", "to_build"]

OF_NO_MEANING = {"name", "owner", "doc", "peak_per_s", "features", "columns"}
NO_COLUMN = ("scale", "hashed", "revision")


@dataclass(frozen=True)
class ViewChange:
    """A view whose version changes. ``old`` is None for a new view, ``new`` for one that is read no more (versioned names).

    ``changed`` and ``settings`` are in words: name, what was, what will be.
    """

    view: str
    old: str | None
    new: str | None
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    settings: tuple[str, ...]


@dataclass(frozen=True)
class ServiceChange:
    """A service whose vector changes; ``old`` and ``new`` are definition hashes, which models hold."""

    service: str
    old: str
    new: str
    request_added: tuple[str, ...]
    request_removed: tuple[str, ...]
    views: tuple[ViewChange, ...]


def changes(registry: Registry, declared: Iterable[FeatureService]) -> list[ServiceChange]:
    """Of each declared service that is not live as it is. A service that was never applied is none: it is live as declared."""
    found = []
    for service in declared:
        live = service_of(service, registry.services.get(service.name), registry)
        if live.definition_hash == service.definition_hash:
            continue
        old, new = ({view.name: view for view in one.views} for one in (live, service))
        of_views = [_view_change(old.get(name), new.get(name)) for name in dict.fromkeys((*old, *new))
                    if name not in old or name not in new or old[name].definition_hash != new[name].definition_hash]
        before, after = ({feature.name: None for feature in one.request} for one in (live, service))
        found.append(ServiceChange(service.name, live.definition_hash, service.definition_hash, tuple(n for n in after if n not in before),
                                   tuple(n for n in before if n not in after), tuple(of_views)))
    return found


def to_build(registry: Registry, declared: Iterable[FeatureService]) -> list[FeatureView]:
    """The declared views whose sets have to be built: neither live nor kept in full since they were."""
    wanted = {view.versioned_name: view for service in declared if service.name in registry.services for view in service.views}
    return [view for name, view in wanted.items() if (version := registry.versions.get(name)) is None
            or version.state in ("building", "collected")]


def same_features(old: FeatureView, new: FeatureView) -> list[str]:
    """Features that mean the same in both: of the same records, the same function of the same column."""
    if _settings(old) != _settings(new):
        return []
    after = {feature.name: feature for feature in new.features}
    return [feature.name for feature in old.features
            if feature.name in after and _meaning(old, feature) == _meaning(new, after[feature.name])]


def _view_change(old: FeatureView | None, new: FeatureView | None) -> ViewChange:
    before, after = ({feature.name: (view, feature) for feature in view.features} if view else {} for view in (old, new))
    changed = [f"{name}: {'; '.join(said)}" for name in before if name in after and (said := _said(before[name], after[name]))]
    told = _differences(_settings(old), _settings(new)) if old and new else []
    name = (new or old).name  # type: ignore[union-attr]
    return ViewChange(name, old.versioned_name if old else None, new.versioned_name if new else None,
                      tuple(n for n in after if n not in before), tuple(n for n in before if n not in after), tuple(changed), tuple(told))


def _said(old: tuple[FeatureView, Feature], new: tuple[FeatureView, Feature]) -> list[str]:
    return _differences(_meaning(*old), _meaning(*new))


def _differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    return [f"{key} {old[key]} -> {new[key]}" for key in old if old[key] != new[key]]


def _meaning(view: FeatureView, feature: Feature) -> dict[str, object]:
    """A feature with what its columns are, wherever they stand in the record."""
    columns = {column.field: asdict(column) for column in view.columns}
    told: dict[str, object] = {field.name: getattr(feature, field.name) for field in fields(feature)}
    for role in ("column", "denominator"):
        told |= {f"{role}.{key}": value for key, value in columns.get(getattr(feature, role) or "", dict.fromkeys(NO_COLUMN)).items()
                 if key != "field"}
    return told


def _settings(view: FeatureView) -> dict[str, object]:
    """What of a view is in every feature's meaning; which of its columns is the revision decides among copies."""
    told: dict[str, object] = {field.name: getattr(view, field.name) for field in fields(view) if field.name not in OF_NO_MEANING}
    return told | {"revision": next((column.field for column in view.columns if column.revision), None)}

