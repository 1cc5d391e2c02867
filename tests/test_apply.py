"""A changed definition from plan to switch and back, on real engines, while workers and a scorer run."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis
from confluent_kafka import Producer
from pydantic import SecretStr

from feature_repo import use_cases
from feature_repo.bundle import promote
from feature_repo.fraud import CARD_SPEND, SERVICE, TERMINAL_RISK
from feature_repo.layout import hash_id, hash_text
from feature_repo.online import SetReader
from feature_repo.oracle import Record, feature_values
from feature_repo.vector import VectorBuilder
from feature_repo.version_keys import VersionKeys
from feature_repo.versions import Registry, adopted, building, read_registry, write_registry
from feature_repo.views import HOUR_MS, FeatureService
from schemas.envelope import clock
from schemas.errors import DefinitionError
from schemas.fraud import OUTCOMES, PREDICTIONS, TRANSACTIONS, Transaction
from schemas.settings import Settings
from services.cli import main
from services.judge import Judge
from services.ledger import read_topic
from services.runtime.embedded import Runtime
from services.scoring import Arrived
from tests.deadline import eventually
from tests.small_model import write_small_model
from tests.test_versions import case, changed

NEW = changed()
VIEW = NEW.views[0]
OLD_NAME, NEW_NAME = CARD_SPEND.versioned_name, VIEW.versioned_name

KILLED = """
import os, signal
from feature_repo import use_cases
from services import applying
from services.cli import main
from tests.test_versions import case, changed
use_cases.USE_CASES = (case(changed()),)
applying.switched = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(["apply"])
"""


class Traffic:
    """Transactions of a few cards in the last hours, sent in portions; what was sent is remembered."""

    def __init__(self, kafka: str) -> None:
        self._producer = Producer({"bootstrap.servers": kafka})
        self._random = np.random.default_rng(3)
        self.sent: list[Transaction] = []

    def send(self, number: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        for _ in range(number):
            r = self._random
            event = Transaction(f"t{len(self.sent)}", now_ms - int(r.integers(0, 20 * HOUR_MS)) // int(r.choice([1, 60])),
                                f"c{r.integers(6)}", f"p{r.integers(4)}", int(r.integers(1, 100_000)))
            self.sent.append(event)
            self._producer.produce(TRANSACTIONS, msgspec.json.encode(event), event.card_id.encode())
        assert self._producer.flush(30) == 0


def signed(word: int) -> int:
    return int(np.uint64(word).astype(np.int64))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Settings, Traffic, redis.Redis]]:
    home = Settings(home=tmp_path / "home", kafka=None, redis=None, partitions=2)
    with Runtime(home, roles=("worker", "scorer")) as runtime:
        settings = home.model_copy(update={"kafka": runtime.kafka, "redis": SecretStr(runtime.redis)})
        for name, value in (("HOME", str(home.home)), ("KAFKA", runtime.kafka), ("REDIS", runtime.redis), ("PARTITIONS", "2")):
            monkeypatch.setenv(f"HEADRACE_{name}", value)
        with redis.Redis.from_url(runtime.redis) as store:
            yield settings, Traffic(runtime.kafka), store


def predicted(settings: Settings) -> list[dict[str, Any]]:
    assert settings.kafka is not None
    return [json.loads(message.value()) for message in read_topic(settings.kafka, PREDICTIONS)]


def test_a_version_that_is_being_built_is_fed_by_workers_that_run_already(world: tuple[Settings, Traffic, redis.Redis]) -> None:
    """From the archive's end on, so that the log is not read again; what lies before is known to be missing."""
    settings, traffic, store = world
    traffic.send(100)
    eventually(lambda: len(predicted(settings)) == 100, timeout_s=240)
    assert settings.redis is not None
    keys = VersionKeys(settings.redis.get_secret_value())
    ends = keys.marks(CARD_SPEND)
    registry = write_registry(settings, Registry(), adopted(Registry(), [SERVICE]))
    assert keys.begin(VIEW, {partition: (end // 2, 1) for partition, end in ends.items()})
    assert not keys.begin(VIEW, {0: (0, 0)}), "marks that are there stay"
    assert keys.marks(VIEW) == {partition: end // 2 for partition, end in ends.items()}
    write_registry(settings, registry, building(registry, [VIEW], [NEW]))
    for number in (0, 50):
        traffic.send(number)
        assert keys.passed((CARD_SPEND, VIEW), 60), (keys.marks(CARD_SPEND), keys.marks(VIEW))
        assert keys.passed((VIEW, CARD_SPEND), 60)
    eventually(lambda: sum(keys.marks(VIEW).values()) == 150 - len(ends))
    assert keys.shortages(VIEW) == {partition: (end // 2 + 1, 1) for partition, end in ends.items()}
    size = 8 * VIEW.record_words
    held = {record[:16] for key in store.scan_iter(f"{NEW_NAME}:{{*") for record in cut(store.get(key), size)}
    assert len(held) == 150 - sum(end // 2 + 1 for end in ends.values())
    keys.close()


def cut(value: Any, size: int) -> list[bytes]:
    return [value[at:at + size] for at in range(0, len(value), size)]


def test_a_changed_view_is_planned_built_switched_rolled_back_and_collected(
    world: tuple[Settings, Traffic, redis.Redis], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    settings, traffic, store = world
    monkeypatch.setattr("os.nice", lambda _: 0)  # of the command's process, not of all tests to come
    traffic.send(300)
    eventually(lambda: len(predicted(settings)) == 300, timeout_s=240)

    def said(command: list[str], code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*command, "--json"]) == code, capsys.readouterr()
        return json.loads(capsys.readouterr().out)

    assert said(["plan"], 8)["adopt"] == ["fraud"]
    assert said(["apply"])["adopted"] == ["fraud"]
    assert said(["plan"])["changes"] is False
    hasty = dataclasses.replace(NEW, views=tuple(dataclasses.replace(view, max_skew_ms=1) for view in NEW.views))
    monkeypatch.setattr(use_cases, "USE_CASES", (case(hasty),))
    assert main(["apply"]) == DefinitionError.exit_code
    assert "max_skew_ms" in capsys.readouterr().err
    monkeypatch.setattr(use_cases, "USE_CASES", (case(NEW),))
    plan = said(["plan"], 8)
    (view,) = plan["services"][0]["views"]
    assert (view["added"], view["old"], view["new"]) == (["card_amount_sum_1d"], OLD_NAME, NEW_NAME)
    assert plan["builds"][0]["beside"] == OLD_NAME
    assert plan["builds"][0]["keys"] > 0
    keys = set(store.keys())
    promote(settings.models, write_small_model(settings.models, "old", SERVICE))
    assert plan_models(said(["plan"], 8)) == ("old", None)
    write_small_model(settings.models, "new", NEW)
    assert plan_models(said(["plan"], 8)) == ("old", "fraud/new")

    busy = threading.Event()  # traffic does not wait for any of this

    def keep_busy() -> None:
        while not busy.wait(0.2):
            traffic.send(5)

    sender = threading.Thread(target=keep_busy)
    sender.start()
    try:
        killed = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=400)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        registry = read_registry(settings)
        assert (registry.versions[OLD_NAME].state, registry.versions[NEW_NAME].state) == ("live", "building")
        assert use_cases.services(settings)[0].views[0].versioned_name == OLD_NAME
        assert store.exists(f"{NEW_NAME}:{{c1}}"), "it was killed behind the bootstrap"
        check_the_leaving_model_serves(settings)
        done = said(["apply"])
    finally:
        busy.set()
        sender.join()
    assert done["switched"], done
    assert read_registry(settings).champions == {"fraud": "fraud/old"}, "although the new one was promoted already when it was killed"
    (compared,) = done["compared"]
    assert (compared["different"], len(compared["features"])) == (0, len(CARD_SPEND.features) - 2)
    assert compared["values"] > 1000
    assert set(done["built"][0]["warm_fraction"]) == {str(f.window_ms) for f in VIEW.features}
    assert done["built"][0]["short_of"] == {}

    traffic.send(50)
    eventually(lambda: len(predicted(settings)) == len(traffic.sent))
    eventually(lambda: scored_by(settings, traffic, NEW.definition_hash))
    assert {p["service_hash"] for p in predicted(settings)} == {SERVICE.definition_hash, NEW.definition_hash}
    assert last_model(settings, traffic) == "new"
    check_values(settings, traffic)

    back = said(["apply", "--rollback", "--grace", "0"])
    assert OLD_NAME in back["live"]
    assert back["retired"] == [NEW_NAME]
    eventually(lambda: scored_by(settings, traffic, SERVICE.definition_hash))
    assert last_model(settings, traffic) == "old"
    assert read_registry(settings).champions == {"fraud": "fraud/new"}
    gone = said(["apply", "--collect"])
    assert gone["versions"] == [NEW_NAME]
    assert not list(store.scan_iter(f"*{NEW_NAME}*"))
    assert keys <= set(store.keys()), "and nothing else"
    traffic.send(20)
    eventually(lambda: len(predicted(settings)) == len(traffic.sent))
    assert not list(store.scan_iter(f"*{NEW_NAME}*")), "nobody writes to it any more"
    assert said(["apply", "--collect"])["removed"] == []


def test_a_view_over_a_topic_that_is_still_silent_is_switched_on_a_fresh_live_system(
    world: tuple[Settings, Traffic, redis.Redis], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    """Outcomes hold nothing but the clock records that idle partitions are told the time by: that is a whole history, and no short one."""
    settings, traffic, _ = world
    monkeypatch.setattr("os.nice", lambda _: 0)
    traffic.send(50)
    eventually(lambda: len(predicted(settings)) == 50, timeout_s=240)
    assert settings.kafka is not None
    outcomes = eventually(lambda: heard if len(heard := list(read_topic(settings.kafka, OUTCOMES))) == 2 else [])
    assert {(message.partition(), message.offset(), clock(message.headers())) for message in outcomes} == {(0, 0, True), (1, 0, True)}
    assert main(["apply", "--json"]) == 0
    risk = dataclasses.replace(TERMINAL_RISK, features=TERMINAL_RISK.features[1:])
    views = tuple(risk if view is TERMINAL_RISK else view for view in SERVICE.views)
    monkeypatch.setattr(use_cases, "USE_CASES", (case(dataclasses.replace(SERVICE, views=views)),))
    capsys.readouterr()
    assert main(["apply", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["switched"], done["built"][0]["short_of"]) == (True, {}), done
    traffic.send(1)
    eventually(lambda: scored_by(settings, traffic, use_cases.services(settings)[0].definition_hash))


def plan_models(plan: Any) -> tuple[str, str | None]:
    (model,) = plan["models"]
    return model["champion"], model["ready"]


def check_the_leaving_model_serves(settings: Settings) -> None:
    """The new model is promoted, the old features are live: a scorer that starts now has the old model."""
    assert (settings.models / "fraud" / "champion.json").read_text().count("fraud/new") == 1
    judge, event = Judge(settings, None), Transaction("e", 1, "c1", "p1", 1)
    judge.refresh(lambda: None)
    (scored,) = judge.predict([Arrived(event, 0, 0, 1, False)], None, 1)
    assert json.loads(scored.value)["model_version"] == "old"


def last_model(settings: Settings, traffic: Traffic) -> str:
    return {p["event_id"]: p["model_version"] for p in predicted(settings)}[traffic.sent[-1].event_id]


def scored_by(settings: Settings, traffic: Traffic, service_hash: str) -> bool:
    """Send a few, and see by which features the last of them was scored."""
    traffic.send(4)
    eventually(lambda: len(predicted(settings)) == len(traffic.sent))
    served = {p["event_id"]: p["service_hash"] for p in predicted(settings)}
    return served[traffic.sent[-1].event_id] == service_hash


def check_values(settings: Settings, traffic: Traffic) -> None:
    """The new version's sets give the oracle's values over everything that was sent."""
    assert settings.redis is not None
    history = defaultdict(list)
    for event in traffic.sent:
        columns = (event.amount_minor, signed(hash_text(event.terminal_id)))
        history[event.card_id].append((event, Record(event.event_time, signed(hash_id(event.event_id)), columns)))
    reader = SetReader(settings.redis.get_secret_value(), 5000, settings.partitions)
    builder = VectorBuilder(FeatureService("check", TRANSACTIONS, (VIEW,)))
    try:
        vectors = builder.build(traffic.sent, reader.read(builder.wanted(traffic.sent))).matrix
    finally:
        reader.close()
    for event, row in zip(traffic.sent, vectors, strict=True):
        records = [record for _, record in history[event.card_id]]
        own = next(record for other, record in history[event.card_id] if other is event)
        expected = feature_values(VIEW, records, event.event_time, own)
        assert np.array_equal(row, expected, equal_nan=True), (event, row, expected)
