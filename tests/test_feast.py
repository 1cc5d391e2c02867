"""Feast answers what the kernel and the oracle say, over real Redis; the registry holds what is declared."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from feature_repo.appends import SetWriter, floor_ms
from feature_repo.fraud import CARD_SPEND, SERVICE, TERMINAL_ACTIVITY, TERMINAL_RISK
from feature_repo.layout import entity_key, floor_record, packer, rows
from feature_repo.marks import scored_ms_key
from feature_repo.oracle import Record, feature_values, members
from feature_repo.use_cases import USE_CASES
from feature_repo.views import DAY_MS, HOUR_MS, FeatureView
from schemas.errors import BelowFloorError, DefinitionError, StoreError
from schemas.fraud import OUTCOMES, TRANSACTIONS, Outcome, Transaction

ROOT = Path(__file__).parents[1]
NOW = 1_534_000_000_000
CARDS, TERMINALS = [f"c{i}" for i in range(12)], [f"t{i}" for i in range(9)]


@pytest.fixture(scope="module")
def url(redis_url: str) -> Iterator[str]:
    """A database of this module's own on the shared server."""
    own = f"{redis_url.rpartition('/')[0]}/9"
    with redis.Redis.from_url(own) as client:
        client.flushdb()
        yield own
        client.flushdb()


@pytest.fixture(scope="module")
def store(url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from feature_repo import feast_store

    store = feast_store.open_store(tmp_path_factory.mktemp("home"), url)
    feast_store.apply(store)
    return store


@pytest.fixture(scope="module")
def world(url: str) -> dict[str, list[Any]]:
    """Two months of transactions and outcomes, applied as the worker applies them: out of order, copies and corrections included."""
    r = random.Random(5)
    transactions = [Transaction(f"e{i}", NOW - r.randrange(60 * DAY_MS), r.choice(CARDS), r.choice(TERMINALS), r.randrange(1, 90_000))
                    for i in range(1500)]
    outcomes = [Outcome(e.event_id, e.event_time, e.card_id, e.terminal_id, r.random() < 0.2, r.randrange(2)) for e in transactions]
    events = {TRANSACTIONS: transactions + r.sample(transactions, 200), OUTCOMES: outcomes + r.sample(outcomes, 200)}
    outcomes += [Outcome(e.event_id, e.event_time, e.card_id, e.terminal_id, True, 2) for e in r.sample(transactions, 100)]
    events[OUTCOMES] += outcomes[-100:]
    for source, views in ((TRANSACTIONS, (CARD_SPEND, TERMINAL_ACTIVITY)), (OUTCOMES, (TERMINAL_RISK,))):
        append(url, views, events[source])
    return events


def append(url: str, views: tuple[FeatureView, ...], events: list[Any], partition: int = 0) -> None:
    writer = SetWriter(url, views, [SERVICE], partitions=1, timeout_ms=30_000)
    held = writer.held(partition)
    writer.marks.adopt(partition, held)
    assert writer.apply(partition, max(held) + len(events), [[(event, NOW) for event in events]] * len(views))
    writer.close()


def oracle(view: FeatureView, entity: str, events: list[Any], t_ms: int) -> list[float | None]:
    """What Feast must answer: the oracle's values, and nothing at all where no record counts."""
    pack = packer(view)
    of_entity = b"".join(pack(event) for event in events if getattr(event, view.entity) == entity)
    records = [Record(row[0], row[1], tuple(row[2:])) for row in rows(view, of_entity).tolist()]
    if not members(view, records, t_ms, None):
        return [None] * len(view.features)
    return [None if math.isnan(value) else value for value in feature_values(view, records, t_ms)]


def read(store: Any, t_ms: int, entities: list[dict[str, str]]) -> Any:
    from feature_repo.feast_store import reading_at

    with reading_at(t_ms):
        return store.get_online_features(features=store.get_feature_service("fraud"), entity_rows=entities)


def statuses(store: Any, view: FeatureView, entity: str, t_ms: int) -> set[str]:
    from feature_repo.feast_store import look_up

    return {found.status for found in look_up(store, {view.entity: entity}, t_ms)[1].values()}


def transaction(card: str, event_time: int) -> Transaction:
    return Transaction(f"{card}-{event_time}", event_time, card, f"at-{card}", 1000)


def test_registry_holds_exactly_what_is_declared(store: Any) -> None:
    held = {view.name: view for view in store.list_feature_views()}
    declared = [view for case in USE_CASES for view in case.views]
    assert set(held) == {view.name for view in declared}
    for view in declared:
        assert [field.name for field in held[view.name].features] == [feature.name for feature in view.features]
        assert held[view.name].join_keys == [view.entity]
        assert held[view.name].tags["definition_hash"] == view.definition_hash
        assert held[view.name].owner == view.owner
    for service in (service for case in USE_CASES for service in case.services):
        projections = store.get_feature_service(service.name).feature_view_projections
        windowed = service.feature_names[:-len(service.request)]
        assert [field.name for projection in projections for field in projection.features] == list(windowed)


def test_feast_imports_the_definitions_file_and_no_other() -> None:
    from feast.repo_operations import get_repo_files

    assert get_repo_files(ROOT / "feature_repo") == [ROOT / "feature_repo" / "definitions.py"]


def test_feast_apply_works_where_nothing_exists_yet(tmp_path: Path) -> None:
    home = tmp_path / "not" / "there"
    done = subprocess.run([str(Path(sys.executable).with_name("feast")), "-c", "feature_repo", "apply"], cwd=ROOT, timeout=120, check=False,
                          env={**os.environ, "HEADRACE_HOME": str(home)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (home / "feast_registry.db").stat().st_size > 1000


def test_apply_removes_what_is_no_longer_declared(tmp_path: Path) -> None:
    from feast import Entity, ValueType

    from feature_repo import feast_store

    store = feast_store.open_store(tmp_path)
    feast_store.apply(store)
    store.apply([Entity(name="ghost", join_keys=["ghost_id"], value_type=ValueType.STRING)], partial=True)
    assert feast_store.apply(store)["removed"] == ["ghost"]
    assert sorted(entity.name for entity in store.list_entities()) == ["card", "customer", "terminal"]


@pytest.mark.parametrize("back_ms", [0, 1, HOUR_MS, 9 * DAY_MS + 12_345])
def test_online_features_equal_the_oracle_at_the_time_of_the_read(store: Any, world: dict[str, list[Any]], back_ms: int) -> None:
    entities = [{"card_id": card, "terminal_id": terminal} for card in CARDS for terminal in TERMINALS]
    answer = read(store, NOW - back_ms, entities).to_dict()
    for view in SERVICE.views:
        expected = {name: oracle(view, name, world[view.source], NOW - back_ms) for name in {row[view.entity] for row in entities}}
        for i, feature in enumerate(view.features):
            assert answer[feature.name] == [expected[row[view.entity]][i] for row in entities], feature.name


def test_the_time_of_an_answer_is_that_of_the_newest_event_used(store: Any, world: dict[str, list[Any]]) -> None:
    from feature_repo.feast_store import look_up

    _, found = look_up(store, {"card_id": "c3"}, NOW)
    assert list(found) == [feature.name for feature in CARD_SPEND.features]
    newest = max(event.event_time for event in world[TRANSACTIONS] if event.card_id == "c3")
    assert {feature.newest_ms for feature in found.values()} == {newest}


def test_an_unknown_entity_is_not_found_beside_a_known_one(store: Any, world: dict[str, list[Any]]) -> None:
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    answer = read(store, NOW, [{"card_id": "nobody", "terminal_id": "t0"}, {"card_id": "c0", "terminal_id": "nowhere"}])
    by_name = dict(zip(answer.proto.metadata.feature_names.val, answer.proto.results, strict=True))
    assert list(by_name["card_count_30d"].statuses) == [FieldStatus.NOT_FOUND, FieldStatus.PRESENT]
    assert list(by_name["terminal_count_30d"].statuses) == [FieldStatus.PRESENT, FieldStatus.NOT_FOUND]
    assert answer.to_dict()["card_count_30d"][0] is None


def test_features_live_as_long_as_the_ttl_says(store: Any, url: str) -> None:
    append(url, (CARD_SPEND,), [transaction("mayfly", NOW)])
    append(url, (TERMINAL_RISK,), [Outcome("o", NOW, "mayfly", "stand", True)])
    ttl = {view.name: round(view.ttl.total_seconds() * 1000) for view in store.list_feature_views()}
    for view, entity, first in ((CARD_SPEND, "mayfly", NOW), (TERMINAL_RISK, "stand", NOW + 7 * DAY_MS)):
        last = NOW + ttl[view.name] - 1
        assert "PRESENT" not in statuses(store, view, entity, first - 1)
        assert "PRESENT" in statuses(store, view, entity, first)
        assert "PRESENT" in statuses(store, view, entity, last)
        assert statuses(store, view, entity, last + 1) == {"NOT_FOUND"}


def test_trimmed_history_is_refused_not_counted_short(store: Any, url: str) -> None:
    append(url, (CARD_SPEND,), [transaction("cut", NOW)])
    floor = floor_ms(CARD_SPEND, NOW, SERVICE.scored_lateness_ms)
    with redis.Redis.from_url(url) as client:
        client.append(entity_key(CARD_SPEND, "cut"), floor_record(CARD_SPEND, floor))
    assert "PRESENT" in statuses(store, CARD_SPEND, "cut", NOW)
    with pytest.raises(BelowFloorError, match=r"card_id 'cut' at \d+ ms needs history that was trimmed"):
        statuses(store, CARD_SPEND, "cut", floor + CARD_SPEND.longest_window_ms - 1)


def test_in_a_replay_a_read_is_at_the_streams_clock(store: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from feature_repo.feast_store import look_up

    monkeypatch.setenv("HEADRACE_TIME", "replay")
    with redis.Redis.from_url(url) as client:
        client.delete(scored_ms_key("fraud"))
        with pytest.raises(StoreError, match="clock has not begun"):
            look_up(store, {"card_id": "c0"})
        client.hset(scored_ms_key("fraud"), mapping={"0": NOW - 5, "1": NOW})
    assert look_up(store, {"card_id": "c0"})[0] == NOW
    answer = store.get_online_features(features=["card_spend:card_count_30d"], entity_rows=[{"card_id": "c0"}]).to_dict()
    assert answer["card_count_30d"] == [look_up(store, {"card_id": "c0"}, NOW)[1]["card_count_30d"].value]


def test_live_reads_are_at_the_wall_clock_so_old_cards_are_gone(
        store: Any, world: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TIME", "live")
    answer = store.get_online_features(features=["card_spend:card_count_30d"], entity_rows=[{"card_id": "c0"}])
    assert answer.to_dict() == {"card_id": ["c0"], "card_count_30d": [None]}


def test_features_cannot_be_written(store: Any) -> None:
    from feature_repo.feast_store import EventSetOnlineStore

    with pytest.raises(StoreError, match="computed from events; hint: publish events to 'transactions'"):
        EventSetOnlineStore().online_write_batch(store.config, store.get_feature_view("card_spend"), [], None)


def test_mistakes_are_told_with_the_way_out(tmp_path: Path, store: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from feature_repo import feast_store

    with pytest.raises(DefinitionError, match="headrace feast apply"):
        feast_store.look_up(feast_store.open_store(tmp_path, url), {"card_id": "c0"}, NOW)
    with pytest.raises(DefinitionError, match="card_id, terminal_id, customer_id"):
        feast_store.look_up(store, {"shop_id": "c0"}, NOW)
    monkeypatch.delenv("HEADRACE_REDIS", raising=False)
    nowhere = feast_store.open_store(tmp_path)
    feast_store.apply(nowhere)
    with pytest.raises(StoreError, match="HEADRACE_REDIS"):
        feast_store.look_up(nowhere, {"card_id": "c0"}, NOW)


def test_a_registry_of_other_definitions_is_refused(tmp_path: Path, url: str) -> None:
    from feature_repo import feast_store

    store = feast_store.open_store(tmp_path, url)
    feast_store.apply(store)
    other = store.get_feature_view("card_spend")
    other.tags = {**other.tags, "definition_hash": "00000000"}
    store.apply([other])
    with pytest.raises(DefinitionError, match="is 00000000 in the registry"):
        feast_store.look_up(store, {"card_id": "c0"}, NOW)


def test_the_command_applies_and_gets(url: str, tmp_path: Path, world: dict[str, list[Any]]) -> None:
    def headrace(*words: str) -> Any:
        done = subprocess.run([sys.executable, "-m", "services.cli", "feast", *words, "--json"], cwd=ROOT, capture_output=True, timeout=120,
                              env={**os.environ, "HEADRACE_HOME": str(tmp_path), "HEADRACE_REDIS": url}, check=True)
        return json.loads(done.stdout)

    assert headrace("apply")["feature_services"] == ["fraud", "churn"]
    got = headrace("get", "card_id=c1", "--at", str(NOW))
    values = [got["features"][feature.name]["value"] for feature in CARD_SPEND.features]
    assert (got["at_ms"], values) == (NOW, oracle(CARD_SPEND, "c1", world[TRANSACTIONS], NOW))
