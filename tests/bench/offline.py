"""A training set from the archive in a warm Spark session, against the same windows as Spark SQL; and the kernel by itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from feature_repo import kernel
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.layout import packer
from feature_repo.views import DAY_MS
from jobs.spark import session
from jobs.training_set import TrainingSet, build_training_set
from schemas.fraud import OUTCOME, TRANSACTION, TRANSACTIONS
from schemas.settings import Settings
from tests.bench import windows_sql
from tests.bench.bronze import write_bronze
from tests.bench.load import START_MS, Events
from tests.bench.report import Figure

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["measure"]

DAYS = 50
POPULATION = 300_000
"""Events in thirty days that cards and terminals are counted for: with 500,000 rows these are 5,000 and 10,000."""
KNOWN_AFTER_MS = 6 * DAY_MS
"""A day before outcomes count in the windows: SQL cannot say what had arrived, so here nothing depends on it."""
WARM_UP_DAYS = 3


def measure(settings: Settings, rows: int, tell: Callable[[str], None]) -> list[Figure]:
    """``rows`` labelled transactions over fifty days, every one a row of the training set."""
    events = Events.draw(rows, DAYS, population=rows * POPULATION // 500_000)
    tell(f"the kernel alone over {rows:,} events")
    kernel_rate = _kernel_rows_per_s(events)
    with session(settings, "bench") as spark:
        tell("writing the archive")
        write_bronze(settings, events, KNOWN_AFTER_MS)
        tell("warming up, then the training set")
        windows_sql.build(spark, settings, START_MS, START_MS + WARM_UP_DAYS * DAY_MS)
        ours_s, built = _warm_set(settings, events.end_ms, spark)
        tell(f"took {ours_s:.1f} s; now as SQL range windows")
        began = time.perf_counter()
        sql_path = windows_sql.build(spark, settings, START_MS, events.end_ms)
        sql_s = time.perf_counter() - began
        tell(f"took {sql_s:.1f} s; comparing")
        differing = windows_sql.differing(spark, built.path, sql_path)
    tell("the training set once more, on one core")
    with _one_processor(), session(settings.model_copy(update={"spark_master": "local[1]"}), "bench") as spark:
        one_core_s, again = _warm_set(settings, events.end_ms, spark)
    assert again.manifest["content_hash"] == built.manifest["content_hash"], (again.manifest, built.manifest)
    assert built.manifest["rows"] == rows, built.manifest
    return [
        Figure("offline", "feature rows/s per core in the kernel, 3 views", kernel_rate, "/s", 300_000),
        Figure("offline", f"training set, {rows:,} rows x {len(SERVICE.feature_names)} features", ours_s, "s",
               20 if rows == 500_000 else None, at_most=True),
        Figure("offline", "the same on one core, the same rows", one_core_s, "s", baseline=f"on {os.cpu_count()} cores it is faster by",
               ratio=one_core_s / ours_s),
        Figure("offline", f"Spark SQL range windows, {len(windows_sql.EXPRESSED)} of them", sql_s, "s",
               baseline="the training set is faster by", ratio=sql_s / ours_s, ratio_target=2,
               detail={"features": list(windows_sql.EXPRESSED)}),
        Figure("offline", "values in which both differ", sum(differing.values()), "", 0, at_most=True, detail=differing),
    ]


@contextmanager
def _one_processor() -> Iterator[None]:
    """What is begun in the block has one: a session of one task has its JVM's compilers, its collector and Python beside it else."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(every)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, every)


def _warm_set(settings: Settings, end_ms: int, spark: SparkSession) -> tuple[float, TrainingSet]:
    """Seconds that the set takes in a session that has built a small one."""
    build_training_set(settings, FRAUD, START_MS, START_MS + WARM_UP_DAYS * DAY_MS, spark=spark)
    began = time.perf_counter()
    built = build_training_set(settings, FRAUD, START_MS, end_ms, spark=spark)
    return time.perf_counter() - began, built


def _kernel_rows_per_s(events: Events) -> float:
    """Rows of all window features a second of one core, inside ``kernel.sweep``, every view of every event."""
    transactions = [TRANSACTION.decoder.decode(value) for *_, value in events.transactions()]
    outcomes = [OUTCOME.decoder.decode(value) for *_, value in events.outcomes()]
    spent = 0.0
    for view in SERVICE.views:
        own = view.source == TRANSACTIONS
        pack = packer(view)
        records = np.frombuffer(b"".join([pack(event) for event in (transactions if own else outcomes)]), "<i8")
        records = records.reshape(len(events), view.record_words)
        entity = events.cards if view.entity == "card_id" else events.terminals
        order = kernel.sort_order(view, entity, records)
        arrivals = np.stack((events.times + (0 if own else KNOWN_AFTER_MS), np.arange(len(events))), axis=1)
        horizons = np.stack((events.times, np.arange(len(events))), axis=1)
        starts, ends = (np.searchsorted(entity[order], entity[order], side) for side in ("left", "right"))
        modes = np.full(len(events), kernel.INCLUDE if own else kernel.NONE)
        reads = (records[order], arrivals[order], starts, ends, events.times[order], records[order], modes, horizons[order])
        kernel.sweep(view, *(each[:100] if i not in (0, 1) else each for i, each in enumerate(reads)))  # compiled or loaded
        began = time.thread_time()
        kernel.sweep(view, *reads)
        spent += time.thread_time() - began
    return len(events) / spent
