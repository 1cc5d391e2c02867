"""Bronze rows as typed events, with the verdicts of the feature worker: the same decoder, the same admission, the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.archive_table import bronze_path, complete_path, no_archive
from feature_repo.archived import Events, Wanted, read_events
from feature_repo.positions import position_of
from feature_repo.views import FeatureView, skew_ms
from jobs.arrow_batches import map_values
from jobs.spark import read_text
from schemas.admission import admit
from schemas.contracts import Contract
from schemas.envelope import ATTRIBUTES, CE_TYPE, CLOCK_TYPE, check_cloud_event
from schemas.errors import ContractError
from schemas.settings import Settings
from schemas.topics import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = ["bronze", "bronze_path", "bronze_version", "clock_record", "complete_path", "contents", "end_offsets", "event_rows",
           "event_schema", "events", "newest_version", "valid_records", "wanted_events"]


def bronze_version(spark: SparkSession, settings: Settings) -> int:
    """The newest complete version of the bronze table. Raises JobError where nothing was archived."""
    from delta.tables import DeltaTable

    path = bronze_path(settings)
    if not DeltaTable.isDeltaTable(spark, path):
        raise no_archive(settings)
    complete = read_text(spark, complete_path(settings))
    return int(complete) if complete else newest_version(spark, settings)


def newest_version(spark: SparkSession, settings: Settings) -> int:
    """-1 where there is no table."""
    from delta.tables import DeltaTable

    path = bronze_path(settings)
    if not DeltaTable.isDeltaTable(spark, path):
        return -1
    return int(DeltaTable.forPath(spark, path).history(1).select("version").collect()[0][0])


def bronze(spark: SparkSession, settings: Settings, version: int) -> DataFrame:
    """The archive as it was at ``version``: a job that reads it twice must see it once."""
    return spark.read.format("delta").option("versionAsOf", version).load(bronze_path(settings))


def clock_record() -> Column:
    """Whether a row is a clock record, as the feature worker tells it: no value, and the last ce_type is the clock's."""
    from pyspark.sql import functions as F

    kinds = F.filter("headers", lambda header: header["key"] == CE_TYPE)
    no_value = F.col("value").isNull() | (F.length("value") == 0)
    return no_value & F.try_element_at(kinds, F.lit(-1))["value"].eqNullSafe(F.lit(CLOCK_TYPE))


def stated_contract() -> Column:
    """What a row's headers say of its contract, as text: few differ, so each is judged once."""
    from pyspark.sql import functions as F

    attributes = F.filter("headers", lambda header: header["key"].isin(*ATTRIBUTES))
    texts = F.transform(attributes, lambda header: F.concat(header["key"], F.lit("="), F.coalesce(F.hex(header["value"]), F.lit("-"))))
    return F.coalesce(F.array_join(texts, ","), F.lit(""))


def events(archive: DataFrame, source: str, views: Sequence[FeatureView], numbers: Sequence[str] = (),
           event_time: tuple[int, int] = (0, 2**63 - 1), *, sets: bool = True) -> DataFrame:
    """The valid records of ``source`` with first <= event time < end.

    Columns: event_id, event_time, arrival_ms, position, ``numbers`` (int64); and with ``sets`` the entities of all ``views``,
    ``admitted`` (bit i: in the sets of ``views[i]``) and the words of the records that the online store holds, each once
    (``feature_repo.archived.word_names``, int64). Dead letters have no row; late records have one, with bits unset.
    """
    wanted = wanted_events(source, views, numbers, event_time, sets=sets)
    return map_values(_columns(archive, source, wanted.arrived_from_ms), _typed(wanted, sets), event_schema(wanted, sets))


def wanted_events(source: str, views: Sequence[FeatureView], numbers: Sequence[str], event_time: tuple[int, int], *, sets: bool) -> Wanted:
    """What ``events`` decodes."""
    entities = (view.entity for view in views) if sets else ()
    return Wanted(source, tuple(views), tuple(dict.fromkeys(("event_id", *entities))), tuple(numbers), *event_time)


def event_schema(wanted: Wanted, sets: bool) -> str:
    """The Spark schema of ``event_rows``."""
    texts = [f"{name} string" for name in wanted.texts if name != "event_id"]
    numbers = [*wanted.numbers, *(name for name in wanted.words if sets and name != "event_time")]
    return ", ".join(["event_id string", "event_time long", "arrival_ms long", "position long", *texts,
                      *(f"{name} long" for name in numbers), *(["admitted int"] if sets else [])])


def event_rows(wanted: Wanted, found: Events, arrival_ms: Any, position: Any, sets: bool) -> pa.RecordBatch:
    """The columns that ``events`` promises."""
    import pyarrow as pa

    columns = {"event_id": found.texts["event_id"], "event_time": pa.array(found.event_time), "arrival_ms": pa.array(arrival_ms),
               "position": pa.array(position), **{name: found.texts[name] for name in wanted.texts if name != "event_id"},
               **{name: pa.array(column) for name, column in found.numbers.items()}}
    if sets:
        columns |= {name: pa.array(words) for name, words in found.words.items()}
        columns["admitted"] = pa.array(found.admitted.astype(np.int32))
    return pa.RecordBatch.from_pydict(columns)


def contents(archive: DataFrame, source: str, views: Sequence[FeatureView]) -> DataFrame:
    """Identity, revision, position and the content (canonical JSON of the record) of each valid record of ``source``."""
    skew = skew_ms(views, source)

    def typed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import msgspec
        import pyarrow as pa

        encode = msgspec.json.Encoder(order="deterministic").encode
        for batch in batches:
            found = list(valid_records(batch, source, skew))
            yield pa.RecordBatch.from_pydict({
                "event_id": pa.array([event.event_id for _, event in found], pa.string()),
                "event_time": pa.array([event.event_time for _, event in found], pa.int64()),
                "revision": pa.array([getattr(event, "revision", 0) for _, event in found], pa.int64()),
                "content": pa.array([encode(event) for _, event in found], pa.binary()),
                **{name: batch[name].take(pa.array([row for row, _ in found], pa.int64())) for name in ("partition", "offset")},
            })

    schema = "event_id string, event_time long, revision long, content binary, partition int, offset long"
    return map_values(_columns(archive, source, 0), typed, schema)


def end_offsets(archive: DataFrame) -> dict[str, dict[str, int]]:
    """Topic -> partition -> last archived offset."""
    ends: dict[str, dict[str, int]] = {}
    for topic, partition, offset in archive.groupBy("topic", "partition").agg({"offset": "max"}).sort("topic", "partition").collect():
        ends.setdefault(topic, {})[str(partition)] = offset
    return ends


def _columns(archive: DataFrame, source: str, arrived_from_ms: int) -> DataFrame:
    """What decoding needs."""
    from pyspark.sql import functions as F

    return archive.where((F.col("topic") == source) & (F.col("arrival_ms") >= arrived_from_ms)).select(
        "partition", "offset", "arrival_ms", "value", stated_contract().alias("stated"))


def valid_records(batch: pa.RecordBatch, source: str, skew_ms: int) -> Iterator[tuple[int, Any]]:
    """(row, record) of each row that the feature worker would not have sent to the dead letters.

    The contract is looked up here, in Spark's Python process: a decoder cannot be sent there.
    """
    contract = SOURCES[source]
    decode = contract.decode
    fits: dict[str, bool] = {}
    columns = [_objects(batch[name]) for name in ("value", "arrival_ms", "stated")]
    for row, (value, arrival_ms, stated) in enumerate(zip(*columns, strict=True)):
        if stated not in fits:
            fits[stated] = _fits(stated, contract)
        if not fits[stated]:
            continue
        try:
            event = decode(value)
        except ContractError:
            continue
        if admit(event.event_time, arrival_ms, 0, skew_ms) != "clock-skew":
            yield row, event


def _fits(stated: str, contract: Contract) -> bool:
    pairs = [text.split("=") for text in stated.split(",") if text]
    try:
        check_cloud_event([(name, None if value == "-" else bytes.fromhex(value)) for name, value in pairs], contract)
    except ContractError:
        return False
    return True


def _objects(column: pa.Array) -> list[Any]:
    return column.to_numpy(zero_copy_only=False).tolist()  # type: ignore[no-any-return]  # three times as fast as to_pylist


def _typed(wanted: Wanted, sets: bool) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:

    def typed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        contract = SOURCES[wanted.source]
        fits: dict[str, bool] = {}
        for batch in batches:
            stated = batch["stated"].dictionary_encode()
            for text in stated.dictionary.to_pylist():
                fits.setdefault(text, _fits(text, contract))
            usable = np.array([fits[text] for text in stated.dictionary.to_pylist()], bool)[stated.indices.to_numpy()]
            found = read_events(wanted, batch["value"], batch["arrival_ms"].to_numpy(), usable)
            partition, offset, arrival = (batch[name].to_numpy()[found.rows] for name in ("partition", "offset", "arrival_ms"))
            yield event_rows(wanted, found, arrival, position_of(wanted.source, partition.astype(np.int64), offset), sets)

    return typed
