"""The chain from an event to a release and back, on real Kafka, Spark, gates and releases; and what is said of ids that are not enough."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deltalake
import msgspec
import pyarrow as pa
import pytest

from feature_repo.archive_table import bronze_path
from feature_repo.bundle import load_bundle
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.pairs import Label, evaluations, scored_of
from jobs.archive import archive
from jobs.registry import register, tracking_client
from jobs.retraining import Asked, Plan, Verdict, retrain, verdict_path
from jobs.train import train
from jobs.training_set import build_training_set
from schemas.evaluations import EVALUATIONS, Evaluation
from schemas.fraud import PREDICTION
from schemas.monitoring import (
    DECISIONS,
    DETECTIONS,
    REQUESTS,
    RUNS,
    Contributor,
    Detection,
    RetrainDecision,
    RetrainRequest,
    RunRecord,
)
from schemas.releases import Release
from schemas.settings import Settings
from services.cli import main
from services.control_log import ControlLog
from services.release_log import ReleaseLog
from services.runtime.embedded import Runtime
from tests.log_world import HEADERS, World, serve
from tests.test_retraining import CHANGE, at, changing_world, days

ASKED = 48
RETRAIN, ALARM, CALM = "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"
TYPES = {"topic": pa.string(), "partition": pa.int32(), "offset": pa.int64(), "arrival_ms": pa.int64(), "key": pa.binary(),
         "value": pa.binary(), "headers": HEADERS}


@dataclass
class Planted:
    settings: Settings
    kafka: str
    wrong: Evaluation
    late: Any
    first: Release
    second: Release
    verdict: Verdict
    under: dict[int, list[str]]


def rows(topic: str, records: list[tuple[int, bytes]], first: int = 0) -> pa.Table:
    columns = zip(*((topic, 0, first + i, at_ms, b"key", value, None) for i, (at_ms, value) in enumerate(records)), strict=True)
    return pa.table({name: pa.array(column, kind) for (name, kind), column in zip(TYPES.items(), columns, strict=True)})


def detection(name: str, first: int, family: str = "concept", signal: str = "error", since: int | None = CHANGE) -> Detection:
    age = FRAUD.drift.age_ms if FRAUD.drift is not None and family in ("concept", "performance") else 0
    return Detection(name, "fraud", "1", signal, family, "", at(first) + age, at(first + 1) + age, 12.0, 10.0, 0.4, 80, "r1",
                     None if since is None else at(since), [Contributor("amount", 1.0)], 0.2, f"drift:{at(first)}")


def plant(kafka: str, models: Path) -> RetrainRequest:
    """What monitors and governor say of a retrain that drift asked for, and of an alarm that asked for none."""
    request = RetrainRequest(RETRAIN, "fraud", "1", "r1", SERVICE.definition_hash, "drift:1", "measured loss: concept", at(ASKED),
                             {"transactions/0": 10**6}, [ALARM])
    log = ControlLog(kafka)

    def decided(name: str, what: str, evidence: list[str], lease: int = 0, reason: str = "") -> RetrainDecision:
        return RetrainDecision(name, "fraud", "1", at(ASKED), "governor", what, what == "requested", reason, None, evidence,
                               RETRAIN if evidence != [CALM] else "", lease, "policy", 0, [], {})

    log.publish(DETECTIONS, detection(ALARM, 30), at(38))
    log.publish(DETECTIONS, detection(CALM, 30, "data", "features", None), at(31))
    log.publish(DECISIONS, decided("d0", "declined", [CALM], reason="budget is spent"), at(31))
    for name, what, lease in (("d1", "requested", 0), ("d2", "started", 1), ("d3", "promoted", 1)):
        log.publish(DECISIONS, decided(name, what, [ALARM], lease), at(ASKED))
    log.publish(REQUESTS, request, at(ASKED))
    log.publish(RUNS, RunRecord("fraud", "runner-1", "claim", RETRAIN), at(ASKED))
    log.publish(RUNS, RunRecord("fraud", "runner-1", "promoted", RETRAIN, 1, "cure: better"), at(ASKED))
    log.close()
    return request


def append(settings: Settings, table: pa.Table) -> None:
    deltalake.write_deltalake(bronze_path(settings), table, partition_by=["topic"], mode="append")


def predictions(world: World, folder: Path) -> list[Any]:
    served = World(world.records)
    serve(served, 5, model=load_bundle(folder, SERVICE, folder.parents[2] / "keys"))
    return sorted((PREDICTION.decode(value) for value in served.predictions), key=lambda each: each.arrival_ms)


def evaluated(world: World, made: list[Any]) -> list[Evaluation]:
    told = {record.event["event_id"]: (record.event["fraud"], record.arrival_ms) for record in world.of("outcomes") if record.event}
    return [one for each in made for one in evaluations(each.event_id, each.event_time, scored_of(
        Subject(each), 0), [Label(0, *told[each.event_id])]) if each.event_id in told]


class Subject:
    """A prediction with its subject, as the join reads it."""

    def __init__(self, prediction: Any) -> None:
        self._prediction, self.subject = prediction, prediction.card_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prediction, name)


@pytest.fixture(scope="module")
def planted(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """A drift from its first wrong alert to the release that cured it, and predictions under both."""
    settings, world = Settings(home=tmp_path_factory.mktemp("home"), time="replay"), changing_world(5)
    with Runtime(settings, ()) as runtime:
        deltalake.write_deltalake(bronze_path(settings), world.bronze(), partition_by=["topic"])
        learnt, judged = days(0, 8), days(16, 20)
        built = build_training_set(settings, FRAUD, learnt.start_ms, judged.end_ms, engine="process")
        one = register(settings, train(built.path, FRAUD, learnt, judged, settings))
        releases = ReleaseLog(runtime.kafka)
        first = releases.release("train:fraud:1:0", "fraud", one.version, at(0), "the first", "train")
        by_first = [each for each in predictions(world, one.folder) if each.arrival_ms < at(ASKED)]
        append(settings, rows("predictions", [(each.arrival_ms, msgspec.json.encode(each)) for each in by_first]))
        told = evaluated(world, by_first)
        append(settings, rows(EVALUATIONS, [(each.at_ms, msgspec.json.encode(each)) for each in told]))
        request = plant(runtime.kafka, settings.models)
        verdict = retrain(settings, FRAUD, Asked(RETRAIN, request.at_ms, at(CHANGE), one.folder), Plan(), spark, lambda _: None)
        assert verdict.passed, verdict.evidence
        assert verdict.version is not None
        second = releases.release(RETRAIN, "fraud", verdict.version, request.at_ms, request.why, "runner", verdict.evidence_hash)
        releases.close()
        by_second = [each for each in predictions(world, settings.models / "fraud" / verdict.version) if each.arrival_ms >= at(ASKED)]
        append(settings, rows("predictions", [(each.arrival_ms, msgspec.json.encode(each)) for each in by_second], len(by_first)))
        archive(settings, runtime.kafka, spark)
        assert first is not None
        assert second is not None
        wrong = next(each for each in told if each.label != each.alert and at(30) <= each.predicted_ms < at(31))
        yield Planted(settings, runtime.kafka, wrong, by_second[7], first, second, verdict,
                      {1: [each.prediction_id for each in by_first], 2: [each.prediction_id for each in by_second]})


@pytest.fixture
def ask(planted: Planted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``headrace why`` with Kafka, as a tree."""
    monkeypatch.setenv("HEADRACE_HOME", str(planted.settings.home))
    monkeypatch.setenv("HEADRACE_KAFKA", planted.kafka)
    capsys.readouterr()

    def asked(*words: str) -> Any:
        assert main(["why", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return asked


def path(tree: Any, side: str) -> list[tuple[str, str]]:
    """(kind, id) of all that is on one side, outermost first."""
    return [one for node in tree.get(side, []) for one in ((node["kind"], node["id"]), *path(node, "causes"), *path(node, "effects"))]


@pytest.mark.slow
def test_from_an_event_down_to_the_release_that_it_helped_to_bring_about(planted: Planted, ask: Any) -> None:
    wrong = planted.wrong
    chain = [("prediction", wrong.prediction_id), ("evaluation", wrong.evaluation_id), ("detection", ALARM), ("request", RETRAIN),
             ("run", RETRAIN), ("evidence", RETRAIN), ("release", "fraud@2")]
    for number, start in enumerate((wrong.event_id, wrong.prediction_id, wrong.evaluation_id, ALARM, RETRAIN)):
        tree = ask(start)
        assert (tree["kind"], tree["id"]) == (("event", wrong.event_id), *chain)[number]
        assert [one for one in path(tree, "effects") if one in chain] == chain[number:]
        assert tree["read"]["kafka"] == "read"
    assert ("detection", CALM) in path(ask(wrong.prediction_id), "effects"), "a signal of shapes counts the prediction itself"
    refused = ask(CALM)
    assert [(node["kind"], node["facts"]["reason"]) for node in refused["effects"]] == [("decision", "budget is spent")]


@pytest.mark.slow
def test_from_a_prediction_up_to_the_drift_that_its_model_came_of(planted: Planted, ask: Any) -> None:
    late = planted.late
    tree = ask(late.prediction_id)
    facts = {node["kind"]: node for node in tree["causes"]}
    assert facts["event"]["facts"] == {"topic": "transactions", "partition": 0, "offset": late.source_offset, "event_time": late.event_time}
    assert facts["event"]["id"] == late.event_id
    assert all(stamp.fingerprint in facts["vector"]["facts"]["views"][stamp.view] for stamp in late.stamps)
    assert facts["vector"]["more"] == f"headrace explain {late.prediction_id}"
    version = f"fraud@{planted.verdict.version}"
    up = path(tree, "causes")
    assert [one for one in up if one[0] in ("release", "version", "evidence", "run", "request", "detection")][:6] == [
        ("release", "fraud@2"), ("version", version), ("evidence", RETRAIN), ("run", RETRAIN), ("request", RETRAIN), ("detection", ALARM)]
    assert tree["facts"]["epoch"] == 2
    assert ask(planted.wrong.prediction_id)["facts"]["epoch"] == 1
    (behind,) = (node for node in ask(ALARM)["causes"] if node["kind"] == "evaluations")
    everything = ask(ALARM, "--most", str(behind["facts"]["records"]))
    assert ("evaluation", planted.wrong.evaluation_id) in path(everything, "causes"), "and back to the event that it began with"
    assert planted.wrong.event_id in str(ask(planted.wrong.evaluation_id)["causes"])


@pytest.mark.slow
def test_a_release_is_told_with_its_evidence_its_cause_and_all_that_was_predicted_under_it(planted: Planted, ask: Any) -> None:
    for one in (planted.first, planted.second):
        tree = ask(f"release:fraud@{one.epoch}")
        assert tree["facts"] == msgspec.to_builtins(one)
        made, (first, last) = planted.under[one.epoch], (planted.under[one.epoch][0], planted.under[one.epoch][-1])
        (under,) = (node for node in tree["effects"] if node["kind"] == "predictions")
        assert (under["facts"]["records"], under["facts"]["first"], under["facts"]["last"]) == (len(made), first, last)
        assert {name for kind, name in path(tree, "effects") if kind == "prediction"} < set(made)
    (evidence,) = (node["facts"] for node in tree["causes"] if node["kind"] == "evidence")
    assert evidence["matches"]
    assert evidence["hash"] == evidence["stated"] == evidence["released_on"] == planted.second.evidence
    assert [node["more"] for node in ask("release:fraud@1")["effects"] if node["kind"] == "release"] == ["headrace why release:fraud@2"]
    assert ask(RETRAIN)["kind"] == "request", "a release that a retrain led to is told with it"
    assert ask("train:fraud:1:0")["id"] == "fraud@1"
    training = [node for node in ask(f"version:fraud@{planted.verdict.version}")["causes"] if node["kind"] == "training-set"]
    assert training[0]["facts"]["state"] == "as it was"
    assert training[0]["facts"]["bronze_version"] is not None
    run = ask(f"version:fraud@{planted.verdict.version}")["facts"]["data"]["mlflow_run_id"]
    with tracking_client(planted.settings) as client:
        assert client.get_model_version("fraud", planted.verdict.version).run_id == run


@pytest.mark.slow
def test_evidence_that_was_changed_does_not_match(planted: Planted, ask: Any) -> None:
    file = Path(verdict_path(planted.settings, "fraud", RETRAIN))
    held = file.read_text()
    try:
        file.write_text(held.replace('"PASS"', '"FAIL"', 1))
        (evidence,) = (node for node in ask("release:fraud@2")["causes"] if node["kind"] == "evidence")
        assert not evidence["facts"]["matches"]
        assert "DOES NOT MATCH" in evidence["says"]
    finally:
        file.write_text(held)


@pytest.mark.slow
def test_the_archive_alone_tells_the_same(planted: Planted, ask: Any, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    asked = (planted.wrong.event_id, planted.late.prediction_id, ALARM, RETRAIN, "release:fraud@1")
    with_kafka = [ask(one) for one in asked]
    monkeypatch.delenv("HEADRACE_KAFKA")
    monkeypatch.setenv("HEADRACE_TABLE_ROOT", planted.settings.tables)
    monkeypatch.setenv("HEADRACE_HOME", str(planted.settings.home / "elsewhere"))  # where nothing runs
    (planted.settings.home / "elsewhere").mkdir(exist_ok=True)
    (planted.settings.home / "elsewhere" / "models").symlink_to(planted.settings.models)
    alone = [ask(one) for one in asked]
    for before, after in zip(with_kafka, alone, strict=True):
        assert "does not run" in after.pop("read")["kafka"]
        before.pop("read")
        assert json.dumps(after).replace("/elsewhere", "") == json.dumps(before)
    assert main(["why", planted.wrong.event_id]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith(f"event {planted.wrong.event_id}: transactions/0/")
    assert all(name in said for name in (ALARM, RETRAIN, "release fraud@2", "hash"))


@pytest.mark.slow
def test_an_id_of_nothing_and_an_id_of_two_things_are_errors(planted: Planted, ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("no-such", "fraud@99", "detection:no-such", "version:fraud@../../fraud", "0" * 32, f"{'0' * 32}:1", "event:no-such"):
        assert main(["why", wrong]) == 6
        assert f"nothing that is known has the id {wrong!r}" in capsys.readouterr().err
    twice = [(at(3) + i, json.dumps({"event_id": "twice", "event_time": at(3) + i, "card_id": "c", "terminal_id": "p",
                                     "amount_minor": 1}).encode()) for i in (0, 1)]
    append(planted.settings, rows("transactions", twice, 10**6))
    (planted.settings.home / "tables/_checkpoints/bronze/complete").unlink()
    assert main(["why", "twice"]) == 6
    told = capsys.readouterr().err
    assert all(f"event:twice --at {at_ms}" in told for at_ms, _ in twice)
    assert ask("twice", "--at", str(at(3) + 1))["facts"]["event_time"] == at(3) + 1
