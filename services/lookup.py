"""Looking at what the online store holds: an entity's features at a time, and the score an event would get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo import kernel
from feature_repo.layout import join_sets
from feature_repo.online import SetReader
from feature_repo.vector import VectorBuilder
from feature_repo.views import FeatureService, FeatureView
from schemas.errors import BelowFloorError, DefinitionError
from schemas.records import Transaction

__all__ = ["ViewValues", "entity_field", "features_at", "vector_for"]


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


def entity_field(service: FeatureService, word: str) -> str:
    """The contract field that ``word`` (card or card_id) names. Raises DefinitionError for a word of no view."""
    fields = {view.entity for view in service.views}
    for field in (word, f"{word}_id"):
        if field in fields:
            return field
    raise DefinitionError(f"no view of feature service {service.name!r} has entity {word!r}", hint=f"one of {', '.join(sorted(fields))}")


def features_at(service: FeatureService, reader: SetReader, entities: dict[str, str], at_ms: int) -> list[ViewValues]:
    """Every view of the entities given (field -> name), as of ``at_ms``, no event of its own merged.

    Raises BelowFloorError where the history that a window needs was trimmed.
    """
    views = [view for view in service.views if view.entity in entities]
    reading = reader.read([(view, [entities[view.entity]]) for view in views])
    return [_values(view, entities[view.entity], sets, applied, at_ms)
            for view, sets, applied in zip(views, reading.sets, reading.applied, strict=True)]


def vector_for(builder: VectorBuilder, reader: SetReader, event: Transaction) -> tuple[Any, tuple[Any, ...]]:
    """The feature vector float64[F] that ``event`` would be scored with now, and the stamps of its views."""
    vectors = builder.build([event], reader.read(builder.wanted([event])))
    return vectors.matrix[0], vectors.stamps


def _values(view: FeatureView, entity: str, sets: dict[str, bytes | None], applied: tuple[int, ...], at_ms: int) -> ViewValues:
    records, bounds = join_sets(view, sets.values())
    nobody = np.zeros((1, view.record_words), np.int64)
    values, stamps = kernel.read_sets(view, records, bounds[:1], bounds[1:], np.array([at_ms]), nobody, np.array([kernel.NONE]))
    stamp = stamps[0]
    if stamp[kernel.REFUSED]:
        raise BelowFloorError(f"the online store no longer has all records that {view.name} of {entity!r} needs at {at_ms}",
                              hint="older history is in the Delta tables; `headrace training-set` reads it")
    newest = int(stamp[kernel.NEWEST])
    return ViewValues(
        view.name, entity, {f.name: None if np.isnan(v) else float(v) for f, v in zip(view.features, values[0], strict=True)},
        int(stamp[kernel.USED]), int((records[:, 1] != 0).sum()), None if newest == kernel.NO_TIME else newest,
        f"{int(stamp[kernel.XOR]) & (1 << 64) - 1:016x}", applied,
    )
