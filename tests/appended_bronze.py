"""An archive of a few hundred rows in many small files, written without Kafka."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from jobs import archive as archiving
from jobs.events import bronze_path
from jobs.spark import session_options
from schemas.fraud import PREDICTIONS, TRANSACTIONS
from schemas.settings import Settings

ROWS = 400


def small_appends(spark: Any, home: Path) -> Settings:
    """Two topics in six appends of two files, each of which holds arrival times of the whole period."""
    settings = Settings(home=home)
    with session_options(spark, {**archiving.WRITING, "spark.databricks.delta.autoCompact.enabled": "false"}):
        for part in range(6):
            append(spark, settings, part)
    return settings


def copied(appended: Settings, home: Path) -> Settings:
    """The same archive in a home of its own; a Delta table names its files from where it lies."""
    settings = Settings(home=home)
    shutil.copytree(appended.tables, settings.tables)
    return settings


def append(spark: Any, settings: Settings, part: int) -> None:
    from pyspark.sql import functions as F

    rows = spark.range(part * ROWS, (part + 1) * ROWS).select(
        F.when(F.col("id") % 2 == 0, TRANSACTIONS).otherwise(PREDICTIONS).alias("topic"),
        (F.col("id") % 4).cast("int").alias("partition"),
        F.col("id").alias("offset"), (F.col("id") * 7919 % (6 * ROWS)).alias("arrival_ms"),
        F.randstr(F.lit(60), F.lit(part)).alias("value"))
    rows.coalesce(2).write.format("delta").mode("append").partitionBy("topic").save(bronze_path(settings))


def rows_of(spark: Any, settings: Settings, version: int | None = None) -> Counter[Any]:
    reader = spark.read.format("delta")
    table = (reader if version is None else reader.option("versionAsOf", version)).load(bronze_path(settings))
    return Counter(tuple(row) for row in table.select("topic", "partition", "offset", "arrival_ms", "value").collect())
