"""Requests to score an entity as of a time: one by one, or for all that a model's schedule names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from feature_repo.models import ModelSpec
from feature_repo.scan import active_entities
from schemas.envelope import cloud_event_headers
from schemas.errors import DefinitionError
from schemas.topics import SOURCES
from services.events import Record
from services.words import iso

__all__ = ["Requests", "ScheduledRequests"]


class Requests:
    """Makes requests to one model; ``source`` says in their headers where they come from.

    A request's id is the entity and the time it is asked for: asked twice, it is the same request. Raises DefinitionError for a
    model that scores events which happen by themselves.
    """

    def __init__(self, spec: ModelSpec, source: str) -> None:
        contract = SOURCES[spec.service.source]
        if set(contract.record.__struct_fields__) != {"event_id", "event_time", spec.subject}:
            raise DefinitionError(f"model {spec.name!r} scores records of {spec.service.source!r}, which say more than whom and when",
                                  hint="publish the event itself")
        self.topic = spec.service.source
        self._record, self._subject, self._headers = contract.record, spec.subject, cloud_event_headers(contract, source)

    def event(self, entity: str, at_ms: int) -> Any:
        return self._record(**{"event_id": f"{entity}@{iso(at_ms)}", "event_time": at_ms, self._subject: entity})

    def record(self, entity: str, at_ms: int) -> Record:
        """As ``event``, as the record to publish; it arrives at ``at_ms``."""
        event = self.event(entity, at_ms)
        return Record(self.topic, entity.encode(), msgspec.json.encode(event), at_ms, self._headers(event.event_id, at_ms))


class ScheduledRequests(Requests):
    """Those that the model's schedule names, by what the online store holds. Raises DefinitionError for a model without one."""

    def __init__(self, spec: ModelSpec, source: str, redis_url: str) -> None:
        super().__init__(spec, source)
        if spec.schedule is None:
            raise DefinitionError(f"model {spec.name!r} has no schedule", hint="name the entities to score")
        self._schedule, self._redis_url = spec.schedule, redis_url

    def next_ms(self, at_ms: int) -> int:
        """The first time at or after ``at_ms`` at which the schedule asks."""
        return -(-at_ms // self._schedule.every_ms) * self._schedule.every_ms

    def due(self, at_ms: int) -> Iterator[Record]:
        """A request for each entity that the schedule names at ``at_ms``."""
        active = active_entities(self._redis_url, self._schedule.view, at_ms - self._schedule.active_ms, at_ms)
        return (self.record(entity, at_ms) for entity in active)
