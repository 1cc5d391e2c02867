"""The fraud views as most would write them in Spark: SQL windows with RANGE BETWEEN over the archive, joined with their labels.

They know nothing of late or doubled records, nor of what had arrived when; the data of the bench has neither.
"""

from __future__ import annotations

from typing import Any

from feature_repo.fraud import SERVICE
from feature_repo.views import Feature, FeatureView
from jobs.events import bronze_path
from schemas.fraud import OUTCOMES, TRANSACTIONS
from schemas.settings import Settings

__all__ = ["EXPRESSED", "build", "differing"]

SAYABLE = ("count", "mean", "max", "std", "count_same")
EXPRESSED = tuple(feature.name for view in SERVICE.views for feature in view.features if feature.function in SAYABLE)
"""All but count_distinct: Spark has no DISTINCT over a window."""
TOLERANCE = 1e-9
STD_TOLERANCE = 1e-6
"""Of a standard deviation, relative: Spark's is computed in floats, one record at a time."""


def build(spark: Any, settings: Settings, start_ms: int, end_ms: int) -> str:
    """One row a labelled transaction with ``EXPRESSED``; the path of its Delta table."""
    from pyspark.sql import functions as F

    archive = spark.read.format("delta").load(bronze_path(settings))
    keys = "event_id string, event_time long, card_id string, terminal_id string"
    rows = _parsed(archive, TRANSACTIONS, f"{keys}, amount_minor long").where(F.col("event_time") < end_ms)
    labels = _parsed(archive, OUTCOMES, f"{keys}, fraud boolean").select("event_id", "event_time", F.col("fraud").cast("long"))
    rows = rows.join(labels, ["event_id", "event_time"])
    for view in SERVICE.views:
        rows = rows.withColumns({f.name: _over(view, f) for f in view.features if f.function in SAYABLE and f.function != "count_same"})
        rows = rows.withColumns({f.name: _over(view, f) for f in view.features if f.function == "count_same"})
    path = f"{settings.tables}/by_sql"
    rows.where(F.col("event_time") >= start_ms).write.format("delta").mode("overwrite").save(path)
    return path


def differing(spark: Any, ours: str, theirs: str) -> dict[str, int]:
    """Feature -> rows in which the two tables differ; raises where they have other rows."""
    from pyspark.sql import functions as F

    a, b = (spark.read.format("delta").load(path) for path in (ours, theirs))
    both = a.alias("a").join(b.alias("b"), ["event_id", "event_time"])
    counts = [F.count_if(~_same(F.col(f"a.{name}"), F.col(f"b.{name}"), STD_TOLERANCE if "std" in name else TOLERANCE)).alias(name)
              for name in EXPRESSED]
    found = both.agg(F.count(F.lit(1)).alias("rows"), *counts).collect()[0].asDict()
    rows = found.pop("rows")
    assert rows == a.count() == b.count(), "the tables have other rows"
    return {name: int(number) for name, number in found.items()}


def _parsed(archive: Any, topic: str, schema: str) -> Any:
    from pyspark.sql import functions as F

    event = F.from_json(F.col("value").cast("string"), schema).alias("event")
    return archive.where(F.col("topic") == topic).select(event).select("event.*")


def _over(view: FeatureView, feature: Feature) -> Any:
    """The feature over its window (t - D - W, t - D]; ms are integers, so a half-open window is a closed one."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    by = [view.entity, feature.column] if feature.function == "count_same" else [view.entity]
    window = Window.partitionBy(*by).orderBy("event_time").rangeBetween(-view.delay_ms - feature.window_ms + 1, -view.delay_ms)
    column, scale = feature.column or "", view.scale(feature.column)
    if feature.function in ("count", "count_same"):
        return F.count(F.lit(1)).over(window).cast("double")
    if feature.function == "mean":
        return F.sum(column).over(window) / (F.count(column).over(window) * scale)
    of_column = F.max(column) if feature.function == "max" else F.stddev_pop(column)
    return of_column.over(window) / scale


def _same(a: Any, b: Any, tolerance: float) -> Any:
    from pyspark.sql import functions as F

    near = F.abs(a - b) <= tolerance * F.greatest(F.lit(1.0), F.abs(a))
    return F.when(a.isNull() | b.isNull(), a.isNull() & b.isNull()).otherwise(near)
