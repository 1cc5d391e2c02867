"""The join over the archive finds what the streaming join publishes, byte for byte, and what that leaves. All engines are real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pytest

from feature_repo.archive_table import bronze_path
from feature_repo.views import DAY_MS
from jobs.evaluations import evaluations_path, join_archive
from schemas.evaluations import EVALUATIONS
from schemas.settings import Settings
from services.ledger import read_topic
from tests.join_oracle import HORIZON_MS, VALID, expected
from tests.join_world import JoinWorld
from tests.log_world import HEADERS

pytestmark = pytest.mark.usefixtures("generated_code")

Record = tuple[int, bytes, bytes]
FOR_EVER = 2**62


@pytest.fixture(scope="module")
def world(redis_url: str) -> JoinWorld:
    """One in which the streaming join has done what it can, whatever went wrong."""
    return JoinWorld(redis_url.rsplit("/", 1)[0] + "/8", 3, records=600).run()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, outcome_days=HORIZON_MS // DAY_MS)


def of_fraud(records: list[Record]) -> set[Record]:
    """Those of the model that settings have."""
    return {record for record in records if json.loads(record[2])["model"] == "fraud"}


def right(world: JoinWorld, horizon_ms: int = FOR_EVER) -> dict[str, tuple[int, dict[str, Any]]]:
    return {name: pair for name, pair in expected(world.log, horizon_ms).items() if pair[1]["model"] == "fraud"}


def archive(world: JoinWorld, settings: Settings, evaluations: set[Record]) -> None:
    """The bronze table of ``world`` with these ``evaluations``."""
    rows: list[Any] = [("outcomes" if topic == VALID else topic, partition, record.offset, record.timestamp, b"key", record.value, None)
                       for (topic, partition), records in world.log.items() for record in records if topic in (VALID, "predictions")]
    rows += [(EVALUATIONS, partition, i, json.loads(value)["at_ms"], key, value, None)
             for i, (partition, key, value) in enumerate(sorted(evaluations))]
    types = {"topic": pa.string(), "partition": pa.int32(), "offset": pa.int64(), "arrival_ms": pa.int64(), "key": pa.binary(),
             "value": pa.binary(), "headers": HEADERS}
    columns = zip(*rows, strict=True)
    table = pa.table({name: pa.array(column, kind) for (name, kind), column in zip(types.items(), columns, strict=True)})
    deltalake.write_deltalake(bronze_path(settings), table, partition_by=["topic"], mode="overwrite")


def found(spark: Any, settings: Settings) -> list[Record]:
    rows = spark.read.format("delta").load(evaluations_path(settings)).select("partition", "key", "value").collect()
    return [(row.partition, bytes(row.key), bytes(row["value"])) for row in rows]


@pytest.mark.slow
def test_both_paths_give_the_evaluations_of_brute_force_as_whole_records(spark: Any, world: JoinWorld, settings: Settings) -> None:
    streamed = of_fraud(world.published)
    archive(world, settings, set())
    whole = join_archive(settings, 0, everything=True, spark=spark)
    batch = found(spark, settings)
    every = right(world)
    assert len(batch) == len(every) == whole.evaluations == whole.missing == whole.left
    assert {json.loads(value)["evaluation_id"]: (partition, json.loads(value)) for partition, _, value in batch} == every
    assert streamed < set(batch), "the same bytes"
    assert {json.loads(value)["evaluation_id"] for _, _, value in streamed} == set(right(world, HORIZON_MS))

    left = join_archive(settings, 0, spark=spark)
    assert set(found(spark, settings)) == set(batch) - streamed, "what came after the horizon, and no other"
    assert 0 < left.left < whole.left
    middle = sorted(record["event_time"] for _, record in every.values())[len(every) // 2]
    halves = [join_archive(settings, 0, *period, everything=True, dry_run=True, spark=spark).left
              for period in ((0, middle), (middle, FOR_EVER))]
    assert sum(halves) == whole.left
    assert min(halves) > 0
    print(f"{len(streamed)} streamed, {left.left} after the horizon")


@pytest.mark.slow
def test_what_is_archived_is_not_published_again_and_what_is_published_is_the_streaming_joins_record(
    spark: Any, world: JoinWorld, settings: Settings, kafka: str,
) -> None:
    streamed = of_fraud(world.published)
    lost = set(sorted(streamed)[:7])
    archive(world, settings, streamed - lost)
    before = {(m.partition(), m.offset()) for m in read_topic(kafka, EVALUATIONS)}
    told = join_archive(settings, 0, everything=True, kafka=kafka, spark=spark)
    published = [m for m in read_topic(kafka, EVALUATIONS) if (m.partition(), m.offset()) not in before]
    records = [(m.partition(), m.key(), m.value()) for m in published]
    assert lost < set(records)
    assert len(records) == len(set(records)) == told.published == told.left == told.missing
    whole = {json.loads(value)["evaluation_id"]: (partition, json.loads(value)) for partition, _, value in (*records, *streamed)}
    assert whole == right(world)
    assert dict(published[0].headers())["ce_id"].decode() == json.loads(published[0].value())["evaluation_id"]

    archive(world, settings, streamed | set(records))
    again = join_archive(settings, 0, everything=True, kafka=kafka, spark=spark)
    assert (again.evaluations, again.missing, again.published) == (told.evaluations, 0, 0)


@pytest.mark.slow
def test_events_that_did_not_fit_into_redis_are_found_in_the_archive(spark: Any, redis_url: str, settings: Settings) -> None:
    url = redis_url.rsplit("/", 1)[0] + "/8"
    world = JoinWorld(url, 8, records=600, budget_bytes=1_000).run()
    streamed, floor_ms = of_fraud(world.published), int(world.store.hget("pairs:outcomes", "floor_ms"))
    missed = right(world).keys() - {json.loads(value)["evaluation_id"] for _, _, value in streamed}
    within = missed & right(world, HORIZON_MS).keys()
    assert within, "the budget was too small for nothing"
    assert all(right(world)[name][1]["event_time"] < floor_ms for name in within)
    archive(world, settings, streamed)
    join_archive(settings, floor_ms, spark=spark)
    assert {json.loads(value)["evaluation_id"] for _, _, value in found(spark, settings)} == missed
    # Negative control: whoever does not know the floor misses them.
    join_archive(settings, 0, spark=spark)
    assert {json.loads(value)["evaluation_id"] for _, _, value in found(spark, settings)} == missed - within
