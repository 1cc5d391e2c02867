"""Predictions that the archive can no longer recompute because events of an erased person were among what they may have read."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from feature_repo.positions import PARTITION_SHIFT
from feature_repo.views import FeatureService
from jobs.erasures import records_path
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["excuse"]


def excuse(spark: SparkSession, settings: Settings, archive: DataFrame, service: FeatureService, path: str, topic: str) -> None:
    """In parity's table at ``path``, of predictions on ``topic``, call ``erased`` what is unexplained where each view concerned lacks an
    erased record since.

    The window of the view's read must reach over that record; one unexplained view without any keeps the verdict. A prediction is told by
    its place: of answers, each of an event has the same id.
    """
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    if not DeltaTable.isDeltaTable(spark, records_path(settings)):
        return
    erased = spark.read.format("delta").load(records_path(settings)).withColumnRenamed("event_time", "erased_time")
    reads = (spark.read.format("delta").load(path).where("verdict = 'unexplained'")
             .select("logged_position", "event_time", F.size("views").alias("of"), F.explode("views").alias("view")))
    text = F.col("value").cast("string")
    fields = [F.get_json_object(text, f"$.{name}").alias(name) for name in service.entities]
    position = F.shiftleft(F.col("partition").cast("long"), PARTITION_SHIFT) + F.col("offset")
    reads = archive.where(F.col("topic") == topic).select(position.alias("logged_position"), *fields).join(reads, "logged_position")
    excused = []
    for view in service.views:
        right = F.col("event_time") - view.delay_ms
        inside = (F.col("erased_time") > right - view.longest_window_ms - max(view.hops, default=0)) & (F.col("erased_time") <= right)
        of_view = erased.where((F.col("topic") == view.source) & (F.col("field") == view.entity)).select("entity", "erased_time")
        excused.append(reads.where(F.col("view") == view.name).join(of_view, (F.col(view.entity) == F.col("entity")) & inside, "left_semi"))
    every = reduce(lambda a, b: a.unionByName(b), excused).groupBy("logged_position", "of").count().where(F.col("count") == F.col("of"))
    same = "t.logged_position = s.logged_position"
    (DeltaTable.forPath(spark, path).alias("t").merge(every.select("logged_position").alias("s"), same)
     .whenMatchedUpdate(set={"verdict": F.lit("erased")}).execute())
