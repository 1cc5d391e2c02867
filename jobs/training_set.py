"""Training sets: one row a labelled transaction, features as they were (``known``), could be (``ideal``) or were served (``served``)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feature_repo.fraud import ModelSpec
from feature_repo.vector import request_features
from feature_repo.views import DAY_MS, FeatureService
from jobs.events import bronze, bronze_version, end_offsets, events
from jobs.features import Finish, feature_columns, from_bytes, history_ms, read_values, sweep_entities
from jobs.served import logged
from jobs.spark import use_session, write_text
from schemas.errors import JobError
from schemas.settings import Settings
from schemas.topics import OUTCOMES

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["MODES", "Mode", "TrainingSet", "build_training_set", "training_set"]

Mode = Literal["known", "ideal", "served"]
LABEL_RANGE = 2**32
MODES: tuple[Mode, ...] = ("known", "ideal", "served")


@dataclass(frozen=True)
class TrainingSet:
    """A training set and what is known of it; ``manifest`` is also in ``_manifest.json`` beside the data."""

    path: str
    manifest: dict[str, Any]


def training_set(settings: Settings, spec: ModelSpec, start_ms: int, end_ms: int, mode: Mode = "known",
                 spark: SparkSession | None = None) -> str:
    """The path of the Delta table that ``build_training_set`` writes."""
    return build_training_set(settings, spec, start_ms, end_ms, mode, spark).path


def build_training_set(settings: Settings, spec: ModelSpec, start_ms: int, end_ms: int, mode: Mode = "known",
                       spark: SparkSession | None = None, as_of_ms: int | None = None) -> TrainingSet:
    """One row per labelled transaction with start_ms <= event time < end_ms, from the archive as it is now.

    Columns: event_id, event_time, card_id, terminal_id, label, then the features of ``spec.service`` in its order (null: no
    value); mode ``served`` adds ``degraded``. Of transactions with one (event_id, event_time) the first to arrive counts. The
    label is of the highest revision that had arrived by ``as_of_ms`` (default: everything archived); transactions without
    one are counted in the manifest and left out. Raises JobError where there is nothing to read.
    """
    with use_session(spark, settings, "training-set") as own:
        began = time.monotonic()
        version = bronze_version(own, settings)
        archive = bronze(own, settings, version)
        if as_of_ms is None:
            as_of_ms = archive.agg({"arrival_ms": "max"}).collect()[0][0]
        source = _Source(archive, spec, start_ms, end_ms, as_of_ms)
        counted, rows = source.served() if mode == "served" else source.recomputed(ideal=mode == "ideal")
        path = f"{settings.tables}/training_sets/{spec.name}-{mode}-{_day(start_ms)}..{_day(end_ms - 1)}"
        rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(path)
        seen = {key: int(value or 0) for key, value in counted.get.items()}
        if not seen["transactions"]:
            raise JobError(f"no transaction in {_day(start_ms)}..{_day(end_ms - 1)} is archived"
                           + (" with a prediction" if mode == "served" else ""), hint="headrace archive")
        manifest = {
            "model": spec.name, "mode": mode, "service": spec.service.name, "service_hash": spec.service.definition_hash,
            "period": [_day(start_ms), _day(end_ms - 1)], "rows": seen["transactions"] - seen["unlabelled"], **seen,
            "as_of_ms": as_of_ms, "labels_mature": as_of_ms >= end_ms + spec.label_delay_ms,
            "bronze_version": version, "offsets": end_offsets(archive), "seconds": round(time.monotonic() - began, 2),
        }
        write_text(own, f"{path}/_manifest.json", json.dumps(manifest, indent=1))
        return TrainingSet(path, manifest)


@dataclass(frozen=True)
class _Source:
    """The archive, and which rows of it are wanted."""

    archive: DataFrame
    spec: ModelSpec
    start_ms: int
    end_ms: int
    as_of_ms: int

    def recomputed(self, ideal: bool) -> tuple[Any, DataFrame]:
        from pyspark.sql import Window
        from pyspark.sql import functions as F

        service = self.spec.service
        past = self.start_ms - history_ms(service.views)
        numbers = [name for name in service.event_columns if name != "event_time"]
        of_source = events(self.archive, service.source, service.views, numbers=numbers, event_time=(past, self.end_ms))
        first = F.row_number().over(Window.partitionBy("event_id", "event_time").orderBy("arrival_ms", "position")) == 1
        wanted = of_source.withColumn("query", first & (F.col("event_time") >= self.start_ms))
        counted, labelled = self._labelled(wanted, F.col("query"))
        rows = labelled.withColumn("query", F.col("query") & F.col("label").isNotNull())
        others = {source: events(self.archive, source, service.views, event_time=(past, self.end_ms))
                  for source in {view.source for view in service.views} - {service.source}}
        return counted, sweep_entities(rows, others, service, read_values, _vectors(service), _schema(service), ideal=ideal)

    def served(self) -> tuple[Any, DataFrame]:
        """The logged vectors: of an event's predictions, with the features of today's definition, the first."""
        from pyspark.sql import Window
        from pyspark.sql import functions as F

        service = self.spec.service
        usable = F.col("fault").isNull() & F.col("event_time").between(self.start_ms, self.end_ms - 1)
        first = F.row_number().over(Window.partitionBy("event_id", "event_time").orderBy("logged_ms", "logged_position"))
        served = logged(self.archive, service).where(usable).withColumn("nth", first).where("nth = 1")
        counted, labelled = self._labelled(served, F.lit(True))
        rows = labelled.where(F.col("label").isNotNull()).select(*_keys(service), "label", "degraded", "features")
        return counted, rows.mapInArrow(_logged(service), f"{_schema(service)}, degraded boolean")

    def _labelled(self, rows: DataFrame, query: Any) -> tuple[Any, DataFrame]:
        """``rows`` with ``label``, and the counts of queries that are there once the result was computed."""
        from pyspark.sql import Observation
        from pyspark.sql import functions as F

        label = self.spec.label
        outcomes = events(self.archive, OUTCOMES, self.spec.service.views, numbers=("revision", label),
                          event_time=(self.start_ms, self.end_ms), sets=False).where(F.col("arrival_ms") <= self.as_of_ms)
        # One number to order by (labels are under 2**32): a struct would be sorted instead of hashed, twice.
        newest = F.max(F.col("revision") * LABEL_RANGE + F.col(label))
        known = outcomes.groupBy("event_id", "event_time").agg((newest % LABEL_RANGE).alias("label")).hint("shuffle_hash")
        counted = Observation()
        return counted, rows.join(known, ["event_id", "event_time"], "left").observe(
            counted, F.count_if(query).alias("transactions"), F.count_if(query & F.col("label").isNull()).alias("unlabelled"),
            F.sum(F.when(query, F.col("label"))).alias("positives"))


def _keys(service: FeatureService) -> tuple[str, ...]:
    return ("event_id", "event_time", *dict.fromkeys(view.entity for view in service.views))


def _schema(service: FeatureService) -> str:
    keys = (f"{name} {'long' if name == 'event_time' else 'string'}" for name in _keys(service))
    return ", ".join([*keys, "label long", *(f"{name} double" for name in service.feature_names)])


def _vectors(service: FeatureService) -> Finish:
    """From answers to rows: the whole vector, request-time features included, by the code that serves."""

    def finish(queries: pa.Table, own: pa.Table, answers: dict[str, Any]) -> pa.RecordBatch:
        import pyarrow as pa

        matrix = np.empty((queries.num_rows, len(service.feature_names)))
        for view in service.views:
            matrix[:, service.view_slice(view)] = answers[view.name]
        request_features(service, matrix, {name: own[name].to_numpy() for name in service.event_columns})
        keys = [*_keys(service), "label"]
        columns = [queries[name].combine_chunks() for name in keys]
        return pa.RecordBatch.from_arrays([*columns, *feature_columns(matrix)], names=[*keys, *service.feature_names])

    return finish


def _logged(service: FeatureService) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Logged vectors as columns."""

    def rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        keys = [*_keys(service), "label"]
        for batch in batches:
            columns = [*(batch[name] for name in keys), *feature_columns(from_bytes(batch["features"])), batch["degraded"]]
            yield pa.RecordBatch.from_arrays(columns, names=[*keys, *service.feature_names, "degraded"])

    return rows


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // DAY_MS * DAY_MS / 1000, UTC).date().isoformat()
