"""What goes wrong is planted at its time and only then, and a game day's score tells found from missed, stray and unearned."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_repo.fraud import LABEL_DELAY_MS, USE_CASE
from feature_repo.views import DAY_MS
from schemas.errors import SettingsError
from schemas.fraud import OUTCOMES, TRANSACTIONS
from schemas.monitoring import Detection, RetrainDecision, RetrainRequest
from services.gameday import ENOUGH_DAYS, PROGRAMME, last_day, score, timetable
from services.inputs import event_rows
from services.loop_record import LoopRecord
from services.planting import KINDS, parse_plant, planted
from services.timeline import Timeline
from services.world import World

START, DAYS, DAY = 1_736_121_600_000, 6, 2
WORLD = World(3, 500, 200, START)


def rows(*texts: str) -> list[pa.RecordBatch]:
    return list(planted((event_rows(batch) for batch in WORLD.days(DAYS)), [parse_plant(text, START) for text in texts], 3))


def column(batch: pa.RecordBatch, name: str) -> Any:
    return np.array(batch[name].to_pylist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_plant_changes_its_days_alone_and_the_same_seed_plants_the_same(kind: str) -> None:
    clean, once, again = rows(), rows(f"{kind}@{DAY}+2"), rows(f"{kind}@{DAY}+2")
    assert [a.equals(b) for a, b in zip(once, again, strict=True)] == [True] * DAYS
    changed = [not a.equals(b.select(a.schema.names)) for a, b in zip(clean, once, strict=True)]
    assert changed == [False, False, kind != "label-delay", kind != "label-delay", False, False]


def test_what_each_plant_does() -> None:
    clean = rows()[DAY]
    amount, n = column(clean, "amount_minor"), clean.num_rows
    day = {kind: rows(f"{kind}@{DAY}+1")[DAY] for kind in KINDS}
    assert (column(day["unit"], "amount_minor") == 100 * amount).all()
    assert abs(column(day["covariate"], "amount_minor").mean() / amount.mean() - 1.5) < 0.01
    assert column(day["prior"], "fraud").mean() > column(clean, "fraud").mean() + 0.01
    assert 0 < day["outage"].num_rows < n / 3
    assert day["duplicates"].num_rows == 3 * n
    assert column(day["duplicates"], f"sent.{OUTCOMES}").sum() == n, "what became known of an event is said once"
    assert not set(column(day["nulls"], "terminal_id")) & set(column(clean, "terminal_id"))
    ahead = column(day["skew"], "event_time") - column(day["skew"], "arrives")
    assert set(ahead.tolist()) == {0, 3 * 60_000}
    tried = day["concept"].filter(pa.array(["-try" in name for name in column(day["concept"], "event_id")]))
    assert tried.num_rows == day["concept"].num_rows - n > 0
    assert column(tried, "fraud").all()
    assert column(tried, "amount_minor").max() < 400
    assert (np.diff(column(day["concept"], "event_time")) >= 0).all()


def test_labels_that_are_held_back_come_at_once_and_never_before_those_of_before() -> None:
    timeline = Timeline(iter(rows(f"label-delay@{DAY}+2")), USE_CASE.emissions)
    until, arrived = START + DAYS * DAY_MS + LABEL_DELAY_MS, []
    timeline.take(TRANSACTIONS, until)
    for piece in timeline.take(OUTCOMES, until):
        arrived += list(zip(piece.arrival_ms.tolist(), column(piece.rows, "event_time").tolist(), strict=True))
    times = [at for at, _ in arrived]
    held_ms = START + (DAY + 2) * DAY_MS + LABEL_DELAY_MS
    assert times == sorted(times)
    assert {at for at, event in arrived if START + DAY * DAY_MS <= event < START + (DAY + 2) * DAY_MS} == {held_ms}
    assert all(at == event + LABEL_DELAY_MS for at, event in arrived if event < START + DAY * DAY_MS)


@pytest.mark.parametrize("text", ["flood@3", "outage", "outage@-1", "outage@2+0", "outage@2+x"])
def test_a_plant_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="cannot plant"):
        parse_plant(text, START)


def test_the_programme_has_every_kind_once_and_leaves_time_between() -> None:
    plants = timetable((), START)
    assert sorted(plant.kind for plant in plants) == sorted(KINDS)
    assert all(min(before.end_ms, before.start_ms + ENOUGH_DAYS * DAY_MS) < after.start_ms for before, after in pairwise(plants))
    assert len(PROGRAMME) == len(plants)
    assert last_day(timetable(["outage"], START), START) < last_day(plants, START)
    with pytest.raises(SettingsError, match="nothing is called"):
        timetable(["storm"], START)


def detection(name: str, signal: str, family: str, day: int) -> Detection:
    until_ms = START + day * DAY_MS
    return Detection(name, "fraud", "1", signal, family, "", until_ms - DAY_MS, until_ms, 2.0, 1.0, 0.1, 900, "fraud@1",
                     None, [], None, None)


def request(name: str, *detections: str) -> RetrainRequest:
    return RetrainRequest(name, "fraud", "1", "fraud@1", "hash", "drift:1", "why", START, {}, list(detections))


def played(detections: list[Detection], requests: list[RetrainRequest], *texts: str) -> tuple[dict[str, str], list[str]]:
    record = LoopRecord(detections, [], requests, [])
    found, strays = score(record, [parse_plant(text, START) for text in texts], START)
    return {each.kind: each.why for each in found}, strays


def test_a_score_tells_found_from_missed_stray_and_unearned() -> None:
    skew, feature, late = (detection("a", "clock-skew", "feed", 11), detection("b", "features", "data", 11),
                           detection("c", "error", "concept", 30))
    assert played([skew], [], "skew@10") == ({"skew": ""}, [])
    assert played([], [], "skew@10") == ({"skew": "not found"}, [])
    assert played([skew, feature], [], "skew@10") == ({"skew": "unexpected: features"}, [])
    assert played([skew, detection("d", "features", "data", 15)], [], "skew@10") == ({"skew": ""}, ["features on day 14"])
    assert played([skew], [request("r", "a")], "skew@10") == ({"skew": "a retrain followed"}, [])
    assert played([skew, late], [request("r", "c")], "skew@10", "concept@20") == ({"skew": "", "concept": ""}, [])
    assert played([late], [], "concept@20") == ({"concept": "no retrain followed"}, [])
    outage, echo = detection("e", "volume", "feed", 11), detection("f", "null-share", "feed", 18)
    assert played([outage, echo], [], "outage@10") == ({"outage": ""}, []), "a week later what is known of that day is missing"
    shift = detection("g", "features", "data", 22)
    assert played([shift, late], [request("r", "c")], "covariate@20") == ({"covariate": ""}, []), "measured loss earns one"


def test_reasons_are_counted_once_for_each_window() -> None:
    def said(by: Any, what: str, reason: str, *evidence: str) -> RetrainDecision:
        return RetrainDecision("d", "fraud", "1", START, by, what, False, reason, None, list(evidence), "", 0, "", 0, [], {})

    record = LoopRecord([], [said("policy", "OK", "no alarm"), said("policy", "WARNING", "not confirmed", "x"),
                             said("policy", "OK", "pipeline: volume", "x"), said("policy", "DRIFT", "no alarm in this window"),
                             *(said("policy", "DRIFT", f"two signals; waits for labels: {n} of 4 days since", "x") for n in (1, 2)),
                             said("governor", "declined", "in cool-down"), said("governor", "promoted", "gate quality")], [], [])
    assert record.refused() == {"not confirmed": 1, "pipeline: volume": 1, "no alarm in this window": 1, "in cool-down": 1,
                                "two signals; waits for labels": 2}
