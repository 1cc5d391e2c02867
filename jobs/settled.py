"""What parity has settled before: a verdict that nothing archived later can change is carried over, not computed again.

A prediction's reads depend on the log up to the offsets that it had seen. Once the archive holds all of those, what is explained stays so,
unless the feature service is another or the archive is: a new table, one that lost rows, or one that was given older history. That is a
verdict's basis. Whether it is exact or in flight also takes what had arrived but was not seen yet; that is there because ``jobs.archive``
brings sources after predictions, unless the clock of who was asked runs ahead of the log's: then the verdict waits for the log.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.positions import PARTITION_SHIFT
from feature_repo.views import FeatureService
from jobs.events import bronze, bronze_path
from jobs.features import history_ms
from jobs.served import logged, topic_of
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["LAST_MS", "SCHEMA", "Open", "complete_until", "covered", "every_prediction", "open_predictions", "verdict_basis"]

LAST_MS = 2**63 - 1
RULES = 3
"""To be raised when ``jobs.classify`` or ``jobs.parity`` judges otherwise, or verdicts are settled otherwise."""
SCHEMA = ("prediction_id string, event_id string, event_time long, model string, model_version string, logged_position long, "
          "verdict string, view string, views array<string>, why string, served array<double>, recomputed array<double>, "
          "basis string, settled boolean")
"""Of parity's table."""
TAKE_NO_ROW = ("STREAMING UPDATE", "WRITE", "OPTIMIZE", "VACUUM START", "VACUUM END")


@dataclass(frozen=True)
class Open:
    """``predictions`` to judge, one row an id as ``jobs.served.logged`` makes them; ``carried``: rows of the former table that still hold,
    None where there are none. ``from_ms``: no read of those to judge sees an event from before."""

    predictions: DataFrame
    carried: DataFrame | None = None
    from_ms: int = 0


def verdict_basis(spark: SparkSession, settings: Settings, service: FeatureService, version: int) -> str:
    """Under what a verdict on the archive at ``version`` is given; under another it is given anew.

    Of the archive: which table it is, the last commit that may have taken rows away (an erasure, a restored version), and how often history
    was recorded. What the table itself says at that version, so no run can judge an archive from before an erasure under its basis.
    """
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    table = DeltaTable.forPath(spark, bronze_path(settings))
    takes = ~F.col("operation").isin(*TAKE_NO_ROW) | F.coalesce(F.col("operationParameters")["mode"] == "Overwrite", F.lit(False))
    taken = table.history().where(F.col("version").between(1, version) & takes).agg(F.max("version")).collect()[0][0]
    history = bronze(spark, settings, version).where("partition < 0").groupBy("topic").agg(F.min("partition")).sort("topic").collect()
    recorded = [tuple(row) for row in history]
    told = f"{RULES} {service.definition_hash} {table.detail().select('id').collect()[0][0]} {taken} {recorded}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def every_prediction(archive: DataFrame, service: FeatureService, answers: bool) -> Open:
    """All of them, each as if for the first time."""
    return Open(logged(archive, service, answers).where("nth = 1").drop("nth", "logged_ms"))


def open_predictions(spark: SparkSession, path: str, basis: str, archive: DataFrame, service: FeatureService, answers: bool) -> Open:
    """What the parity table at ``path`` does not settle. Its ``predictions`` are persisted: unpersist them when they are judged."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F
    from pyspark.sql.types import StructType

    if not DeltaTable.isDeltaTable(spark, path):
        return every_prediction(archive, service, answers)
    table = spark.read.format("delta").load(path)
    if table.schema.simpleString() != StructType.fromDDL(SCHEMA).simpleString():  # of another release
        return every_prediction(archive, service, answers)
    kept = table.where((F.col("basis") == basis) & F.col("settled"))
    position = F.shiftleft(F.col("partition").cast("long"), PARTITION_SHIFT) + F.col("offset")
    records = archive.where(F.col("topic") == topic_of(service, answers)).withColumn("logged_position", position)
    carried = kept.join(records.select("logged_position"), "logged_position", "left_semi").select(*table.columns)
    unsettled = every_prediction(records.join(kept.select("logged_position"), "logged_position", "left_anti"), service, answers).predictions
    if not answers:  # of which none is a copy of another
        before = carried.select("prediction_id", F.col("logged_position").alias("carried_at"))
        unsettled = (unsettled.join(before, "prediction_id", "left").where("carried_at IS NULL OR logged_position < carried_at")
                     .drop("carried_at"))
    predictions = unsettled.coalesce(spark.sparkContext.defaultParallelism).persist()  # what is persisted keeps all partitions of its joins
    if not answers:  # a copy that was archived later, in a lower partition, is *the* prediction from now on
        carried = carried.join(predictions.select("prediction_id"), "prediction_id", "left_anti").select(*table.columns)
    first = predictions.where("fault IS NULL").agg(F.min("event_time")).collect()[0][0]
    return Open(predictions, carried, first - history_ms(service.views) if first is not None else LAST_MS)


def complete_until(newest_ms: int, answers: bool) -> int:
    """The last millisecond of which an archive has every record, when its newest record arrived at ``newest_ms``.

    A prediction of the log, and so the archive after it, comes when its record's millisecond is over; an answer is made at any time.
    """
    return newest_ms - 1 if answers else newest_ms


def covered(applied: Any, ends: dict[str, int], until_ms: Any, complete_ms: int) -> Any:
    """bool[n]: whether the archive has all that a read had seen, and all that had arrived before it.

    ``applied`` is int64[n, P], the last offset of each partition (-1: none); ``ends`` partition -> last archived offset; ``until_ms``
    int64[n], when what was scored arrived; ``complete_ms`` as ``complete_until`` gives it.
    """
    archived = np.array([ends.get(str(partition), -1) for partition in range(applied.shape[1])], np.int64)
    return (applied <= archived).all(axis=1) & (until_ms <= complete_ms)
