"""The Spark jobs on real Delta: archive, events, features, training sets, parity. One session for the module."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.views import DAY_MS
from jobs.archive import archive, conflicts
from jobs.events import bronze, bronze_path, bronze_version
from jobs.parity import Parity, parity, parity_path
from jobs.settled import open_predictions, verdict_basis
from jobs.training_set import Mode, TrainingSet, build_training_set
from schemas.envelope import CLOCK_HEADERS
from schemas.errors import JobError
from schemas.settings import Settings
from tests.log_world import DAYS, START, World, degraded, hostile_world, serve

END = START + DAYS * DAY_MS
Row = dict[str, Any]


@pytest.fixture(scope="module")
def world() -> World:
    world = hostile_world(1)
    serve(world, 1)
    return world


@pytest.fixture(scope="module")
def home(spark: Any, world: World, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return archived(spark, world, tmp_path_factory.mktemp("home"))


def archived(spark: Any, world: World, home: Path) -> Settings:
    """Settings whose bronze table holds ``world``."""
    settings = Settings(home=home)
    spark.createDataFrame(world.bronze()).coalesce(2).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    return settings


def rows_of(spark: Any, built: TrainingSet) -> dict[tuple[str, int], Row]:
    rows = [row.asDict() for row in spark.read.format("delta").load(built.path).collect()]
    keyed = {(row["event_id"], row["event_time"]): row for row in rows}
    assert len(keyed) == len(rows), "one row out per transaction"
    return keyed


def vector(row: Row) -> list[float]:
    return [math.nan if row[name] is None else row[name] for name in SERVICE.feature_names]


def same(a: list[float], b: list[float]) -> bool:
    return all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("mode", ["known", "ideal"])
def test_every_feature_of_every_row_equals_the_oracle(spark: Any, world: World, home: Settings, mode: Mode) -> None:
    built = build_training_set(home, FRAUD, START, END, mode, spark)
    rows = rows_of(spark, built)
    expected = [scored for scored in world.scored() if world.label(scored) is not None]
    assert len(rows) == len(expected) == built.manifest["rows"]
    for scored in expected:
        assert scored.event is not None
        row = rows[scored.event["event_id"], scored.event["event_time"]]
        assert row["label"] == world.label(scored)
        assert same(vector(row), world.vector(scored, ideal=mode == "ideal")), scored
    assert built.manifest["transactions"] == len(world.scored())
    assert built.manifest["unlabelled"] == len(world.scored()) - len(expected) > 0
    assert built.manifest["service_hash"] == SERVICE.definition_hash
    assert json.loads((Path(built.path) / "_manifest.json").read_text()) == built.manifest


def test_a_period_has_its_rows_and_their_history(spark: Any, world: World, home: Settings) -> None:
    start, end = START + 30 * DAY_MS, START + 33 * DAY_MS
    rows = rows_of(spark, build_training_set(home, FRAUD, start, end, "known", spark))
    expected = [s for s in world.scored() if s.event is not None and start <= s.event["event_time"] < end and world.label(s) is not None]
    assert len(rows) == len(expected) > 0
    for scored in expected:
        assert scored.event is not None
        assert same(vector(rows[scored.event["event_id"], scored.event["event_time"]]), world.vector(scored, ideal=False))


def test_known_and_ideal_differ_only_where_something_came_late(spark: Any, world: World, home: Settings) -> None:
    known, ideal = (rows_of(spark, build_training_set(home, FRAUD, START, END, mode, spark)) for mode in ("known", "ideal"))
    differing = {key for key in known if not same(vector(known[key]), vector(ideal[key]))}
    expected = {(s.event["event_id"], s.event["event_time"]) for s in world.scored() if s.event is not None
                and not same(world.vector(s, ideal=False), world.vector(s, ideal=True))}
    assert differing == expected & set(known)
    assert 0 < len(differing) < len(known)


def test_what_arrives_later_never_changes_an_earlier_row(spark: Any, world: World, home: Settings, tmp_path: Path) -> None:
    """P10: no leakage. The control: it does change the ideal set."""
    cut = START + 25 * DAY_MS
    changed = World([replace(r, value=json.dumps({**r.event, "fraud": not r.event["fraud"]}).encode())
                     if r.topic == "outcomes" and r.event is not None and r.arrival_ms >= cut else r for r in world.records])
    other = archived(spark, changed, tmp_path)
    before = {(s.event["event_id"], s.event["event_time"]) for s in world.scored() if s.event is not None and s.arrival_ms <= cut}

    def changed_rows(mode: Mode) -> set[tuple[str, int]]:
        a, b = (rows_of(spark, build_training_set(settings, FRAUD, START, END, mode, spark)) for settings in (home, other))
        return {key for key in before & set(a) if not same(vector(a[key]), vector(b[key]))}

    assert not changed_rows("known")
    assert changed_rows("ideal")


def test_labels_are_those_known_at_the_time_asked_for(spark: Any, world: World, home: Settings) -> None:
    as_of = START + 30 * DAY_MS
    built = build_training_set(home, FRAUD, START, END, "known", spark, as_of_ms=as_of)
    then = World([r for r in world.records if r.topic == "transactions" or r.arrival_ms <= as_of])
    assert {key: row["label"] for key, row in rows_of(spark, built).items()} == {
        (s.event["event_id"], s.event["event_time"]): then.label(s)
        for s in world.scored() if s.event is not None and then.label(s) is not None}
    assert not built.manifest["labels_mature"]


def test_the_served_set_is_what_was_logged(spark: Any, world: World, home: Settings) -> None:
    rows = rows_of(spark, build_training_set(home, FRAUD, START, END, "served", spark))
    logged: dict[tuple[str, int], Row] = {}
    for value in world.predictions:
        prediction = json.loads(value)
        logged.setdefault((prediction["event_id"], prediction["event_time"]), prediction)
    assert set(rows) <= set(logged)
    assert len(rows) > 100
    assert {row["degraded"] for row in rows.values()} == {False}
    matching = sum(same(vector(row), [math.nan if x is None else x for x in logged[key]["features"]]) for key, row in rows.items())
    assert matching >= 0.8 * len(rows), "of an event sent twice the first prediction by its place in the log is taken"


def test_conflicts_name_other_content_under_one_identity(spark: Any, world: World, home: Settings) -> None:
    contents: dict[tuple[str, str, int, int], set[str]] = {}
    for record in world.records:
        if record.event is not None:
            key = (record.topic, record.event["event_id"], record.event["event_time"], record.event.get("revision", 0))
            contents.setdefault(key, set()).add(json.dumps(record.event, sort_keys=True))
    found = {(c["topic"], c["event_id"], c["event_time"], c["revision"]) for c in conflicts(home, SERVICE.views, spark)}
    assert found == {key for key, different in contents.items() if len(different) > 1}
    assert found


def checked(spark: Any, world: World, home: Path) -> Parity:
    return parity(archived(spark, world, home), SERVICE, spark)


def test_parity_explains_whatever_a_worker_and_a_scorer_may_do(spark: Any, world: World, home: Settings) -> None:
    result = parity(home, SERVICE, spark)
    assert result.unexplained == 0, result.examples
    ids = [json.loads(value)["prediction_id"] for value in world.predictions]
    assert result.predictions == len(set(ids)) == result.exact + result.in_flight
    assert result.duplicates == len(ids) - len(set(ids)) > 0
    assert result.exact > 0
    assert result.in_flight > 0


def test_parity_finds_one_dropped_append(spark: Any, tmp_path: Path) -> None:
    """The control of all of parity: what it must find, it finds."""
    world = hostile_world(2)
    dropped = serve(world, 2, drop=True)
    assert dropped is not None
    result = checked(spark, world, tmp_path)
    assert result.unexplained > 0
    assert all((example["view"] == SERVICE.views[0].name and "missing" in example["why"]) or "no set" in example["why"]
               for example in result.examples)
    assert all(example["differs"] for example in result.examples)


def test_parity_finds_wrong_values_and_counts_apart_what_it_cannot_judge(spark: Any, tmp_path: Path) -> None:
    world = hostile_world(3, size=60)
    serve(world, 3)
    world.predictions = list({json.loads(p)["prediction_id"]: p for p in reversed(world.predictions)}.values())
    told = [json.loads(p) for p in world.predictions]
    good = len(told)
    wrong_window = {**told[0], "prediction_id": "w1", "features": [7.0, *told[0]["features"][1:]]}
    wrong_request = {**told[1], "prediction_id": "w2", "features": [*told[1]["features"][:-1], 0.25]}
    nowhere = {**told[2], "prediction_id": "w3", "source_offset": 10**6}
    no_stamp = {**told[3], "prediction_id": "w4", "stamps": []}
    other = {**told[4], "prediction_id": "w5", "service_hash": "00000000"}
    first = next(r for r in world.of("transactions") if r.event is not None)
    world.predictions += [json.dumps(p).encode() for p in (wrong_window, wrong_request, nowhere, no_stamp, other)]
    world.predictions += [b"{}", degraded(first)]
    result = checked(spark, world, tmp_path)
    assert (result.unexplained, result.other_definition, result.degraded) == (5, 1, 1)
    assert result.exact + result.in_flight == good
    assert {example["prediction_id"] for example in result.examples} > {"w1", "w2", "w3", "w4"}


def test_parity_in_parts_gives_the_verdicts_of_parity_at_once(spark: Any, tmp_path: Path) -> None:
    """The archive grows by arbitrary cuts of each partition, so predictions come before what they read. One append is dropped."""
    world, settings, draw = hostile_world(5, size=120), Settings(home=tmp_path), random.Random(5)
    serve(world, 5, drop=True)
    rows = world.bronze().to_pylist()
    ends: dict[tuple[str, int], int] = {}
    judged: list[int] = []
    for share in (0.2, 0.6, 1.0):
        cuts = {place: draw.uniform(share / 2, 1.0) if share < 1 else 1.0 for place in {(row["topic"], row["partition"]) for row in rows}}
        part = []
        for place, cut in sorted(cuts.items()):
            of_place = sorted((row for row in rows if (row["topic"], row["partition"]) == place), key=lambda row: row["offset"])
            end = max(ends.get(place, 0), int(cut * len(of_place)))
            part += of_place[ends.get(place, 0):end]
            ends[place] = end
        table = pa.Table.from_pylist(part, world.bronze().schema)
        spark.createDataFrame(table).coalesce(2).write.format("delta").mode("append").partitionBy("topic").save(bronze_path(settings))
        version = bronze_version(spark, settings)
        now = bronze(spark, settings, version)
        path, basis = parity_path(settings, SERVICE), verdict_basis(spark, settings, SERVICE, version)
        judged.append(open_predictions(spark, path, basis, now, SERVICE, False).predictions.count())
        found = parity(settings, SERVICE, spark)
    whole = Settings(home=tmp_path / "whole")
    spark.createDataFrame(world.bronze()).coalesce(2).write.format("delta").partitionBy("topic").save(bronze_path(whole))
    at_once = parity(whole, SERVICE, spark)
    assert verdicts(spark, settings) == verdicts(spark, whole)
    assert (found.predictions, found.exact, found.in_flight, found.unexplained, found.duplicates) == \
        (at_once.predictions, at_once.exact, at_once.in_flight, at_once.unexplained, at_once.duplicates)
    assert found.unexplained > 0
    assert 0 < judged[-1] < found.predictions, "the last part judged only what was open"
    assert open_predictions(spark, path, basis, now, SERVICE, False).predictions.count() == found.unexplained
    assert parity(settings, SERVICE, spark, again=True).exact == found.exact
    assert open_predictions(spark, path, "another", now, SERVICE, False).predictions.count() == found.predictions


def verdicts(spark: Any, settings: Settings) -> dict[str, tuple[Any, ...]]:
    rows = spark.read.format("delta").load(parity_path(settings, SERVICE)).collect()
    assert len(rows) == len({row.prediction_id for row in rows})
    return {row.prediction_id: (row.verdict, row.view, row.why, str(row.served), str(row.recomputed), row.logged_position) for row in rows}


def test_jobs_without_an_archive_say_what_to_do(spark: Any, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="headrace archive"):
        parity(Settings(home=tmp_path), SERVICE, spark)
    with pytest.raises(JobError, match="headrace archive"):
        build_training_set(Settings(home=tmp_path), FRAUD, START, END, "known", spark)


def test_every_record_is_archived_once_with_its_bytes_and_clocks_are_not(spark: Any, kafka: str, tmp_path: Path) -> None:
    from confluent_kafka import Producer

    settings, me = Settings(home=tmp_path), f"{tmp_path}".encode()
    producer = Producer({"bootstrap.servers": kafka})

    def produce(topic: str, values: list[bytes | None], headers: Any = None) -> None:
        for value in values:
            producer.produce(topic, value, me, timestamp=START, headers=headers)
        assert producer.flush(30) == 0

    def table() -> list[Any]:
        rows = spark.read.format("delta").load(bronze_path(settings)).collect()
        assert len({(r.topic, r.partition, r.offset) for r in rows}) == len(rows), "exactly once"
        return [row for row in rows if bytes(row.key or b"") == me]

    produce("transactions", [b"1", b"{", None], [("ce_type", b"x"), ("other", b"\x00")])
    produce("predictions", [b"p"])
    produce("transactions", [b""], CLOCK_HEADERS)
    first = archive(settings, kafka, spark)
    assert sorted((r.topic, r["value"]) for r in table() if r["value"] is not None) == [
        ("predictions", b"p"), ("transactions", b""), ("transactions", b"1"), ("transactions", b"{")]
    assert any(r["value"] is None for r in table()), "a tombstone is a record too"
    assert [tuple(h) for h in next(r for r in table() if r["value"] == b"1").headers] == [("ce_type", b"x"), ("other", b"\x00")]
    assert first.rows >= 4
    produce("outcomes", [b"o"])
    produce("transactions.dlq", [b"d"])
    second = archive(settings, kafka, spark)
    assert (second.rows, len(table())) == (2, 7)
    assert second.end_offsets.keys() >= {"transactions", "outcomes", "predictions"}
    third = archive(settings, kafka, spark)
    assert (third.rows, third.version) == (0, second.version)


def test_records_that_are_gone_before_they_were_archived_stop_the_archive(spark: Any, runtime: Any, tmp_path: Path) -> None:
    from confluent_kafka import Producer, TopicPartition
    from confluent_kafka.admin import AdminClient

    settings, kafka = Settings(home=tmp_path / "tables"), runtime.endpoints.kafka
    producer = Producer({"bootstrap.servers": kafka})

    def produce(n: int) -> None:
        for i in range(n):
            producer.produce("transactions", b"%d" % i, partition=0)
        assert producer.flush(30) == 0

    produce(5)
    assert archive(settings, kafka, spark).rows == 5
    produce(5)
    admin, place = AdminClient({"bootstrap.servers": kafka}), TopicPartition("transactions", 0, 8)
    for deleted in admin.delete_records([place]).values():
        deleted.result(30)
    with pytest.raises(JobError, match="gone from Kafka"):
        archive(settings, kafka, spark)
