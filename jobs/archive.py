"""Archive: from Kafka to the one Delta table ``bronze``, every record once, with its place, arrival time, bytes and headers.

Two streams, one after the other: derived topics first, then the sources they came from. So when a prediction is in the table, every
record that its scorer can have seen is too, and parity never waits or guesses. A third brings what was decided to the table ``control``.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feature_repo.archive_table import control_path
from jobs.erasures import unerased
from jobs.events import bronze, bronze_path, bronze_version, clock_record, complete_path, contents, newest_version
from jobs.lineage import Run, lineage
from jobs.spark import session_options, use_session, write_text
from jobs.tables import FILE_BYTES
from schemas.errors import JobError
from schemas.evaluations import EVALUATIONS
from schemas.monitoring import CONTROL
from schemas.releases import RELEASES
from schemas.settings import Settings
from schemas.topics import PREDICTION_TOPICS, SOURCES, answered_topic, dead_letter_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyspark.sql import DataFrame, SparkSession

    from feature_repo.views import FeatureView

__all__ = ["STATISTICS", "WRITING", "Archived", "archive", "archive_forever", "conflicts"]

STREAMS = {"derived": (EVALUATIONS, *PREDICTION_TOPICS, *map(answered_topic, PREDICTION_TOPICS), *map(dead_letter_topic, SOURCES)),
           "sources": tuple(SOURCES)}
"""In this order; see above. Of all use cases: a checkpoint that knows a topic must go on to find it when its use case is off."""
CONTROLLING = (RELEASES, *CONTROL)
"""They go to a table of their own: who reads events wants neither them nor their times."""
EXAMPLES = 100
STATISTICS = {"delta.dataSkippingStatsColumns": "partition,offset,arrival_ms"}
"""Properties that the table is made with. Stock statistics would sort out min and max of keys and values: only these are ever asked for."""
WRITING = {
    **{f"spark.databricks.delta.properties.defaults.{name.removeprefix('delta.')}": value for name, value in STATISTICS.items()},
    # A round leaves a small file per core and topic; where so many have come together, they become one with the commit.
    "spark.databricks.delta.autoCompact.enabled": "true",
    "spark.databricks.delta.autoCompact.minNumFiles": "32",
    "spark.databricks.delta.autoCompact.maxFileSize": str(FILE_BYTES),
    # Going on needs the last batch only; stock are 100 of each stream's offsets and commits.
    "spark.sql.streaming.minBatchesToRetain": "10",
}


@dataclass(frozen=True)
class Archived:
    """What one run added. ``end_offsets`` is topic -> partition -> the next offset to read."""

    rows: int
    version: int
    end_offsets: dict[str, dict[str, int]]


def archive(settings: Settings, kafka: str, spark: SparkSession | None = None) -> Archived:
    """Append all records that Kafka has now and the table has not. Clock records are no events and stay out.

    Each record is in the table exactly once however often this is killed and run again: offsets and commits are in the
    checkpoints under ``<tables>/_checkpoints/bronze``, which belong to the table. Raises JobError, also where records that were
    never archived are gone from Kafka.
    """
    with lineage(settings, "archive") as run, use_session(spark, settings, "archive") as own:
        return _round(settings, kafka, own, run)


def archive_forever(settings: Settings, kafka: str, every_s: float, stopping: threading.Event, tell: Callable[[Archived], None]) -> None:
    """``archive`` every ``every_s`` seconds in one session, until ``stopping``."""
    with lineage(settings, "archive", streaming=True) as run, use_session(None, settings, "archive") as spark:
        while not stopping.is_set():
            run.inputs, run.outputs = [], []
            done = _round(settings, kafka, spark, run)
            if done.rows:
                run.progress()
            tell(done)
            stopping.wait(every_s)


def conflicts(settings: Settings, views: Sequence[FeatureView], spark: SparkSession | None = None) -> list[dict[str, Any]]:
    """Events that were sent with other content under the same id, time and revision: a producer's fault.

    Up to 100 of each source, the first ones: topic, event_id, event_time, revision, contents (how many) and where the records lie.
    A correction with a higher revision is none. Nothing was lost or counted twice: one content holds, chosen without regard to
    arrival.
    """
    from pyspark.sql import functions as F

    found: list[dict[str, Any]] = []
    with use_session(spark, settings, "conflicts") as own:
        table = bronze(own, settings, bronze_version(own, settings))
        for source in SOURCES:
            place = F.concat_ws("/", "partition", "offset")
            rows = (contents(table, source, views)
                    .groupBy("event_id", "event_time", "revision")
                    .agg(F.count_distinct("content").alias("contents"), F.sort_array(F.collect_list(place)).alias("records"))
                    .where("contents > 1").orderBy("event_time", "event_id").limit(EXAMPLES))
            found += [{"topic": source, **row.asDict()} for row in rows.collect()]
    return found


def _round(settings: Settings, kafka: str, spark: SparkSession, run: Run) -> Archived:
    before = newest_version(spark, settings)
    ends: dict[str, dict[str, int]] = {}
    for name, topics in STREAMS.items():
        ends |= _run(spark, settings, kafka, name, topics, bronze_path(settings))
    version = newest_version(spark, settings)
    write_text(spark, complete_path(settings), str(version))
    controlling = _run(spark, settings, kafka, "control", CONTROLLING, control_path(settings))
    run.reads_topics(kafka, ends | controlling)
    run.writes_table(bronze_path(settings))
    run.writes_table(control_path(settings))
    return Archived(_rows_since(spark, settings, before), version, ends)


def _run(spark: SparkSession, settings: Settings, kafka: str, name: str, topics: Sequence[str], path: str) -> dict[str, dict[str, int]]:
    """Run one stream to the end that Kafka has now; the offsets it ended at."""
    from pyspark.errors import StreamingQueryException

    checkpoint = f"{settings.tables}/_checkpoints/bronze/{name}"
    # By topic, as every reader wants one; within it files hold a range of arrival times, which their statistics tell. Not by
    # day as well: replays bring months at once, and a folder per day and topic would be a storm of small files.
    with session_options(spark, WRITING):
        query = (_rows(spark, settings, kafka, topics).writeStream.format("delta").partitionBy("topic").trigger(availableNow=True)
                 .option("checkpointLocation", checkpoint).queryName(f"archive-{name}").start(path))
        try:
            query.awaitTermination()
        except StreamingQueryException as error:
            raise _explained(error, checkpoint, path) from error
        finally:
            query.stop()
    ends: dict[str, dict[str, int]] = {}
    for progress in query.recentProgress:
        for source in progress["sources"]:
            ends |= json.loads(source["endOffset"] or "{}")
    return ends


def _rows(spark: SparkSession, settings: Settings, kafka: str, topics: Sequence[str]) -> DataFrame:
    from pyspark.sql import functions as F

    pattern = "^(" + "|".join(topic.replace(".", "[.]") for topic in topics) + ")$"  # Spark asks for a part that fits
    records = (spark.readStream.format("kafka").option("kafka.bootstrap.servers", kafka)
               .option("subscribePattern", pattern)  # topics that are created later are found, and read from their beginning
               .option("startingOffsets", "earliest").option("failOnDataLoss", "true").option("includeHeaders", "true").load())
    # Coverage begins and ends with clock records, too; in a replay there are many, and only what begins a partition counts.
    kept = F.lit(settings.time == "live") | (F.col("offset") == 0) | ~clock_record()
    rows = records.where(kept).select(
        "topic", "partition", "offset", F.unix_millis("timestamp").alias("arrival_ms"), "key", "value", "headers")
    # One file per core and topic, not one per partition.
    return unerased(spark, settings, rows).coalesce(spark.sparkContext.defaultParallelism)


def _explained(error: Any, checkpoint: str, path: str) -> JobError:
    trace = str(error._stackTrace or error)  # the reason is in a cause that the message leaves out
    if "may have been lost" in trace:
        return JobError("records that were never archived are gone from Kafka (retention, or a topic made anew)",
                        hint=f"archive more often than retention; to go on without them, remove {checkpoint} and {path}")
    causes = [line.removeprefix("Caused by: ") for line in trace.splitlines() if line.startswith("Caused by: ")]
    return JobError(f"the archive stream failed: {causes[-1] if causes else trace.splitlines()[0]}",
                    hint="is Kafka up? `headrace status`; the rest is in logs/spark.log")


def _rows_since(spark: SparkSession, settings: Settings, version: int) -> int:
    from delta.tables import DeltaTable

    history = DeltaTable.forPath(spark, bronze_path(settings)).history()
    ours = history.where(f"version > {version} and operation = 'STREAMING UPDATE'").select("operationMetrics")
    return sum(int(row[0].get("numOutputRows", 0)) for row in ours.collect())
