"""Feast's historical reads on Spark: for more rows, or more history, than one process should hold. Named in feature_store.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.archive_table import FOR_EVER, open_archive
from feature_repo.moments import HistoryMode, Moments, needs, not_archived
from feature_repo.views import FeatureService
from jobs.archive_rows import ArchiveRows
from jobs.features import Finish, feature_columns, history_ms, read_values, sweep_entities
from jobs.spark import use_session
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["historical_features"]

ROW = "row_asked"


def historical_features(settings: Settings, service: FeatureService, moments: Moments, mode: HistoryMode, version: int,
                        spark: SparkSession | None = None) -> Any:
    """float64[n, F]: the window features of ``service``, one row a moment, in their order. Raises JobError as ``moments.placed`` does.

    The caller has asked for all rows in its memory: they are collected.
    """
    from pyspark.sql import functions as F

    needed = needs(service, moments, mode)
    with use_session(spark, settings, "historical-features") as own:
        archive = ArchiveRows(own, open_archive(settings, version), FOR_EVER)
        past = needed.first_ms - history_ms(service.views)
        sources = {source: archive.events(source, service.views, event_time=(past, needed.end_ms))
                   for source in {service.source, *(view.source for view in service.views)}}
        of_source = sources.pop(service.source)
        queries = _placed(own, moments, of_source)
        rows = of_source.withColumn("query", F.lit(False)).unionByName(queries, allowMissingColumns=True)
        schema = ", ".join([f"{ROW} long", *(f"{name} double" for name in service.feature_names)])
        found = sweep_entities(rows, sources, service, read_values, _numbered(service), schema, ideal=mode == "ideal").toArrow()
    order = np.argsort(found[ROW].to_numpy())
    assert len(order) == len(moments)
    return np.column_stack([found[name].to_numpy()[order] for name in service.feature_names])


def _placed(spark: SparkSession, moments: Moments, of_source: DataFrame) -> DataFrame:
    """Query rows: when they read and, of those for an event, where that event's record stands."""
    import pyarrow as pa
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    asked = spark.createDataFrame(pa.table({
        ROW: pa.array(np.arange(len(moments))), "event_time": pa.array(moments.t), "event_id": moments.event_ids.cast(pa.string()),
        **moments.texts}))
    look_ups = asked.where("event_id is null").withColumns({"arrival_ms": F.col("event_time"), "position": F.lit(FOR_EVER)})
    of_events = asked.where("event_id is not null")
    if moments.event_ids.null_count < len(moments):
        first = F.row_number().over(Window.partitionBy("event_id", "event_time").orderBy("arrival_ms", "position")) == 1
        events_there = of_source.withColumn("first", first).where("first").select("event_id", "event_time", "arrival_ms", "position")
        of_events = of_events.join(events_there, ["event_id", "event_time"], "left")
        missing = of_events.where("position is null")
        if example := missing.select("event_id", "event_time").first():
            raise not_archived(missing.count(), *example)
        look_ups = look_ups.unionByName(of_events)
    return look_ups.withColumn("query", F.lit(True))


def _numbered(service: FeatureService) -> Finish:
    def finish(queries: pa.Table, own: pa.Table, answers: dict[str, Any]) -> pa.RecordBatch:
        import pyarrow as pa

        matrix = np.empty((queries.num_rows, len(service.feature_names)))
        for view in service.views:
            matrix[:, service.view_slice(view)] = answers[view.name]
        return pa.RecordBatch.from_arrays([queries[ROW].combine_chunks(), *feature_columns(matrix)], names=[ROW, *service.feature_names])

    return finish
