"""Features of the past, computed in this process: many reads of one feature service, each at its own time, over the archive's events.

The same kernel as online and in Spark; see docs/decisions/0011-training-sets.md for what is shared and why there are two ways.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.archive_table import FOR_EVER, ArchiveTable, Arrived
from feature_repo.archived import Wanted
from feature_repo.kernel import EXCLUDE, INCLUDE, NONE, sort_order, sweep_values
from feature_repo.views import FeatureService, FeatureView

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Needed", "Queries", "entity_codes", "features_at"]


@dataclass(frozen=True)
class Queries:
    """n reads.

    ``t`` int64[n]; ``texts`` the entity that each names, by entity; ``horizons`` int64[n, 2]: what is seen arrived before; ``own``
    int64[n]: the row among the source's events of the event that the read is for, -1: it is for none.
    """

    t: Any
    texts: Mapping[str, pa.ChunkedArray]
    horizons: Any
    own: Any

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True)
class Needed:
    """The archived events that reads of ``service`` with first_ms <= t < end_ms may need.

    Of the service's own source ``texts`` are columns; ``numbers`` names int64 fields by source. Of the sources named there, as of the
    service's own, everything that arrived by ``arrived_until_ms`` is needed; of others what can be in a set.
    """

    service: FeatureService
    first_ms: int
    end_ms: int
    arrived_until_ms: int = FOR_EVER
    texts: tuple[str, ...] = ()
    numbers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def by_source(self) -> dict[str, tuple[Wanted, int]]:
        """What to decode, and until which arrival."""
        needed = {}
        for source in dict.fromkeys((*self.numbers, *(view.source for view in self.service.views))):
            views = [view for view in self.service.views if view.source == source]
            past_ms = max((view.longest_window_ms + view.delay_ms for view in views), default=0)
            until_ms = self.arrived_until_ms
            if source != self.service.source and source not in self.numbers:
                until_ms = min(until_ms, max(self.end_ms - view.delay_ms + view.allowed_lateness_ms for view in views))
            texts = {*(view.entity for view in views), *(self.texts if source == self.service.source else ())}
            needed[source] = Wanted(source, self.service.views, tuple(texts), tuple(self.numbers.get(source, ())),
                                    self.first_ms - past_ms, self.end_ms), until_ms
        return needed

    def count(self, archive: ArchiveTable) -> int:
        """How many archived records that is at most; told by statistics."""
        return sum(archive.count(source, wanted.arrived_from_ms, until_ms) for source, (wanted, until_ms) in self.by_source().items())

    def load(self, archive: ArchiveTable) -> dict[str, Arrived]:
        return {source: archive.read(wanted, until_ms) for source, (wanted, until_ms) in self.by_source().items()}


def features_at(service: FeatureService, sources: Mapping[str, Arrived], queries: Queries) -> Any:
    """float64[n, F] in service order, NaN is null: the window features; room is left for the request-time ones."""
    matrix = np.empty((len(service.feature_names), len(queries))).T  # column by column, as tables are
    for_events = bool(len(queries)) and bool((queries.own >= 0).all())
    for entity in service.entities:
        views = [view for view in service.views if view.entity == entity]
        names = list(dict.fromkeys([*(view.source for view in views), *([service.source] if for_events else [])]))
        texts = [sources[name].texts[entity] for name in names]
        codes = entity_codes(texts if for_events else [*texts, queries.texts[entity]])
        of_queries = codes[names.index(service.source)][queries.own] if for_events else codes[-1]
        for view in views:
            _fill(matrix[:, service.view_slice(view)], service, view, sources[view.source], codes[names.index(view.source)], queries,
                  of_queries)
    return matrix


def entity_codes(texts: Sequence[pa.ChunkedArray]) -> list[Any]:
    """A number for each entity, the same in all columns of ``texts``."""
    import pyarrow as pa

    chunks = [chunk for column in texts for chunk in column.chunks]
    indices = pa.chunked_array(chunks, pa.string()).dictionary_encode().combine_chunks().indices.to_numpy().astype(np.int64)
    return np.split(indices, np.cumsum([len(column) for column in texts])[:-1])


def _fill(values: Any, service: FeatureService, view: FeatureView, source: Arrived, codes: Any, queries: Queries, of_queries: Any) -> None:
    """Put the features of ``view`` into float64[n, features], by threads that share nothing: each has the records of some entities.

    Rows are gathered by ``take``, which copies each whole; an index in brackets goes number by number, five times as slow.
    """
    bit, n = service.views.index(view), len(queries)
    asked = np.zeros(max(codes.max(initial=-1), of_queries.max(initial=-1)) + 1, bool)
    asked[of_queries] = True
    of_view = source.events.records(view)

    def sorted_events() -> Any:
        events = np.flatnonzero((source.events.admitted >> bit & 1).astype(bool) & asked[codes])
        return events[sort_order(view, codes[events], of_view.take(events, axis=0))]

    def sorted_queries() -> Any:
        """An entity's reads side by side, as the kernel likes them."""
        times = np.zeros((n, view.record_words), np.int64)
        times[:, 0] = queries.t
        return sort_order(view, of_queries, times)

    def fill(part: Any) -> None:
        first, last = of_queries[part[0]], of_queries[part[-1]]
        base = ends[first - 1] if first else 0
        mine = events[base:ends[last]]
        current, modes = np.zeros((len(part), view.record_words), np.int64), np.full(len(part), NONE)
        if view.source == service.source and len(of_view):
            own = queries.own[part]
            current = of_view.take(np.maximum(own, 0), axis=0)
            modes[own >= 0] = INCLUDE if view.include_current else EXCLUDE
        of_part = of_queries[part]
        until = ends[of_part] - base
        since = np.where(of_part > 0, ends[of_part - 1], 0) - base
        sweep_values(view, of_view.take(mine, axis=0), source.arrivals.take(mine, axis=0), since, until, queries.t[part], current, modes,
                     queries.horizons.take(part, axis=0), (values, part))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        order = pool.submit(sorted_queries)
        events = pool.submit(sorted_events).result()
        ends = np.cumsum(np.bincount(codes[events], minlength=len(asked)))
        list(pool.map(fill, [part for part in np.array_split(order.result(), 4 * (os.cpu_count() or 1)) if len(part)]))
