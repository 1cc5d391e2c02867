"""The point-in-time engine: each query row's features over exactly the records that its read may see, by the online kernel.

One shuffle per entity, whatever the number of views: events and queries of an entity meet in one partition, are read by
``feature_repo.kernel`` and carry their results, as bytes, into the next entity's shuffle. Nothing is joined back on a row id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.archived import word_names
from feature_repo.history import entity_codes
from feature_repo.kernel import EXCLUDE, INCLUDE, NONE, sort_order, sweep, sweep_values
from feature_repo.positions import from_source
from feature_repo.views import FeatureService, FeatureView
from jobs.arrow_batches import in_slices, one_batch, whole

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

__all__ = ["Answer", "Finish", "Reads", "as_bytes", "feature_columns", "from_bytes", "history_ms", "read_values",
           "sweep_entities"]

SEES_ALL = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Reads:
    """The reads of one view over a few whole entities; arrays as ``kernel.sweep`` takes them.

    ``queries`` holds the query rows, one a read. ``found`` says whether a query's own source record is here.
    """

    view: FeatureView
    records: Any
    arrivals: Any
    starts: Any
    ends: Any
    t: Any
    current: Any
    modes: Any
    horizons: Any
    take_queries: Callable[[], pa.Table]
    found: Any

    @property
    def queries(self) -> pa.Table:
        return self.take_queries()

    def sweep(self) -> tuple[Any, Any]:
        """Values and stamps."""
        return sweep(self.view, self.records, self.arrivals, self.starts, self.ends, self.t, self.current, self.modes, self.horizons)

    def values(self) -> Any:
        return sweep_values(self.view, self.records, self.arrivals, self.starts, self.ends, self.t, self.current, self.modes, self.horizons)


Answer = Callable[[Reads], Any]
"""From reads to float64[n, k], one row a query."""

Finish = Callable[["pa.Table", "pa.Table", dict[str, Any]], "pa.RecordBatch"]
"""From query rows, their own source rows (nulls where there is none) and each view's answers to the rows that come out."""


def read_values(reads: Reads) -> Any:
    """The feature values alone."""
    return reads.values()


def history_ms(views: Iterable[FeatureView]) -> int:
    """How far before a read its oldest record can lie."""
    return max((view.longest_window_ms + max(view.hops, default=0) + view.delay_ms for view in views), default=0)


def sweep_entities(rows: DataFrame, others: Mapping[str, DataFrame], service: FeatureService, answer: Answer, finish: Finish,
                   schema: str, *, ideal: bool = False) -> DataFrame:
    """One row out per query row in.

    Parameters
    ----------
    rows
        Events of the service's source (``jobs.events.events`` over ``service.views``) and queries, with a column ``query``; a
        row may be both. A query has the event_time, arrival_ms, position and entities of its source record, and where it is not
        that record, no ``admitted``.
    others
        Events of each other source that a view reads.
    answer, finish
        What to make of each view's reads, and of all answers to one query.
    schema
        Spark schema of what ``finish`` returns.
    ideal
        Reads see every admitted record whenever it arrived; else what had arrived before the query's own.
    """
    from pyspark.sql import functions as F

    entities = service.entities
    answered: list[str] = []
    for entity in entities:
        bits = [(bit, view) for bit, view in enumerate(service.views) if view.entity == entity]
        for source in dict.fromkeys(view.source for _, view in bits if view.source != service.source):
            words = dict.fromkeys(name for _, view in bits if view.source == source for name in word_names(view))
            event_columns = (entity, "arrival_ms", "position", "admitted", *words)
            rows = rows.unionByName(others[source].select(*event_columns).withColumn("query", F.lit(False)), allowMissingColumns=True)
        # No sort: the kernel orders an entity's records itself, by counting. Adaptive execution makes partitions of 64 MB of these.
        rows = rows.repartition(entity)
        names = [view.name for _, view in bits]
        last = entity == entities[-1]
        to_come = entities[entities.index(entity) + 1:]
        needed = {"event_time", *(name for view in service.views if view.entity in to_come for name in word_names(view))}
        spent = tuple(dict.fromkeys(name for _, view in bits for name in word_names(view) if name not in needed))
        stage = _Stage(entity, tuple(bits), service.source, answer, ideal, tuple(answered), spent, finish if last else None)
        fields = [f"{field.name} {field.dataType.simpleString()}" for field in rows.schema if field.name not in spent]
        carried = ", ".join([*fields, *(f"{name}_read binary" for name in names)])
        rows = rows.mapInArrow(stage, schema if last else carried)
        answered += names
    return rows


@dataclass(frozen=True)
class _Stage:
    """What one entity's shuffle does with its rows. ``answered`` are the views before it, ``spent`` the words that nobody needs after."""

    entity: str
    bits: tuple[tuple[int, FeatureView], ...]
    source: str
    answer: Answer
    ideal: bool
    answered: tuple[str, ...]
    spent: tuple[str, ...]
    finish: Finish | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        table = whole(batches)
        if table is None:
            return
        queries = np.flatnonzero(table["query"].to_numpy())
        codes = entity_codes([table[self.entity]])[0]
        if self.finish is None or len(queries):
            # An entity's reads side by side and in order of time, as ``kernel.sweep_values`` likes them.
            queries = queries[np.lexsort((table["event_time"].to_numpy()[queries], codes[queries]))]
            done = self._carry(table, codes, queries) if self.finish is None else self._finish(table, codes, queries)
            yield from in_slices(done)

    def _carry(self, table: pa.Table, codes: Any, queries: Any) -> pa.RecordBatch:
        """The rows of the service's source, each query with its answers as bytes."""
        import pyarrow as pa

        at = np.full(table.num_rows, -1)
        at[queries] = np.arange(len(queries))
        index = pa.array(at, mask=at < 0)
        own_rows = self._source_rows(table)
        own_rows[queries] = True
        for name, of_view in self._answers(table, codes, queries, self._own(table, queries)).items():
            table = table.append_column(f"{name}_read", as_bytes(of_view).take(index))
        table = table.drop_columns(list(self.spent))
        return one_batch(table.filter(pa.array(own_rows)) if not own_rows.all() else table)

    def _finish(self, table: pa.Table, codes: Any, queries: Any) -> pa.RecordBatch:
        import pyarrow as pa

        assert self.finish is not None
        own = self._own(table, queries)
        answers = self._answers(table, codes, queries, own)
        table = table.drop_columns(list(self.spent))
        of_queries, reads = table.take(queries), [f"{name}_read" for name in self.answered]
        answers |= {name: from_bytes(of_queries[read]) for name, read in zip(self.answered, reads, strict=True)}
        return self.finish(of_queries, table.drop_columns(reads).take(pa.array(own, mask=own < 0)), answers)

    def _own(self, table: pa.Table, queries: Any) -> Any:
        """The row of each query's own source record, -1 where it is not here."""
        sources = np.flatnonzero(self._source_rows(table))
        position = table["position"].to_numpy()
        sources = sources[np.argsort(position[sources], kind="stable")]
        wanted = position[queries]
        at = np.minimum(np.searchsorted(position[sources], wanted), max(len(sources) - 1, 0))
        return np.where(position[sources[at]] == wanted, sources[at], -1) if len(sources) else np.full(len(queries), -1)

    def _source_rows(self, table: pa.Table) -> Any:
        """Which rows are records of the service's source; a query that is none says nothing of admission."""
        return table["admitted"].is_valid().to_numpy() & from_source(table["position"].to_numpy(), self.source)

    def _answers(self, table: pa.Table, codes: Any, queries: Any, own: Any) -> dict[str, Any]:
        admitted, position = table["admitted"].fill_null(0).to_numpy(), table["position"].to_numpy()
        arrivals = np.stack((table["arrival_ms"].to_numpy(), position), axis=1)
        t = table["event_time"].to_numpy()[queries]
        horizons = np.full((len(queries), 2), SEES_ALL) if self.ideal else arrivals.take(queries, axis=0)
        taken = cache(lambda: table.take(queries))  # few ask
        word = cache(lambda name: table[name].fill_null(0).to_numpy())

        def records(view: FeatureView, rows: Any) -> Any:
            return np.stack([word(name).take(rows) for name in word_names(view)], axis=1)

        answers = {}
        for bit, view in self.bits:
            events = np.flatnonzero(admitted & (1 << bit))
            in_set = records(view, events)
            order = sort_order(view, codes[events], in_set)
            events = events[order]
            counts = np.bincount(codes[events], minlength=len(codes))
            ends = np.cumsum(counts)[codes[queries]]
            current, modes = np.zeros((len(queries), view.record_words), np.int64), np.full(len(queries), NONE)
            if view.source == self.source:
                here = own >= 0
                current[here] = records(view, own[here])
                modes[here] = INCLUDE if view.include_current else EXCLUDE
            answers[view.name] = self.answer(Reads(view, in_set.take(order, axis=0), arrivals.take(events, axis=0),
                                                   ends - counts[codes[queries]], ends, t, current, modes, horizons, taken, own >= 0))
        return answers


def as_bytes(matrix: Any) -> pa.Array:
    """One binary a row of a matrix of 8-byte numbers."""
    import pyarrow as pa

    matrix = np.ascontiguousarray(matrix)
    offsets = np.arange(len(matrix) + 1, dtype=np.int32) * (8 * matrix.shape[1])
    return pa.Array.from_buffers(pa.binary(), len(matrix), [None, pa.py_buffer(offsets), pa.py_buffer(matrix)])


def from_bytes(column: pa.ChunkedArray, dtype: Any = np.float64, width: int = -1) -> Any:
    """The numbers in the non-null rows of a binary column, as a matrix of ``width`` columns (-1: as many as a row holds)."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.drop_null()
    if not len(array):
        return np.empty((0, max(width, 0)), dtype)
    _, offset_buffer, data = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[array.offset:array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8)[offsets[0]:offsets[-1]].view(dtype).reshape(len(array), -1)


def feature_columns(matrix: Any) -> Sequence[pa.Array]:
    """The columns of a matrix, null where NaN."""
    import pyarrow as pa

    return [pa.array(np.ascontiguousarray(column), from_pandas=True) for column in matrix.T]
