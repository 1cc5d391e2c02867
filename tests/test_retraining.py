"""One retrain on a real archive: a drift is cured, a candidate that cures nothing is refused, a run that died is run again."""

from __future__ import annotations

import dataclasses
import json
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import deltalake
import pytest

from feature_repo.archive_table import bronze_path
from feature_repo.bundle import champion
from feature_repo.fraud import FRAUD
from feature_repo.views import DAY_MS
from jobs.evidence import evidence_path, evidence_table, gate_card, read_evidence
from jobs.registry import find_registered, make_live, register, tracking_client
from jobs.retraining import Asked, Plan, Verdict, periods, retrain, verdict_path
from jobs.train import train
from jobs.training_rows import EPOCH, Period
from jobs.training_set import build_training_set
from schemas.errors import BundleError, JobError
from schemas.settings import Settings
from tests.log_world import START, Logged, World, serve

SPEC = dataclasses.replace(FRAUD, trees=30, depth=3)
PER_DAY, CARDS, DAYS = 80, 400, 50
CHANGE = 22
PLAN = Plan(train_days=14, test_days=5)
LAST = ["slices", "calibration", "cost", "approval"]


def at(day: int) -> int:
    return START + day * DAY_MS


def changing_world(seed: int) -> World:
    """Large amounts are fraud; from day ``CHANGE`` on tiny ones are, and large ones no more."""
    r = random.Random(seed)
    sent: list[tuple[int, str, dict[str, Any]]] = []
    for i, time in enumerate(sorted(START + r.randrange(DAYS * DAY_MS) for _ in range(DAYS * PER_DAY))):
        tx = {"event_id": f"t{i}", "event_time": time, "card_id": f"c{r.randrange(CARDS)}", "terminal_id": f"p{r.randrange(200)}",
              "amount_minor": r.randrange(1, 100_000)}
        suspicious = tx["amount_minor"] > 88_000 if time < at(CHANGE) else tx["amount_minor"] < 12_000
        outcome = {name: tx[name] for name in ("event_id", "event_time", "card_id", "terminal_id")}
        sent.append((time, "transactions", tx))
        sent.append((time + 7 * DAY_MS, "outcomes", outcome | {"fraud": r.random() < (0.9 if suspicious else 0.01)}))
    records = []

    for offset, (arrival, topic, event) in enumerate(sorted(sent, key=lambda each: each[0])):
        records.append(Logged(topic, 0, offset, arrival, json.dumps(event).encode(), None, event))
    return World(records)


@pytest.fixture(scope="module")
def home(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An archive with every prediction made, and a champion of the days before the change."""
    world = changing_world(5)
    serve(world, 5)
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    spark.createDataFrame(world.bronze()).coalesce(2).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    learnt, judged = days(0, 8), days(16, 20)
    built = build_training_set(settings, SPEC, learnt.start_ms, judged.end_ms, engine="process")
    assert register(settings, train(built.path, SPEC, learnt, judged, settings, spark=spark)).alias == "champion"
    return settings


def days(first: int, last: int) -> Period:
    day = EPOCH + timedelta(days=START // DAY_MS)
    return Period(day + timedelta(days=first), day + timedelta(days=last))


def asked(settings: Settings, name: str, day: int, since: int | None) -> Asked:
    folder = champion(settings.models, SPEC.name)
    assert folder is not None
    return Asked(name, at(day) + 3_600_000, None if since is None else at(since), folder)


def run(settings: Settings, wanted: Asked, spark: Any) -> Verdict:
    return retrain(settings, SPEC, wanted, PLAN, spark, lambda _: None)


def versions(settings: Settings) -> set[str]:
    return {path.name for path in (settings.models / SPEC.name).iterdir() if path.name.isdigit()}


def test_periods_end_where_labels_are_known() -> None:
    learnt, judged = periods(SPEC, at(40) + 5, PLAN)
    assert (judged, learnt) == (days(28, 32), days(14, 27))
    assert periods(SPEC, at(40) + 5, PLAN, since_ms=at(29) + 7) == (days(17, 30), days(31, 32)), "half of the four days since"
    assert periods(SPEC, at(40) + 5, PLAN, since_ms=at(3)) == (learnt, judged)
    assert periods(SPEC, at(40) + 5, PLAN, since_ms=at(39))[1] == days(32, 32), "none has a label yet"
    assert judged.end_ms + SPEC.label_delay_ms <= at(40) + 5 < judged.end_ms + SPEC.label_delay_ms + DAY_MS


def test_without_a_change_nothing_is_cured_and_nothing_released(home: Settings, spark: Any) -> None:
    live = champion(home.models, SPEC.name)
    verdict = run(home, asked(home, "early", CHANGE + 7, since=10), spark)
    assert [each.gate for each in verdict.evidence] == ["data", "parity", "artifact", "quality", "cure"][:len(verdict.evidence)]
    assert verdict.evidence[-1].outcome != "PASS"
    assert not verdict.passed
    assert champion(home.models, SPEC.name) == live, "a retrain releases nothing"


def test_labels_since_the_drift_are_needed_to_say_that_it_is_cured(home: Settings, spark: Any) -> None:
    verdict = run(home, asked(home, "too-soon", CHANGE + 7, since=CHANGE + 1), spark)
    assert verdict.test == str(days(CHANGE - 1, CHANGE - 1)), "the newest day with labels"
    assert (verdict.evidence[-1].gate, verdict.evidence[-1].outcome) == ("data", "INCONCLUSIVE"), "too few of that day"
    assert not verdict.passed


def test_a_change_is_cured_by_a_candidate_that_is_better_since_then(home: Settings, spark: Any) -> None:
    wanted = asked(home, "cured", 48, since=CHANGE)
    verdict = run(home, wanted, spark)
    assert [(each.gate, each.outcome) for each in verdict.evidence] == [
        (gate, "PASS") for gate in ("data", "parity", "artifact", "quality", "cure", *LAST)]
    assert verdict.passed
    assert verdict.evidence[4].facts["low"] > 0.2
    assert run(home, wanted, spark) == verdict, "asked again, it is what it was"
    assert verdict.version is not None
    assert_kept_once(home, verdict)
    live = champion(home.models, SPEC.name)
    make_live(home, SPEC.name, verdict.version)
    again = run(home, asked(home, "calendar", 48, since=None), spark)
    assert again.passed, "equal is no worse"
    assert [each.gate for each in again.evidence] == ["data", "parity", "artifact", "quality", *LAST]
    assert live is not None
    make_live(home, SPEC.name, live.name)


def assert_kept_once(home: Settings, verdict: Verdict) -> None:
    """Beside the bundle, in Delta and in MLflow, each of which says the same hash."""
    assert verdict.version is not None
    assert read_evidence(home.models, verdict.model, verdict.version) == verdict
    rows = deltalake.DeltaTable(evidence_table(home)).to_pyarrow_table().to_pylist()
    own = sorted((row for row in rows if row["retrain_id"] == verdict.retrain_id), key=lambda row: row["number"])
    assert [(row["gate"], row["outcome"], json.loads(row["facts"])) for row in own] == [
        (each.gate, each.outcome, each.facts) for each in verdict.evidence]
    assert {row["evidence_hash"] for row in own} == {verdict.evidence_hash}
    with tracking_client(home) as client:
        version = client.get_model_version(verdict.model, verdict.version)
        assert version.tags["evidence_hash"] == client.get_run(version.run_id).data.tags["evidence_hash"] == verdict.evidence_hash
        assert version.tags["gate.slices"] == "PASS"
        assert {file.path for file in client.list_artifacts(version.run_id, "gates")} == {"gates/evidence.json", "gates/model_card.md"}
    card = gate_card(verdict)
    assert all(f"| {each.gate} | {each.outcome} |" in card for each in verdict.evidence)


def test_what_needs_a_person_is_not_passed_and_its_approval_is_bound_to_all_evidence(home: Settings, spark: Any) -> None:
    careful = dataclasses.replace(SPEC, risk_class="person")
    verdict = retrain(home, careful, asked(home, "careful", 48, since=CHANGE), PLAN, spark, lambda _: None)
    assert (verdict.passed, verdict.needs_approval) == (False, True)
    assert verdict.version is not None
    assert read_evidence(home.models, SPEC.name, verdict.version) == verdict
    path = evidence_path(home.models, SPEC.name, verdict.version)
    path.write_text(path.read_text().replace('"outcome": "NEEDS_APPROVAL"', '"outcome": "PASS"'))
    with pytest.raises(BundleError, match="hash does not hold"):
        read_evidence(home.models, SPEC.name, verdict.version)


def test_a_run_that_died_before_its_evidence_was_kept_keeps_it_when_run_again(home: Settings, spark: Any,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = asked(home, "unkept", 48, since=None)

    def down(*_: Any) -> None:
        raise JobError("MLflow is down")

    monkeypatch.setattr("jobs.evidence.record_gates", down)
    with pytest.raises(JobError, match="down"):
        run(home, wanted, spark)
    monkeypatch.undo()
    assert_kept_once(home, run(home, wanted, spark))


def test_a_run_that_died_at_any_gate_is_run_again_and_trains_once(home: Settings, spark: Any, tmp_path: Path) -> None:
    class Died(BaseException):
        pass

    whole = run(home, asked(home, "whole", 48, since=CHANGE), spark)
    before = versions(home)
    for gate in ("data", "artifact", "cure"):
        def die(line: str, gate: str = gate) -> None:
            if line.startswith(f"gate {gate}:"):
                raise Died

        wanted = asked(home, "killed", 48, since=CHANGE)
        with pytest.raises(Died):
            retrain(home, SPEC, wanted, PLAN, spark, die)
    verdict = run(home, asked(home, "killed", 48, since=CHANGE), spark)
    assert len(versions(home) - before) == 1, "one candidate a retrain"
    assert [(each.gate, each.outcome, each.facts.get("low")) for each in verdict.evidence] == [
        (each.gate, each.outcome, each.facts.get("low")) for each in whole.evidence]


def test_a_registry_that_is_down_rejects_no_candidate(home: Settings, spark: Any, tmp_path: Path) -> None:
    (tmp_path / "no-database").write_text("this is text")
    wanted = asked(home, "down", 48, since=CHANGE)
    with pytest.raises(JobError, match="MLflow"):
        run(home.model_copy(update={"mlflow": f"sqlite:///{tmp_path / 'no-database'}"}), wanted, spark)
    assert not Path(verdict_path(home, SPEC.name, "down")).exists()
    assert run(home, wanted, spark).passed


def test_a_candidate_that_does_not_load_fails_and_a_champion_that_does_not_is_an_error(home: Settings, spark: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        run(home, dataclasses.replace(asked(home, "damaged", 48, since=CHANGE), champion=tmp_path / "none"), spark)
    candidate = find_registered(home, SPEC.name, "damaged")
    assert candidate is not None
    with (candidate / "model.onnx").open("ab") as file:
        file.write(b"!")
    verdict = run(home, asked(home, "damaged", 48, since=CHANGE), spark)
    assert (verdict.evidence[-1].gate, verdict.evidence[-1].outcome) == ("artifact", "FAIL")


def test_predictions_that_cannot_be_explained_stop_a_retrain(spark: Any, tmp_path: Path) -> None:
    world = changing_world(6)
    serve(world, 6, drop=True)
    settings = Settings(home=tmp_path)
    spark.createDataFrame(world.bronze()).coalesce(2).write.format("delta").partitionBy("topic").save(bronze_path(settings))
    verdict = run(settings, Asked("unexplained", at(48), None, tmp_path / "none"), spark)
    assert [(each.gate, each.outcome) for each in verdict.evidence] == [("data", "PASS"), ("parity", "FAIL")]
    assert verdict.version is None
