"""Archived events for Spark that its Python processes read and decode themselves: Parquet to Arrow to the first shuffle.

``jobs.events.events`` has the JVM read the archive, make rows of it, and Arrow of the rows again, which costs what reads millions of values
and needs no more of Spark before its first shuffle (docs/decisions/0043). The same rows come of both.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feature_repo.archive_table import FOR_EVER, ArchiveTable, events_in, read_group
from feature_repo.archived import Wanted
from feature_repo.views import FeatureView
from jobs.events import event_rows, event_schema, wanted_events

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["ArchiveRows"]

TASK_BYTES = 64 << 20
"""Of row groups as they lie in memory, for one task: the JVM holds none of it."""


@dataclass(frozen=True)
class ArchiveRows:
    """The archive as it was when the last of it had arrived by ``until_ms``. Executors read its files, so they must reach them."""

    spark: SparkSession
    archive: ArchiveTable
    until_ms: int

    def events(self, source: str, views: Sequence[FeatureView], numbers: Sequence[str] = (), event_time: tuple[int, int] = (0, FOR_EVER),
               *, sets: bool = True) -> DataFrame:
        """As ``jobs.events.events``."""
        wanted = wanted_events(source, views, numbers, event_time, sets=sets)
        groups = self.archive.row_groups(source, wanted.arrived_from_ms, self.until_ms)
        tasks = [pickle.dumps(task) for task in _tasks(groups)]
        read = _Read(tuple(tasks), self.archive.dataset.schema, wanted, self.until_ms, sets)
        return self.spark.range(0, len(tasks), 1, max(len(tasks), 1)).mapInArrow(read, event_schema(wanted, sets))


def _tasks(groups: Sequence[Any]) -> Iterator[list[Any]]:
    """Row groups that follow each other, TASK_BYTES or a little more together."""
    task: list[Any] = []
    size = 0
    for group in groups:
        task.append(group)
        size += sum(part.total_byte_size for part in group.row_groups)
        if size >= TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


@dataclass(frozen=True)
class _Read:
    """What a task does: ``tasks`` are pickled, so that it unpacks its own alone."""

    tasks: tuple[bytes, ...]
    schema: pa.Schema
    wanted: Wanted
    until_ms: int
    sets: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        wanted = self.wanted
        for number in (number for batch in batches for number in batch["id"].to_pylist()):
            for group in pickle.loads(self.tasks[number]):
                for batch in read_group(group, self.schema, wanted.source, wanted.arrived_from_ms, self.until_ms):
                    found, arrivals = events_in(wanted, batch)
                    yield event_rows(wanted, found, arrivals[:, 0].copy(), arrivals[:, 1].copy(), self.sets)
