"""The use cases there are, and those that are on. Engines take views, services and models from here; adding one is a line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from feature_repo import churn, fraud
from feature_repo.models import ModelSpec, UseCase
from feature_repo.versions import Registry, read_registry, service_of, view_of
from feature_repo.views import FeatureService, FeatureView
from schemas.errors import DefinitionError
from schemas.settings import Settings
from schemas.topics import sources

__all__ = ["USE_CASES", "declared", "fed_services", "fed_views", "find_model", "models", "services", "use_cases", "views"]

USE_CASES = (fraud.USE_CASE, churn.USE_CASE)


def declared(settings: Settings) -> tuple[UseCase, ...]:
    """Those that ``settings`` name as the code has them, the first of them first: it is meant where nothing else is said."""
    by_name = {case.name: case for case in USE_CASES}
    return tuple(by_name[name] for name in settings.use_cases)


def use_cases(settings: Settings, cases: Iterable[UseCase] | None = None) -> tuple[UseCase, ...]:
    """``cases`` (None: the declared ones) with the views that are live (``feature_repo.versions``)."""
    cases = declared(settings) if cases is None else cases
    registry = read_registry(settings)
    return tuple(replace(case, models=tuple(_live(spec, registry) for spec in case.models)) for case in cases) \
        if registry.epoch else tuple(cases)


def models(settings: Settings) -> tuple[ModelSpec, ...]:
    return tuple(spec for case in use_cases(settings) for spec in case.models)


def services(settings: Settings) -> tuple[FeatureService, ...]:
    return tuple(service for case in use_cases(settings) for service in case.services)


def views(settings: Settings) -> tuple[FeatureView, ...]:
    return tuple(view for case in use_cases(settings) for view in case.views)


def fed_views(settings: Settings, *, built: bool = False) -> tuple[FeatureView, ...]:
    """The live views and every other version that workers append to; with ``built`` without those that are being built."""
    live = {view.versioned_name: view for view in views(settings)}
    now, known = sources(settings), {view.versioned_name: view for case in declared(settings) for view in case.views}
    others = {name: known.get(name) or view_of(version.definition) for name, version in read_registry(settings).versions.items()
              if name not in live and version.fed and not (built and version.state == "building")}
    return (*live.values(), *(view for view in others.values() if view.source in now))


def fed_services(settings: Settings) -> tuple[FeatureService, ...]:
    """The services as they are live, were before the last switch, and will be after the next: all that may come to read a fed view."""
    registry, code = read_registry(settings), [service for case in declared(settings) for service in case.services]
    others = [service_of(service, told.get(service.name), registry) for told in (registry.before, registry.next) for service in code]
    return tuple(dict.fromkeys((*services(settings), *others)))


def find_model(settings: Settings, name: str | None, *, code: bool = False) -> ModelSpec:
    """The model ``name``, None for the first one; with ``code`` as it is declared, applied or not.

    Raises DefinitionError where no use case that is on has it.
    """
    cases = declared(settings) if code else use_cases(settings)
    known = {spec.name: spec for case in cases for spec in case.models}
    if name is not None and name not in known:
        raise DefinitionError(f"there is no model {name!r}",
                              hint=f"one of {', '.join(known)}; HEADRACE_USE_CASES switches use cases on")
    return known[name] if name is not None else next(iter(known.values()))


def _live(spec: ModelSpec, registry: Registry) -> ModelSpec:
    service = service_of(spec.service, registry.services.get(spec.service.name), registry)
    if service is spec.service:
        return spec
    of_name = {view.name: view for view in service.views}
    schedule = spec.schedule and replace(spec.schedule, view=of_name.get(spec.schedule.view.name, spec.schedule.view))
    return replace(spec, service=service, schedule=schedule)
