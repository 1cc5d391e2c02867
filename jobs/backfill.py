"""Backfill: every admitted record of the archive that a read can need is brought into a view's sets, while workers append to them.

Entities are hashed into units, which are brought in one after the other (``jobs.fill_rows``), and a unit is done when the store says so
(``feature_repo.fills``). What is not done, because a process died or the store went back in time, is done again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr

from feature_repo.appends import floor_ms
from feature_repo.archive_table import bronze_path
from feature_repo.fills import Fill, Fills, Plan
from feature_repo.marks import scored_ms_key
from feature_repo.union import Counts, Pace
from feature_repo.views import FeatureService, FeatureView
from feature_repo.wire import Wire, pack
from jobs.fill_rows import PARTITIONS_PER_TASK, UNITS_PER_PARTITION, FillRows, ProcessRows, Seen, SparkRows, Task
from jobs.lineage import lineage
from jobs.spark import use_session
from schemas.errors import JobError, StoreError, UnreadableError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Backfilled", "Course", "Engine", "backfill", "fits_in_process"]

Engine = Literal["auto", "spark", "process"]
ROUNDS = 5
LOOK_EVERY_S = 0.5
NOTHING = Seen(0, 0, 0)


@dataclass(frozen=True)
class Backfilled:
    """What one run did. ``added`` and the like are of this run; ``units_before`` were done by one that it went on with.

    ``rows`` of the archive were read of the view's source, ``invalid`` of them are dead letters or clock records, ``late`` too late;
    both are 0 where everything was done before. ``short_of``: partition -> the offset before which the sets still lack records.
    """

    view: str
    engine: str
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
             engine: Engine = "auto", tell: Callable[[Course], None] = lambda course: None) -> Backfilled:
    """Bring the archive's admitted records with start_ms <= event time < end_ms into the sets of ``view``.

    ``services`` are all that are scored anywhere, as in ``SetWriter``.

    ``engine`` ``process`` reads the archive in this process, ``spark`` on Spark, ``auto`` in this process where no more than
    ``settings.process_rows`` archived records are needed, and no session is given.

    Killed at any moment and run again it goes on with the units that were not done, over the version of the archive and with the engine
    that it had. A run after a finished one looks at everything again, and adds nothing. With ``dry_run`` sets are read and compared, and
    nothing is written. Raises JobError where there is no archive, or the store goes back in time again and again; StoreError
    where it does not answer.
    """
    with lineage(settings, "backfill") as told, ExitStack() as stack:
        began = time.monotonic()
        def archive_of(engine: str) -> FillRows:
            if engine == "process":
                return ProcessRows(settings)
            return SparkRows(stack.enter_context(use_session(spark, settings, "backfill")), settings)

        if engine == "auto":
            small = spark is None and fits_in_process(settings, url, view, services, start_ms=start_ms, end_ms=end_ms)
            engine = "process" if small else "spark"
        archive = archive_of(engine)
        floor = _floor_ms(url, view, services, settings.partitions)
        plan = Plan(archive.newest(), archive.tasks * PARTITIONS_PER_TASK * UNITS_PER_PARTITION, floor, start_ms, end_ms, archive.engine)
        fills = Fills(url, view)
        stack.callback(fills.close)
        fill = Fill("", plan) if dry_run else fills.begin(plan)
        if fill.plan.engine != archive.engine:
            archive = archive_of(fill.plan.engine)
        task = Task(view, SecretStr(url), None if dry_run else fill, Pace(archive.tasks, rate))
        run = _Run(archive, view, fill, task, fills)
        told.reads_table(bronze_path(settings), fill.plan.bronze_version)
        with _watched(run, url, began, tell):
            total = run.units()
        if not dry_run:
            told.writes_sets(url, view.versioned_name)
        short_of = {partition: offset for partition, (offset, _) in fills.shortages().items() if offset}
        return Backfilled(view.versioned_name, archive.engine, dry_run, fill.plan.units, run.before, run.again, run.seen.rows,
                          run.seen.rows - run.seen.valid, run.seen.late, **asdict(total), floor_ms=fill.plan.floor_ms,
                          bronze_version=fill.plan.bronze_version, bronze_version_after=archive.newest(), short_of=short_of,
                          seconds=round(time.monotonic() - began, 2))


def fits_in_process(settings: Settings, url: str, view: FeatureView, services: Sequence[FeatureService], *, start_ms: int | None = None,
                    end_ms: int | None = None) -> bool:
    """Whether so few archived records are needed that no Spark is: what ``engine`` ``auto`` asks when it is given no session."""
    here, floor = ProcessRows(settings), _floor_ms(url, view, services, settings.partitions)
    try:
        return here.count(view, Plan(here.newest(), 1, floor, start_ms, end_ms)) <= settings.process_rows
    except UnreadableError:
        return False


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

    archive: FillRows
    view: FeatureView
    fill: Fill
    task: Task
    fills: Fills
    before: int = 0
    again: int = 0
    seen: Seen = NOTHING

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
        short = {partition: begun for partition, begun in self.fills.shortages().items() if begun[0]}
        if not short or not self.fill.plan.everything:
            return {}
        spans = self.archive.spans(self.fill.plan.bronze_version, self.view.source)
        history = any(partition < 0 for partition in spans)
        return {partition: begun for partition, begun in short.items()
                if partition in spans and spans[partition][1] >= begun[0] - 1 and (spans[partition][0] == 0 or history)}

    def _round(self, done: set[int]) -> list[dict[str, int]]:
        if len(done) == self.fill.plan.units:
            return []
        found, seen = self.archive.fill(self.fill.plan, self.task, done)
        if self.seen is NOTHING:
            self.seen = seen
        return found


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
