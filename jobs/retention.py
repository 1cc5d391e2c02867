"""Which old versions of the archive somebody still needs, and so how far back VACUUM may not go."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feature_repo.delta_files import read_file
from jobs.events import bronze, bronze_path, complete_path
from jobs.spark import DELETED_FILE_RETENTION, LOG_HOURS, read_text, write_text
from schemas.errors import JobError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["DEFAULT_HOURS", "LEAST_HOURS", "Pin", "advance_complete", "check_hours", "hours_for", "pins",
           "remembered_hours"]

LEAST_HOURS = 24.0
"""Longer than any job here reads one version or writes files before it commits them: VACUUM takes both for rubbish."""
DEFAULT_HOURS = 168.0
HOUR_MS = 3_600_000
DELTA_HOURS = 168.0
MARGIN_HOURS = 1.0
NO_NEW_ROWS = ("OPTIMIZE", "VACUUM START", "VACUUM END", "DELETE")


@dataclass(frozen=True)
class Pin:
    """Who needs a version of the archive: a training set whose manifest names it, or (``needed``) every job, for it is the last
    complete one.

    ``since_ms``: when files of that version were first replaced (compaction, deletion), UTC; None while all of them are in use.
    ``readable``: the log still reaches back to it. Where it does not, the rows of a training set's version are those of today
    at or below its manifest's ``offsets``, as long as none was erased.
    """

    name: str
    version: int
    since_ms: int | None
    readable: bool
    needed: bool = False


def check_hours(hours: float) -> float:
    """``hours``, if old versions may go after that time. Raises JobError below ``LEAST_HOURS`` and beyond ``LOG_HOURS``."""
    if not hours >= LEAST_HOURS:
        raise JobError(f"keeping old versions for {hours:g} h could take files from jobs that are reading or writing them now",
                       hint=f"keep them for at least {LEAST_HOURS:g} h")
    if hours > LOG_HOURS:
        raise JobError(f"old versions cannot be kept for {hours:g} h: a table's log reaches back {LOG_HOURS} h", hint="copy the table")
    return hours


def pins(spark: SparkSession, settings: Settings, paths: Sequence[str]) -> list[Pin]:
    """The pins of the tables ``paths``, the oldest version first."""
    found = []
    complete = read_text(spark, complete_path(settings))
    if complete:
        found.append(_pin(spark, settings, "last complete version", int(complete), needed=True))
    for path in paths:
        manifest = read_file(f"{path}/_manifest.json")  # Hadoop would hold it to a checksum that it once wrote beside another one
        version = json.loads(manifest).get("bronze_version") if manifest else None
        if version is not None:
            found.append(_pin(spark, settings, path.rsplit("/", 1)[1], version))
    return sorted(found, key=lambda pin: (pin.version, pin.name))


def hours_for(hours: float, held: Sequence[Pin], now_ms: int) -> float:
    """``hours``, or as many as the oldest of the versions ``held`` that can still be read needs; ``LOG_HOURS`` at most."""
    needed = [(now_ms - pin.since_ms) / HOUR_MS + MARGIN_HOURS for pin in held if pin.readable and pin.since_ms is not None]
    return min(max([hours, *needed]), LOG_HOURS)


def remembered_hours(spark: SparkSession, path: str) -> float:
    """For how long the table knows which of its files were replaced. What it has forgotten VACUUM would take, whatever it is told."""
    from delta.tables import DeltaTable

    properties = DeltaTable.forPath(spark, path).detail().select("properties").collect()[0][0]
    return LOG_HOURS if properties.get("delta.deletedFileRetentionDuration") == DELETED_FILE_RETENTION else DELTA_HOURS


def advance_complete(spark: SparkSession, settings: Settings) -> int | None:
    """Let jobs read the newest version that differs from the last complete one by no added row; its number.

    After OPTIMIZE they would else go on with the old files, and after DELETE with the deleted rows, until the archive's next round.
    """
    from pyspark.sql import functions as F

    complete = read_text(spark, complete_path(settings))
    if not complete:
        return None
    added = (F.col("version") > int(complete)) & ~F.col("operation").isin(*NO_NEW_ROWS)
    newest, first = _history(spark, settings).agg(F.max("version"), F.min(F.when(added, F.col("version")))).collect()[0]
    version: int = newest if first is None else first - 1
    write_text(spark, complete_path(settings), str(version))
    return version


def _pin(spark: SparkSession, settings: Settings, name: str, version: int, needed: bool = False) -> Pin:
    from pyspark.errors import AnalysisException
    from pyspark.sql import functions as F

    removed = F.coalesce(F.col("operationMetrics")["numRemovedFiles"].cast("long"), F.lit(0))
    later = _history(spark, settings).where((F.col("version") > version) & (removed > 0))
    since_ms = later.agg(F.unix_millis(F.min("timestamp"))).collect()[0][0]
    try:
        bronze(spark, settings, version)
    except AnalysisException:
        return Pin(name, version, since_ms, False, needed)
    return Pin(name, version, since_ms, True, needed)


def _history(spark: SparkSession, settings: Settings) -> DataFrame:
    from delta.tables import DeltaTable

    history: DataFrame = DeltaTable.forPath(spark, bronze_path(settings)).history()
    return history
