"""What of each partition of a source is in the archive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.events import bronze, newest_version
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["Span", "coverage"]


@dataclass(frozen=True)
class Span:
    """Offsets and arrival times of the first and the last record."""

    first: int
    last: int
    first_ms: int
    last_ms: int


def coverage(spark: SparkSession, settings: Settings, source: str) -> dict[int, Span]:
    """Partition -> what the newest version of the archive has of it; older history is in a partition below 0."""
    from pyspark.sql import functions as F

    rows = bronze(spark, settings, newest_version(spark, settings)).where(F.col("topic") == source).groupBy("partition").agg(
        F.min("offset").alias("first"), F.max("offset").alias("last"), F.min("arrival_ms").alias("first_ms"),
        F.max("arrival_ms").alias("last_ms")).collect()
    return {row["partition"]: Span(row["first"], row["last"], row["first_ms"], row["last_ms"]) for row in rows}
