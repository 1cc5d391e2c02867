"""Backfill: every admitted record of the archive that a read can need is brought into a view's sets, while workers append to them.

Entities are hashed into units; a Spark task brings in a few, one after the other, and a unit is done when the store says so
(``feature_repo.fills``). What is not done, because the driver or a task died or the store went back in time, is done again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from math import gcd
from operator import itemgetter
from typing import TYPE_CHECKING

from pydantic import SecretStr

from feature_repo.appends import floor_ms
from feature_repo.fills import Fill, Fills, Plan
from feature_repo.marks import scored_ms_key
from feature_repo.union import Counts, Entity, Pace, SetUnion
from feature_repo.views import FeatureService, FeatureView
from feature_repo.wire import Wire, pack
from jobs.entities import whole_entities
from jobs.events import bronze, bronze_path, events, newest_version
from jobs.lineage import lineage
from jobs.spark import use_session
from schemas.errors import JobError, StoreError
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

__all__ = ["Backfilled", "Course", "backfill"]

PARTITIONS_PER_TASK = 4
UNITS_PER_PARTITION = 8
ROUNDS = 5
LOOK_EVERY_S = 0.5
END_MS = 2**62
COLUMNS = ("unit", *asdict(Counts()))
SCHEMA = ", ".join(f"{name} long" for name in COLUMNS)


@dataclass(frozen=True)
class Backfilled:
    """What one run did. ``added`` and the like are of this run; ``units_before`` were done by one that it went on with.

    ``rows`` of the archive were read of the view's source, ``invalid`` of them are dead letters, ``late`` too late for the view;
    both are 0 where everything was done before. ``short_of``: partition -> the offset before which the sets still lack records.
    """

    view: str
    dry_run: bool
    units: int
    units_before: int
    units_again: int
    rows: int
    invalid: int
    late: int
    entities: int
    records: int
    added: int
    entities_added_to: int
    bytes_added: int
    floor_ms: int | None
    bronze_version: int
    bronze_version_after: int
    short_of: dict[int, int]
    seconds: float


@dataclass(frozen=True)
class Course:
    """How far a run is."""

    units: int
    units_done: int
    counts: Counts
    seconds: float


def backfill(settings: Settings, url: str, view: FeatureView, services: Sequence[FeatureService], *, start_ms: int | None = None,
             end_ms: int | None = None, rate: float | None = None, dry_run: bool = False, spark: SparkSession | None = None,
             tell: Callable[[Course], None] = lambda course: None) -> Backfilled:
    """Bring the archive's admitted records with start_ms <= event time < end_ms into the sets of ``view``.

    ``services`` are all that are scored anywhere, as in ``SetWriter``.

    Killed at any moment and run again it goes on with the units that were not done, over the version of the archive that it had.
    A run after a finished one looks at everything again, and adds nothing. With ``dry_run`` sets are read and compared, and
    nothing is written. Raises JobError where there is no archive, or the store goes back in time again and again; StoreError
    where it does not answer.
    """
    with lineage(settings, "backfill") as told, use_session(spark, settings, "backfill") as own:
        began = time.monotonic()
        version = newest_version(own, settings)
        if version < 0:
            raise JobError(f"there is no archive in {bronze_path(settings)}", hint="headrace archive")
        tasks = own.sparkContext.defaultParallelism
        floor = _floor_ms(url, view, services, settings.partitions)
        plan = Plan(version, tasks * PARTITIONS_PER_TASK * UNITS_PER_PARTITION, floor, start_ms, end_ms)
        fills = Fills(url, view)
        try:
            fill = Fill("", plan) if dry_run else fills.begin(plan)
            run = _Run(own, settings, view, fill, _Task(view, SecretStr(url), None if dry_run else fill, Pace(tasks, rate)), fills)
            told.reads_table(bronze_path(settings), fill.plan.bronze_version)
            with _watched(run, url, began, tell):
                total = run.units()
            if not dry_run:
                told.writes_sets(url, view.versioned_name)
            short_of = {partition: offset for partition, (offset, _) in fills.shortages().items() if offset}
        finally:
            fills.close()
        return Backfilled(view.versioned_name, dry_run, fill.plan.units, run.before, run.again, run.rows, run.invalid, run.late,
                          **asdict(total), floor_ms=fill.plan.floor_ms, bronze_version=fill.plan.bronze_version,
                          bronze_version_after=newest_version(own, settings), short_of=short_of,
                          seconds=round(time.monotonic() - began, 2))


def _floor_ms(url: str, view: FeatureView, services: Sequence[FeatureService], partitions: int) -> int | None:
    """At or below this no scorer of ``services`` can need a record; None where one has not scored from some partition."""
    readers = [service for service in services if view in service.views]
    wire = Wire(url, 5000)
    try:
        scored = wire.exchange([pack(("HVALS", scored_ms_key(service.name))) for service in readers])
    finally:
        wire.close()
    if not readers or any(len(marks) != partitions for marks in scored):
        return None
    return floor_ms(view, min(int(at) for marks in scored for at in marks), max(service.scored_lateness_ms for service in readers))


@dataclass
class _Run:
    """The units of one run, in as many rounds as it takes."""

    spark: SparkSession
    settings: Settings
    view: FeatureView
    fill: Fill
    task: _Task
    fills: Fills
    before: int = 0
    again: int = 0
    rows: int = 0
    invalid: int = 0
    late: int = 0

    def units(self) -> Counts:
        total = Counts()
        done = set(self.fills.done(self.fill)) if self.task.fill is not None else set()
        self.before = len(done)
        for _ in range(ROUNDS):
            for counts in self._round(done):
                done.add(counts.pop("unit"))
                total += Counts(**{name: counts[name] for name in asdict(total)})
            if self.task.fill is None:
                return total
            if self.fills.finish(self.fill, len(done), self._made_up()):
                return total
            there = set(self.fills.done(self.fill))
            self.again += len(done - there)
            done &= there
        raise JobError(f"the online store lost what it was given, {ROUNDS} times over",
                       hint="does it restart, or refuse writes? then run the same command again")

    def _made_up(self) -> dict[int, tuple[int, int]]:
        """The shortages of the sets (``feature_repo.marks``) that this run makes up for: the archive has what came before."""
        from pyspark.sql import functions as F

        short = {partition: begun for partition, begun in self.fills.shortages().items() if begun[0]}
        if not short or not self.fill.plan.everything:
            return {}
        archive = bronze(self.spark, self.settings, self.fill.plan.bronze_version).where(F.col("topic") == self.view.source)
        spans = archive.groupBy("partition").agg(F.min("offset").alias("first"), F.max("offset").alias("last")).collect()
        has = {row["partition"]: row for row in spans}
        history = any(partition < 0 for partition in has)
        return {partition: begun for partition, begun in short.items()
                if partition in has and has[partition]["last"] >= begun[0] - 1 and (has[partition]["first"] == 0 or history)}

    def _round(self, done: set[int]) -> list[dict[str, int]]:
        """Do the units that are not ``done``; one dict a unit that has records, whether it was brought in or not."""
        from pyspark.sql import Observation
        from pyspark.sql import functions as F

        if len(done) == self.fill.plan.units:
            return []
        plan, read, typed = self.fill.plan, Observation(), Observation()
        first = max(plan.start_ms or 0, plan.floor_ms + 1 if plan.floor_ms is not None else 0)
        arrived = F.col("arrival_ms") >= first - self.view.max_skew_ms
        if plan.end_ms is not None:
            arrived &= F.col("arrival_ms") < plan.end_ms + self.view.allowed_lateness_ms
        archive = bronze(self.spark, self.settings, plan.bronze_version).where((F.col("topic") == self.view.source) & arrived)
        rows = events(archive.observe(read, F.count("*").alias("rows")), self.view.source, (self.view,))
        inside = (F.col("event_time") >= first) & (F.col("event_time") < (plan.end_ms or END_MS))
        rows = rows.observe(typed, F.count("*").alias("valid"), F.count_if(inside & (F.col("admitted") == 0)).alias("late"))
        unit = F.pmod(F.hash(self.view.entity), F.lit(plan.units)).alias("unit")
        rows = rows.where(inside & (F.col("admitted") == 1)).select(self.view.entity, self.view.name, unit)
        if done:
            rows = rows.where(~F.col("unit").isin(*done))
        # The shuffle hashes an entity likewise, so where the number of units is a multiple of its partitions, each holds whole units.
        partitions = gcd(plan.units, self.task.pace.tasks * PARTITIONS_PER_TASK)
        rows = rows.repartition(partitions, self.view.entity).sortWithinPartitions("unit", self.view.entity)
        found = [row.asDict() for row in rows.mapInArrow(self.task, SCHEMA).collect()]
        if not self.rows:
            self.rows, self.late = read.get["rows"], typed.get["late"]
            self.invalid = self.rows - typed.get["valid"]
        return found


@dataclass(frozen=True)
class _Task:
    """What a Spark task does with its units."""

    view: FeatureView
    url: SecretStr
    fill: Fill | None
    pace: Pace

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        schema = pa.schema([(name, pa.int64()) for name in COLUMNS])
        union = SetUnion(self.url.get_secret_value(), self.view, self.fill, self.pace)
        try:
            for unit, entities in groupby(self._entities(batches), itemgetter(0)):
                counts = union.unit(unit, map(itemgetter(1), entities)) or Counts()
                yield pa.RecordBatch.from_pylist([{"unit": unit, **asdict(counts)}], schema=schema)
        finally:
            union.close()

    def _entities(self, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, Entity]]:
        import numpy as np

        for table in whole_entities(batches, self.view.entity):
            names = table[self.view.entity].to_numpy(zero_copy_only=False)
            units, records = table["unit"].to_numpy(), table[self.view.name].to_numpy(zero_copy_only=False).tolist()
            bounds = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), len(names)]
            for start, end in pairwise(bounds):
                yield int(units[start]), (names[start], records[start:end])


@contextmanager
def _watched(run: _Run, url: str, began: float, tell: Callable[[Course], None]) -> Iterator[None]:
    """Tell twice a second what the store has of the run."""
    ended = threading.Event()

    def watch() -> None:
        fills = Fills(url, run.view)
        while not ended.wait(LOOK_EVERY_S):
            try:
                done = fills.done(run.fill)
            except StoreError:  # the tasks wait for it
                continue
            counts = sum((Counts(**each) for each in done.values()), Counts())
            tell(Course(run.fill.plan.units, len(done), counts, time.monotonic() - began))
        fills.close()

    watcher = threading.Thread(target=watch, daemon=True)
    if run.task.fill is not None:
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if run.task.fill is not None:
            watcher.join()
