"""From events and their entities' sets to feature vectors: the one place where a vector is put together, online and in lookups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo import kernel
from feature_repo.layout import join_sets, packer
from feature_repo.tiles import tiles_of
from feature_repo.views import FeatureService, FeatureView

if TYPE_CHECKING:
    from feature_repo.online import Reading

__all__ = ["VectorBuilder", "Vectors", "request_features"]


@dataclass(frozen=True)
class Vectors:
    """``matrix`` is float64[n, F] in service order, NaN is null; ``stamps[v]`` is int64[n, 5] of view v (columns: kernel.USED ..)."""

    matrix: Any
    stamps: tuple[Any, ...]


def request_features(service: FeatureService, matrix: Any, event_columns: dict[str, Any]) -> None:
    """Fill the request-time columns of ``matrix`` from its window columns and the events' own fields."""
    names = service.feature_names
    x = {**event_columns, **{name: matrix[:, i] for i, name in enumerate(names)}}
    first = len(names) - len(service.request)
    for i, feature in enumerate(service.request):
        matrix[:, first + i] = feature.function(x)


class VectorBuilder:
    """Builds the vectors of one feature service. Holds compiled packers, no state."""

    def __init__(self, service: FeatureService) -> None:
        self.service = service
        self._packers = {view.name: packer(view) for view in service.views if view.source == service.source}

    def wanted(self, events: Sequence[Any]) -> list[tuple[FeatureView, list[str]]]:
        """Which entities of which views these events need."""
        return [(view, [getattr(event, view.entity) for event in events]) for view in self.service.views]

    def build(self, events: Sequence[Any], reading: Reading) -> Vectors:
        """One row an event, at t = its event time; the event belongs to its own read where its view says so."""
        n = len(events)
        matrix = np.empty((n, len(self.service.feature_names)))
        t = np.fromiter((event.event_time for event in events), np.int64, n)
        stamps = []
        for view, sets, tiles in zip(self.service.views, reading.sets, reading.tiles, strict=True):
            matrix[:, self.service.view_slice(view)], stamp = self._read(view, events, sets, tiles, t)
            stamps.append(stamp)
        columns = {name: np.fromiter((getattr(event, name) for event in events), np.int64, n) for name in self.service.event_columns}
        request_features(self.service, matrix, columns)
        return Vectors(matrix, tuple(stamps))

    def _read(self, view: FeatureView, events: Sequence[Any], sets: dict[str, bytes | None], tiles: dict[str, bytes | None],
              t: Any) -> tuple[Any, Any]:
        n = len(events)
        records, bounds = join_sets(view, sets.values())
        index = {entity: i for i, entity in enumerate(sets)}
        at = np.fromiter((index[getattr(event, view.entity)] for event in events), np.int64, n)
        pack = self._packers.get(view.name)
        if pack is None:
            current = np.zeros((n, view.record_words), np.int64)
            modes = np.full(n, kernel.NONE)
        else:
            current = np.frombuffer(b"".join([pack(event) for event in events]), "<i8").reshape(n, view.record_words)
            modes = np.full(n, kernel.INCLUDE if view.include_current else kernel.EXCLUDE)
        return kernel.read_sets(view, records, bounds[at], bounds[at + 1], t, current, modes, tiles_of(view, tiles, at))
