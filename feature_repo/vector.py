"""From events and their entities' sets to feature vectors: the one place where a vector is put together, online and in lookups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo import kernel
from feature_repo.layout import WORD, packer
from feature_repo.views import FeatureService, FeatureView

if TYPE_CHECKING:
    from feature_repo.online import Reading

__all__ = ["VectorBuilder", "Vectors", "request_features"]


@dataclass(frozen=True)
class Vectors:
    """``matrix`` is float64[n, F] in service order, NaN is null; ``stamps`` int64[V, n, 5] of its V views (columns: kernel.USED ..)."""

    matrix: Any
    stamps: Any


def request_features(service: FeatureService, matrix: Any, event_columns: dict[str, Any]) -> None:
    """Fill the request-time columns of ``matrix`` from its window columns and the events' own fields."""
    x = Columns(service.feature_names, matrix, event_columns)
    for i, feature in enumerate(service.request, len(service.feature_names) - len(service.request)):
        matrix[:, i] = feature.function(x)


class Columns(dict[str, Any]):
    """The columns of a matrix by name, and others; each is cut out when it is first asked for, and few are."""

    def __init__(self, names: Sequence[str], matrix: Any, others: dict[str, Any]) -> None:
        super().__init__((name, column) for name, column in others.items() if name not in names)
        self._names, self._matrix = names, matrix

    def __missing__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        column = self[name] = self._matrix[:, self._names.index(name)]
        return column


class VectorBuilder:
    """Builds the vectors of one feature service. Holds compiled packers and plans, no state."""

    def __init__(self, service: FeatureService) -> None:
        self.service = service
        self._packers = [packer(view) if view.source == service.source else None for view in service.views]
        self._plans = kernel.plans(service.views, [
            kernel.NONE if pack is None else kernel.INCLUDE if view.include_current else kernel.EXCLUDE
            for view, pack in zip(service.views, self._packers, strict=True)])

    def wanted(self, events: Sequence[Any]) -> list[tuple[FeatureView, list[str]]]:
        """Which entities of which views these events need."""
        return [(view, [getattr(event, view.entity) for event in events]) for view in self.service.views]

    def build(self, events: Sequence[Any], reading: Reading) -> Vectors:
        """One row an event, at t = its event time; the event belongs to its own read where its view says so."""
        n = len(events)
        parts: list[bytes] = []
        directory: list[int] = []
        for view, pack, sets, tiles in zip(self.service.views, self._packers, reading.sets, reading.tiles, strict=True):
            index = {name: i for i, name in enumerate(sets)}
            values = [value or b"" for value in sets.values()]
            folded = [tiles[name] or b"" for name in sets] if tiles else [b""] * len(sets)
            directory += [len(sets), *map(len, values), *map(len, folded), *[index[getattr(event, view.entity)] for event in events]]
            parts += values
            parts += folded
            parts += [bytes(8 * view.record_words * n)] if pack is None else map(pack, events)
        t = np.array([event.event_time for event in events], np.int64)
        windowed, stamps = kernel.read_views(self._plans, np.frombuffer(b"".join(parts), WORD), np.array(directory, np.int64), t)
        matrix = np.empty((n, len(self.service.feature_names)))
        matrix[:, :windowed.shape[1]] = windowed
        columns = {name: np.array([getattr(event, name) for event in events], np.int64) for name in self.service.event_columns}
        request_features(self.service, matrix, columns)
        return Vectors(matrix, stamps)
