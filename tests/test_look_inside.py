"""``headrace features``, ``score`` and ``status`` say what the oracle says, and what is wrong when they cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from feature_repo.fraud import CARD_SPEND, SERVICE, TERMINAL_ACTIVITY, TERMINAL_RISK, VIEWS
from feature_repo.layout import packer, rows
from feature_repo.oracle import Record, feature_values, members
from feature_repo.views import FeatureView
from schemas.fraud import Transaction
from schemas.settings import Settings
from services.runtime.embedded import Runtime
from services.shadow_place import shadow_group
from services.status import read_status
from streams.loop import GROUP
from tests.deadline import eventually
from tests.small_model import promote_small_model
from tests.world_check import Sent, as_floats, oracle_vector, publish, read_predictions, small_world

EVENTS = 1_500
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Path, Sent]]:
    """A small world of 16 days, processed; its outcomes are known by the hour, so that risk at its end is no zero."""
    home, world = tmp_path_factory.mktemp("look"), small_world(EVENTS, seed=21, cards=12, terminals=8, step_ms=920_000)
    sent = Sent(world.transactions, [(outcome, arrival - 7 * DAY_MS + 3_600_000) for outcome, arrival in world.outcomes])
    with Runtime(Settings(home=home, time="replay")) as runtime:
        producer = Producer({"bootstrap.servers": runtime.kafka, "acks": "all", "enable.idempotence": True, "linger.ms": 5})
        publish(producer, "outcomes", sent.outcomes)
        publish(producer, "transactions", sent.transactions)
        assert producer.flush(60) == 0
        eventually(lambda: idle(runtime, home))
        yield runtime, home, sent


def idle(runtime: Runtime, home: Path) -> bool:
    status = read_status(Settings(home=home, time="replay"), runtime.endpoints, interval_s=0.01)
    return status.predictions >= EVENTS and all(group.lag_events == 0 for group in status.groups)


def headrace(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The real command."""
    environment = {**os.environ, "HEADRACE_HOME": str(home), "HEADRACE_TIME": "replay"}
    return subprocess.run([sys.executable, "-m", "services.cli", *words], env=environment, capture_output=True, text=True)


def answer(home: Path, *words: str) -> dict[str, Any]:
    done = headrace(home, *words, "--json")
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def expected_at(view: FeatureView, sent: Sent, entity: str, t: int) -> tuple[list[float], int]:
    """The oracle's values of ``entity`` at ``t``, and how many records they are over."""
    pack = packer(view)
    source: list[Any] = [r for r, _ in (sent.transactions if view.source == "transactions" else sent.outcomes)]
    table = rows(view, b"".join(pack(r) for r in source if getattr(r, view.entity) == entity)).tolist()
    records = [Record(row[0], row[1], tuple(row[2:])) for row in table]
    return feature_values(view, records, t), len(members(view, records, t, None))


def check_views(facts: dict[str, Any], sent: Sent, t: int, entities: dict[str, str]) -> None:
    assert facts["at_ms"] == t
    assert [view["view"] for view in facts["views"]] == [view.name for view in VIEWS if view.entity in entities]
    for view, found in zip([view for view in VIEWS if view.entity in entities], facts["views"], strict=True):
        values, used = expected_at(view, sent, entities[view.entity], t)
        assert found["entity"] == entities[view.entity]
        assert list(found["values"]) == [feature.name for feature in view.features]
        np.testing.assert_array_equal(as_floats(list(found["values"].values())), values)
        assert found["records"] == used <= found["stored"]


def test_features_now_are_the_oracles_at_the_clock_of_the_stream(running: tuple[Runtime, Path, Sent]) -> None:
    _, home, sent = running
    now_ms = sent.transactions[-1][1]
    facts = answer(home, "features", "card=c3", "terminal=t5")
    check_views(facts, sent, now_ms, {"card_id": "c3", "terminal_id": "t5"})
    values = {name: value for view in facts["views"] for name, value in view["values"].items()}
    assert values["card_count_7d"] > 10, "the world is too small to show anything"
    assert 0 < values["terminal_fraud_ratio_30d"] < 1


@pytest.mark.parametrize("days", [3, 9])
def test_features_at_a_time_are_the_oracles_at_that_time(running: tuple[Runtime, Path, Sent], days: int) -> None:
    _, home, sent = running
    t = sent.transactions[0][1] + days * DAY_MS
    check_views(answer(home, "features", "card_id=c3", "--at", str(t)), sent, t, {"card_id": "c3"})
    check_views(answer(home, "features", "terminal=t1", "--at", str(t)), sent, t, {"terminal_id": "t1"})


def test_an_entity_that_nobody_has_seen_has_no_history(running: tuple[Runtime, Path, Sent]) -> None:
    _, home, _ = running
    view, = answer(home, "features", "card=nobody")["views"]
    assert (view["records"], view["stored"], view["newest_ms"]) == (0, 0, None)
    assert (view["values"]["card_count_30d"], view["values"]["card_amount_mean_30d"]) == (0.0, None)
    told = headrace(home, "features", "card=nobody")
    assert told.returncode == 0
    assert "0 of 0 records used" in told.stdout


def test_score_is_the_oracles_vector_with_a_null_score_and_then_the_models(running: tuple[Runtime, Path, Sent], tmp_path: Path) -> None:
    runtime, home, sent = running
    event = Transaction("looked-at", sent.transactions[-1][1] + 1000, "c3", "t5", 12_345)
    file = tmp_path / "event.json"
    file.write_bytes(msgspec.json.encode(event))
    before = answer(home, "score", str(file))
    assert (before["score"], before["model_version"], before["alert"], before["event_id"]) == (None, None, None, "looked-at")
    windows = len(SERVICE.feature_names) - len(SERVICE.request)
    vector = as_floats(list(before["features"].values()))
    arrived = {"transactions": [r for r, _ in sent.transactions], "outcomes": [r for r, _ in sent.outcomes]}
    assert list(before["features"]) == list(SERVICE.feature_names)
    np.testing.assert_array_equal(vector[:windows], oracle_vector(event, arrived))
    assert before["features"]["amount"] == 123.45
    assert before["features"]["amount_to_mean_30d"] == 123.45 / before["features"]["card_amount_mean_30d"]
    assert "no model yet" in headrace(home, "score", str(file)).stdout

    model = promote_small_model(home / "models")
    after = answer(home, "score", str(file))
    assert after["features"] == before["features"]
    assert (after["model_version"], after["threshold"]) == ("1", 0.5)
    assert after["score"] == model.score(vector.reshape(1, -1))[0]
    assert after["alert"] == (after["score"] >= 0.5)
    assert len(read_predictions(runtime.kafka).first) == EVENTS, "looking published something"


def test_status_tells_processes_lag_model_and_counts(running: tuple[Runtime, Path, Sent]) -> None:
    runtime, home, _ = running
    status = answer(home, "status", "--interval", "0.1")
    assert {(p["name"], p["state"], p["pid"], p["restarts"]) for p in status["processes"]} == \
        {(p.name, "healthy", p.pid, 0) for p in runtime.state.processes}
    groups = {(group["group"], group["source"]): group["lag_events"] for group in status["groups"]}
    looped = {source for group, source in groups if group == GROUP}
    assert looped >= {"predictions", "outcomes.valid", "evaluations", "monitor-windows"}
    assert {key: lag for key, lag in groups.items() if key[0] != GROUP} == {
        (f"applied:{CARD_SPEND.versioned_name}", "transactions"): 0, (f"applied:{TERMINAL_ACTIVITY.versioned_name}", "transactions"): 0,
        (f"applied:{TERMINAL_RISK.versioned_name}", "outcomes"): 0, ("scored:fraud", "transactions.valid"): 0,
        (shadow_group("fraud"), "predictions"): 0,
    }
    assert (status["predictions"], status["dead_letters"]) == (EVENTS, {"transactions": 0, "outcomes": 0})
    assert status["redis_keys"] > 12 + 8 + 8
    assert status["redis_mb"] > 0
    for view, of_view in zip((CARD_SPEND, TERMINAL_ACTIVITY, TERMINAL_RISK), status["sets"], strict=True):
        assert (of_view["view"], of_view["long_sets"]) == (view.versioned_name, 0)
        assert 0 < of_view["entities"] < status["redis_keys"]
        assert 8 * view.record_words < of_view["bytes_per_event"] <= of_view["bytes_per_entity"]


def test_status_sees_who_has_fallen_behind(running: tuple[Runtime, Path, Sent]) -> None:
    """The scorer is held: its lag is what was sent meanwhile, in events and in seconds between their arrivals."""
    runtime, home, sent = running
    runtime.hold("scorer")
    last, arrival_ms = sent.transactions[-1]
    late = [(msgspec.structs.replace(last, event_id=f"behind-{i}", card_id="c-behind"), arrival_ms + i * 1000) for i in range(8)]
    producer = Producer({"bootstrap.servers": runtime.kafka, "acks": "all"})
    publish(producer, "transactions", late)
    assert producer.flush(30) == 0
    settings = Settings(home=home, time="replay")

    def lag() -> dict[str, tuple[int, float]]:
        groups = read_status(settings, runtime.endpoints, interval_s=0.01).groups
        return {group.group: (group.lag_events, group.lag_s) for group in groups if group.group != GROUP}

    eventually(lambda: lag() == {f"applied:{CARD_SPEND.versioned_name}": (0, 0.0), f"applied:{TERMINAL_ACTIVITY.versioned_name}": (0, 0.0),
                                 f"applied:{TERMINAL_RISK.versioned_name}": (0, 0.0), "scored:fraud": (8, 7.0),
                                 shadow_group("fraud"): (0, 0.0)})
    runtime.release("scorer")
    eventually(lambda: set(lag().values()) == {(0, 0.0)})


@pytest.mark.parametrize(("words", "code", "fact", "hint"), [
    (["features", "shop=7"], 2, "no feature view has entity 'shop'", "one of card_id, terminal_id"),
    (["score", "no/such/file.json"], 3, "cannot read no/such/file.json: No such file or directory", "one JSON event"),
    (["score", "broken.json"], 3, "value is not JSON", "send one UTF-8 JSON object"),
    (["score", "negative.json"], 3, "Expected `int` >= 0 - at `$.amount_minor`", "bounds"),
    (["score", "short.json"], 3, "missing required field `terminal_id`", "published JSON Schema"),
])
def test_what_cannot_be_answered_is_an_error_with_a_code_and_a_hint(
        running: tuple[Runtime, Path, Sent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, fact: str,
        hint: str) -> None:
    _, home, _ = running
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    Path("broken.json").write_text('{"event_id": "x", ')
    event = {"event_id": "x", "event_time": 1, "card_id": "c", "amount_minor": 5}
    Path("negative.json").write_text(json.dumps({**event, "terminal_id": "t", "amount_minor": -5}))
    Path("short.json").write_text(json.dumps(event))
    done = headrace(home, *words, "--json")
    assert (done.returncode, done.stdout) == (code, "")
    told = json.loads(done.stderr)
    assert fact in told["error"]
    assert hint in told["hint"]


@pytest.mark.parametrize("words", [["features", "card"], ["features", "card=c3", "--at", "yesterday"],
                                   ["features", "card=c3", "--at", "9" * 30]])
def test_a_wrong_command_line_is_told_in_words(tmp_path: Path, words: list[str]) -> None:
    done = headrace(tmp_path, *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert words[-1] in done.stderr


def test_a_runtime_that_is_not_up_is_named(tmp_path: Path) -> None:
    for words in (["features", "card=c3"], ["status"], ["dlq", "list"]):
        done = headrace(tmp_path, *words, "--json")
        assert done.returncode == 5
        assert json.loads(done.stderr) == {"error": f"headrace does not run in {tmp_path}", "hint": "headrace up"}
