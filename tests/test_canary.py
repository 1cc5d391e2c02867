"""A canary in the scorers: sticky, with the shares that were asked for, the same by both paths, and harmless where its version is not."""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_repo.bundle import Model, load_bundle
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.vector import VectorBuilder
from schemas.fraud import Prediction, Transaction
from schemas.releases import BUCKETS
from schemas.settings import Settings
from schemas.topics import answered_topic
from services.canary import Split, bucket
from services.ledger import read_topic
from services.release_log import ReleaseLog
from services.release_machine import Move
from services.releasing import read_chain
from services.retrain_hold import wait_served
from services.scoring import Arrived, predict
from tests.api_world import Api, api_world
from tests.deadline import eventually
from tests.small_model import promote_small_model, write_small_model


@given(st.text(min_size=1, max_size=20), st.lists(st.integers(1, BUCKETS), min_size=2, max_size=5, unique=True).map(sorted))
def test_who_is_in_stays_in(entity: str, shares: list[int]) -> None:
    inside = [bucket("salt", entity) < share for share in shares]
    assert inside == sorted(inside)


@pytest.mark.parametrize("share", [100, 500, 2500, 5000])
def test_shares_are_those_asked_for_and_another_canary_takes_others(share: int) -> None:
    n, p = 40_000, share / BUCKETS
    first, second = ({i for i in range(n) if bucket(salt, f"card-{i}") < share} for salt in ("a", "b"))
    spread = 5 * math.sqrt(n * p * (1 - p))
    assert abs(len(first) - n * p) < spread
    assert abs(len(first & second) - n * p * p) < 5 * math.sqrt(n * p * p) + 5, "independent of the canary before"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    home = tmp_path_factory.mktemp("models") / "models"
    champion = promote_small_model(home, "1")
    return champion, load_bundle(write_small_model(home, "2", SERVICE, threshold=0.25, defaults={"card_count_1d": 9.0}), SERVICE,
                                 home.parent / "keys")


def scored(models: tuple[Model, Model], split: Split | None, n: int = 400) -> list[Prediction]:
    batch = [Arrived(Transaction(f"e{i}", 1_000 + i, f"c{i % 97}", f"t{i % 11}", i), 0, i, 2_000, False) for i in range(n)]
    return [msgspec.json.decode(one.value, type=Prediction)
            for one in predict("fraud", VectorBuilder(SERVICE), batch, None, models[0], 0, 3, split)]


def test_each_event_is_scored_by_one_version_with_that_ones_threshold_and_defaults(models: tuple[Model, Model]) -> None:
    split = Split(attrgetter("card_id"), "s", 3000, models[1])
    alone, beside = ([scored((model, model), None), model] for model in models)
    found = scored(models, split)
    for at, one in enumerate(found):
        own, model = beside if bucket("s", one.card_id) < 3000 else alone
        assert (one.score, one.threshold, one.features) == (own[at].score, own[at].threshold, own[at].features)
        assert (one.model_version, one.candidate, one.epoch) == (model.version, model is models[1], 3)
    assert 0 < sum(one.candidate for one in found) < len(found)


class Fails:
    """A candidate whose scores are none."""

    version, threshold = "2", 0.5
    defaults = np.zeros(len(SERVICE.feature_names))

    def score(self, matrix: Any) -> Any:
        return np.full(len(matrix), np.nan)


@pytest.mark.parametrize("candidate", [None, Fails()], ids=["not loaded", "gives no number"])
def test_where_the_candidate_fails_the_champion_scores_its_events_too(models: tuple[Model, Model], candidate: Any) -> None:
    found = scored(models, Split(attrgetter("card_id"), "s", BUCKETS, candidate))
    assert {(one.model_version, one.candidate) for one in found} == {("1", False)}
    assert all(one.score is not None for one in found)


def logged(api: Api, topic: str, events: list[dict[str, Any]]) -> dict[str, Prediction]:
    """What was predicted of ``events`` by now."""
    wanted, decode = {event["event_id"] for event in events}, msgspec.json.Decoder(Prediction).decode
    rows = (decode(message.value()) for message in read_topic(api.runtime.kafka, topic))
    return {row.event_id: row for row in rows if row.event_id in wanted}


def sent(api: Api, cards: list[str]) -> list[dict[str, Any]]:
    """An event of each, through the log; scored when this returns."""
    events = [api.event(card_id=card) for card in cards]
    assert {api.post("/v1/events", event).status for event in events} == {202}
    eventually(lambda: len(logged(api, "predictions", events)) == len(events))
    return events


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with api_world(tmp_path_factory.mktemp("canary") / "home", roles=("worker", "scorer", "guard", "api")) as api:
        write_small_model(api.home / "models", "2", SERVICE, threshold=0.25)
        sent(api, [f"first-{i}" for i in range(30)])  # all partitions: what serves them is known from here on
        yield api


def act(api: Api, action: Any, **told: Any) -> Any:
    log = ReleaseLog(api.runtime.kafka)
    try:
        live = log.catch_up().current("fraud")
        return log.act(Move(action, f"test:{live.epoch if live else 0}", "fraud", "person", live.at_ms if live else 0, "a test", **told))
    finally:
        log.close()


def test_a_canary_is_sticky_and_the_same_by_http_and_by_kafka(api: Api) -> None:
    release = act(api, "canary", version="2", steps=(2000, 6000), alpha=1e-12)  # its alerts are another's: not to be judged here
    salt = release.canary.salt
    cards = [f"card-{i}" for i in range(120)]
    for share in (2000, 6000):
        eventually(lambda share=share: api.get("/version").body["models"]["fraud"]["canary"] == ["2", share])  # type: ignore[misc]
        epoch = api.get("/version").body["models"]["fraud"]["epoch"]
        wait_served(Settings(home=api.home), api.runtime.endpoints, "fraud")
        events = sent(api, [card for card in cards for _ in range(2)])
        asked = {event["event_id"]: api.post("/v1/score", event).body for event in events}
        by_log, by_request = logged(api, "predictions", events), eventually(
            lambda events=events: (found := logged(api, answered_topic("predictions"), events)) and len(found) == len(events) and found)
        versions: dict[str, set[str]] = defaultdict(set)
        for event in events:
            name = event["event_id"]
            kafka, http = by_log[name], asked[name]
            versions[event["card_id"]] |= {kafka.model_version, http["model_version"], by_request[name].model_version}
            assert (kafka.epoch, http["epoch"], kafka.prediction_id) == (epoch, epoch, http["prediction_id"])
            assert kafka.threshold == http["threshold"]
            assert kafka.candidate == (kafka.model_version == "2")
        assert {card: {"2" if bucket(salt, card) < share else "1"} for card in cards} == versions, "one version a card, by any path"
        mine, p = sum(told == {"2"} for told in versions.values()), share / BUCKETS
        assert abs(mine - len(cards) * p) < 4 * math.sqrt(len(cards) * p * (1 - p))
        act(api, "advance")
    eventually(lambda: api.served() == ("2", epoch + 1))
    act(api, "rollback")
    eventually(lambda: api.served() == ("1", epoch + 2))


def test_a_candidate_that_no_scorer_can_load_is_taken_back_and_no_event_is_lost(api: Api) -> None:
    folder = write_small_model(api.home / "models", "3", SERVICE)
    (folder / "model.onnx").write_bytes(b"")
    before = act(api, "champion", version="1").epoch
    api.runtime.hold("guard")  # until all have been answered: it needs few of them
    began = act(api, "canary", version="3", steps=(5000,))
    eventually(lambda: api.get("/version").body["models"]["fraud"]["canary"] == [None, 5000])
    answers = [api.post("/v1/score", api.event(card_id=f"lost-{i}")).body for i in range(80)]
    api.runtime.release("guard")
    assert {(one["model_version"], one["epoch"]) for one in answers} == {("1", began.epoch)}
    assert began.epoch == before + 1

    def live() -> Any:
        return read_chain(api.runtime.kafka).current("fraud")

    ended = eventually(lambda: live().epoch > began.epoch and live())
    assert (ended.action, ended.by, ended.champion, ended.canary) == ("rollback", "guard", "1", None)
    assert ended.why.startswith("errors:")
    eventually(lambda: api.served() == ("1", ended.epoch))


def test_a_rollback_reaches_every_server_and_no_answer_is_half_of_two_releases(api: Api) -> None:
    """How long it takes is told, and far from the bound that a busy machine is given."""
    settings = Settings(home=api.home)
    act(api, "champion", version="2")
    wait_served(settings, api.runtime.endpoints, "fraud")
    eventually(lambda: api.served()[0] == "2")
    stop, answers = threading.Event(), list[tuple[str, int]]()

    def ask() -> None:
        while not stop.is_set():
            answers.append(api.served())

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        eventually(lambda: answers)
        release, began = act(api, "rollback"), time.monotonic()
        wait_served(settings, api.runtime.endpoints, "fraud")
        by_scorers = time.monotonic() - began
        eventually(lambda: api.served() == ("1", release.epoch))
        by_http = time.monotonic() - began
        eventually(lambda: answers[-1][1] == release.epoch)
        stop.set()
        for each in asking:
            each.result()
    history = {each.epoch: each.champion for each in read_chain(api.runtime.kafka).history("fraud")}
    assert {(history[epoch], epoch) for _, epoch in answers} == set(answers), "each answer is of one release"
    assert len({epoch for _, epoch in answers}) == 2
    print(f"rolled back on all scorers after {by_scorers:.2f} s, by HTTP after {by_http:.2f} s, {len(answers)} answers meanwhile")


def test_the_split_names_an_entity_that_every_model_has() -> None:
    assert attrgetter(FRAUD.subject)(Transaction("e", 1, "c9", "t", 1)) == "c9"
