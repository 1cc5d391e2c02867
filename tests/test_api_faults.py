"""The HTTP API while Redis or Kafka hangs, is down, or it is killed itself: bounded answers, and no prediction that was told is lost."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from feature_repo.fraud import SERVICE
from schemas.errors import LogError
from schemas.fraud import Prediction
from services.api.__main__ import DRAIN_S
from services.ledger import read_topic
from tests.api_world import DEFAULTS, Answer, Api, api_world
from tests.deadline import eventually
from tests.world_check import as_floats

TIMEOUT_MS = 1_000
PATIENCE_S = 13.0
"""Many times the timeout: what is asserted is that nobody waits for a store that does not answer, not how fast this machine is."""


@pytest.fixture
def api(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Api]:
    """Its spool holds 1 MiB, so that it can be filled, or what the test says, where Kafka may hesitate under load."""
    with api_world(tmp_path / "home", ("api",), api_spool_mb=getattr(request, "param", 1), redis_timeout_ms=TIMEOUT_MS) as api:
        yield api


@contextmanager
def stopped(api: Api, name: str) -> Iterator[None]:
    """The process stands still: connections stay, answers do not come."""
    pid = api.runtime.pid(name)
    assert pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def killed(api: Api, name: str) -> Iterator[None]:
    pid = api.runtime.pid(name)
    assert pid
    os.kill(pid, signal.SIGKILL)
    api.runtime.hold(name)
    yield
    api.runtime.release(name)


def published(api: Api) -> list[str]:
    decode = msgspec.json.Decoder(Prediction).decode
    try:
        return [decode(message.value()).prediction_id for message in read_topic(api.runtime.kafka, "predictions.answered", 5.0)]
    except LogError:
        return []  # the broker is not back yet


def batch(api: Api, n: int = 40) -> Answer:
    return api.post("/v1/score:batch", {"events": [api.event() for _ in range(n)]})


def ids(answer: Answer) -> list[str]:
    return [one["prediction_id"] for one in answer.body["predictions"]]


def state(api: Api) -> dict[str, Any]:
    return dict(api.get("/readyz").body)


@pytest.mark.parametrize("fault", [stopped, killed])
def test_without_redis_answers_are_degraded_and_in_time(api: Api, fault: Any) -> None:
    assert not api.post("/v1/score", api.event()).body["degraded"], "the control"
    with fault(api, "redis"):
        for _ in range(30):
            began = time.monotonic()
            answer = api.post("/v1/score", event := api.event())
            assert time.monotonic() - began < PATIENCE_S
            assert (answer.status, answer.body["degraded"], answer.headers["headrace-degraded"]) == (200, True, "true")
        assert state(api)["store"] == {"fraud": False}
        found = eventually(lambda: [p for m in read_topic(api.runtime.kafka, "predictions.answered")
                                    if (p := msgspec.json.decode(m.value(), type=Prediction)).event_id == event["event_id"]])
        vector = dict(zip(SERVICE.feature_names, as_floats(found[0].features).tolist(), strict=True))
        assert {name: vector[name] for name in DEFAULTS} == DEFAULTS
        assert np.isnan(vector["card_count_30d"])
    eventually(lambda: state(api)["store"] == {"fraud": True})
    assert not api.post("/v1/score", api.event()).body["degraded"]


def test_many_at_once_wait_no_longer_for_a_hung_redis_than_one(api: Api) -> None:
    """Were each to wait its turn for the timeout, the last of forty would wait forty seconds."""
    batch(api)
    seconds: list[float] = []

    def ask() -> None:
        began = time.monotonic()
        assert api.post("/v1/score", api.event()).status == 200
        seconds.append(time.monotonic() - began)

    with stopped(api, "redis"):
        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seconds) == 40
    assert max(seconds) < PATIENCE_S


@pytest.mark.parametrize("fault", [stopped, killed])
def test_without_kafka_predictions_are_spooled_then_refused_and_follow_once_it_is_back(api: Api, fault: Any) -> None:
    told = ids(batch(api))
    eventually(lambda: set(told) <= set(published(api)))
    with fault(api, "kafka"):
        refused: list[Answer] = []
        while not refused:
            answer = batch(api)
            if answer.status == 200:
                told += ids(answer)
            else:
                refused.append(answer)
        assert (refused[0].status, refused[0].reason) == (429, "prediction-log-full")
        assert int(refused[0].headers["retry-after"]) > 0
        eventually(lambda: state(api)["kafka"] is False)
        assert api.get("/readyz").status == 503
        on_disk = eventually(lambda: sum(file.stat().st_size for file in (api.home / "api" / "spool").rglob("*.spool")))
        assert on_disk < 2 << 20, "bounded"
    found = eventually(lambda: (found := set(published(api))) >= set(told) and found)
    assert found == set(told), "nothing that was not told"
    eventually(lambda: batch(api).status == 200)
    eventually(lambda: not list((api.home / "api" / "spool").rglob("*.spool")))


@pytest.mark.parametrize("spool_kept", [True, False])
def test_what_is_spooled_outlives_a_kill(api: Api, spool_kept: bool) -> None:
    """Without the spool, which is the control, it would be lost."""
    with stopped(api, "kafka"):
        batch(api)
        eventually(lambda: state(api)["kafka"] is False)
        told = ids(batch(api))
        with killed(api, "api"):
            if not spool_kept:
                shutil.rmtree(api.home / "api" / "spool")
    after = ids(batch(api))
    eventually(lambda: set(after) <= set(published(api)))
    if spool_kept:
        eventually(lambda: set(told) <= set(published(api)))
    else:
        assert not set(told) & set(published(api))


@pytest.mark.parametrize("api", [64], indirect=True)
def test_a_stop_under_load_answers_every_request_that_was_sent(api: Api) -> None:
    """Clients keep their connections, and go where one is ended; none is cut off in the middle.

    A client that the machine has held up for so long that its connection may have been taken for idle makes another.
    """
    import http.client
    import json

    failed: list[str] = []
    answered = [0]
    refused = threading.Event()

    def load() -> None:
        connection, used = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30), 0.0
        while not refused.is_set():
            if connection.sock is None:
                try:
                    connection.connect()
                except OSError:
                    refused.set()
                    return
                fresh = True
            idle_s = time.monotonic() - used  # of this client itself: how long an answer took is not in it
            try:
                connection.request("POST", "/v1/score", json.dumps(api.event()), {"authorization": f"Bearer {api.key}"})
                response = connection.getresponse()
                answer = response.read()
                answered[0] += response.status == 200
                if response.status != 200:
                    failed.append(f"{response.status} {answer!r}")
                fresh, used = False, time.monotonic()
            except (OSError, http.client.HTTPException) as error:
                if fresh:  # the listener went between the handshake and the first request
                    return
                if idle_s > DRAIN_S / 2:
                    connection.close()
                    continue
                failed.append(repr(error))
                return

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: answered[0] > 300)
    api.runtime.hold("api")
    refused.set()
    for thread in threads:
        thread.join()
    assert failed == []
    log = (api.home / "logs" / "api.log").read_text()
    assert "api ended with 0" in log
    api.runtime.release("api")
    assert api.post("/v1/score", api.event()).status == 200
