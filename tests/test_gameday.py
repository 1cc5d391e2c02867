"""A game day in small, on real engines: a feed fault is named and causes no retrain; a new fraud is found, and cured by one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from feature_repo.fraud import FRAUD
from feature_repo.views import DAY_MS
from jobs.metrics import average_precision
from schemas.fraud import PREDICTIONS, TRANSACTIONS
from schemas.settings import Settings
from schemas.topics import valid_topic
from services.gameday import play
from services.ledger import read_events, read_topic
from services.loop_record import read_evaluated, read_loop
from services.planting import parse_plant
from services.rehearsal import ROLES, Stage
from services.runtime.embedded import Runtime

STAGE = Stage(days=90, cards=500, terminals=200)
PLANTS = [parse_plant(text, STAGE.start_ms) for text in ("skew@55", "concept@58")]
CONCEPT_MS = PLANTS[1].start_ms


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str]]:
    settings = Settings(home=tmp_path_factory.mktemp("gameday"), time="replay", kafka=None, redis=None, spark_memory="768m")
    with Runtime(settings, ROLES) as runtime:
        yield play(STAGE, PLANTS, settings, runtime, print, lambda now_ms, sent: None), runtime.kafka


@pytest.mark.slow
def test_each_is_found_and_only_the_new_fraud_is_followed_by_a_retrain(played: tuple[dict[str, Any], str]) -> None:
    report, _ = played
    print(json.dumps(report, indent=1))
    assert {each["kind"]: each["why"] for each in report["played"]} == {"skew": "", "concept": ""}
    assert [each["retrains"] > 0 for each in report["played"]] == [False, True], "more than one where labels did not suffice at first"
    assert report["false_alarms"] == []
    assert (report["promoted"], report["wasted"]) == (1, 0)


@pytest.mark.slow
def test_no_event_is_dropped_by_a_release_and_each_says_which_made_it(played: tuple[dict[str, Any], str]) -> None:
    _, kafka = played
    first, second = read_loop(kafka, FRAUD.name).releases
    epochs: dict[int | None, list[int]] = defaultdict(list)
    seen: dict[str, str] = {}
    for message in read_topic(kafka, PREDICTIONS):
        prediction = json.loads(message.value())
        if prediction["event_id"] in seen:  # published again by a scorer whose partition was taken away on a busy machine
            assert seen[prediction["event_id"]] == prediction["prediction_id"]
            continue
        seen[prediction["event_id"]] = prediction["prediction_id"]
        epochs[prediction["epoch"]].append(prediction["arrival_ms"])
        if prediction["epoch"] is not None:
            assert prediction["model_version"] == {1: first, 2: second}[prediction["epoch"]].champion
    sent = (json.loads(message.value())["event_id"] for message in read_events(kafka, valid_topic(TRANSACTIONS)))
    assert seen.keys() == set(sent)
    assert sorted(epochs, key=str) == [1, 2, None]
    assert max(epochs[None]) <= first.at_ms < min(epochs[1]), "the clock stood still while it was released"
    assert max(epochs[1]) <= second.at_ms < min(epochs[2])


@pytest.mark.slow
def test_what_is_served_is_better_after_than_before_the_release(played: tuple[dict[str, Any], str]) -> None:
    _, kafka = played
    (_, second), evaluated = read_loop(kafka, FRAUD.name).releases, read_evaluated(kafka, FRAUD.name)
    during = evaluated.between(CONCEPT_MS, second.at_ms)
    after = evaluated.between(second.at_ms, STAGE.at_ms(STAGE.days))
    assert second.at_ms - CONCEPT_MS <= 21 * DAY_MS
    assert average_precision(after.label, after.score) > average_precision(during.label, during.score)
