"""Explaining archived predictions, on a Delta table written and read without a JVM."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path
from typing import Any

import deltalake
import msgspec
import numpy as np
import pytest

from feature_repo.archive_table import FOR_EVER, ArchiveTable, bronze_path, open_archive
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.oracle import feature_values
from feature_repo.views import DAY_MS, FeatureView
from jobs.explain import explain
from schemas.errors import JobError
from schemas.fraud import PREDICTION
from schemas.settings import Settings
from services.cli import main
from services.explainers import Explainers
from services.explanations import page, text
from services.reasons import reasons_record
from tests.log_world import Logged, World, degraded, hostile_world, serve
from tests.small_model import promote_small_model

SEEN = {"used", "copy", "seen_early", "scored"}
MOST = 10**6


def archive(world: World, home: Path) -> Settings:
    settings = Settings(home=home)
    deltalake.write_deltalake(bronze_path(settings), world.bronze(), partition_by=["topic"])
    return settings


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Settings]:
    """A hostile log, scored by a model that saw more or less of it than had arrived."""
    home, world = tmp_path_factory.mktemp("home"), hostile_world(5)
    serve(world, 5, model=promote_small_model(Settings(home=home).models))
    return world, archive(world, home)


@pytest.fixture(scope="module")
def first(told: tuple[World, Settings]) -> list[dict[str, Any]]:
    """Explanations of every tenth prediction."""
    return [explain(told[1], one, MOST) for one in ids(told[0])[::10]]


@pytest.fixture(scope="module")
def every(told: tuple[World, Settings], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Explanations of all of them, where there is no bundle: what the archive alone tells."""
    alone = Settings(home=tmp_path_factory.mktemp("alone"), table_root=told[1].tables)
    return [explain(alone, one, MOST) for one in ids(told[0])]


def ids(world: World) -> list[str]:
    return list(dict.fromkeys(json.loads(value)["prediction_id"] for value in world.predictions))


def logged_at(world: World, event: dict[str, Any]) -> Logged:
    return next(r for r in world.records if (r.topic, r.partition, r.offset) == (event["topic"], event["partition"], event["offset"]))


def values(facts: dict[str, Any], view: FeatureView) -> list[float]:
    return [math.nan if f["value"] is None else f["value"] for f in facts["features"] if f["view"] == view.name]


def test_the_events_told_give_every_served_value_exactly(told: tuple[World, Settings], every: list[dict[str, Any]]) -> None:
    assert len(every) > 200
    for facts in every:
        for view, of_view in zip(SERVICE.views, facts["views"], strict=True):
            assert of_view["verdict"] in ("exact", "in_flight")
            used = [logged_at(told[0], event).record(view) for event in of_view["events"] if event["state"] in SEEN]
            scored = next(r for r in told[0].records if (r.topic, r.partition, r.offset) == (*facts["source"].values(),))
            current = scored.record(view) if view.source == SERVICE.source else None
            again = feature_values(view, used, facts["event_time"], current)
            assert np.array_equal(again, values(facts, view), equal_nan=True)
    assert {of_view["verdict"] for facts in every for of_view in facts["views"]} == {"exact", "in_flight"}


def test_the_reasons_are_those_of_the_topic(told: tuple[World, Settings], first: list[dict[str, Any]]) -> None:
    explainers, some = Explainers(told[1]), False
    by_id = {p.prediction_id: p for p in (PREDICTION.decode(value) for value in reversed(told[0].predictions))}
    for facts in first:
        record = reasons_record(FRAUD, by_id[facts["prediction_id"]], explainers)
        assert facts["reasons"] == msgspec.to_builtins(record.reasons)
        assert all(f"{reason.code} {reason.words}" in text(facts) for reason in record.reasons)
        assert all(f"{reason.code} {reason.words}" in html.unescape(page(facts)) for reason in record.reasons)
        some |= bool(record.reasons)
    assert some


def test_what_was_late_or_in_flight_is_told_apart(told: tuple[World, Settings], every: list[dict[str, Any]]) -> None:
    world, seen = told[0], set()
    for facts in every:
        scored = next(r for r in world.records if (r.topic, r.partition, r.offset) == (*facts["source"].values(),))
        for view, of_view in zip(SERVICE.views, facts["views"], strict=True):
            states = {(e["topic"], e["partition"], e["offset"]): e["state"] for e in of_view["events"]}
            seen |= set(states.values())
            edge = facts["event_time"] - view.delay_ms
            for record in world.of(view.source):
                event = record.event
                if event is None or event[view.entity] != scored.event[view.entity]:  # type: ignore[index]
                    continue
                if not edge - view.longest_window_ms < event["event_time"] <= edge:
                    continue
                state = states.get((record.topic, record.partition, record.offset))
                if record is scored:
                    assert state == "scored"
                elif not record.admitted(view):
                    assert state == ("late" if record.order < scored.order else None)
                else:
                    arrived = record.order < scored.order
                    assert state in (("used", "copy", "not_seen") if arrived else ("seen_early", "copy", None))
            assert ("not_seen" in states.values() or "seen_early" in states.values() or "copy" in states.values()
                    or of_view["verdict"] == "exact")
    assert seen == {*SEEN, "late", "not_seen"}


def test_each_window_counts_the_events_it_is_said_to(every: list[dict[str, Any]]) -> None:
    for facts in every:
        by_name = {feature["name"]: feature for feature in facts["features"]}
        for view, of_view in zip(SERVICE.views, facts["views"], strict=True):
            for feature in view.features:
                counted = sum(feature.window_ms in event["windows_ms"] for event in of_view["events"])
                assert counted == by_name[feature.name]["events"]
                if feature.function == "count":
                    assert counted == by_name[feature.name]["value"]


def test_contributions_add_up_to_the_score(first: list[dict[str, Any]]) -> None:
    for facts in first:
        assert "fault" not in facts["model"]
        total = facts["model"]["base"] + sum(feature["contribution"] for feature in facts["features"])
        assert total == pytest.approx(facts["model"]["margin"], abs=1e-6)
        assert 1 / (1 + math.exp(-total)) == pytest.approx(facts["decision"]["score"], abs=1e-6)
        assert facts["decision"]["alert"] == (facts["decision"]["score"] >= 0.5)
        assert facts["request"]["follows"]
        assert facts["model"]["champion_now"]


def test_the_outcome_is_told_with_all_its_revisions(told: tuple[World, Settings], every: list[dict[str, Any]]) -> None:
    revisions = []
    for facts in every:
        key = (facts["event_id"], facts["event_time"])
        expected = sorted((r.arrival_ms, r.event.get("revision", 0), r.event["fraud"]) for r in told[0].of("outcomes")
                          if r.event is not None and (r.event["event_id"], r.event["event_time"]) == key)
        outcome = facts["outcome"]
        assert sorted((r["arrival_ms"], r["revision"], r["fraud"]) for r in outcome["records"]) == expected
        assert outcome["value"] == (int(max((revision, fraud) for _, revision, fraud in expected)[1]) if expected else None)
        revisions.append(len(expected))
    assert {0, 1, 2} <= set(revisions)


def test_a_record_that_the_archive_lost_leaves_the_read_unexplained(told: tuple[World, Settings], first: list[dict[str, Any]],
                                                                    tmp_path: Path) -> None:
    """The control: what is explained is explained by those very records."""
    facts = next(f for f in first if sum(e["state"] == "used" for e in f["views"][0]["events"]) > 3)
    events = facts["views"][0]["events"]
    lost = next(e for e in events if e["state"] == "used" and sum(e["event_id"] == other["event_id"] for other in events) == 1)
    gone = logged_at(told[0], lost)
    poorer = World([r for r in told[0].records if r is not gone], told[0].predictions)
    again = explain(archive(poorer, tmp_path), facts["prediction_id"])
    assert again["views"][0]["verdict"] in ("no_such_set", "other_values", "too_many_sets", "dropped")
    assert again["views"][0]["why"]
    assert "manifest.json cannot be read" in again["model"]["fault"], "nor is there a bundle in that home"


def test_each_topic_is_read_once_and_only_where_it_can_matter(told: tuple[World, Settings], tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    world, settings = told[0], Settings(home=tmp_path)
    bronze = world.bronze().sort_by("arrival_ms")
    for start in range(0, bronze.num_rows, 40):
        deltalake.write_deltalake(bronze_path(settings), bronze.slice(start, 40), partition_by=["topic"], mode="append")
    asked: list[tuple[str, int, int]] = []
    batches = ArchiveTable.batches
    monkeypatch.setattr(ArchiveTable, "batches", lambda self, topic, first, last, decode: asked.append((topic, first, last)) or  # type: ignore[func-returns-value]
                        batches(self, topic, first, last, decode))
    early = min((json.loads(p) for p in world.predictions), key=lambda p: p["event_time"])
    facts = explain(settings, early["prediction_id"], MOST)
    assert [topic for topic, _, _ in asked] == ["predictions", "transactions", "outcomes"]
    table = open_archive(settings)
    some, every = (sum(len(table.row_groups(*one)) for one in which) for which in (asked[1:2], [("transactions", 0, FOR_EVER)]))
    assert some < every / 4
    assert all(of_view["verdict"] in ("exact", "in_flight") for of_view in facts["views"])


def test_predictions_that_cannot_be_followed_say_why(told: tuple[World, Settings], tmp_path: Path) -> None:
    world = hostile_world(3, size=40)
    serve(world, 3)
    good = json.loads(world.predictions[0])
    scored = next(r for r in world.of("transactions") if r.event is not None)
    poor = json.loads(degraded(scored)) | {"prediction_id": "poor", "model": "fraud"}
    other = good | {"prediction_id": "other", "service_hash": "00000000"}
    nowhere = good | {"prediction_id": "nowhere", "source_offset": 10**6}
    world.predictions += [json.dumps(p, separators=(",", ":")).encode() for p in (poor, other, nowhere)]
    settings = archive(world, tmp_path)
    assert "no model yet" in explain(settings, good["prediction_id"])["model"]["fault"]
    assert {view["verdict"] for view in explain(settings, "poor")["views"]} == {"degraded"}
    assert "made with features fraud@00000000" in explain(settings, "other")["fault"]
    assert {view["verdict"] for view in explain(settings, "nowhere")["views"]} == {"not_archived"}
    for one in ("poor", "other", "nowhere", good["prediction_id"]):
        facts = explain(settings, one)
        assert json.loads(json.dumps(facts)) == json.loads(json.dumps(facts, default=str)), "JSON's types only"
        assert one in text(facts)
        assert one in page(facts)
    with pytest.raises(JobError, match="no archived prediction has the id 'x'"):
        explain(settings, "x")
    with pytest.raises(JobError, match="headrace archive"):
        explain(Settings(home=tmp_path / "empty"), "x")


def test_the_page_runs_nothing_and_loads_nothing(first: list[dict[str, Any]]) -> None:
    evil = json.loads(json.dumps(first[0]).replace(first[0]["event_id"], "<script>alert(1)</script>"))
    made = page(evil)
    assert "<script" not in made
    assert "&lt;script&gt;alert(1)" in made
    assert not re.search(r"(src|href)\s*=|url\(|@import|https?:", made)
    assert "default-src 'none'" in made


def test_the_command_writes_text_json_and_a_page(told: tuple[World, Settings], first: list[dict[str, Any]], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(told[1].home))
    one = first[0]["prediction_id"]
    assert main(["explain", one, "--json", "--events", str(MOST), "--html", str(tmp_path / "why.html")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(first[0]))
    assert (tmp_path / "why.html").read_text() == page(first[0])
    assert main(["explain", one, "--events", "0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("prediction")
    assert all(name in said for name in SERVICE.feature_names)
    assert main(["explain", one, "--html", str(tmp_path / "no" / "why.html")]) == 2
    assert main(["explain", "no-such"]) == 6
    assert "no archived prediction" in capsys.readouterr().err


def test_a_label_that_is_an_absence_is_read_from_what_followed(tmp_path: Path) -> None:
    """The second use case: scored on request, its label the purchases that did not come."""
    from feature_repo.churn import CHURN, CUSTOMER_PURCHASES
    from feature_repo.layout import packer
    from feature_repo.online import Reading
    from feature_repo.vector import VectorBuilder
    from schemas.churn import PREDICTIONS, PURCHASES, REQUESTS, InvoiceLine, ScoreRequest
    from services.scoring import Arrived, predict

    now, day = 400 * DAY_MS, DAY_MS
    lines = [InvoiceLine(f"{c}{age}", now - age * day, c, f"i{age}", "p", 2, 150) for c in "ab" for age in (200, 100, 40, 5)]
    back = InvoiceLine("a-again", now + 30 * day, "a", "i", "p", 1, 100)
    request = {c: ScoreRequest(f"r{c}", now, c) for c in "ab"}
    pack, views = packer(CUSTOMER_PURCHASES), CHURN.service.views
    scored = {}
    for at, (customer, asked) in enumerate(request.items()):
        bought = b"".join(pack(line) for line in lines if line.customer_id == customer)
        sets = tuple({customer: bought if view is CUSTOMER_PURCHASES else b""} for view in views)
        reading = Reading(tuple((len(lines) - 1,) for _ in views), sets)
        scored[customer] = predict(CHURN.name, VectorBuilder(CHURN.service), [Arrived(asked, 0, at, now, False)], reading, None, now)[0]
    records = [(PURCHASES, i, line.event_time, msgspec.json.encode(line)) for i, line in enumerate([*lines, back])]
    records += [(REQUESTS, i, now, msgspec.json.encode(asked)) for i, asked in enumerate(request.values())]
    records += [(PREDICTIONS, i, now, one.value) for i, one in enumerate(scored.values())]

    def outcome(customer: str, home: Path, until: int) -> dict[str, Any]:
        rows = [Logged(topic, 0, offset, arrival, value, None, None) for topic, offset, arrival, value in records]
        rows.append(Logged(REQUESTS, 0, 99, until, b"{}", None, None))
        facts = explain(archive(World(rows), home), scored[customer].prediction_id)
        assert [(view["verdict"], view["n"]) for view in facts["views"]] == [("exact", 3), ("exact", 0)]
        assert {event["event_id"] for event in facts["views"][0]["events"]} == {f"{customer}{age}" for age in (100, 40, 5)}
        return facts["outcome"]

    early = outcome("b", tmp_path / "early", now + 60 * day)
    assert (early["value"], early["records"]) == (None, []), "90 days are not over"
    assert outcome("b", tmp_path / "late", now + 91 * day)["value"] == 1
    came_back = outcome("a", tmp_path / "early2", now + 60 * day)
    assert (came_back["value"], [record["event_id"] for record in came_back["records"]]) == (0, ["a-again"])
