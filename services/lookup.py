"""Looking at what the online store holds: an entity's features at a time, and the score an event would get."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo import kernel
from feature_repo.layout import join_sets
from feature_repo.online import SetReader
from feature_repo.tiles import events_in, tiles_of
from feature_repo.vector import VectorBuilder
from feature_repo.views import FeatureService, FeatureView
from schemas.errors import BelowFloorError, DefinitionError
from schemas.settings import Settings

__all__ = ["ViewValues", "clock_ms", "entity_field", "features_at", "vector_for"]


@dataclass(frozen=True)
class ViewValues:
    """One view's features of one entity. ``values`` are None where null; ``records`` is how many events they were made from."""

    view: str
    entity: str
    values: dict[str, float | None]
    records: int
    stored: int
    newest_ms: int | None
    fingerprint: str
    applied: tuple[int, ...]


def entity_field(views: Iterable[FeatureView], word: str) -> str:
    """The contract field that ``word`` (card or card_id) names. Raises DefinitionError for a word of no view."""
    fields = {view.entity for view in views}
    for field in (word, f"{word}_id"):
        if field in fields:
            return field
    raise DefinitionError(f"no feature view has entity {word!r}",
                          hint=f"one of {', '.join(sorted(fields))}; HEADRACE_USE_CASES switches use cases on")


def clock_ms(settings: Settings, reader: SetReader, services: Iterable[FeatureService], nothing_ms: int | None = None) -> int:
    """Now: the wall clock's time; in a replay the newest arrival that one of ``services`` has scored, ``nothing_ms`` before the first."""
    scored_ms = reader.newest_scored_ms(service.name for service in services) if settings.time == "replay" else None
    if scored_ms is None and settings.time == "replay":
        scored_ms = nothing_ms
    return time.time_ns() // 1_000_000 if scored_ms is None else scored_ms


def features_at(views: Iterable[FeatureView], reader: SetReader, entities: dict[str, str], at_ms: int) -> list[ViewValues]:
    """Every view of the entities given (field -> name), as of ``at_ms``, no event of its own merged.

    Raises BelowFloorError where the history that a window needs was trimmed.
    """
    views = [view for view in views if view.entity in entities]
    reading = reader.read([(view, [entities[view.entity]]) for view in views])
    return [_values(view, entities[view.entity], sets, tiles, applied, at_ms)
            for view, sets, tiles, applied in zip(views, reading.sets, reading.tiles, reading.applied, strict=True)]


def vector_for(builder: VectorBuilder, reader: SetReader, event: Any) -> tuple[Any, tuple[Any, ...]]:
    """The feature vector float64[F] that ``event`` would be scored with now, and the stamps of its views."""
    vectors = builder.build([event], reader.read(builder.wanted([event])))
    return vectors.matrix[0], vectors.stamps


def _values(view: FeatureView, entity: str, sets: dict[str, bytes | None], tiles: dict[str, bytes | None], applied: tuple[int, ...],
            at_ms: int) -> ViewValues:
    records, bounds = join_sets(view, sets.values())
    nobody = np.zeros((1, view.record_words), np.int64)
    values, stamps = kernel.read_sets(view, records, bounds[:1], bounds[1:], np.array([at_ms]), nobody, np.array([kernel.NONE]),
                                      tiles_of(view, tiles, np.zeros(1, np.int64)))
    stamp = stamps[0]
    if stamp[kernel.REFUSED]:
        raise BelowFloorError(f"the online store no longer has all records that {view.name} of {entity!r} needs at {at_ms}",
                              hint="older history is in the Delta tables; `headrace training-set` reads it")
    newest = int(stamp[kernel.NEWEST])
    return ViewValues(
        view.name, entity, {f.name: None if np.isnan(v) else float(v) for f, v in zip(view.features, values[0], strict=True)},
        int(stamp[kernel.USED]), events_in(view, sets[entity], tiles.get(entity)), None if newest == kernel.NO_TIME else newest,
        f"{int(stamp[kernel.XOR]) & (1 << 64) - 1:016x}", applied,
    )
