"""A release is taken back when labels show that what it replaced was better, and only then; killed anywhere, there is one answer."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import redis
from confluent_kafka import Producer
from pydantic import SecretStr

from feature_repo.bundle import champion
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.join_marks import joined_ms_key
from feature_repo.views import DAY_MS, HOUR_MS
from jobs.registry import tracking_client
from schemas.evaluations import EVALUATIONS, Evaluation, evaluation_id
from schemas.fraud import Outcome
from schemas.releases import ROLLBACK, Release
from schemas.settings import Settings
from schemas.shadow import ShadowScore, shadow_id
from schemas.topics import shadow_topic, valid_topic
from services.cli import main
from services.ledger import end_offsets
from services.publisher import Publisher
from services.release_log import ReleaseLog
from services.releasing import read_chain
from services.reverse_shadow import ReverseShadow
from services.runtime.embedded import Runtime
from services.shadow_list import TAKEN_BACK, maturity_ms
from tests.deadline import eventually
from tests.rollback_faults import POINTS, die, look_once
from tests.shadow_world import PARTITIONS, START_MS
from tests.small_model import Learnt, register_small_model
from tests.test_faults import caught_up
from tests.world_check import publish, small_world

AGE_MS = maturity_ms(FRAUD)
HONEST = 30_000
"""Minor units: payments above are fraud in these worlds."""


def learnt(limit: int, wrong: float, seed: int) -> Learnt:
    """Rows of which those with an amount above ``limit`` minor units are positive, but for a share of ``wrong`` ones."""
    r = np.random.default_rng(seed)
    rows = r.normal(10, 10, size=(1_500, len(SERVICE.feature_names)))
    amount = rows[:, SERVICE.feature_names.index("amount")] = r.uniform(0, 500, 1_500)
    return rows, ((amount > limit / 100) ^ (r.random(1_500) < wrong)).astype(int)


def history(kafka: str) -> list[Release]:
    return read_chain(kafka).history(FRAUD.name)


@pytest.mark.slow
def test_a_worse_release_is_taken_back_as_labels_mature_and_an_equal_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                                capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(home=tmp_path, time="replay")
    with Runtime(settings, ("worker", "loop", "scorer", "shadow")) as runtime:
        for name, value in (("HOME", tmp_path), ("KAFKA", runtime.kafka), ("REDIS", runtime.redis), ("TIME", "replay")):
            monkeypatch.setenv(f"HEADRACE_{name}", str(value))
        lessons = (HONEST - 2_000, 0.02), (HONEST + 2_000, 0.02), (HONEST, 0.4)  # too eager, as much too slow, and bad
        assert [register_small_model(settings, learnt(*lesson, seed)) for seed, lesson in enumerate(lessons)] == ["1", "2", "3"]
        r, producer = random.Random(8), Producer({"bootstrap.servers": runtime.kafka, "acks": "all", "enable.idempotence": True})
        clocks = Publisher(runtime.kafka, ["transactions", "outcomes"])
        sent = small_world(3_400, seed=8, cards=500, step_ms=480_000).transactions  # of 19 days
        outcomes = [(Outcome(event.event_id, event.event_time, event.card_id, event.terminal_id,
                             (event.amount_minor > HONEST) != (r.random() < 0.03)), arrival + 7 * DAY_MS) for event, arrival in sent]

        def send(first: int, last: int) -> None:
            publish(producer, "transactions", sent[first:last])
            assert producer.flush(60) == 0
            eventually(lambda: caught_up(runtime))

        def release(version: str) -> Release:
            assert main(["release", "champion", f"fraud@{version}", "--why", "by force", "--json"]) == 0, capsys.readouterr().err
            return msgspec.convert(msgspec.json.decode(capsys.readouterr().out)["released"], Release)

        def shadow_log() -> str:
            return (tmp_path / "logs" / "shadow.log").read_text()

        assert release("1").epoch == 1
        send(0, 100)
        assert release("2").previous == "1"  # as good
        send(100, 1_700)
        assert release("3").previous == "2"  # learnt from labels many of which are wrong
        send(1_700, 1_750)
        os.kill(eventually(lambda: runtime.pid("shadow")), signal.SIGKILL)
        send(1_750, 3_400)
        eventually(lambda: sum(end for _, end in end_offsets(runtime.kafka, shadow_topic(SERVICE.predictions)).values()) > 2_800)
        publish(producer, "outcomes", outcomes[:1_700])
        assert producer.flush(60) == 0
        assert [each.champion for each in history(runtime.kafka)] == ["1", "2", "3"], "no label of the third has come"
        publish(producer, "outcomes", outcomes[1_700:])
        assert producer.flush(60) == 0
        for source in ("transactions", "outcomes"):
            clocks.clock(source, outcomes[-1][1] + 20 * DAY_MS)
        clocks.flush()
        taken_back = eventually(lambda: history(runtime.kafka)[3:])[0]
        assert (taken_back.champion, taken_back.previous, taken_back.by) == ("2", "3", "reverse shadow")
        assert taken_back.release_id.startswith(ROLLBACK)
        (evidence,) = (tmp_path / "tables" / "rollbacks" / "fraud").glob("*.json")
        facts = msgspec.json.decode(evidence.read_bytes())
        assert (taken_back.evidence or "").startswith(evidence.stem)
        assert facts["e_value"] >= facts["enough"] == 400
        assert facts["wrong"] > facts["subjects"] / 2
        eventually(lambda: (live := champion(settings.models, FRAUD.name)) and live.name == "2")

        # Both are seen by who asks, and the equal one, tried on as many labels, stayed until a person released over it.
        def compared(first: str, second: str) -> Any:
            capsys.readouterr()
            assert main(["models", "compare", f"fraud@{first}", f"fraud@{second}", "--shadow", "--json"]) == 0, capsys.readouterr().err
            return msgspec.json.decode(capsys.readouterr().out)

        worse, equal = compared("2", "3"), compared("1", "2")
        assert worse["loss"]["of_first_disagreements"]["low"] > 0
        assert equal["loss"]["of_first_disagreements"]["low"] < 0 < equal["loss"]["of_first_disagreements"]["high"]
        assert equal["matured"] > 1_000
        assert equal["loss"]["disagreeing_subjects"] > 50
        found = {name: (each["pairs"], each["matured"], each["loss"]) for name, each in (("worse", worse), ("equal", equal))}

        # Control: what is as good, released again, is kept to the end of its trial.
        capsys.readouterr()
        assert release("1").previous == "2"
        more = [(msgspec.structs.replace(event, event_id=f"again-{event.event_id}", event_time=event.event_time + 37 * DAY_MS),
                 arrival + 37 * DAY_MS) for event, arrival in sent[1_700:]]
        told = [(msgspec.structs.replace(outcome, event_id=f"again-{outcome.event_id}", event_time=outcome.event_time + 37 * DAY_MS),
                 arrival + 37 * DAY_MS) for outcome, arrival in outcomes[1_700:]]
        publish(producer, "transactions", more)
        assert producer.flush(60) == 0
        eventually(lambda: caught_up(runtime))
        publish(producer, "outcomes", told)
        assert producer.flush(60) == 0
        for source in ("transactions", "outcomes"):
            clocks.clock(source, told[-1][1] + 30 * DAY_MS)
        clocks.flush()
        line = eventually(lambda: next((each for each in shadow_log().splitlines() if "trial over" in each and "kept=1" in each), ""))
        print(taken_back.why, found, line, sep="\n")
        assert int(line.split("subjects=")[1].split()[0]) > 50, "there was something to judge by"
        assert [each.champion for each in history(runtime.kafka)] == ["1", "2", "3", "2", "1"]


class Bench:
    """Pairs and evaluations as processes publish them, of trials in which the live version is wrong wherever the two disagree."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self.settings = settings.model_copy(update={"kafka": runtime.kafka, "redis": SecretStr(runtime.redis)})
        self._log, self._n = ReleaseLog(runtime.kafka), 0
        self._store = redis.Redis.from_url(runtime.redis)

    def trial(self, at_ms: int, good: str, bad: str, wrong: float = 1.0) -> Release:
        """``bad`` replaces ``good``; the labels of 60 disagreements, one every three hours, have come of age."""
        for version in (good, bad):
            self._n += 1
            made = self._log.release(f"r{self._n}", FRAUD.name, version, at_ms, "a test", "test")
        assert made is not None
        r, producer = random.Random(self._n), Producer({"bootstrap.servers": self._runtime.kafka})
        for n in range(60):
            name, time_ms, label = f"p{self._n}-{n}", at_ms + 3 * n * HOUR_MS, r.random() < wrong
            pair = ShadowScore(shadow_id(name, good), name, f"e{name}", time_ms, f"c{n}", FRAUD.name, good, 0.9, 0.5, True, bad,
                               made.epoch, 0.1, 0.5, False, False, time_ms)
            said = Evaluation(evaluation_id(name, 0), name, f"e{name}", time_ms, f"c{n}", FRAUD.name, bad, 0.1, 0.5, False, False, label,
                              None, 0, time_ms, time_ms + 5, time_ms + 5)
            for topic, value in ((shadow_topic(SERVICE.predictions), pair), (EVALUATIONS, said)):
                producer.produce(topic, msgspec.json.encode(value), partition=n % PARTITIONS, timestamp=time_ms)
        assert producer.flush(30) == 0
        for topic in (SERVICE.predictions, valid_topic("outcomes")):
            self._store.hset(joined_ms_key(topic), mapping=dict.fromkeys(map(str, range(PARTITIONS)), at_ms + 3 * AGE_MS))
        return made

    def look(self) -> Any:
        judge = ReverseShadow(self.settings, FRAUD)
        try:
            return judge.look()
        finally:
            judge.close()

    def one_answer(self, version: str, rolled_back: int) -> None:
        found = history(self._runtime.kafka)
        assert found[-1].champion == version
        assert len([each for each in found if each.release_id.startswith(TAKEN_BACK)]) == rolled_back
        live = champion(self.settings.models, FRAUD.name)
        assert live is not None
        assert live.name == version
        with tracking_client(self.settings) as client:
            assert str(client.get_registered_model(FRAUD.name).aliases["champion"]) == version


def test_killed_at_every_point_of_a_rollback_there_is_one_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(home=tmp_path, time="replay")
    assert [register_small_model(settings) for _ in range(2)] == ["1", "2"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rollback_faults", "jobs.registry"])
    with Runtime(settings, roles=()) as runtime:
        bench = Bench(runtime, settings)
        for point in range(POINTS):
            bench.trial(START_MS + point * 100 * DAY_MS, "1", "2")
            judge = context.Process(target=die, args=(bench.settings, point))
            judge.start()
            judge.join(120)
            assert judge.exitcode == -signal.SIGKILL, point
            assert len(history(runtime.kafka)) == 3 * point + (3 if point > 2 else 2), "written or not, never half"
            bench.look()
            bench.one_answer("1", point + 1)
            assert bench.look() is None, "after a rollback there is nothing to judge"

        for name, value in (("HOME", tmp_path), ("KAFKA", runtime.kafka), ("REDIS", runtime.redis)):
            monkeypatch.setenv(f"HEADRACE_{name}", str(value))
        capsys.readouterr()
        for matches, damage in ((True, ""), (False, " ")):
            for file in (tmp_path / "tables" / "rollbacks" / "fraud").iterdir():
                file.write_text(file.read_text() + damage)
            assert main(["why", "fraud@3", "--json"]) == 0, capsys.readouterr().err
            assert f'"matches": {str(matches).lower()}' in capsys.readouterr().out

        # Several judges at once, and a person who does the same: one of them wins, for everybody.
        bench.trial(START_MS + 800 * DAY_MS, "1", "2")
        judges = [context.Process(target=look_once, args=(bench.settings,)) for _ in range(2)]
        for each in judges:
            each.start()
        for each in judges:
            each.join(120)
        assert [each.exitcode for each in judges] == [0, 0]
        bench.one_answer("1", 8)

        # As good: labels are against either as often. Paused, only people release. A person who went back has answered already.
        bench.trial(START_MS + 900 * DAY_MS, "1", "2", wrong=0.5)
        found = bench.look()
        assert (len(found.ids), found.worse) == (60, False)
        log = ReleaseLog(runtime.kafka)
        bench.trial(START_MS + 1_000 * DAY_MS, "1", "2")
        log.release("hold", FRAUD.name, "2", START_MS + 1_001 * DAY_MS, "", "person", paused=True)
        assert bench.look().worse
        assert history(runtime.kafka)[-1].champion == "2"
        log.release("go on", FRAUD.name, "2", START_MS + 1_001 * DAY_MS, "", "person", paused=False)
        assert bench.look().worse
        bench.one_answer("1", 9)
        bench.trial(START_MS + 1_100 * DAY_MS, "1", "2")
        log.release(f"{ROLLBACK}person", FRAUD.name, "1", START_MS + 1_101 * DAY_MS, "", "person")
        assert bench.look() is None
        assert len([each for each in history(runtime.kafka) if each.release_id.startswith(TAKEN_BACK)]) == 9
        log.close()

