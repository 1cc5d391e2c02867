"""Who was erased, so that the log's remaining days do not bring them back, and which reads lack records since.

    <tables>/erased/entities   field, digest of the name, salt, when, the last offsets that it holds for; the name itself is nowhere
    <tables>/erased/records    where an erased record stood, its time, and whose sets (never the erased entity's) it was taken from
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from schemas.evaluations import EVALUATIONS
from schemas.settings import Settings
from schemas.topics import answered_topic, dead_letter_topic, reasons_topic, shadow_topic
from schemas.use_cases import TRAFFIC

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = ["forget", "names", "personal_fields", "records_path", "remember", "report", "topics_of", "unerased"]

SALT_BYTES = 16
ENTITIES = "field string, digest string, salt string, erased_ms long, ends string, report string"
RECORDS = "topic string, partition int, offset long, event_time long, field string, entity string"


def personal_fields() -> set[str]:
    """The contract fields that name a person, of all use cases."""
    contracts = [contract for traffic in TRAFFIC for contract in (*traffic.sources.values(), *traffic.predictions.values())]
    return {name for contract in contracts for name in contract.personal_data}


def topics_of(field: str) -> tuple[list[str], list[str], list[str]]:
    """(sources, their dead letters, what is derived of predictions) whose records name a person by ``field`` or as key."""
    sources = [topic for traffic in TRAFFIC for topic, contract in traffic.sources.items() if field in contract.personal_data]
    predictions = [topic for traffic in TRAFFIC for topic, contract in traffic.predictions.items() if field in contract.personal_data]
    beside = [of(topic) for topic in predictions for of in (answered_topic, reasons_topic, shadow_topic)]
    return sources, [dead_letter_topic(topic) for topic in sources], [*predictions, *beside, EVALUATIONS]


def names(field: str, entity: str) -> Column:
    """Whether an archived record names ``entity``: in its payload, as its key, or in the text of what is no JSON."""
    from pyspark.sql import functions as F

    text = F.col("value").cast("string")
    written = f'"{field}"\\s*:\\s*{re.escape(json.dumps(entity))}'
    named = (F.col("key") == F.lit(entity.encode())) | (F.get_json_object(text, f"$.{field}") == entity) | text.rlike(written)
    return F.col("topic").isin(*(topic for topics in topics_of(field) for topic in topics)) & F.coalesce(named, F.lit(False))


def entities_path(settings: Settings) -> str:
    return f"{settings.tables}/erased/entities"


def records_path(settings: Settings) -> str:
    return f"{settings.tables}/erased/records"


def remember(spark: SparkSession, settings: Settings, field: str, entity: str, ends: dict[str, dict[str, int]]) -> str:
    """Write down that ``entity`` is erased up to the offsets ``ends`` (topic -> partition -> last offset); the digest of its name.

    Once for each entity: done again, the offsets are moved on.
    """
    from delta.tables import DeltaTable

    known = _entities(spark, settings)
    held = known.select("salt").head() if known is not None else None
    salt = held[0] if held else secrets.token_hex(SALT_BYTES)
    digest = hashlib.sha256(f"{salt}{entity}".encode()).hexdigest()
    row = spark.createDataFrame([(field, digest, salt, time.time_ns() // 1_000_000, json.dumps(ends), "{}")], ENTITIES)
    if known is None:
        row.write.format("delta").save(entities_path(settings))
    else:
        (DeltaTable.forPath(spark, entities_path(settings)).alias("t").merge(row.alias("s"), "t.field = s.field AND t.digest = s.digest")
         .whenMatchedUpdate(set={"ends": "s.ends", "erased_ms": "s.erased_ms"}).whenNotMatchedInsertAll().execute())
    return digest


def forget(spark: SparkSession, settings: Settings, records: DataFrame) -> None:
    """Add to what reads lack: rows of RECORDS, each once however often it is told."""
    from delta.tables import DeltaTable

    path = records_path(settings)
    if not DeltaTable.isDeltaTable(spark, path):
        spark.createDataFrame([], RECORDS).write.format("delta").save(path)
    same = " AND ".join(f"t.{name} = s.{name}" for name in ("topic", "partition", "offset", "field"))
    DeltaTable.forPath(spark, path).alias("t").merge(records.alias("s"), same).whenNotMatchedInsertAll().execute()


def report(spark: SparkSession, settings: Settings, digest: str, told: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is remembered of an erasure's findings; with ``told``, that is remembered from now on."""
    from delta.tables import DeltaTable
    from pyspark.sql import functions as F

    table = DeltaTable.forPath(spark, entities_path(settings))
    if told is not None:
        table.update(F.col("digest") == digest, {"report": F.lit(json.dumps(told))})
        return told
    found: dict[str, Any] = json.loads(table.toDF().where(F.col("digest") == digest).select("report").collect()[0][0])
    return found


def unerased(spark: SparkSession, settings: Settings, records: DataFrame) -> DataFrame:
    """``records`` (topic, partition, offset, key, value, ...) without those that an erasure holds for, by key or by field."""
    from pyspark.sql import functions as F

    known = _entities(spark, settings)
    first = known.select("salt").head() if known is not None else None
    if known is None or first is None:
        return records
    ends = known.select("field", "digest", F.explode(F.from_json("ends", "map<string, map<string, long>>")).alias("topic", "partitions"))
    ends = ends.select("field", "digest", F.col("topic").alias("of_topic"), F.explode("partitions").alias("of_partition", "last"))
    text, columns = F.col("value").cast("string"), records.columns
    for field in (row[0] for row in known.select("field").distinct().collect()):
        mine = F.broadcast(ends.where(F.col("field") == field))
        for named in (F.col("key").cast("string"), F.get_json_object(text, f"$.{field}")):
            hit = ((F.col("topic") == F.col("of_topic")) & (F.col("partition") == F.col("of_partition").cast("int"))
                   & (F.col("named") == F.col("digest")) & (F.col("offset") <= F.col("last")))
            digested = records.withColumn("named", F.sha2(F.concat(F.lit(first[0]), named), 256))
            records = digested.join(mine, hit, "left_anti").select(*columns)
    return records


def _entities(spark: SparkSession, settings: Settings) -> DataFrame | None:
    from delta.tables import DeltaTable

    path = entities_path(settings)
    return spark.read.format("delta").load(path) if DeltaTable.isDeltaTable(spark, path) else None
