"""The archive's admitted records for a backfill, unit by unit: from Spark's tasks, or from this process where they are few enough.

Both give each unit's whole entities to a ``SetUnion``, with the same verdicts and bytes. Which entities make a unit differs, so a run
goes on with the engine it was begun with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from math import gcd
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import SecretStr

from feature_repo.archive_table import FOR_EVER, events_in, newest_archived, no_archive, open_archive
from feature_repo.archived import Wanted, word_names
from feature_repo.fills import Fill, Plan
from feature_repo.layout import hash_text
from feature_repo.union import Counts, Entity, Pace, SetUnion
from feature_repo.views import FeatureView
from jobs.entities import whole_entities
from jobs.events import bronze, events, newest_version
from jobs.features import as_bytes
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

__all__ = ["PARTITIONS_PER_TASK", "UNITS_PER_PARTITION", "FillRows", "ProcessRows", "Seen", "SparkRows", "Task"]

PARTITIONS_PER_TASK = 4
UNITS_PER_PARTITION = 8
COLUMNS = ("unit", *asdict(Counts()))
SCHEMA = ", ".join(f"{name} long" for name in COLUMNS)


@dataclass(frozen=True)
class Seen:
    """What was read of the archive on the way: rows of the view's source, how many are valid, how many of those in the plan's period came
    too late for the view."""

    rows: int
    valid: int
    late: int


@dataclass(frozen=True)
class Task:
    """What is done with whole units, by whoever has their records."""

    view: FeatureView
    url: SecretStr
    fill: Fill | None
    pace: Pace

    def units(self, entities: Iterator[tuple[int, Entity]]) -> Iterator[dict[str, int]]:
        """Counts of each unit; ``entities`` (unit, entity) are in order of their units."""
        union = SetUnion(self.url.get_secret_value(), self.view, self.fill, self.pace)
        try:
            for unit, members in groupby(entities, itemgetter(0)):
                yield {"unit": unit, **asdict(union.unit(unit, map(itemgetter(1), members)) or Counts())}
        finally:
            union.close()

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        schema = pa.schema([(name, pa.int64()) for name in COLUMNS])
        for counts in self.units(self._entities(batches)):
            yield pa.RecordBatch.from_pylist([counts], schema=schema)

    def _entities(self, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, Entity]]:
        for table in whole_entities(batches, self.view.entity):
            names, units = table[self.view.entity].to_numpy(zero_copy_only=False), table["unit"].to_numpy()
            words = np.stack([table[name].to_numpy() for name in word_names(self.view)], axis=1)
            records = as_bytes(words).to_numpy(zero_copy_only=False).tolist()
            bounds = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
            for start, end in pairwise(bounds):
                yield int(units[start]), (names[start], records[start:end])


class FillRows(Protocol):
    """The archive, as an engine reads it. ``tasks`` write at the same time."""

    @property
    def engine(self) -> str: ...

    @property
    def tasks(self) -> int: ...

    def newest(self) -> int:
        """The archive's newest version. Raises JobError where there is no archive."""

    def spans(self, version: int, source: str) -> Mapping[int, tuple[int, int]]:
        """Partition -> first and last archived offset of ``source``."""

    def fill(self, plan: Plan, task: Task, done: set[int]) -> tuple[list[dict[str, int]], Seen]:
        """Do the units that are not ``done``: one dict (COLUMNS) a unit that has records, whether it was brought in or not."""


def _bounds(view: FeatureView, plan: Plan) -> tuple[int, int, int, int]:
    """What ``plan`` wants: first <= event time < end, and the first and last arrival that such an event can have."""
    first = max(plan.start_ms or 0, plan.floor_ms + 1 if plan.floor_ms is not None else 0)
    end, until = (FOR_EVER, FOR_EVER) if plan.end_ms is None else (plan.end_ms, plan.end_ms + view.allowed_lateness_ms - 1)
    return first, end, first - view.max_skew_ms, until


@dataclass(frozen=True)
class SparkRows:
    """Entities are hashed as Spark's shuffle hashes them, so that each of its tasks has whole units."""

    spark: SparkSession
    settings: Settings
    engine: ClassVar[str] = "spark"

    @property
    def tasks(self) -> int:
        return self.spark.sparkContext.defaultParallelism

    def newest(self) -> int:
        version = newest_version(self.spark, self.settings)
        if version < 0:
            raise no_archive(self.settings)
        return version

    def spans(self, version: int, source: str) -> Mapping[int, tuple[int, int]]:
        from pyspark.sql import functions as F

        archive = bronze(self.spark, self.settings, version).where(F.col("topic") == source)
        found = archive.groupBy("partition").agg(F.min("offset"), F.max("offset")).collect()
        return {partition: (first, last) for partition, first, last in found}

    def fill(self, plan: Plan, task: Task, done: set[int]) -> tuple[list[dict[str, int]], Seen]:
        from pyspark.sql import Observation
        from pyspark.sql import functions as F

        view, read, typed = task.view, Observation(), Observation()
        first, end, since, until = _bounds(view, plan)
        archive = bronze(self.spark, self.settings, plan.bronze_version).where(
            (F.col("topic") == view.source) & F.col("arrival_ms").between(since, until))
        rows = events(archive.observe(read, F.count("*").alias("rows")), view.source, (view,))
        inside = (F.col("event_time") >= first) & (F.col("event_time") < end)
        rows = rows.observe(typed, F.count("*").alias("valid"), F.count_if(inside & (F.col("admitted") == 0)).alias("late"))
        unit = F.pmod(F.hash(view.entity), F.lit(plan.units)).alias("unit")
        rows = rows.where(inside & (F.col("admitted") == 1)).select(view.entity, *word_names(view), unit)
        if done:
            rows = rows.where(~F.col("unit").isin(*done))
        # The shuffle hashes an entity likewise, so where the number of units is a multiple of its partitions, each holds whole units.
        partitions = gcd(plan.units, task.pace.tasks * PARTITIONS_PER_TASK)
        rows = rows.repartition(partitions, view.entity).sortWithinPartitions("unit", view.entity)
        found = [row.asDict() for row in rows.mapInArrow(task, SCHEMA).collect()]
        return found, Seen(read.get["rows"], typed.get["valid"], typed.get["late"])


@dataclass(frozen=True)
class ProcessRows:
    """No JVM: for so few records that its start would take longer, and take more from whoever scores beside it, than the backfill."""

    settings: Settings
    engine: ClassVar[str] = "process"
    tasks: ClassVar[int] = 1

    def count(self, view: FeatureView, plan: Plan) -> int:
        """How many archived records ``fill`` reads at most; told by statistics."""
        *_, since, until = _bounds(view, plan)
        return open_archive(self.settings, plan.bronze_version).count(view.source, since, until)

    def newest(self) -> int:
        return newest_archived(self.settings)

    def spans(self, version: int, source: str) -> Mapping[int, tuple[int, int]]:
        return open_archive(self.settings, version).spans(source)

    def fill(self, plan: Plan, task: Task, done: set[int]) -> tuple[list[dict[str, int]], Seen]:
        import pyarrow as pa

        view = task.view
        first, end, since, until = _bounds(view, plan)
        wanted = Wanted(view.source, (view,), (view.entity,))

        def decode(batch: pa.RecordBatch) -> tuple[Any, pa.Array, Seen]:
            found, _ = events_in(wanted, batch)
            inside = (found.event_time >= first) & (found.event_time < end)
            kept = inside & (found.admitted == 1)
            seen = Seen(len(batch), len(found.rows), int((inside & ~kept).sum()))
            return found.records(view)[kept], found.texts[view.entity].filter(pa.array(kept)), seen

        parts = open_archive(self.settings, plan.bronze_version).batches(view.source, since, until, decode, threads=1)
        seen = Seen(sum(part.rows for *_, part in parts), sum(part.valid for *_, part in parts), sum(part.late for *_, part in parts))
        records = np.concatenate([np.empty((0, view.record_words), np.int64), *(found for found, *_ in parts)])
        texts = pa.chunked_array([text for _, text, _ in parts], pa.string()).dictionary_encode().combine_chunks()
        return list(task.units(_by_unit(records, texts, plan.units, done))), seen


def _by_unit(records: Any, texts: pa.DictionaryArray, units: int, done: set[int]) -> Iterator[tuple[int, Entity]]:
    """(unit, entity) in order of units, of those that are not done."""
    names, codes = texts.dictionary.to_pylist(), texts.indices.to_numpy()
    of_entity = np.array([hash_text(name) % units for name in names], np.int64)
    entities = np.argsort(of_entity, kind="stable")
    place = np.empty(len(names), np.int64)
    place[entities] = np.arange(len(names))
    size, blob = 8 * records.shape[1], records.take(np.argsort(place[codes], kind="stable"), axis=0).tobytes()
    end = 0
    for code, number in zip(entities.tolist(), np.bincount(codes, minlength=len(names))[entities].tolist(), strict=True):
        start, end = end, end + number * size
        if (unit := int(of_entity[code])) not in done:
            yield unit, (names[code], [blob[at:at + size] for at in range(start, end, size)])
