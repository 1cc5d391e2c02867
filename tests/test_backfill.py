"""Backfill on real Delta and Redis: a union with what workers do meanwhile, resumed where it was killed, nothing added twice."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from feature_repo.appends import floor_ms
from feature_repo.archive_table import newest_archived
from feature_repo.fills import Fills, Plan
from feature_repo.fraud import CARD_SPEND, SERVICE, TERMINAL_RISK, VIEWS
from feature_repo.layout import entity_key, floor_record, packer
from feature_repo.marks import applied_key, scored_ms_key
from feature_repo.views import DAY_MS, HOUR_MS, FeatureView
from jobs.archive import STATISTICS
from jobs.backfill import Backfilled, backfill, fits_in_process
from jobs.events import bronze_path
from jobs.history import record_history
from jobs.parity import parity
from schemas.errors import JobError
from schemas.fraud import Transaction
from schemas.settings import Settings
from services.cli import main
from services.histories import history
from tests.log_world import DAYS, START, World, decoded, hostile_world, serve
from tests.world_check import event_time, stored_sets

FAST = float("inf")


@pytest.fixture(scope="module")
def world() -> World:
    return hostile_world(5, size=400)


@pytest.fixture(scope="module")
def home(spark: Any, world: World, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("home"), partitions=2)
    spark.createDataFrame(world.bronze()).coalesce(2).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    return settings


@pytest.fixture
def store(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as store:
        store.flushdb()
        yield store
        store.flushdb()


def expected(world: World, view: FeatureView, floor_ms: int = -1) -> dict[str, set[bytes]]:
    """The admitted records of each entity above ``floor_ms``."""
    pack, sets = packer(view), defaultdict(set)
    for record in world.of(view.source):
        if record.admitted(view) and record.event is not None and record.event["event_time"] > floor_ms:
            sets[record.event[view.entity]].add(pack(decoded(record)))
    return dict(sets)


def held(store: redis.Redis, view: FeatureView) -> dict[str, set[bytes]]:
    return {entity: records for entity, (records, _) in stored_sets(store, view).items()}


@pytest.fixture(params=["spark", "process"])
def engine(request: pytest.FixtureRequest, spark: Any) -> dict[str, Any]:
    return {"engine": request.param, "spark": spark}


def run(home: Settings, url: str, view: FeatureView, engine: dict[str, Any], **options: Any) -> Backfilled:
    found = backfill(home, url, view, (SERVICE,), **engine, **{"rate": FAST, **options})
    assert found.engine == engine["engine"]
    return found


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_an_empty_store_gets_every_admitted_record_and_a_second_run_adds_nothing(
    engine: dict[str, Any], world: World, home: Settings, store: redis.Redis, redis_url: str, view: FeatureView,
) -> None:
    sets = expected(world, view)
    looked = run(home, redis_url, view, engine, dry_run=True)
    assert held(store, view) == {}
    first = run(home, redis_url, view, engine)
    assert held(store, view) == sets
    assert first.records == first.added == looked.added == sum(map(len, sets.values())) > 100
    assert first.bytes_added == looked.bytes_added == first.added * 8 * view.record_words
    assert (first.entities, first.entities_added_to) == (len(sets), len(sets))
    assert first.invalid == sum(record.event is None for record in world.of(view.source)) > 0
    assert first.late == sum(record.event is not None and not record.admitted(view) for record in world.of(view.source)) > 0
    longest = 2 * view.retention_ms // 1000
    assert all(longest - 120 <= store.ttl(entity_key(view, entity)) <= longest for entity in sets)
    before = {key: store.get(key) for key in store.scan_iter(f"{view.versioned_name}:*")}
    second = run(home, redis_url, view, engine)
    assert (second.added, second.bytes_added, second.units_before) == (0, 0, 0)
    assert second.records == first.records
    assert {key: store.get(key) for key in before} == before


def test_only_what_a_read_can_need_comes_in_and_reads_of_what_was_left_out_are_refused(
    engine: dict[str, Any], world: World, home: Settings, store: redis.Redis, redis_url: str,
) -> None:
    view, scored_ms = CARD_SPEND, START + (DAYS + 5) * DAY_MS
    floor = floor_ms(view, scored_ms, SERVICE.scored_lateness_ms)
    store.hset(scored_ms_key(SERVICE.name), mapping={0: scored_ms, 1: scored_ms + DAY_MS})
    sets = expected(world, view, floor)
    higher = floor + 3 * DAY_MS
    trimmed, *others = sorted(sets)
    store.set(entity_key(view, trimmed), floor_record(view, higher))
    store.hset(applied_key(view), "from:1", f"2 {START}")
    done = run(home, redis_url, view, engine)
    assert store.hget(applied_key(view), "from:1") == b"0 %d" % (floor - view.max_skew_ms), "known of entities with no set, too"
    assert done.short_of == {}
    assert (done.floor_ms, done.records) == (floor, sum(map(len, sets.values())))
    stored = stored_sets(store, view)
    assert stored[trimmed] == ({record for record in sets[trimmed] if event_time(record) > higher}, higher), "the highest floor counts"
    assert {name: stored[name] for name in others} == {name: (sets[name], floor) for name in others}
    assert done.added == sum(len(records) for records, _ in stored.values()) < sum(map(len, expected(world, view).values()))
    assert run(home, redis_url, view, engine).bytes_added == 0, "nor is a floor written twice"


def test_a_period_is_brought_in_alone_and_makes_up_for_no_shortage(
    engine: dict[str, Any], world: World, home: Settings, store: redis.Redis, redis_url: str,
) -> None:
    view, start, end = TERMINAL_RISK, START + 10 * DAY_MS, START + 25 * DAY_MS
    store.hset(applied_key(view), mapping={"0": 7, "from:0": f"3 {START}"})
    done = run(home, redis_url, view, engine, start_ms=start, end_ms=end)
    inside = {name: {record for record in records if start <= event_time(record) < end} for name, records in expected(world, view).items()}
    assert held(store, view) == {name: records for name, records in inside.items() if records}
    assert done.short_of == {0: 3}
    whole = run(home, redis_url, view, engine)
    assert held(store, view) == expected(world, view)
    assert whole.added == whole.records - done.added
    assert whole.short_of == {}
    assert store.hgetall(applied_key(view)) == {b"0": b"7"}


def test_a_shortage_that_the_archive_cannot_make_up_for_stays(
    engine: dict[str, Any], world: World, home: Settings, store: redis.Redis, redis_url: str,
) -> None:
    store.hset(applied_key(CARD_SPEND), mapping={"from:0": f"{10**6} {START}", "from:5": f"3 {START}"})
    assert run(home, redis_url, CARD_SPEND, engine).short_of == {0: 10**6, 5: 3}


def test_history_older_than_the_log_enters_the_archive_once_and_the_sets_with_it(
    spark: Any, engine: dict[str, Any], world: World, store: redis.Redis, redis_url: str, tmp_path: Path,
) -> None:
    settings = Settings(home=tmp_path, partitions=2)
    spark.createDataFrame(world.bronze()).coalesce(1).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    first_ms = min(record.arrival_ms for record in world.of("transactions"))
    day = first_ms // DAY_MS * DAY_MS - 5 * DAY_MS
    rows = [{"TRANSACTION_ID": i, "TX_DATETIME": datetime.fromtimestamp((day + i * HOUR_MS) / 1000, UTC), "CUSTOMER_ID": f"c{i % 3}",
             "TERMINAL_ID": f"p{i % 2}", "TX_AMOUNT": i + 0.25, "TX_FRAUD": i % 2} for i in range(40)]
    rows += [{**rows[0], "TRANSACTION_ID": 100, "CUSTOMER_ID": None}, {**rows[0], "TRANSACTION_ID": 101, "TX_AMOUNT": -1.0}]
    rows += [{**rows[0], "TRANSACTION_ID": 102, "TX_DATETIME": datetime.fromtimestamp((first_ms + DAY_MS) / 1000, UTC)}]
    table = tmp_path / "older.parquet"
    pq.write_table(pa.Table.from_pylist(rows), table)
    told = record_history(settings, history(str(table), "fraud", "transactions"), "transactions", spark)
    assert (told.rows, told.recorded, told.partition) == (43, 40, -1)
    assert told.refused == {"missing-field": 1, "out-of-range": 1, "in-the-log": 1}
    assert {example["reason"] for example in told.examples} == set(told.refused)
    again = record_history(settings, history(str(table), "fraud", "transactions"), "transactions", spark)
    assert (again.recorded, again.refused) == (0, told.refused)
    outcomes = record_history(settings, history(str(table), "fraud", "outcomes"), "outcomes", spark)
    assert (outcomes.rows, outcomes.recorded) == (43, 41)
    alone = Settings(home=tmp_path / "alone")
    record_history(alone, history(str(table), "fraud", "transactions"), "transactions", spark)
    properties = spark.sql(f"DESCRIBE DETAIL delta.`{bronze_path(alone)}`").collect()[0]["properties"]
    assert STATISTICS.items() <= properties.items(), "an archive that begins with history is made as any other"

    sets = expected(world, CARD_SPEND)
    for row in rows[:40]:
        time_ms = round(row["TX_DATETIME"].timestamp() * 1000)
        event = Transaction(str(row["TRANSACTION_ID"]), time_ms, row["CUSTOMER_ID"], row["TERMINAL_ID"], round(row["TX_AMOUNT"] * 100))
        sets.setdefault(event.card_id, set()).add(packer(CARD_SPEND)(event))
    assert run(settings, redis_url, CARD_SPEND, engine).added == sum(map(len, sets.values()))
    assert held(store, CARD_SPEND) == sets
    with pytest.raises(JobError, match="no column"):
        record_history(settings, history(str(table), "contract", "transactions"), "transactions", spark)
    with pytest.raises(JobError, match="cannot be read"):
        record_history(settings, history(str(tmp_path / "none"), "fraud", "transactions"), "transactions", spark)


def test_parity_explains_reads_of_history(spark: Any, tmp_path: Path) -> None:
    """What came through the log on time in the first days stands in the archive as history instead."""
    world = hostile_world(6)
    serve(world, 6)
    last = START + 15 * DAY_MS
    older = [r.event is not None and r.topic == "transactions" and r.event["event_time"] == r.arrival_ms < last for r in world.records]
    older += [False] * len(world.predictions)
    table = world.bronze()
    partitions = [-1 if old else partition for old, partition in zip(older, table["partition"].to_pylist(), strict=True)]
    table = table.set_column(table.schema.get_field_index("partition"), "partition", pa.array(partitions, pa.int32()))
    settings = Settings(home=tmp_path, partitions=2)
    own = {(r.partition, r.offset) for r, old in zip(world.records, older, strict=False) if old}
    told = [json.loads(value) for value in world.predictions]
    kept = [(p["source_partition"], p["source_offset"]) not in own for p in told]
    keep = [True] * len(world.records) + kept  # history was never scored
    spark.createDataFrame(table.filter(pa.array(keep))).coalesce(1).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    result = parity(settings, SERVICE, spark)
    assert result.unexplained == 0, result.examples
    assert min(result.exact, result.in_flight) > 20


def test_few_records_need_no_spark_and_a_run_goes_on_with_the_engine_that_it_was_begun_with(
    spark: Any, home: Settings, world: World, store: redis.Redis, redis_url: str,
) -> None:
    def backfilled(settings: Settings, **options: Any) -> Backfilled:
        return backfill(settings, redis_url, CARD_SPEND, (SERVICE,), rate=FAST, **options)

    assert fits_in_process(home, redis_url, CARD_SPEND, (SERVICE,))
    assert backfilled(home).engine == "process"
    assert backfilled(home, spark=spark).engine == "spark", "who has a session means it to be used"
    few = home.model_copy(update={"process_rows": 100})
    assert not fits_in_process(few, redis_url, CARD_SPEND, (SERVICE,))
    store.flushdb()
    units = 8
    for begun, other in (("spark", "process"), ("process", "spark")):
        begin_run(redis_url, newest_archived(home), units, begun)
        found = backfilled(home, engine=other, spark=spark)
        assert (found.engine, found.units) == (begun, units)
        assert held(store, CARD_SPEND) == expected(world, CARD_SPEND)
        store.flushdb()


def begin_run(url: str, version: int, units: int, engine: str) -> None:
    fills = Fills(url, CARD_SPEND)
    fills.begin(Plan(version, units, None, None, None, engine))
    fills.close()


def test_what_cannot_be_done_is_said(engine: dict[str, Any], tmp_path: Path, redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(JobError, match="headrace archive"):
        run(Settings(home=tmp_path), redis_url, CARD_SPEND, engine)
    for wrong in (["backfill", "nothing"], ["backfill", "card_spend", "--rate", "0"],
                  ["backfill", "card_spend", "--from", "2018-01-02", "--to", "2018-01-01"],
                  ["backfill", "card_spend", "--history", "t", "--dry-run"]):
        assert main(wrong) == 2
    assert "hint" in capsys.readouterr().err
