"""Use cases: declared consistently, switched on by a setting, and trimmed no further than the slowest reader of a view allows."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo import churn
from feature_repo.appends import SetWriter, floor_ms
from feature_repo.fraud import SERVICE, VIEWS
from feature_repo.layout import entity_key, rows
from feature_repo.online import SetReader
from feature_repo.positions import position_of
from feature_repo.use_cases import USE_CASES, find_model, models, services, views
from feature_repo.views import DAY_MS, Feature, FeatureService, FeatureView
from feature_repo.wire import Wire
from jobs.features import _Stage, read_values
from schemas.churn import PURCHASES, REQUESTS
from schemas.errors import DefinitionError, SettingsError
from schemas.evaluations import EVALUATIONS
from schemas.fraud import TRANSACTIONS, Transaction
from schemas.monitoring import CONTROL
from schemas.releases import RELEASES
from schemas.settings import Settings, read_settings
from schemas.topics import PREDICTION_TOPICS, SOURCES, catalogue
from schemas.use_cases import TRAFFIC

PARTITIONS = 2
NOW = 400 * DAY_MS


def test_the_fraud_definitions_are_those_that_sets_and_models_were_made_with() -> None:
    assert [view.definition_hash for view in VIEWS] == ["e4182ce2", "3b23188d", "b63fa4f8"]
    assert SERVICE.definition_hash == "fb544bcb"


def test_what_travels_and_what_is_made_of_it_are_the_same_use_cases() -> None:
    assert [case.name for case in USE_CASES] == [traffic.use_case for traffic in TRAFFIC]
    assert len(SOURCES) == sum(len(traffic.sources) for traffic in TRAFFIC), "a source belongs to one use case"
    every_service = [service for case in USE_CASES for service in case.services]
    assert sorted(service.predictions for service in every_service) == sorted(PREDICTION_TOPICS), "one service writes a predictions topic"
    for names in ([service.name for service in every_service], [view.name for case in USE_CASES for view in case.views],
                  [spec.name for case in USE_CASES for spec in case.models]):
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", USE_CASES, ids=lambda case: case.name)
def test_a_use_case_reads_its_own_traffic(case: Any) -> None:
    traffic = next(traffic for traffic in TRAFFIC if traffic.use_case == case.name)
    assert {view.source for view in case.views} | {service.source for service in case.services} <= set(traffic.sources)
    for service in case.services:
        fields = PREDICTION_TOPICS[service.predictions].record.__struct_fields__
        assert fields[3:3 + len(service.entities)] == service.entities
        assert {*service.entities, *service.event_columns} <= set(SOURCES[service.source].record.__struct_fields__)
        assert all(view.entity in SOURCES[view.source].record.__struct_fields__ for view in service.views)
    for spec in case.models:
        assert spec.subject in spec.service.entities
    for source in traffic.sources:  # the worker refuses by all views of a source, a job by those of one service
        assert len({view.max_skew_ms for view in case.views if view.source == source}) <= 1


def test_a_use_case_that_is_off_has_no_topic_and_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [spec.name for spec in models(Settings())] == ["fraud"]
    traffic = {"transactions", "outcomes", "predictions"}
    assert {topic.name.split(".")[0] for topic in catalogue(Settings())} == {*traffic, EVALUATIONS, RELEASES, *CONTROL}
    with pytest.raises(DefinitionError, match="there is no model 'chrun'"):
        find_model(Settings(), "chrun")
    monkeypatch.setenv("HEADRACE_USE_CASES", "fraud,chrun")
    with pytest.raises(SettingsError, match=r"HEADRACE_USE_CASES .*'chrun'"):
        read_settings()


def test_what_is_on_is_told_to_child_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for told in (",".join(case.name for case in USE_CASES), USE_CASES[-1].name):
        monkeypatch.setenv("HEADRACE_USE_CASES", told)
        settings = read_settings()
        assert ",".join(settings.use_cases) == told
        assert {service.name for service in services(settings)} == {spec.service.name for spec in models(settings)}
        assert {view.name for view in views(settings)} == {view.name for service in services(settings) for view in service.views}


def test_a_query_finds_its_own_record_by_its_place_also_where_no_view_keeps_it() -> None:
    stage = _Stage("customer_id", tuple(enumerate(churn.SERVICE.views)), REQUESTS, read_values, False, (), (), None)
    here, elsewhere = position_of(REQUESTS, 1, 5), position_of(REQUESTS, 1, 6)
    table = pa.table({"position": [here, position_of(PURCHASES, 1, 6), here, elsewhere],
                      "admitted": pa.array([0, 1, None, None], pa.int32()), "query": [False, False, True, True]})
    assert stage._own(table, np.array([2, 3])).tolist() == [0, -1]


class Shop:
    """One view that two services read, in a real Redis."""

    def __init__(self, url: str, **options: Any) -> None:
        self.view = FeatureView(f"seen_{uuid.uuid4().hex[:8]}", "card_id", TRANSACTIONS, (), (Feature("n", "count", 10 * DAY_MS),))
        self.quick = FeatureService(f"quick_{self.view.name}", TRANSACTIONS, (self.view,))
        self.slow = FeatureService(f"slow_{self.view.name}", TRANSACTIONS, (self.view,))
        self.reader = SetReader(url, 30_000, PARTITIONS)
        self.wire = Wire(url, 30_000)
        self.writer = SetWriter(url, [self.view], [self.quick, self.slow], PARTITIONS, timeout_ms=30_000, **options)
        self.writer.marks.adopt(0, [-1])
        self.offset = -1

    def append(self, event_ms: int, arrival_ms: int) -> list[int]:
        """Append one event of the card; the floor and the event times that its set then holds."""
        self.offset += 1
        self.writer.forget_refreshes()
        assert self.writer.apply(0, self.offset, [[(Transaction(f"e{self.offset}", event_ms, "c", "t", 1), arrival_ms)]])
        value = self.wire.call("GET", entity_key(self.view, "c"))
        return [int(record[0]) for record in rows(self.view, value)]

    def scored(self, service: FeatureService, *arrivals_ms: int) -> None:
        self.reader.publish_scored(service.name, dict(enumerate((7, ms) for ms in arrivals_ms)))

    def close(self) -> None:
        self.wire.close()
        self.reader.close()
        self.writer.close()


@pytest.fixture
def shop(redis_url: str) -> Iterator[Shop]:
    shop = Shop(redis_url)
    yield shop
    shop.close()


def test_a_set_is_trimmed_only_as_far_as_the_slowest_of_its_services_has_scored(shop: Shop) -> None:
    old, late = NOW - 60 * DAY_MS, NOW - 30 * DAY_MS
    assert shop.append(old, old) == [old]
    shop.scored(shop.quick, NOW, NOW)
    shop.append(late, late)  # its answer brings the mark
    assert shop.append(NOW, NOW) == [old, late, NOW], "the slow service has scored nothing: it may still ask for all"
    shop.scored(shop.slow, NOW, late)
    shop.append(NOW, NOW)
    assert shop.append(NOW, NOW)[0] == floor_ms(shop.view, late, shop.slow.scored_lateness_ms)
    assert late in shop.append(NOW, NOW), "the slow service's second partition stands there"
    shop.scored(shop.slow, NOW, NOW)
    shop.append(NOW, NOW)
    held = shop.append(NOW, NOW)
    assert held[0] == floor_ms(shop.view, NOW, shop.slow.scored_lateness_ms)
    assert set(held[1:]) == {NOW}


def test_a_service_that_never_runs_keeps_what_the_log_still_holds_and_no_more(redis_url: str) -> None:
    shop = Shop(redis_url, forgotten_ms=7 * DAY_MS)
    try:
        old, in_reach = NOW - 30 * DAY_MS, NOW - 18 * DAY_MS
        shop.append(old, old)
        shop.append(in_reach, in_reach)
        shop.scored(shop.quick, NOW, NOW)
        shop.append(NOW, NOW)
        held = shop.append(NOW, NOW)
        assert held[0] == floor_ms(shop.view, NOW - 7 * DAY_MS, shop.slow.scored_lateness_ms)
        assert old not in held[1:]
        assert in_reach in held[1:], "an event that arrived a week ago can still be scored, and reads ten days back"
    finally:
        shop.close()
