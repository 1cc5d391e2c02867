"""The join of predictions with outcomes over the archive: what the streaming join leaves, with the same ids and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from feature_repo.models import ModelSpec, Outcomes
from feature_repo.pairs import LAST_MS, Label, Scored, beyond, encode, evaluation, headers_of, joined_models, prediction_decoder, scored_of
from feature_repo.use_cases import models
from feature_repo.views import skew_ms
from jobs.arrow_batches import map_values
from jobs.events import bronze, bronze_path, bronze_version, events
from jobs.lineage import lineage
from jobs.spark import use_session
from schemas.admission import MAX_SKEW_MS
from schemas.errors import JobError
from schemas.evaluations import EVALUATIONS
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["Joined", "archived_evaluations", "evaluations_path", "join_archive"]

SCORED = ("event_id string, event_time long, model string, model_version string, threshold double, score double, alert boolean, "
          "degraded boolean, predicted_ms long, partition int, subject string")
RECORD = ("evaluation_id string, prediction_id string, model string, event_time long, at_ms long, partition int, key binary, value binary, "
          "headers array<struct<key: string, value: binary>>")


@dataclass(frozen=True)
class Joined:
    """Of events from ``from_ms`` on and before ``to_ms``: ``evaluations`` there should be, of which ``missing`` are not archived.

    ``left`` of the missing ones are left to this job by the streaming join; ``published`` were published now.
    """

    from_ms: int
    to_ms: int
    evaluations: int
    missing: int
    left: int
    published: int
    bronze_version: int
    seconds: float


def evaluations_path(settings: Settings) -> str:
    """The table that holds what the last ``join_archive`` found to publish."""
    return f"{settings.tables}/evaluations"


def join_archive(settings: Settings, floor_ms: int, from_ms: int = 0, to_ms: int = LAST_MS, *, everything: bool = False,
                 kafka: str | None = None, dry_run: bool = False, spark: SparkSession | None = None) -> Joined:
    """Write the missing evaluations that the streaming join leaves to the table ``evaluations_path``; publish them where ``kafka`` is told.

    Left are those of events before ``floor_ms`` (what Redis could not hold) and of records that came after the horizon; with
    ``everything`` all that are missing, which the streaming join may still be at. Published twice they have one id. Nothing grows on
    the driver. Raises JobError where there is no archive or no model has outcomes.
    """
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    began = time.monotonic()
    with lineage(settings, "evaluations") as run, use_session(spark, settings, "outcomes") as own:
        version = bronze_version(own, settings)
        archive = bronze(own, settings, version)
        run.reads_table(bronze_path(settings), version)
        found = archived_evaluations(archive, settings, from_ms, to_ms)
        there = (archive.where((F.col("topic") == EVALUATIONS) & (F.col("arrival_ms") >= from_ms - MAX_SKEW_MS))
                 .select(F.get_json_object(F.col("value").cast("string"), "$.evaluation_id").alias("evaluation_id"),
                         F.lit(True).alias("there"))
                 .distinct())
        left = F.lit(True) if everything else (F.col("event_time") < floor_ms) | F.col("late")
        missing, counted, path = F.col("there").isNull(), Observation(), evaluations_path(settings)
        rows = (found.join(there, "evaluation_id", "left").select("*", (missing & left).alias("left"))
                .observe(counted, F.count("*").alias("evaluations"), F.count_if(missing).alias("missing"), F.count_if("left").alias("left"))
                .where(F.col("left")).drop("there", "left", "late").write.mode("overwrite"))
        if dry_run:
            rows.format("noop").save()
        else:
            rows.format("delta").option("overwriteSchema", "true").save(path)
            run.writes_table(path)
        counts = {name: counted.get[name] for name in ("evaluations", "missing", "left")}
        publish = kafka is not None and not dry_run
        if publish:
            (own.read.format("delta").load(path).select("partition", "key", "value", "headers").write.format("kafka")
             .option("kafka.bootstrap.servers", kafka).option("kafka.acks", "all").option("includeHeaders", "true")
             .option("topic", EVALUATIONS).save())
            run.writes_topic(str(kafka), EVALUATIONS)
        return Joined(from_ms, to_ms, **counts, published=counts["left"] if publish else 0, bronze_version=version,
                      seconds=round(time.monotonic() - began, 2))


def archived_evaluations(archive: DataFrame, settings: Settings, from_ms: int, to_ms: int) -> DataFrame:
    """Every evaluation of events with from_ms <= event time < to_ms: columns of RECORD, and ``late``: a side came after the horizon.

    As the streaming join has it: the first prediction of an event by a model, labels in the order of their log.
    """
    joined = joined_models(models(settings))
    if not joined:
        raise JobError(f"no model of {', '.join(settings.use_cases)} has its labels told", hint="absences are read from the log: "
                       "`headrace training-set` labels them")
    found = [_predictions(archive, spec, from_ms, to_ms).join(_labels(archive, told, spec, from_ms, to_ms), ["event_id", "event_time"])
             for told, specs in joined.items() for spec in specs]
    pairs = reduce(lambda a, b: a.unionByName(b), found)
    return pairs.mapInArrow(_recorded(settings.outcome_horizon_ms), RECORD + ", late boolean")


def _predictions(archive: DataFrame, spec: ModelSpec, from_ms: int, to_ms: int) -> DataFrame:
    """*The* prediction of each event: columns of SCORED."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    skew = skew_ms(spec.service.views, spec.service.source)
    records = archive.where((F.col("topic") == spec.service.predictions) & (F.col("arrival_ms") >= from_ms - skew))
    rows = map_values(records.select("partition", "offset", "value"), _decoded(spec), SCORED + ", offset long")
    first = Window.partitionBy("event_id", "event_time").orderBy("predicted_ms", "partition", "offset")
    return (rows.where(F.col("event_time").between(from_ms, to_ms - 1)).withColumn("nth", F.row_number().over(first)).where("nth = 1")
            .drop("nth", "offset"))


def _labels(archive: DataFrame, told: Outcomes, spec: ModelSpec, from_ms: int, to_ms: int) -> DataFrame:
    """The labels that count: event_id, event_time, revision, label, previous (null: it is the first), outcome_ms."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    rows = events(archive, told.topic, spec.service.views, numbers=("revision", told.field), event_time=(from_ms, to_ms), sets=False)
    in_order = Window.partitionBy("event_id", "event_time").orderBy("arrival_ms", "position")
    before = F.max("revision").over(in_order.rowsBetween(Window.unboundedPreceding, -1))
    label = F.col(told.field).cast("boolean")
    return (rows.withColumn("before", before).where("before is null or revision > before")
            .select("event_id", "event_time", "revision", label.alias("label"), F.lag(label).over(in_order).alias("previous"),
                    F.col("arrival_ms").alias("outcome_ms")))


def _decoded(spec: ModelSpec) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    schema = _schema(SCORED + ", offset long")

    def decoded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import msgspec
        import pyarrow as pa

        decode = prediction_decoder(spec).decode
        for batch in batches:
            rows = []
            for value, partition, offset in zip(*(batch[name].to_pylist() for name in ("value", "partition", "offset")), strict=True):
                try:
                    prediction = decode(value or b"")
                except (msgspec.DecodeError, UnicodeDecodeError):  # not one of ours
                    continue
                if prediction.model == spec.name:
                    rows.append({"event_id": prediction.event_id, "event_time": prediction.event_time, "offset": offset,
                                 **msgspec.structs.asdict(scored_of(prediction, partition))})
            yield pa.RecordBatch.from_pylist(rows, schema)

    return decoded


def _recorded(horizon_ms: int) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """From pairs to the records that are published."""
    schema = _schema(RECORD + ", late boolean")

    def recorded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        names = Scored.__struct_fields__
        for batch in batches:
            rows = []
            for row in batch.to_pylist():
                scored = Scored(*(row[name] for name in names))
                label = Label(row["revision"], row["label"], row["outcome_ms"])
                if max(scored.predicted_ms, label.outcome_ms) > LAST_MS:
                    continue
                made = evaluation(row["event_id"], row["event_time"], scored, label, row["previous"])
                late = any(beyond(made.event_time, at_ms, horizon_ms) for at_ms in (made.predicted_ms, made.outcome_ms))
                rows.append({"evaluation_id": made.evaluation_id, "prediction_id": made.prediction_id, "model": made.model,
                             "event_time": made.event_time, "at_ms": made.at_ms, "partition": scored.partition,
                             "key": made.subject.encode(), "value": encode(made), "late": late,
                             "headers": [{"key": key, "value": value} for key, value in headers_of(made)]})
            yield pa.RecordBatch.from_pylist(rows, schema)

    return recorded


def _schema(told: str) -> pa.Schema:
    """To be made on the driver: Spark's Python processes cannot ask the JVM."""
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import StructType

    fields = StructType.fromDDL(told)
    assert isinstance(fields, StructType)
    return to_arrow_schema(fields)
