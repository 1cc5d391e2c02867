"""Erasing a person on real Redis, Delta and Kafka: what goes, what stays, what a second run and a fresh archive find."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deltalake
import pyarrow.dataset as ds
import pytest

from feature_repo.archive_table import bronze_path
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.layout import entity_key, packer
from feature_repo.marks import applied_key
from feature_repo.views import DAY_MS, FeatureView
from feature_repo.wire import Wire
from jobs.archive import archive
from jobs.erase import Erased, erase
from jobs.parity import parity, parity_path
from jobs.training_set import build_training_set
from schemas.errors import DefinitionError
from schemas.settings import Settings
from schemas.topics import ONE_PARTITION, catalogue
from services.commands.erase import kafka_until, personal_field, text
from tests.log_world import DAYS, START, Logged, World, decoded, hostile_world, serve
from tests.small_model import promote_small_model

pytestmark = pytest.mark.usefixtures("generated_code")

GONE, OTHERS = "c1", ("c0", "c2", "c3")
PARSED = {"train": ("2018-07-01", "2018-07-03"), "test": ("2018-07-12", "2018-07-13")}


class Killed(Exception):
    pass


class Shop:
    """A world in a Delta table and in Redis, with what was made of it."""

    def __init__(self, spark: Any, home: Path, redis_url: str) -> None:
        self.spark, self.settings, self.redis_url, self.wire = spark, Settings(home=home), redis_url, Wire(redis_url, 5000)
        self.world = hostile_world(6)
        serve(self.world, 6)
        last = max(r.offset for r in self.world.records)
        broken = b'{"event_id": "b", "card_id":  "c1", "event_time": 1.5}'
        self.world.records.append(Logged("transactions", 0, last + 1, START + 60 * DAY_MS, broken, None, None))
        deltalake.write_deltalake(bronze_path(self.settings), self.world.bronze(), partition_by=["topic"])
        for version, told in (("1", {}), ("2", PARSED)):
            promote_small_model(self.settings.models, version, **told)
        for view in SERVICE.views:
            for entity, value in self.sets(view, ()).items():
                self.wire.call("SET", entity_key(view, entity), value, "EX", 10_000)
            for partition in (0, 1):
                ends = [r.offset for r in self.world.of(view.source) if r.partition == partition]
                self.wire.call("HSET", applied_key(view), partition, max(ends))
        self.training_set = build_training_set(self.settings, FRAUD, START, START + DAYS * DAY_MS, "known", spark)
        self.parity = parity(self.settings, SERVICE, spark)

    def sets(self, view: FeatureView, without: tuple[str, ...]) -> dict[str, bytes]:
        """The bytes of every set of ``view``, but for the events of some cards."""
        pack, sets = packer(view), dict[str, bytes]()
        for record in self.world.of(view.source):
            if record.event is not None and record.admitted(view) and record.event["card_id"] not in without:
                entity = record.event[view.entity]
                sets[entity] = sets.get(entity, b"") + pack(decoded(record))
        return sets

    def held(self, view: FeatureView) -> dict[str, bytes]:
        return {entity: value for entity in self.sets(view, ()) if (value := self.wire.call("GET", entity_key(view, entity))) is not None}

    def bronze(self) -> set[tuple[str, int, int]]:
        return {(r.topic, r.partition, r.offset) for r in self.spark.read.format("delta").load(bronze_path(self.settings)).collect()}

    def cards(self, path: str) -> set[str]:
        return {row[0] for row in self.spark.read.format("delta").load(path).select("card_id").distinct().collect()}

    def erase(self, **how: Any) -> Erased:
        return erase(self.settings, "card_id", GONE, None, self.redis_url, spark=self.spark, **how)

    def verdicts(self) -> dict[str, str]:
        rows = self.spark.read.format("delta").load(parity_path(self.settings, SERVICE)).collect()
        return {row.prediction_id: row.verdict for row in rows}

    def close(self) -> None:
        for view in SERVICE.views:
            self.wire.call("DEL", applied_key(view), *(entity_key(view, entity) for entity in self.sets(view, ())))
        self.wire.close()


@pytest.fixture(scope="module")
def shop(spark: Any, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    shop = Shop(spark, tmp_path_factory.mktemp("home"), redis_url)
    yield shop
    shop.close()


def names_it(world: World, record: Logged) -> bool:
    return b"c1" in (record.value or b"").replace(b'"t', b"")  # ids of events are t..., of terminals p...


@pytest.fixture(scope="module")
def course(shop: Shop) -> dict[str, Any]:
    """A dry run, a run that is killed before its last step, a parity, and the run that is made again; what each left."""
    files = {path: path.read_bytes() for path in Path(shop.settings.tables).rglob("*.json")}
    dry = shop.erase(dry_run=True)
    unchanged = ({path: path.read_bytes() for path in Path(shop.settings.tables).rglob("*.json")} == files
                 and all(shop.held(view) == shop.sets(view, ()) for view in SERVICE.views))

    def kill(line: str) -> None:
        if line == "deleting from bronze":
            raise Killed

    with pytest.raises(Killed):
        shop.erase(tell=kill)
    half = shop.bronze()
    parity(shop.settings, SERVICE, shop.spark)
    return {"dry": dry, "unchanged": unchanged, "half": half, "between": shop.verdicts(), "again": shop.erase(), "third": shop.erase()}


def test_a_dry_run_counts_and_changes_nothing(shop: Shop, course: dict[str, Any]) -> None:
    dry = course["dry"]
    assert course["unchanged"]
    words = {view.name: 8 * view.record_words for view in SERVICE.views}
    for view in SERVICE.views:
        of_card = sum(map(len, shop.sets(view, ()).values())) - sum(map(len, shop.sets(view, (GONE,)).values()))
        found = (dry.sets if view.entity == "card_id" else dry.shared)[view.versioned_name]
        assert found == of_card // words[view.name] > 0
    for topic in ("transactions", "outcomes"):
        assert dry.rows[f"bronze/{topic}"] == sum(names_it(shop.world, r) for r in shop.world.of(topic))
    assert dry.rows["bronze/predictions"] == sum(json.loads(p)["card_id"] == GONE for p in shop.world.predictions)
    assert dry.behind == []
    assert len(dry.training_sets) == 1
    assert dry.models == ["fraud/2"], "the first was trained in another season"


def test_what_a_killed_run_left_the_next_one_erases(shop: Shop, course: dict[str, Any]) -> None:
    every = {(r.topic, r.partition, r.offset) for r in shop.world.records}
    assert course["half"] >= every, "bronze comes last"
    for view in SERVICE.views:
        assert shop.held(view) == {entity: value for entity, value in shop.sets(view, (GONE,)).items() if value}
        assert all(int(shop.wire.call("TTL", entity_key(view, entity))) > 0 for entity in shop.held(view)), "sets still expire"
    kept = {(r.topic, r.partition, r.offset) for r in shop.world.records if not names_it(shop.world, r)}
    assert {place for place in shop.bronze() if place[0] != "predictions"} == kept
    assert shop.cards(shop.training_set.path) == set(OTHERS)
    of_others = {json.loads(p)["prediction_id"] for p in shop.world.predictions if json.loads(p)["card_id"] != GONE}
    assert shop.verdicts().keys() == of_others
    left = {key for key in course["dry"].rows if key.startswith("bronze/")}
    assert course["again"].rows.keys() == left | {"parity/fraud"}, "the parity in between had judged them once more"


def test_a_second_run_finds_nothing_and_still_knows_what_was_built(course: dict[str, Any]) -> None:
    third = course["third"]
    assert (third.rows, sum(third.sets.values()), sum(third.shared.values())) == ({}, 0, 0)
    assert (third.training_sets, third.models) == (course["dry"].training_sets, ["fraud/2"])
    assert "built from it: model fraud/2" in text({**third.__dict__, "kafka_until_ms": kafka_until(Settings(), "card_id", 0)})


def test_the_name_is_nowhere_in_what_is_remembered(shop: Shop, course: dict[str, Any]) -> None:
    for table in ("entities", "records"):
        rows = shop.spark.read.format("delta").load(f"{shop.settings.tables}/erased/{table}").collect()
        assert rows
        assert not any(value == GONE for row in rows for value in row)


def test_parity_calls_erased_what_it_can_no_longer_recompute(shop: Shop, course: dict[str, Any], tmp_path: Path) -> None:
    assert (shop.parity.unexplained, shop.parity.erased) == (0, 0)
    after = parity(shop.settings, SERVICE, shop.spark)
    assert after.unexplained == 0, after.examples
    assert 0 < after.erased < after.predictions
    # A parity between the erasure's steps settled what could be recomputed then.
    judged = shop.verdicts()
    assert sum(course["between"][prediction] == "exact" for prediction, verdict in judged.items() if verdict == "erased") > 0
    parity(shop.settings, SERVICE, shop.spark, again=True)
    assert shop.verdicts() == judged
    # The control: a record that is missing for no such reason.
    sent = [r.event["event_id"] for r in shop.world.of("transactions") if r.event is not None]
    lost = next(r for r in shop.world.of("transactions") if r.event is not None and r.event["card_id"] == "c0"
                and r.admitted(SERVICE.views[0]) and sent.count(r.event["event_id"]) == 1)
    home = Settings(home=tmp_path)
    shutil.copytree(Path(shop.settings.tables), Path(home.tables))
    deltalake.DeltaTable(bronze_path(home)).delete(f"topic = 'transactions' and partition = {lost.partition} and offset = {lost.offset}")
    assert parity(home, SERVICE, shop.spark).unexplained > 0


def test_old_versions_go_at_once_only_where_that_is_asked_for(shop: Shop, course: dict[str, Any]) -> None:
    def in_files() -> bool:
        files = [str(path) for path in Path(bronze_path(shop.settings)).rglob("*.parquet")]
        return any(b'"card_id": "c1"' in (value or b"") for value in ds.dataset(files).to_table(["value"])["value"].to_pylist())

    assert in_files()
    assert shop.erase(vacuum_now=True).old_versions_until_ms is None
    assert not in_files()


def test_workers_that_are_behind_the_archive_are_told(shop: Shop, course: dict[str, Any]) -> None:
    view = SERVICE.views[1]
    held = shop.wire.call("HGET", applied_key(view), 1)
    shop.wire.call("HSET", applied_key(view), 1, 3)
    try:
        assert shop.erase(dry_run=True).behind == [f"{view.name}/1"]
    finally:
        shop.wire.call("HSET", applied_key(view), 1, held)


def test_the_log_does_not_bring_back_who_was_erased(spark: Any, kafka: str, redis_url: str, tmp_path: Path) -> None:
    from confluent_kafka import Producer

    settings, producer = Settings(home=tmp_path), Producer({"bootstrap.servers": kafka})
    me, other = f"me{tmp_path}", f"other{tmp_path}"

    def produce(*cards: str) -> None:
        for i, card in enumerate(cards):
            value = {"event_id": f"{card}{i}", "event_time": START, "card_id": card, "terminal_id": f"at{tmp_path}", "amount_minor": 1}
            producer.produce("transactions", json.dumps(value).encode(), card.encode() if i else None, partition=0, timestamp=START)
        assert producer.flush(30) == 0

    def archived() -> list[str]:
        rows = spark.read.format("delta").load(bronze_path(settings)).where("topic = 'transactions'").collect()
        cards = [json.loads(row.value)["card_id"] for row in rows if row.value and row.value.startswith(b'{"event_id"')]
        return sorted(card for card in cards if card in (me, other))

    produce(me, other, me, me)
    found = erase(settings, "card_id", me, kafka, redis_url, spark=spark)
    assert found.rows["bronze/transactions"] == 3
    assert archived() == [other]
    shutil.rmtree(settings.tables + "/bronze")
    shutil.rmtree(settings.tables + "/_checkpoints")
    produce(other, me)  # a person may come back
    archive(settings, kafka, spark)
    assert archived() == sorted([other, other, me])
    shutil.rmtree(settings.tables)  # the control: nothing is remembered
    archive(settings, kafka, spark)
    assert archived() == sorted([other, other, me, me, me, me])


def test_only_a_person_can_be_erased() -> None:
    assert personal_field("card") == personal_field("card_id") == "card_id"
    with pytest.raises(DefinitionError, match="'terminal' personal"):
        personal_field("terminal")
    until = kafka_until(Settings(), "card_id", 0)
    assert until["transactions"] == 30 * DAY_MS
    assert until["transactions.dlq"] == 90 * DAY_MS
    assert set(kafka_until(Settings(time="replay"), "card_id", 0).values()) == {None}
    fraud = Settings(use_cases=("fraud",))
    assert set(kafka_until(fraud, "card_id", 0)) == {topic.name for topic in catalogue(fraud)} - ONE_PARTITION
