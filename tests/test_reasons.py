"""Reasons of alerts: they are TreeSHAP's, add up, have codes, and are written once for each alert whoever is killed."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.bundle import Model, Scorer
from feature_repo.churn import CHURN
from feature_repo.contributions import Leaf, Trees, contributions, margin
from feature_repo.explainer import Explainer, fault_of, reasons_of
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.models import ModelSpec
from feature_repo.trees import read_trees
from jobs.fit import fit_local, to_onnx
from schemas.envelope import SOURCE_OFFSET, header
from schemas.reasons import REASONS, Reasons
from schemas.settings import Settings
from schemas.topics import SOURCES, reasons_topic
from services.api.scoring import ScoreRoutes
from services.explainers import Explainers, Explanation
from services.ledger import read_topic
from services.reasons import Reasoner, reasons_record
from services.runtime.embedded import Runtime
from services.scoring import Arrived, Scored, predict
from tests.deadline import eventually
from tests.small_model import promote_small_model
from tests.test_trees import WIDTH, numbers, random_trees

EXTREMES = [math.nan, 0.0, -0.0, math.inf, -math.inf, 1e300, -1e300, 3.4e38, 1e-45, 1e-300, 2**53 + 1.0]
extreme = st.one_of(st.sampled_from(EXTREMES), st.floats(), st.floats(-5, 5))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.lists(st.one_of(numbers, st.sampled_from(EXTREMES)), min_size=WIDTH, max_size=WIDTH))
def test_the_quick_contributions_are_the_plain_ones(seed: int, vector: list[float]) -> None:
    trees = random_trees(seed)
    found = Explainer(trees)(vector)
    with np.errstate(over="ignore"):
        vector = np.asarray(vector, np.float32).tolist()
    base, parts = contributions(trees, vector)
    assert found.base == pytest.approx(base, abs=1e-12)
    assert found.parts.tolist() == pytest.approx(parts.tolist(), abs=1e-12)
    assert found.margin == pytest.approx(margin(trees, np.asarray(vector, np.float32)), abs=1e-12)
    assert found.adds_up
    assert not dataclasses.replace(found, margin=found.margin + 1e-6).adds_up, "the control: a millionth is seen"


def test_trees_of_a_single_leaf_are_all_base() -> None:
    found = Explainer(Trees((Leaf(0.5, ()), Leaf(-0.25, ())), 1.0, 3, True))([1.0, math.nan, 2.0])
    assert (found.base, found.margin, found.parts.tolist()) == (1.25, 1.25, [0, 0, 0])


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, bytes, Any]:
    """A model of the size that is served."""
    rng = np.random.default_rng(3)
    x = rng.lognormal(2, 2, size=(6_000, 29)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    label = (np.nan_to_num(x[:, 0]) + np.nan_to_num(x[:, 3]) > 40).astype(int)
    model = fit_local(FRAUD, x, label)
    return model, to_onnx(model, 29, "fraud"), x


@settings(max_examples=150, deadline=None)
@given(st.lists(extreme, min_size=29, max_size=29))
def test_a_real_models_contributions_add_up_to_what_is_served_at_any_value(fitted: tuple[Any, bytes, Any], vector: list[float]) -> None:
    explainer, score = _prepared(fitted[1])
    with np.errstate(over="ignore"):
        served = float(score(np.array([vector]))[0])
    found = explainer(vector)
    assert fault_of(found, served) is None
    assert found.tolerance < 1e-8
    assert fault_of(found, served + 1e-4) is not None, "the control: a score that these trees do not give"


PREPARED: dict[bytes, tuple[Explainer, Scorer]] = {}


def _prepared(onnx: bytes) -> tuple[Explainer, Scorer]:
    if onnx not in PREPARED:
        PREPARED[onnx] = Explainer(read_trees(onnx)), Scorer(onnx)
    return PREPARED[onnx]


def test_they_are_xgboosts_own(fitted: tuple[Any, bytes, Any]) -> None:
    import xgboost

    model, onnx, x = fitted
    theirs = model.get_booster().predict(xgboost.DMatrix(x[:100]), pred_contribs=True)
    explainer = _prepared(onnx)[0]
    for row, told in zip(x[:100], theirs, strict=True):
        found = explainer(row)
        assert [*found.parts, found.base] == pytest.approx(told.tolist(), abs=5e-4)  # theirs are summed in float32


def test_one_explanation_costs_a_small_part_of_its_budget(fitted: tuple[Any, bytes, Any]) -> None:
    """Printed, not judged."""
    explainer = _prepared(fitted[1])[0]
    began = time.process_time()
    for row in fitted[2][:100]:
        explainer(row)
    print(f"{(time.process_time() - began) * 10:.2f} ms of processor time an explanation")


@pytest.mark.parametrize("spec", [FRAUD, CHURN], ids=lambda spec: spec.name)
def test_every_feature_has_one_code_and_no_code_is_given_twice(spec: ModelSpec) -> None:
    assert [code.feature for code in spec.reasons] == list(spec.service.feature_names)
    codes = [code.code for code in spec.reasons]
    assert len(set(codes)) == len(codes)
    assert all(code.words and len(code.code) <= 8 for code in spec.reasons)


def test_codes_stay() -> None:
    """Whoever reads them goes by these: change words, add codes, but change no line of this."""
    known = {code.feature: code.code for code in (*FRAUD.reasons, *CHURN.reasons)}
    some = {"card_count_1m": "C01", "terminal_cards_24h": "T05", "terminal_fraud_ratio_7d": "R05", "amount": "P01", "new_terminal": "P05",
            "recency_s": "B01", "products_180d": "B13", "cancelled_share": "H03"}
    assert known | some == known


def test_reasons_are_what_raised_the_score_most_first() -> None:
    codes = {code.feature: code for code in FRAUD.reasons}
    names, parts = ["amount", "night", "gone_feature", "weekend", "card_count_1d"], np.array([0.5, -2.0, 0.7, 0.5, 0.0])
    told = reasons_of(codes, names, [1.0, 1.0, None, 0.0, 3.0], parts, most=3)
    assert [(each.code, each.feature, each.value) for each in told] == [("OTHER", "gone_feature", None), ("P01", "amount", 1.0),
                                                                       ("P02", "weekend", 0.0)]
    assert len(reasons_of(codes, names, [None] * 5, parts)) == 3, "what added nothing is no reason"


def alerts(model: Model, n: int) -> list[tuple[bytes, bytes]]:
    """Prediction records as a scorer makes them, with and without alert, by their subject."""
    from feature_repo.vector import VectorBuilder
    from schemas.fraud import Transaction

    r = np.random.default_rng(2)
    made = [Arrived(Transaction(f"e{i}", 1_782_000_000_000 + i, f"c{i % 9}", "t1", int(r.integers(1, 10_000))), 0, i, 0, False)
            for i in range(n)]
    scored = predict("fraud", VectorBuilder(SERVICE), made, None, model, 0)
    rows = [msgspec.json.decode(one.value) for one in scored]
    for row in rows:  # the store is not asked here, so values are made up and scored again, as a scorer would have
        row["features"] = [None if r.random() < 0.2 else float(v) for v in r.normal(15, 10, len(SERVICE.feature_names))]
    matrix = np.array([[np.nan if v is None else v for v in row["features"]] for row in rows])
    for row, score in zip(rows, model.score(matrix).tolist(), strict=True):
        row |= {"score": score, "alert": score >= model.threshold}
    return [(row["card_id"].encode(), msgspec.json.encode(row)) for row in rows]


def test_a_record_adds_up_and_says_where_it_cannot(tmp_path: Path) -> None:
    from schemas.fraud import Prediction

    home = Settings(home=tmp_path)
    model, explainers = promote_small_model(home.models), Explainers(home)
    predictions = [msgspec.json.decode(value, type=Prediction) for _, value in alerts(model, 40)]
    for p in predictions:
        told = reasons_record(FRAUD, p, explainers)
        assert told.fault is None
        assert told.base is not None
        assert told.margin is not None
        assert told.rest is not None
        assert told.base + sum(each.contribution for each in told.reasons) + told.rest == pytest.approx(told.margin, abs=1e-9)
        assert 1 / (1 + math.exp(-told.margin)) == pytest.approx(p.score, abs=1e-5)
        assert REASONS.decode(msgspec.json.encode(told)) == told
    lied = msgspec.structs.replace(predictions[0], score=0.123)
    assert "served was 0.123" in (reasons_record(FRAUD, lied, explainers).fault or "")
    gone = msgspec.structs.replace(predictions[0], model_version="9")
    assert reasons_record(FRAUD, gone, explainers).fault
    outside = msgspec.structs.replace(predictions[0], model_version="../fraud/1")
    assert "no version" in (reasons_record(FRAUD, outside, explainers).fault or "")


def test_a_score_is_not_lost_where_explaining_hangs_or_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()

    class Hung(Explainers):
        def explain(self, *_: Any) -> Any:
            over.wait(60)

    class Broken(Explainers):
        def explain(self, *_: Any) -> Any:
            raise OSError("the disk is gone")

    home = Settings(home=tmp_path)
    value = alerts(promote_small_model(home.models), 1)[0][1]
    lane: Any = SimpleNamespace(judge=SimpleNamespace(spec=FRAUD), contract=SOURCES[SERVICE.source])
    nothing: Any = None

    async def ask(explainers: Explainers, executor: ThreadPoolExecutor) -> Explanation:
        routes = ScoreRoutes({"fraud": lane}, nothing, nothing, explainers, executor, nothing)
        told: Any = SimpleNamespace(model="fraud", model_version="1", service_hash=SERVICE.definition_hash, score=0.5)
        return await routes._explained(lane, Scored(b"c", "p", value), told, time.monotonic() + 60)

    with ThreadPoolExecutor(1) as executor:
        assert "50 ms" in (asyncio.run(ask(Hung(home), executor)).fault or "")
        over.set()
        monkeypatch.setattr("services.api.scoring.EXPLAIN_S", 30.0)  # the thread has to leave the first one before
        assert "could not be explained" in (asyncio.run(ask(Broken(home), executor)).fault or "")


@pytest.mark.slow
def test_every_alert_has_its_reasons_once_though_the_process_is_killed_again_and_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Settings(home=tmp_path)
    with Runtime(home, ()) as runtime:
        model = promote_small_model(home.models)
        records = alerts(model, 4_000)
        wanted = {p["prediction_id"] for _, value in records if (p := msgspec.json.decode(value))["alert"]}
        assert 500 < len(wanted) < 3_500
        environment = {**os.environ, "HEADRACE_HOME": str(tmp_path), "HEADRACE_KAFKA": runtime.kafka}
        producer = Producer({"bootstrap.servers": runtime.kafka, "acks": "all", "log_level": 0})
        topic, kills = reasons_topic(SERVICE.predictions), 4

        def start() -> subprocess.Popen[bytes]:
            with (tmp_path / "reasons.log").open("ab") as out:
                return subprocess.Popen([sys.executable, "-m", "services.reasons"], env=environment, stdout=out, stderr=out)

        def published() -> list[Any]:
            return list(read_topic(runtime.kafka, topic))

        process = start()
        try:
            for number in range(kills):
                size = len(records) // kills
                before = len(published())
                for key, value in records[number * size:(number + 1) * size]:
                    producer.produce(SERVICE.predictions, value, key)
                producer.flush(60)
                eventually(lambda before=before: len(published()) > before)  # type: ignore[misc]  # in the middle of it, or just after
                process.send_signal(signal.SIGKILL)
                process.wait()
                process = start()
            eventually(lambda: {m for m in _ids(published())} == wanted)
            threading.Event().wait(1.0)  # what would be written twice would be by now
            found = published()
            assert sorted(_ids(found)) == sorted(wanted), "each once"
            at = {(m.partition(), int(header(m.headers(), SOURCE_OFFSET) or -1)): m for m in found}
            for source in read_topic(runtime.kafka, SERVICE.predictions):
                alert = msgspec.json.decode(source.value())["alert"]
                mine = at.get((source.partition(), source.offset()))
                assert (mine is not None) == alert
                if mine is not None:
                    told = msgspec.json.decode(mine.value(), type=Reasons)
                    assert (told.prediction_id, mine.key(), told.fault) == (msgspec.json.decode(source.value())["prediction_id"],
                                                                           source.key(), None)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
            read_again(runtime.kafka, home, model, topic, monkeypatch)
        finally:
            process.kill()
            process.wait()


def read_again(kafka: str, home: Settings, model: Model, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who died before it could commit reads all again, and publishes nothing again; the control, which does not look, does."""
    before, producer = _ids(list(read_topic(kafka, topic))), Producer({"bootstrap.servers": kafka, "acks": "all", "log_level": 0})
    admin = AdminClient({"bootstrap.servers": kafka, "log_level": 0})
    more = [(key, value.replace(b'"prediction_id":"', b'"prediction_id":"again')) for key, value in alerts(model, 60)]
    for key, value in more:
        producer.produce(SERVICE.predictions, value, key)
    producer.flush(60)
    new = {p["prediction_id"] for _, value in more if (p := msgspec.json.decode(value))["alert"]}

    def run_until(told: Any) -> None:
        eventually(lambda: not admin.delete_consumer_groups(["headrace-reasons"])["headrace-reasons"].exception())
        reasoner = Reasoner(home.model_copy(update={"kafka": kafka}))
        thread = threading.Thread(target=reasoner.run)
        thread.start()
        try:
            eventually(lambda: told(_ids(list(read_topic(kafka, topic)))))
        finally:
            reasoner.stopping.set()
            thread.join()

    run_until(lambda found: new <= set(found))  # they lie behind all others of their partitions
    assert sorted(_ids(list(read_topic(kafka, topic)))) == sorted([*before, *new])
    monkeypatch.setattr("services.reasons.last_source_offset", lambda *_: -1)
    run_until(lambda found: len(found) == 2 * (len(before) + len(new)))


def _ids(messages: list[Any]) -> list[str]:
    return [msgspec.json.decode(message.value())["prediction_id"] for message in messages]
