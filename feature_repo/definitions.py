"""Feast's entities, feature views and feature services, generated from the declarations; ``feast apply`` reads this file.

A view has no batch source: its values are computed from event sets, never materialised from a table. Request-time features are
not here. Feast would keep their functions as pickled code in the registry and run it in every client, and those that look at the
card's history mean the history with this transaction in it, which a look-up by entity does not have. The scorer computes them.
"""

from __future__ import annotations

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Float64, String

from feature_repo import views
from feature_repo.use_cases import USE_CASES

__all__ = ["ENTITIES", "FEATURE_SERVICES", "FEATURE_VIEWS", "SERVICES", "find_view"]

SERVICES = tuple(service for case in USE_CASES for service in case.services)
UNITS = {"d": views.DAY_MS, "h": views.HOUR_MS, "min": views.MINUTE_MS}


def find_view(name: str) -> views.FeatureView | None:
    """The declaration behind the Feast view ``name``."""
    return next((view for service in SERVICES for view in service.views if view.name == name), None)


def _describe(feature: views.Feature) -> str:
    unit = next((unit for unit, ms in UNITS.items() if feature.window_ms % ms == 0), "ms")
    of = f" of {feature.column}" if feature.column else ""
    return f"{feature.function}{of} over {feature.window_ms // UNITS.get(unit, 1)} {unit}"


def _entity(field: str) -> Entity:
    return Entity(name=field.removesuffix("_id"), join_keys=[field], value_type=ValueType.STRING)


def _view(view: views.FeatureView) -> FeatureView:
    """``ttl`` is how long after its event time a record still counts in a read: the delay and the longest window."""
    return FeatureView(
        name=view.name,
        entities=[ENTITIES[view.entity]],
        ttl=timedelta(milliseconds=view.delay_ms + view.longest_window_ms),
        schema=[Field(name=view.entity, dtype=String),
                *(Field(name=feature.name, dtype=Float64, description=_describe(feature)) for feature in view.features)],
        description=view.doc,
        owner=view.owner,
        tags={"definition_hash": view.definition_hash, "source": view.source},
    )


def _service(service: views.FeatureService) -> FeatureService:
    return FeatureService(name=service.name, features=[FEATURE_VIEWS[view.name] for view in service.views],
                          description=service.doc, tags={"definition_hash": service.definition_hash})


DECLARED = tuple({view.name: view for service in SERVICES for view in service.views}.values())
ENTITIES = {view.entity: _entity(view.entity) for view in DECLARED}
FEATURE_VIEWS = {view.name: _view(view) for view in DECLARED}
FEATURE_SERVICES = {service.name: _service(service) for service in SERVICES}

# Feast finds objects as names of this module, not in containers.
for objects in (ENTITIES, FEATURE_VIEWS, FEATURE_SERVICES):
    globals().update({f"{type(found).__name__}_{name}": found for name, found in objects.items()})
