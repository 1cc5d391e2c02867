"""Trees from records alone: which release, which window, which of two things of one name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from feature_repo.fraud import FRAUD
from feature_repo.views import DAY_MS, HOUR_MS
from schemas.errors import RuntimeFault
from schemas.evaluations import Evaluation
from schemas.monitoring import DECISIONS, DETECTIONS, REQUESTS, RUNS, Detection, RetrainDecision, RetrainRequest, RunRecord
from schemas.releases import RELEASES, Chain, Release
from schemas.settings import Settings
from services.why import effects
from services.why.chronicle import Chronicle, read_chronicle
from services.why.node import text
from services.why.sources import Sources
from services.why.walk import candidates
from services.why.windows import about_evaluation, about_prediction, span
from tests.small_model import promote_small_model

AGE = FRAUD.drift.age_ms if FRAUD.drift is not None else 0
DAY = 1_530_000_000_000 // DAY_MS


def at(day: float) -> int:
    return round((DAY + day) * DAY_MS)


def detection(name: str, family: str, signal: str, day: int, since: float | None = None, version: str = "1") -> Detection:
    return Detection(name, "fraud", version, signal, family, "", at(day), at(day + 1), 2.0, 1.0, 0.1, 9, "r",
                     None if since is None else at(since), [], None, None)


def prediction(day: float, version: str | None = "1") -> Any:
    return SimpleNamespace(model="fraud", model_version=version, arrival_ms=at(day))


def evaluation(day: float, outcome: float, alert: bool | None = True, label: bool = False, *, degraded: bool = False) -> Evaluation:
    return Evaluation("p:0", "p", "e", at(day), "c", "fraud", "1", 0.9, 0.5, alert, degraded, label, None, 0, at(day), at(outcome),
                      at(outcome))


def request(name: str, evidence: list[str], champion: str = "1") -> RetrainRequest:
    return RetrainRequest(name, "fraud", champion, "r", "h", "drift:1", "loss", at(20), {}, evidence)


def sources(tmp_path: Path, *records: tuple[str, Any], most: int = 5) -> Sources:
    told = Chronicle()
    for offset, (topic, record) in enumerate(records):
        told.take(topic, offset, msgspec.json.encode(record))
    return Sources(Settings(home=tmp_path), told, None, {"fraud": FRAUD}, most)


def releases(*made: tuple[str, float]) -> list[tuple[str, Release]]:
    """(version, day) of each, as they stand on a topic from offset 0 on."""
    chain, found = Chain(), []
    for offset, (version, day) in enumerate(made):
        release = chain.following(f"r{offset}", "fraud", version, at(day), "", "test")
        assert chain.take(offset, release)
        found.append((RELEASES, release))
    return found


def test_a_signal_of_shapes_is_about_what_the_champion_predicted_in_its_window() -> None:
    shapes = detection("d", "data", "features", 10)
    assert span(shapes, FRAUD) == (at(10), at(11))
    assert [about_prediction(shapes, FRAUD, prediction(day)) for day in (9.99, 10, 10.99, 11)] == [False, True, True, False]
    assert not about_prediction(shapes, FRAUD, prediction(10.5, "2")), "another version"
    assert not about_prediction(shapes, FRAUD, prediction(10.5, None))
    assert about_prediction(detection("d", "data", "features", 10, since=7), FRAUD, prediction(8)), "evidence since the suspected start"
    assert about_prediction(detection("d", "feed", "copies", 10), FRAUD, prediction(10.5, "2")), "a feed brings to all versions"
    assert not about_prediction(detection("d", "concept", "error", 10), FRAUD, prediction(10.5))


def test_a_signal_of_losses_is_about_evaluations_that_came_in_time_of_predictions_that_came_of_age() -> None:
    age = AGE / DAY_MS
    losses = detection("d", "concept", "error", 10)
    assert span(losses, FRAUD) == (at(10) - AGE, at(11) - AGE)
    counted = [about_evaluation(losses, FRAUD, evaluation(day - age, day - age + 7)) for day in (9.99, 10, 10.99, 11)]
    assert counted == [False, True, True, False]
    early = 10.5 - age
    assert not about_evaluation(losses, FRAUD, evaluation(early, early + age + 0.01)), "overdue"
    assert not about_evaluation(losses, FRAUD, evaluation(early, early + 1, degraded=True))
    assert not about_evaluation(losses, FRAUD, evaluation(early, early + 1, None))
    missed = detection("d", "performance", "missed", 10)
    assert [about_evaluation(missed, FRAUD, evaluation(early, early + 1, False, label)) for label in (False, True)] == [False, True]
    night = detection("d", "concept", "error/night", 10)
    of_hour = [about_evaluation(night, FRAUD, evaluation(round(early) + hour * HOUR_MS / DAY_MS, 9.9)) for hour in (3, 12)]
    assert of_hour == [True, False], "the slice is by event time"


def test_the_release_of_a_prediction_is_the_last_of_its_version_by_then_or_the_epoch_that_it_names(tmp_path: Path) -> None:
    told = sources(tmp_path, *releases(("1", 0), ("2", 10), ("1", 20))).told

    def epoch(version: str, day: float, named: int | None = None) -> int | None:
        found = told.release_of("fraud", version, at(day), named)
        return found.epoch if found is not None else None

    assert [epoch("1", 5), epoch("2", 15), epoch("1", 25)] == [1, 2, 3]
    assert epoch("1", 10.01) == 1, "a scorer takes a release up a moment after its time"
    assert epoch("2", 5) is None
    assert epoch("1", 25, named=1) == 1


def test_a_detection_leads_to_its_request_or_to_the_reason_why_there_is_none(tmp_path: Path) -> None:
    asked, refused = detection("asked", "concept", "error", 10), detection("refused", "concept", "error", 3)
    said = RetrainDecision("x", "fraud", "1", at(4), "governor", "declined", False, "cooling down", None, ["refused"], "", 0, "policy", 0,
                           [], {})
    found = sources(tmp_path, (DETECTIONS, asked), (DETECTIONS, refused), (DECISIONS, said), (REQUESTS, request("t", ["asked"])),
                    (RUNS, RunRecord("fraud", "runner", "claim", "t")), (RUNS, RunRecord("fraud", "runner", "failed", "t", 1, "no luck")),
                    (DECISIONS, msgspec.structs.replace(said, decision_id="y", what="failed", evidence=[], retrain_id="t")))
    down = effects.of_detection(found, asked)
    assert [(node.kind, node.id) for node in down] == [("request", "t")]
    assert [(node.kind, node.says) for node in down[0].effects] == [("run", "by runner, failed: no luck")]
    assert [(node.kind, node.facts["reason"]) for node in effects.of_detection(found, refused)] == [("decision", "cooling down")]


def test_what_is_told_is_bounded_and_told_once(tmp_path: Path) -> None:
    alarms = [detection(f"d{i}", "data", "features", 10) for i in range(9)]
    found = sources(tmp_path, *((DETECTIONS, each) for each in alarms), (REQUESTS, request("t", ["d7", "d8"])), most=3)
    nodes = effects.detections(found, alarms)
    assert [node.id for node in nodes] == ["d7", "d8", "d0", ""], "those of which a retrain came first"
    assert "6 more" in nodes[-1].says
    assert [node.effects[0].says for node in nodes[:2]][1] == "told elsewhere in this tree"
    assert nodes[0].effects[0].effects
    lines = text(nodes[0]).splitlines()
    assert lines[0].startswith("detection d7: data features of fraud version 1")
    assert any(line.startswith("└─ request t") for line in lines)


def test_a_name_of_a_version_and_of_an_epoch_is_two_things(tmp_path: Path) -> None:
    found = sources(tmp_path, *releases(("1", 0), ("3", 10), ("2", 20)))
    promote_small_model(found.settings.models, "5")

    def named(asked: str) -> list[str]:
        return list(candidates(found, asked, None))

    assert named("fraud@1") == ["release:fraud@1"], "the epoch that made the version of that number live"
    assert named("fraud@3") == ["release:fraud@3", "version:fraud@3"]
    assert named("version:fraud@3") == ["version:fraud@3"]
    assert named("release:fraud@3") == ["release:fraud@3"]
    assert named("fraud@5") == ["version:fraud@5"], "trained, not released"
    assert named("r1") == ["release:fraud@2"]
    assert named("fraud@9") == named("detection:r1") == []
    (make,) = candidates(found, "version:fraud@3", None).values()
    assert [node.id for node in make().effects] == ["fraud@2"]


def test_records_that_say_nothing_change_nothing_and_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    told = Chronicle()
    for topic in (DETECTIONS, DECISIONS, REQUESTS, RUNS, RELEASES):
        told.take(topic, 0, b"")
        told.take(topic, 1, b"\xff{")
    assert told == Chronicle(chain=told.chain)
    assert told.releases() == []
    with pytest.raises(RuntimeFault, match="does not run"):
        read_chronicle(Settings(home=tmp_path))
