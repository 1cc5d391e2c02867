"""What parity has settled before: a verdict that nothing archived later can change is carried over, not computed again.

A prediction's reads depend on the log up to the offsets that it had seen. Once the archive holds all of those, what is explained stays so,
unless the feature service, the archive or what was erased from it is another: that is a verdict's basis. Whether it is exact or in flight
also takes what had arrived but was not seen yet; that is there because ``jobs.archive`` brings sources after predictions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.positions import PARTITION_SHIFT
from feature_repo.views import FeatureService
from jobs.erasures import records_path
from jobs.events import bronze_path
from jobs.features import history_ms
from jobs.served import logged, topic_of
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["LAST_MS", "Open", "covered", "every_prediction", "open_predictions", "verdict_basis"]

LAST_MS = 2**63 - 1
RULES = 1
"""To be raised when ``jobs.classify`` or ``jobs.parity`` judges otherwise."""


@dataclass(frozen=True)
class Open:
    """``predictions`` to judge, one row an id as ``jobs.served.logged`` makes them; ``carried``: rows of the former table that still hold,
    None where there are none. ``from_ms``: no read of those to judge sees an event from before."""

    predictions: DataFrame
    carried: DataFrame | None = None
    from_ms: int = 0


def verdict_basis(spark: SparkSession, settings: Settings, service: FeatureService) -> str:
    """Under what a verdict is given; under another it is given anew."""
    from delta.tables import DeltaTable

    table = DeltaTable.forPath(spark, bronze_path(settings)).detail().select("id").collect()[0][0]
    erasures = -1
    if DeltaTable.isDeltaTable(spark, records_path(settings)):
        erasures = DeltaTable.forPath(spark, records_path(settings)).history(1).select("version").collect()[0][0]
    return hashlib.sha256(f"{RULES} {service.definition_hash} {table} {erasures}".encode()).hexdigest()[:16]


def every_prediction(archive: DataFrame, service: FeatureService, answers: bool) -> Open:
    """All of them, each as if for the first time."""
    return Open(logged(archive, service, answers).where("nth = 1").drop("nth", "logged_ms"))


def open_predictions(spark: SparkSession, path: str, basis: str, archive: DataFrame, service: FeatureService, answers: bool) -> Open:
    """What the parity table at ``path`` does not settle. Its ``predictions`` are persisted: unpersist them when they are judged."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    if not DeltaTable.isDeltaTable(spark, path):
        return every_prediction(archive, service, answers)
    table = spark.read.format("delta").load(path)
    if not {"basis", "settled", "logged_position"} <= set(table.columns):  # written before verdicts were carried over
        return every_prediction(archive, service, answers)
    kept = table.where((F.col("basis") == basis) & F.col("settled"))
    position = F.shiftleft(F.col("partition").cast("long"), PARTITION_SHIFT) + F.col("offset")
    records = archive.where(F.col("topic") == topic_of(service, answers)).withColumn("logged_position", position)
    carried = kept.join(records.select("logged_position"), "logged_position", "left_semi").select(*table.columns)
    unsettled = every_prediction(records.join(kept.select("logged_position"), "logged_position", "left_anti"), service, answers).predictions
    if not answers:  # of which none is a copy of another
        unsettled = unsettled.join(carried.select("prediction_id"), "prediction_id", "left_anti")
    predictions = unsettled.coalesce(spark.sparkContext.defaultParallelism).persist()  # what is persisted keeps all partitions of its joins
    first = predictions.where("fault IS NULL").agg(F.min("event_time")).collect()[0][0]
    return Open(predictions, carried, first - history_ms(service.views) if first is not None else LAST_MS)


def covered(applied: Any, ends: dict[str, int]) -> Any:
    """bool[n]: whether the archive has all that a read had seen.

    ``applied`` is int64[n, P], the last offset of each partition (-1: none); ``ends`` partition -> last archived offset.
    """
    archived = np.array([ends.get(str(partition), -1) for partition in range(applied.shape[1])], np.int64)
    return (applied <= archived).all(axis=1)
