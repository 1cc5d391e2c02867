"""History older than the log: any Delta or Parquet table becomes part of the archive, so that every job knows it.

Its records stand in the bronze table under the topic they would have come by, in a partition below 0 (one per run), and arrived when
they happened. So backfill, parity and training sets treat them like all others. What had arrived by some moment is not known of
them: a training set of mode ``known`` over them is an ``ideal`` one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.archive import STATISTICS
from jobs.arrow_batches import map_values
from jobs.events import bronze, bronze_path, newest_version
from jobs.lineage import lineage
from jobs.spark import use_session
from schemas.contracts import HINTS
from schemas.errors import ContractError, JobError
from schemas.settings import Settings
from schemas.topics import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["History", "Recorded", "Values", "record_history"]

Values = Callable[["pa.RecordBatch"], Sequence[bytes | None]]
"""From rows of a table to values in the contract's form, JSON; runs where Spark does. A row without one says nothing of the source."""

IN_LOG = "in-the-log"
REASONS = (*HINTS, IN_LOG)
EXAMPLES = 5
MOST_PARTITIONS = 1024


@dataclass(frozen=True)
class History:
    """A table, the columns of it that ``values`` reads, and those of them that it may lack."""

    path: str
    columns: tuple[str, ...]
    optional: frozenset[str]
    values: Values


@dataclass(frozen=True)
class Recorded:
    """``rows`` were read, ``recorded`` of them are new in the archive; ``refused`` counts by reason those that are not history.

    ``in-the-log``: it happened after the first archived record arrived, so the log has it, or had it and judged it.
    """

    source: str
    rows: int
    recorded: int
    refused: dict[str, int]
    examples: list[dict[str, str]]
    partition: int
    bronze_version_before: int
    bronze_version: int


def record_history(settings: Settings, history: History, source: str, spark: SparkSession | None = None) -> Recorded:
    """Append to the archive what it does not have of ``history``. Again, after a kill or for another view, adds nothing twice.

    Raises JobError where the table cannot be read or lacks columns.
    """
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    with lineage(settings, "history") as run, use_session(spark, settings, "history") as own:
        before = newest_version(own, settings)
        known = bronze(own, settings, before).where(F.col("topic") == source) if before >= 0 else None
        first_ms, lowest = _bounds(known) if known is not None else (None, 0)
        if lowest <= -MOST_PARTITIONS:
            raise JobError(f"the archive holds {-lowest} recordings of history of {source}", hint="bring history in fewer, larger tables")
        judged = map_values(_table(own, history), _Judge(source, history.values, first_ms), "value binary, event_time long, reason string")
        seen, new = Observation(), Observation()
        counts = [F.count_if(F.col("reason") == reason).alias(reason) for reason in REASONS]
        rows = judged.observe(seen, F.count("*").alias("rows"), *counts).where("reason is null")
        if known is not None:
            rows = rows.join(known.where("partition < 0").select("value"), "value", "left_anti")
        (rows.select(F.lit(source).alias("topic"), F.lit(lowest - 1).alias("partition"), F.monotonically_increasing_id().alias("offset"),
                     F.col("event_time").alias("arrival_ms"), F.lit(None).cast("binary").alias("key"), "value",
                     F.lit(None).cast("array<struct<key:string,value:binary>>").alias("headers"))
         .observe(new, F.count("*").alias("rows")).write.format("delta").options(**STATISTICS)
         .mode("append").partitionBy("topic").save(bronze_path(settings)))
        run.reads_file(history.path)
        run.writes_table(bronze_path(settings))
        refused = {reason: seen.get[reason] for reason in REASONS if seen.get[reason]}
        examples = judged.where("reason is not null").limit(EXAMPLES).collect() if refused else []
        return Recorded(source, seen.get["rows"], new.get["rows"], refused,
                        [{"reason": row["reason"], "value": bytes(row["value"])[:500].decode("utf-8", "replace")} for row in examples],
                        lowest - 1, before, newest_version(own, settings))


def _bounds(known: DataFrame) -> tuple[int | None, int]:
    """When the first record of the log arrived, and the lowest partition."""
    from pyspark.sql import functions as F

    of_log = F.when(F.col("partition") >= 0, F.col("arrival_ms"))
    first_ms, lowest = known.agg(F.min(of_log), F.min("partition")).collect()[0]
    return first_ms, min(lowest or 0, 0)


def _table(spark: SparkSession, history: History) -> DataFrame:
    from delta.tables import DeltaTable
    from pyspark.errors import AnalysisException

    try:
        kind = "delta" if DeltaTable.isDeltaTable(spark, history.path) else "parquet"
        table = spark.read.format(kind).load(history.path)
    except AnalysisException as error:
        raise JobError(f"history cannot be read from {history.path}", hint="give a Delta table, or a folder or file of Parquet") from error
    if lacking := set(history.columns) - set(table.columns) - history.optional:
        raise JobError(f"{history.path} has no column {', '.join(sorted(lacking))}",
                       hint=f"it has {', '.join(table.columns)}; --mapping FILE.toml names others")
    return table.select(*(name for name in history.columns if name in table.columns))


@dataclass(frozen=True)
class _Judge:
    """Each row's value in the contract's form, with the reason why it is no history of ``source``, or null."""

    source: str
    values: Values
    first_ms: int | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        decode = SOURCES[self.source].decode
        for batch in batches:
            values = [value for value in self.values(batch) if value is not None]
            judged: list[tuple[int, str | None]] = [self._judge(decode, value) for value in values]
            times, reasons = zip(*judged, strict=True) if judged else ((), ())
            yield pa.RecordBatch.from_pydict({"value": pa.array(values, pa.binary()), "event_time": pa.array(times, pa.int64()),
                                              "reason": pa.array(reasons, pa.string())})

    def _judge(self, decode: Callable[[bytes], Any], value: bytes) -> tuple[int, str | None]:
        try:
            time: int = decode(value).event_time
        except ContractError as error:
            return 0, error.reason
        return time, IN_LOG if self.first_ms is not None and time >= self.first_ms else None
