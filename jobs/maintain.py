"""Maintenance of the Delta tables: small files become large ones in an order that readers can skip by, and old versions go.

OPTIMIZE changes no row, and a reader of an older version is not disturbed: its files stay until VACUUM finds that they were
replaced longer ago than old versions are kept. Both run beside writers; a conflict is met by doing the work again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from jobs.commits import retry_conflicts
from jobs.events import bronze_path
from jobs.lineage import lineage
from jobs.retention import DEFAULT_HOURS, Pin, advance_complete, check_hours, hours_for, pins, remembered_hours
from jobs.spark import session_options, use_session
from jobs.tables import FILE_BYTES, SMALL_BYTES, Figures, data_files, figures, file_sizes, table_paths
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Maintained", "Part", "TableReport", "decide", "maintain", "vacuum"]

ORDERS = {"bronze": ("arrival_ms",)}
"""Every job reads one topic (the partition) over a range of arrival times. Offsets grow with arrival, so a record that is looked
up by partition and offset is found in as few files; a second column would widen the range of each file for all others."""

OWN_RULES = ("spark.databricks.delta.retentionDurationCheck.enabled", "spark.databricks.delta.vacuum.retentionWindowIgnore.enabled")
"""Delta would refuse less than a table's property, and take no hours but those: how many are safe is for jobs.retention to say."""


@dataclass(frozen=True)
class Part:
    """The files of one partition of a table."""

    values: dict[str, str | None]
    files: int
    bytes: int
    small_files: int
    small_bytes: int


@dataclass
class TableReport:
    """What was done to a table, or with a dry run would be. ``sorted`` and ``packed`` name partitions."""

    table: str
    before: Figures
    sorted: list[str] = field(default_factory=list)
    packed: list[str] = field(default_factory=list)
    unused_files: int = 0
    after: Figures | None = None


@dataclass
class Maintained:
    """``keep_hours`` is how long bronze's old versions stay: ``pins`` may have made it more. ``conflicts`` counts retried commits."""

    dry_run: bool
    keep_hours: float
    tables: list[TableReport]
    pins: list[Pin]
    conflicts: dict[str, int]
    checkpoint_files: int
    seconds: float


def decide(part: Part, ordered: bool) -> str:
    """``leave``, ``pack`` (only small files are written anew) or ``sort`` (all are, in order).

    A partition is sorted when at least half of its bytes lie in small files: then no byte is sorted more often than its partition
    has doubled. In between packing keeps files apart by time all the same, for what is small is what came last.

    >>> [decide(Part({}, 9, 100, small, small_bytes), True) for small, small_bytes in ((1, 100), (8, 40), (8, 50))]
    ['leave', 'pack', 'sort']
    """
    if part.small_files < 2:
        return "leave"
    return "sort" if ordered and 2 * part.small_bytes >= part.bytes else "pack"


def maintain(settings: Settings, keep_hours: float = DEFAULT_HOURS, dry_run: bool = False, release_pins: bool = False,
             tell: Callable[[str], None] = lambda line: None, spark: SparkSession | None = None) -> Maintained:
    """Compact every table under ``settings.tables`` and remove files that were replaced more than ``keep_hours`` ago.

    Versions that training sets are pinned to stay readable for as long as the log reaches back to them (30 days), unless
    ``release_pins``. Raises JobError for fewer hours than are safe, or when other writers' commits come first again and again.
    """
    check_hours(keep_hours)
    began, conflicts = time.monotonic(), Counter[str]()
    with lineage(settings, "maintain") as run, use_session(spark, settings, "maintain") as own:
        paths = table_paths(own, settings)
        held = pins(own, settings, paths) if bronze_path(settings) in paths else []
        bronze_hours = hours_for(keep_hours, [pin for pin in held if pin.needed or not release_pins], time.time_ns() // 1_000_000)
        reports = []
        for number, path in enumerate(paths, 1):
            name = path.removeprefix(f"{settings.tables}/")
            tell(f"{number}/{len(paths)} {name}")
            hours = bronze_hours if path == bronze_path(settings) else keep_hours
            reports.append(_maintain_table(own, path, name, hours, dry_run, conflicts, tell))
            if not dry_run:
                run.writes_table(path)
        checkpoint_files = file_sizes(own, f"{settings.tables}/_checkpoints")[0]
        if not dry_run:
            advance_complete(own, settings)
    return Maintained(dry_run, round(bronze_hours, 1), reports, held, dict(conflicts), checkpoint_files, round(time.monotonic() - began, 2))


def vacuum(spark: SparkSession, path: str, hours: float, dry_run: bool = False) -> int:
    """Remove the files that no version of the last ``hours`` has; how many they are. The caller answers for ``hours``.

    None are removed where the table does not remember as far back (one that was made without ``jobs.spark``).
    """
    if hours > remembered_hours(spark, path):
        return 0
    with session_options(spark, dict.fromkeys(OWN_RULES, "false")):
        unused = spark.sql(f"VACUUM delta.`{path}` RETAIN {hours} HOURS DRY RUN").count()
        if unused and not dry_run:
            spark.sql(f"VACUUM delta.`{path}` RETAIN {hours} HOURS")
        return unused


def _maintain_table(spark: SparkSession, path: str, name: str, hours: float, dry_run: bool, conflicts: Counter[str],
                    tell: Callable[[str], None]) -> TableReport:
    report, order = TableReport(name, figures(spark, path)), ORDERS.get(name, ())
    for part in _parts(spark, path):
        done = decide(part, bool(order))
        if done == "leave":
            continue
        where = " and ".join(f"{column} <=> {_literal(value)}" for column, value in part.values.items())
        tell(f"  {done} {where or 'all'}: {part.small_files} small files of {part.files}, {part.small_bytes:,} bytes of {part.bytes:,}")
        (report.sorted if done == "sort" else report.packed).append(where or "all")
        if not dry_run:
            retry_conflicts(partial(_optimize, spark, path, where, order if done == "sort" else ()), conflicts)
    report.unused_files = vacuum(spark, path, hours, dry_run)
    if not dry_run:
        report.after = figures(spark, path)
    return report


def _literal(value: str | None) -> str:
    return "NULL" if value is None else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _parts(spark: SparkSession, path: str) -> list[Part]:
    """The partitions that have small files, and the sizes of theirs."""
    from pyspark.sql import functions as F

    small = F.col("size") < SMALL_BYTES
    values = F.array_sort(F.map_entries("partitionValues"))
    rows = data_files(spark, path).groupBy(values.alias("values")).agg(
        F.count("*").alias("files"), F.sum("size").alias("bytes"), F.count_if(small).alias("small_files"),
        F.sum(F.when(small, F.col("size")).otherwise(0)).alias("small_bytes")).where("small_files > 1").orderBy("values").collect()
    return [Part(dict(row["values"]), row.files, row.bytes, row.small_files, row.small_bytes) for row in rows]


def _optimize(spark: SparkSession, path: str, where: str, order: tuple[str, ...]) -> None:
    from delta.tables import DeltaTable

    sizes = {"maxFileSize": str(FILE_BYTES), "minFileSize": str(SMALL_BYTES)}
    with session_options(spark, {f"spark.databricks.delta.optimize.{name}": size for name, size in sizes.items()}):
        builder = DeltaTable.forPath(spark, path).optimize()
        builder = builder.where(where) if where else builder
        builder.executeZOrderBy(*order) if order else builder.executeCompaction()

