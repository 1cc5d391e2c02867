"""A retrain from the ask to the release, on real Kafka, Redis, governor and Spark, with a runner that is killed on the way (P21)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from feature_repo.bundle import champion
from feature_repo.fraud import FRAUD
from jobs import gates
from jobs.archive import bronze_path
from jobs.registry import register, tracking_client
from jobs.retraining import Plan, Verdict
from jobs.train import train
from jobs.training_set import build_training_set
from schemas.errors import LogError
from schemas.monitoring import ASKS, DECISIONS, REQUESTS, RUNS, RetrainAsk, RetrainDecision, RetrainRequest, RunRecord
from schemas.settings import Settings
from services import runner
from services.control_log import ControlLog
from services.leases import ENDED
from services.release_log import ReleaseLog
from services.runner import Runner
from services.runtime.embedded import Runtime
from tests.deadline import eventually
from tests.log_world import serve
from tests.small_model import write_small_model
from tests.test_retraining import at, changing_world, days

DAY = 48


def said(log: ControlLog) -> list[tuple[str, str]]:
    """What the governor decided: (what, retrain)."""
    return [(each.what, each.retrain_id) for _, each in log.records(DECISIONS, RetrainDecision) if each.by == "governor"]


@pytest.mark.slow
def test_a_retrain_is_released_once_although_its_runner_is_killed_again_and_again(spark: Any, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, time="replay")
    world = changing_world(5)
    serve(world, 5)
    with Runtime(settings, ("loop",)) as runtime:
        at_work = settings.model_copy(update={"kafka": runtime.kafka})
        spark.createDataFrame(world.bronze()).coalesce(2).write.format("delta").partitionBy("topic").save(bronze_path(settings))
        learnt, judged = days(0, 8), days(16, 20)
        built = build_training_set(settings, FRAUD, learnt.start_ms, judged.end_ms, engine="process")
        first = register(settings, train(built.path, FRAUD, learnt, judged, settings))
        assert first.alias == "champion"

        log = ControlLog(runtime.kafka)
        for name in ("once", "once", "twice"):  # the same ask again, and another while the first is under way
            offset = log.publish(ASKS, RetrainAsk(name, FRAUD.name, first.version, "a test"), at(DAY))
            answer = log.answer(ASKS, offset, ("requested", "declined"))
            assert answer is not None
            assert answer.what == ("requested" if not offset else "declined")
        (request,) = {each.retrain_id: each for _, each in log.records(REQUESTS, RetrainRequest)}.values()

        environment = {**os.environ, "HEADRACE_HOME": str(tmp_path), "HEADRACE_KAFKA": runtime.kafka, "HEADRACE_TIME": "replay"}
        for until, end in (("claim", signal.SIGKILL), ("evaluating", signal.SIGTERM)):  # it has its lease; its candidate is registered
            with (tmp_path / "runner.log").open("ab") as out, subprocess.Popen(
                    [sys.executable, "-m", "services.runner", "--name", "runner-1"], env=environment, stdout=out, stderr=out) as process:
                eventually(lambda until=until: any(each.what == until for _, each in log.records(RUNS, RunRecord)), 240)
                process.send_signal(end)
                assert process.wait(60) == (0 if end == signal.SIGTERM else -end), "a job that is under way holds up no stop"
        assert not any(each.what in ENDED for _, each in log.records(RUNS, RunRecord)), "and nothing is said of how it ended"
        lines: list[str] = []
        verdict = Runner(at_work, "runner-1", Plan(), lines.append).step(spark)
        assert verdict is not None
        assert verdict.passed, verdict.evidence
        assert verdict.retrain_id == request.retrain_id
        eventually(lambda: ("promoted", request.retrain_id) in said(log))
        assert Runner(at_work, "runner-2", Plan(), lines.append).step(spark) is None, "nothing is left to do"

        decided = dict.fromkeys(said(log))
        assert [what for what, name in decided if name == request.retrain_id and what in ("requested", "started", "promoted")] == [
            "requested", "started", "promoted"], "one lease, found again by the runner's name"
        releases = ReleaseLog(runtime.kafka)
        (release,) = releases.catch_up().history(FRAUD.name)
        releases.close()
        assert (release.release_id, release.champion, release.evidence) == (request.retrain_id, verdict.version, verdict.evidence_hash)
        live: Any = champion(settings.models, FRAUD.name)
        assert live.name == verdict.version
        candidates = {path.name for path in (settings.models / FRAUD.name).iterdir() if path.name.isdigit()} - {first.version}
        assert candidates == {verdict.version}, "one candidate a retrain"
        assert msgspec.json.decode((Path(settings.tables) / f"retrains/fraud/{request.retrain_id}.json").read_bytes())["passed"]


WORK = """
import argparse, threading
from services.process import run_until_stopped

class Work:
    def __init__(self):
        self.stopping = threading.Event()

    def run(self):
        try:
            print("at work", flush=True)
            {waits_for}.wait()
            print("finished", flush=True)
        finally:
            print("put away", flush=True)

raise SystemExit(run_until_stopped(argparse.ArgumentParser(), lambda settings, arguments: Work(), at_once={at_once}))
"""


@pytest.mark.parametrize(("at_once", "waits_for", "said"), [
    (True, "threading.Event()", ""), (False, "self.stopping", "finished\nput away\n")])
def test_a_stop_ends_what_is_under_way_or_lets_it_end(at_once: bool, waits_for: str, said: str) -> None:
    environment, program = {**os.environ, "HEADRACE_KAFKA": "127.0.0.1:1"}, WORK.format(at_once=at_once, waits_for=waits_for)
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == said
        assert process.wait(30) == 0


def test_who_comes_second_makes_live_what_was_released_not_what_it_trained(kafka: str, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, kafka=kafka)
    with tracking_client(settings) as client:
        client.create_registered_model(FRAUD.name)
        for version in ("1", "2"):
            client.create_model_version(FRAUD.name, source=str(tmp_path), run_id=None)
            write_small_model(settings.models, version, FRAUD.service)
    request = RetrainRequest("r1", FRAUD.name, "0", "v", "h", "drift:1", "why", 5, {}, [])
    second = Runner(settings, "runner-2", Plan(), str)
    releases = ReleaseLog(kafka)
    releases.release(request.retrain_id, FRAUD.name, "1", 5, "why", "a runner that was overtaken")
    releases.close()
    verdict = Verdict(request.retrain_id, FRAUD.name, 5, "2", True, "", "", [], "e")
    assert second._release(request, verdict)
    live: Any = champion(settings.models, FRAUD.name)
    assert live.name == "1", "as the chain says"


def test_what_needs_approval_is_not_released_and_says_which_evidence_waits(tmp_path: Path) -> None:
    own: Any = Runner(Settings(home=tmp_path, kafka="127.0.0.1:1"), "runner-1", Plan(), str)  # a release would ask the broker
    evidence = [gates.parity(10, 0), gates.approval("person")]
    verdict = Verdict("r1", FRAUD.name, 5, "2", False, "", "", evidence, gates.evidence_hash(evidence))
    assert verdict.needs_approval
    what, why = own._outcome(SimpleNamespace(model=FRAUD.name), verdict)
    assert what == "inconclusive"
    assert f"fraud@2 waits for approval of evidence {verdict.evidence_hash}" in why


def test_a_sign_of_life_that_cannot_be_sent_does_not_end_those_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BEAT_EVERY_S", 0.01)
    own: Any = Runner(Settings(home=tmp_path, kafka="127.0.0.1:1"), "runner-1", Plan(), str)
    said, enough = [], threading.Event()

    def say(*_: Any) -> None:
        said.append(1)
        if len(said) > 3:
            enough.set()
        raise LogError("broker did not take a record")

    own._say = say
    with own._beating(SimpleNamespace(number=1)):
        assert enough.wait(30)
