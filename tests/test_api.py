"""The HTTP API on real engines: what it answers, to whom, and that its predictions are those of the log."""

from __future__ import annotations

import json
import math
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
import redis
from pydantic import SecretStr

from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.views import DAY_MS
from jobs.archive import archive
from jobs.events import bronze_path, complete_path, newest_version
from jobs.explain import explain
from jobs.parity import parity
from jobs.spark import write_text
from schemas.errors import JobError
from schemas.fraud import Prediction
from schemas.settings import Settings
from services.api.client import ApiError, Client
from services.ledger import read_events, read_topic
from services.release_log import ReleaseLog
from services.why.walk import why
from tests.api_world import Api, api_world
from tests.bench.http_load import Job, run_load
from tests.deadline import eventually
from tests.small_model import write_small_model


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_world(tmp_path_factory.mktemp("api") / "home") as api:
        yield api


def logged(api: Api, topic: str, event_id: str) -> Prediction | None:
    decode = msgspec.json.Decoder(Prediction).decode
    return next((p for message in read_topic(api.runtime.kafka, topic) if (p := decode(message.value())).event_id == event_id), None)


def test_up_serves_scores_and_tells_their_versions(api: Api) -> None:
    answer = api.post("/v1/score", event := api.event())
    assert answer.status == 200
    told = answer.body
    assert (told["event_id"], told["model"], told["model_version"]) == (event["event_id"], "fraud", "1")
    assert (told["degraded"], told["late"]) == (False, False)
    assert 0 <= told["score"] <= 1
    assert told["alert"] == (told["score"] >= told["threshold"])
    named = {"model": "fraud@1", "epoch": str(told["epoch"] or "none"), "service": told["service_hash"],
             "fingerprint": told["fingerprint"], "degraded": "false"}
    assert {name: answer.headers[f"headrace-{name}"] for name in named} == named
    assert api.get("/version").body["models"]["fraud"]["service_hash"] == told["service_hash"]
    assert [api.get(path, key="").status for path in ("/livez", "/readyz", "/startupz", "/metrics")] == [200] * 4


def test_a_prediction_by_http_and_by_kafka_is_the_same(api: Api) -> None:
    """History first, then an event that is scored by request, and after that comes through the log."""
    history = [api.event(card_id="same", terminal_id=f"t{i % 3}") for i in range(30)]
    for event in history:
        assert api.post("/v1/events", event).status == 202
    for event in history:
        eventually(lambda event=event: logged(api, "predictions", event["event_id"]))  # type: ignore[misc]
    event = api.event(card_id="same", terminal_id="t1")
    asked = api.post("/v1/score", event).body
    assert api.post("/v1/events", event).status == 202
    by_log = eventually(lambda: logged(api, "predictions", event["event_id"]))
    by_request = eventually(lambda: logged(api, "predictions.answered", event["event_id"]))
    assert by_log.source_offset >= 0
    assert by_request.source_offset == -1
    same: Any = [(p.prediction_id, p.features, p.score, p.alert, p.service_hash, p.model_version, p.degraded,
                  [(s.view, s.n, s.fingerprint, s.newest_ms) for s in p.stamps]) for p in (by_log, by_request)]
    assert same[0] == same[1]
    assert (asked["prediction_id"], asked["score"]) == (by_log.prediction_id, by_log.score)
    assert [s.merged for s in by_log.stamps] != [s.merged for s in by_request.stamps], "only the reader of a request had to add the event"
    other = api.post("/v1/score", {**event, "terminal_id": "t2"}).body
    assert other["fingerprint"] != asked["fingerprint"], "the control: another event sees another history"


def test_the_first_key_is_for_its_owner_only_and_no_file_holds_one(api: Api) -> None:
    folder = api.home / "api"
    assert stat.S_IMODE((folder / "admin.key").stat().st_mode) == 0o600
    texts = [path.read_text(errors="replace") for path in (*folder.glob("*.json"), *(api.home / "logs").glob("*.log"))]
    assert all(api.key not in text for text in texts)


def test_an_event_that_is_sent_again_lies_where_it_lay(api: Api) -> None:
    event = api.event()
    first, second = api.post("/v1/events", event).body, api.post("/v1/events", event).body
    assert (first["repeated"], second["repeated"]) == (False, True)
    assert {**first, "repeated": True} == second
    held = [m for m in read_events(api.runtime.kafka, "transactions") if msgspec.json.decode(m.value())["event_id"] == event["event_id"]]
    assert [(m.topic(), m.partition(), m.offset()) for m in held] == [(first["topic"], first["partition"], first["offset"])]
    assert held[0].key() == event["card_id"].encode()
    refused = api.post("/v1/events", {**event, "amount_minor": 1})
    assert (refused.status, refused.reason) == (409, "other-content")
    assert api.post("/v1/events", {**event, "event_time": event["event_time"] - 1}).body["repeated"] is False, "another identity"


def test_a_correction_of_an_outcome_is_no_repetition(api: Api) -> None:
    outcome = {name: value for name, value in api.event().items() if name != "amount_minor"} | {"fraud": False}
    assert api.post("/v1/outcomes", outcome).body["repeated"] is False
    assert api.post("/v1/outcomes", {**outcome, "fraud": True, "revision": 1}).body["repeated"] is False
    assert api.post("/v1/outcomes", outcome).body["repeated"] is True
    held = [msgspec.json.decode(m.value()) for m in read_events(api.runtime.kafka, "outcomes")]
    assert [one["fraud"] for one in held if one["event_id"] == outcome["event_id"]] == [False, True]


def test_features_are_those_that_a_score_is_made_from(api: Api) -> None:
    history = [api.event(card_id="known", terminal_id="known") for _ in range(5)]
    for event in history:
        assert api.post("/v1/events", event).status == 202

    def counted() -> bool:
        told = api.features(entities={"card_id": "known"})
        return bool(told["views"][0]["values"]["card_count_1d"] == 5)

    eventually(counted)
    event = api.event(card_id="known", terminal_id="known")
    found = api.get(f"/v1/predictions/{api.post('/v1/score', event).body['prediction_id']}").body
    assert found["made_by"] == "request"
    names = SERVICE.feature_names
    scored = dict(zip(names, found["prediction"]["features"], strict=True))
    asked = api.features(entities={"card_id": "known", "terminal_id": "known"}, at_ms=event["event_time"])
    told = {name: value for view in asked["views"] for name, value in view["values"].items()}
    assert scored["card_count_1d"] == told["card_count_1d"] + 1 == 6, "the scored event is in its own count, and in nobody else's"
    assert scored["terminal_count_24h"] == told["terminal_count_24h"] + 1
    refused = api.post("/v1/features", {"entities": {"shop_id": "x"}})
    assert (refused.status, refused.reason) == (404, "not-known")


def test_a_prediction_of_the_log_is_found_too(api: Api) -> None:
    event = api.event()
    assert api.post("/v1/events", event).status == 202
    by_log = eventually(lambda: logged(api, "predictions", event["event_id"]))
    found = api.get(f"/v1/predictions/{by_log.prediction_id}").body
    assert (found["made_by"], found["prediction"]["source_offset"]) == ("log", by_log.source_offset)
    missing = api.get(f"/v1/predictions/{'0' * 32}")
    assert (missing.status, missing.reason) == (404, "no-such-prediction")


def test_models_and_releases_say_what_is_live(api: Api) -> None:
    model, = api.get("/v1/models").body["models"]
    assert [(version["version"], version["champion"]) for version in model["versions"]] == [("1", True)]
    told = api.get("/v1/releases").body["releases"]
    assert [(release["champion"], release["epoch"], release["by"]) for release in told] == [("1", 1, "up")]
    assert api.served() == ("1", 1)


def test_a_new_model_is_taken_while_requests_are_answered(api: Api) -> None:
    write_small_model(api.home / "models", "2", SERVICE)
    log = ReleaseLog(api.runtime.kafka)
    try:
        for version, epoch in (("2", 2), ("1", 3)):
            log.release(f"r-{epoch}", "fraud", version, 1_000, "a test", "tests")
            eventually(lambda told=(version, epoch): api.served() == told)
    finally:
        log.close()


def test_concurrent_requests_are_scored_together_and_a_lone_one_alone(api: Api) -> None:
    def counts() -> tuple[float, float]:
        lines = dict(line.rsplit(" ", 1) for line in api.get("/metrics").body.splitlines() if not line.startswith("#"))
        return tuple(float(lines[f'headrace_api_{name}_total{{model="fraud"}}']) for name in ("scored", "batches"))  # type: ignore[return-value]

    scored, batches = counts()
    assert api.post("/v1/score", api.event()).status == 200
    assert counts() == (scored + 1, batches + 1)
    scored, batches = counts()
    job = Job("127.0.0.1", api.port, "/v1/score", {"authorization": f"Bearer {api.key}"},
              [json.dumps(api.event()) for _ in range(500)], 1.0, connections=32, warm_s=0.0, linger_s=60.0)
    seen = run_load(job)
    assert set(seen.statuses) == {"200"}
    more, in_batches = (now - then for now, then in zip(counts(), (scored, batches), strict=True))
    assert more >= seen.requests
    assert more / in_batches > 2


def test_an_answer_is_explained_where_it_is_asked_for_and_adds_up_to_its_margin(api: Api) -> None:
    plain = api.post("/v1/score", event := api.event())
    assert "explanation" not in plain.body
    assert "explanation" not in api.post("/v1/score?explain=false", event).body

    def told() -> Any:  # a busy machine may need longer than the 50 ms that an answer waits: then it says so, and has its score
        answer = api.post("/v1/score?explain=true", event)
        assert (answer.status, answer.body["score"]) == (200, plain.body["score"])
        why = answer.body["explanation"]
        assert why["fault"] is None or "50 ms" in why["fault"]
        return why if why["fault"] is None else None

    why = eventually(told)
    assert list(why["contributions"]) == list(SERVICE.feature_names)
    assert why["base"] + sum(why["contributions"].values()) == pytest.approx(why["margin"], abs=1e-9)
    assert 1 / (1 + math.exp(-why["margin"])) == pytest.approx(plain.body["score"], abs=1e-5)
    raised = sorted((part for part in why["contributions"].values() if part > 0), reverse=True)[:4]
    assert [reason["contribution"] for reason in why["reasons"]] == raised
    assert all(reason["code"] == {code.feature: code.code for code in FRAUD.reasons}[reason["feature"]] for reason in why["reasons"])
    for path, reason in (("/v1/score?explain=yes", "wrong-parameter"), ("/v1/score:batch?explain=true", "unknown-parameter")):
        refused = api.post(path, event)
        assert (refused.status, refused.reason) == (422, reason)


def test_the_client_of_one_file_does_all_of_it(api: Api) -> None:
    with Client(api.runtime.api, api.key, deadline_ms=5_000) as client:
        event = api.event()
        prediction = client.score(event)
        assert prediction.explanation is None
        assert client.score(event, explain=True).explanation is not None
        assert client.score_batch([event, api.event()])[0].prediction_id == prediction.prediction_id
        assert client.publish(event).topic == "transactions"
        assert client.publish(event).repeated
        assert client.prediction(prediction.prediction_id)["score"] == prediction.score
        assert "card_count_1d" in client.features({"card_id": event["card_id"]})
        assert client.models()[0]["model"] == "fraud"
        assert isinstance(client.releases(), list)
        outcome = {name: value for name, value in event.items() if name != "amount_minor"}
        assert client.publish_outcome({**outcome, "fraud": True}).topic == "outcomes"
        with pytest.raises(ApiError) as caught:
            client.score({**event, "amount_minor": "12"})
    assert (caught.value.status, caught.value.reason, caught.value.fields) == (422, "wrong-type", ["/amount_minor"])


def test_the_client_needs_nothing_but_python() -> None:
    program = "import sys, services.api.client; print(sorted(name for name in sys.modules if name.split('.')[0] in " \
              "('fastapi', 'numpy', 'msgspec', 'confluent_kafka', 'redis', 'pydantic', 'uvicorn', 'feature_repo')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_store_that_lost_what_it_had_makes_answers_degraded_until_it_is_back(api: Api) -> None:
    """Last, for it takes everything away."""
    for _ in range(8):
        assert api.post("/v1/events", api.event()).status == 202
    eventually(lambda: api.features(entities={"card_id": "c1"})["views"][0]["applied"] != [-1] * 4)
    assert api.post("/v1/score", api.event()).body["degraded"] is False
    api.runtime.hold("worker-1")
    redis.Redis.from_url(api.runtime.redis).flushall()
    answer = api.post("/v1/score", api.event())
    assert (answer.status, answer.body["degraded"]) == (200, True)
    api.runtime.release("worker-1")
    eventually(lambda: api.post("/v1/score", api.event()).body["degraded"] is False)


def test_every_answer_is_recomputed_from_the_log_alone(spark: Any, api: Api) -> None:
    """Also of events that never come by the log; the control: one that was told otherwise is found."""
    settings = Settings(home=api.home, kafka=api.runtime.kafka, redis=SecretStr(api.runtime.redis))
    asked = api.event(card_id="asked", terminal_id="t1")
    first = api.post("/v1/score", asked).body
    for n in range(1, 6):
        other = api.event(card_id="asked", terminal_id="t1", event_time=asked["event_time"] - n)
        assert api.post("/v1/events", other).status == 202
    eventually(lambda: api.features(entities={"card_id": "asked"})["views"][0]["values"]["card_count_1d"] == 5)
    second = api.post("/v1/score", asked).body
    assert second["fingerprint"] != first["fingerprint"]
    published = api.event(card_id="asked", terminal_id="t2")
    assert api.post("/v1/events", published).status == 202
    eventually(lambda: logged(api, "predictions", published["event_id"]))
    known = api.post("/v1/score", published).body
    late = api.post("/v1/score", {**api.event(card_id="asked"), "event_time": asked["event_time"] - 3 * DAY_MS}).body
    assert late["late"]
    told = Counter(answer["event_id"] for answer in (first, second, known, late))  # an answer does not wait for its place in the log
    answered = partial(read_topic, api.runtime.kafka, "predictions.answered")
    eventually(lambda: told <= Counter(msgspec.json.decode(message.value())["event_id"] for message in answered()))
    archive(settings, api.runtime.kafka, spark)
    table = spark.read.format("delta").load(bronze_path(settings))
    answers = table.where("topic = 'predictions.answered'")
    found = parity(settings, SERVICE, spark, answers=True)
    assert found.unexplained == 0, found.examples
    assert found.predictions == answers.count() == found.exact + found.in_flight + found.degraded
    assert found.exact > 0
    assert found.duplicates == 0
    assert parity(settings, SERVICE, spark).unexplained == 0, "what was answered is none of the log's predictions"
    row = answers.orderBy("arrival_ms").tail(1)[0]
    forged = {**json.loads(row.value), "features": [7.0, *json.loads(row.value)["features"][1:]]}
    (spark.createDataFrame([(*row[:2], row.offset + 1, *row[3:5], json.dumps(forged).encode(), row.headers)],
                           table.schema)
     .write.format("delta").mode("append").save(bronze_path(settings)))
    write_text(spark, complete_path(settings), str(newest_version(spark, settings)))
    assert parity(settings, SERVICE, spark, answers=True).unexplained == 1
    explained = explain(settings, first["prediction_id"], answer=True)
    assert explained["logged"]["topic"] == "predictions.answered"
    view = explained["views"][0]
    assert (view["verdict"] in ("exact", "in_flight"), view["counted"]["card_count_1d"]) == (True, 6)
    assert [event["event_id"] for event in view["events"] if event["state"] == "scored"] == [asked["event_id"]]
    assert explained["request"]["follows"] is True
    led = why(settings, first["prediction_id"])[0]
    assert led.causes[0].says.startswith("asked about by request")
    with pytest.raises(JobError, match="no archived prediction"):
        explain(settings, first["prediction_id"])
