"""The guard on real Kafka: takes back, goes on, stops and asks; killed at any point it leaves one answer to "what is live" (P20)."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from feature_repo.bundle import champion
from feature_repo.fraud import FRAUD
from schemas.envelope import PROBE
from schemas.evaluations import EVALUATIONS, Evaluation
from schemas.fraud import Prediction
from schemas.releases import Chain, Release
from schemas.settings import Settings
from services.canary import bucket
from services.guard import Guard
from services.release_log import ReleaseLog
from services.release_machine import Move, Refusal
from services.releasing import follow_chain, read_chain
from services.runtime.embedded import Runtime
from tests.small_model import register_small_model

DAY = 86_400_000
START = 1_600_000_000_000


class Canaried:
    """Model fraud with versions 1 and 2 on engines of their own; each test begins a canary of its own in a time of its own."""

    def __init__(self, home: Path, kafka: str) -> None:
        self.settings = Settings(home=home, kafka=kafka, time="replay")
        for _ in range(2):
            register_small_model(self.settings)
        self.kafka, self.number, self.at_ms = kafka, 0, START
        self.producer = Producer({"bootstrap.servers": kafka, "linger.ms": 5})
        self.act("champion", version="1")

    def act(self, action: Any, **told: Any) -> Release:
        self.number += 1
        log = ReleaseLog(self.kafka)
        try:
            made = log.act(Move(action, f"test-{self.number}", "fraud", "person", self.at_ms, "a test", **told))
        finally:
            log.close()
        assert isinstance(made, Release), made
        follow_chain(self.settings, made)
        return made

    def begin(self, **told: Any) -> Release:
        """A canary of version 2 against version 1, in a week that nothing was written in."""
        self.at_ms += 30 * DAY
        live = self.chain.current("fraud")
        assert live is not None
        if live.paused:
            self.act("resume")
        if live.canary is not None:
            self.act("rollback")
        self.act("champion", version="1")
        return self.act("canary", version="2", **{"steps": (1000, 5000), "hold_ms": 1000, "deadline_ms": DAY, **told})

    @property
    def chain(self) -> Chain:
        return read_chain(self.kafka)

    def live(self) -> Any:
        return self.chain.current("fraud")

    def predict(self, cards: range, after_ms: int, *, fails: Callable[[bool], bool] = lambda mine: False, alerts: int = 3,
                slow: float = 1.0) -> None:
        """One prediction each by who has it now; ``fails(mine)`` are degraded, every so many are alerts."""
        live = self.live()
        canary = live.canary
        for card in cards:
            mine = bucket(canary.salt, f"c{card}") < canary.share
            at_ms = live.at_ms + after_ms + card
            version = "2" if mine else "1"
            one = Prediction(f"p{live.epoch}-{card}", f"e{card}", at_ms, f"c{card}", "t", 0, card, at_ms, "fraud", version, "h", 0.5, 0.5,
                             card % alerts == 0, fails(mine), False, [], [], {}, at_ms, live.epoch, mine)
            took = b"1000/%d" % (1000 * slow * (0.9 if card % 2 else 1.1))
            self.producer.produce("predictions", msgspec.json.encode(one), f"c{card}".encode(), timestamp=at_ms,
                                  headers=[(PROBE, took)] if card % 20 == 0 else None)
            self.producer.poll(0)
        assert self.producer.flush(30) == 0

    def evaluate(self, cards: range, after_ms: int, wrong: Callable[[bool], bool]) -> None:
        live = self.live()
        for card in cards:
            mine = bucket(live.canary.salt, f"c{card}") < live.canary.share
            at_ms, alert = live.at_ms + after_ms + card, wrong(mine)
            name, version = f"v{live.epoch}-{card}", "2" if mine else "1"
            one = Evaluation(name, name, name, at_ms, f"c{card}", "fraud", version, 0.5, 0.5, alert, False, False, None, 0, at_ms,
                             at_ms + DAY, at_ms + DAY)
            self.producer.produce(EVALUATIONS, msgspec.json.encode(one), f"c{card}".encode(), timestamp=at_ms + DAY)
        assert self.producer.flush(30) == 0

    def guard(self) -> tuple[list[str], Any]:
        """What a guard that begins now does until nothing more comes, and what it would say at the end."""
        said: list[str] = []
        guard, quiet = Guard(self.settings, said.append), 0
        try:
            while quiet < 3:
                quiet = 0 if guard.step() or not all(watch.caught_up for watch in guard._watches.values()) else quiet + 1
            return said, guard.verdict("fraud")
        finally:
            guard.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaried]:
    home = tmp_path_factory.mktemp("guard") / "home"
    with Runtime(Settings(home=home, kafka=None, redis=None, time="replay"), roles=()) as runtime:
        yield Canaried(home, runtime.kafka)


def by_guard(world: Canaried, since: int) -> list[Release]:
    return [each for each in world.chain.history("fraud") if each.by == "guard" and each.epoch > since]


def test_a_breach_is_taken_back_once_with_its_evidence(world: Canaried) -> None:
    began = world.begin()
    world.predict(range(400), 1000, fails=lambda mine: mine)
    said, _ = world.guard()
    live = world.live()
    assert (live.champion, live.canary, live.action, live.by) == ("1", None, "rollback", "guard")
    assert live.why.startswith("errors:")
    assert live.facts["evidence"] >= 1 / began.canary.alpha
    assert live.facts["rails"]["errors"]["candidate"] > live.facts["rails"]["errors"]["candidate_expected"]
    assert live.evidence
    assert len(said) == 1
    assert world.guard() == ([], None), "nothing is left to do"
    assert len(by_guard(world, began.epoch)) == 1


def test_the_same_faults_in_both_arms_are_nobodys(world: Canaried) -> None:
    began = world.begin(deadline_ms=30 * DAY, hold_ms=20 * DAY)
    world.predict(range(400), 1000, fails=lambda mine: True)
    said, verdict = world.guard()
    assert said == []
    assert verdict.facts["evidence"] < 1
    assert verdict.facts["predictions"]["candidate"] > 0
    assert world.live().epoch == began.epoch


@pytest.mark.parametrize(("told", "rail"), [({"slow": 4.0}, "latency"), ({"slow": 1.3}, ""), ({"alerts": 1_000_000}, "")])
def test_a_slow_candidate_is_taken_back_and_quiet_alone_is_no_harm(world: Canaried, told: dict[str, Any], rail: str) -> None:
    world.begin(deadline_ms=30 * DAY, hold_ms=20 * DAY)
    world.predict(range(600), 1000, **told)
    world.guard()
    live = world.live()
    assert (live.action == "rollback") == bool(rail)
    assert not rail or live.why.startswith(rail)


def test_wrong_decisions_count_when_they_are_of_age(world: Canaried) -> None:
    assert FRAUD.drift is not None
    began = world.begin(deadline_ms=60 * DAY, hold_ms=50 * DAY)
    world.evaluate(range(400), 20_000, wrong=lambda mine: mine)
    said, verdict = world.guard()
    assert said == []
    assert verdict.facts["rails"]["losses"]["candidate"] == 0, "labels of a day are no label of a week"
    world.predict(range(2), FRAUD.drift.age_ms + 60_000)
    world.guard()
    live = world.live()
    assert (live.action, live.by) == ("rollback", "guard")
    assert live.why.startswith("losses:")
    assert live.epoch == began.epoch + 1


def test_enough_evidence_goes_on_step_by_step_to_the_champion(world: Canaried) -> None:
    began = world.begin()
    for _ in range(2):
        world.predict(range(6000), 1000)
        world.guard()
    seen = [(each.action, each.champion, each.canary and each.canary.share) for each in by_guard(world, began.epoch)]
    assert seen == [("advance", "1", 5000), ("advance", "2", None)]
    live = world.live()
    assert live.shadows == ["1"], "what was live goes on scoring"
    folder: Any = champion(world.settings.models, "fraud")
    assert folder.name == "2", "the pointer follows"


def test_without_an_answer_by_the_deadline_it_stops_and_asks(world: Canaried) -> None:
    began = world.begin(deadline_ms=60_000)
    world.predict(range(5), 1000)
    assert world.guard() == ([], world.guard()[1])
    world.predict(range(5, 6), 61_000)
    world.guard()
    live = world.live()
    assert (live.action, live.by, live.paused, live.canary.share) == ("pause", "guard", True, 1000)
    assert "deadline" in live.why
    assert "alerts" in live.why
    assert world.guard()[0] == [], "it has asked"
    answered = world.act("advance")
    assert (answered.paused, answered.canary and answered.canary.share) == (False, 5000)
    assert answered.epoch == began.epoch + 2


def test_what_is_shown_by_the_deadline_is_not_asked(world: Canaried) -> None:
    """The control: as late as where it stops and asks, but with evidence."""
    began = world.begin(deadline_ms=60_000)
    world.predict(range(6000), 1000)
    world.predict(range(6000, 6001), 61_000)
    world.guard()
    made = by_guard(world, began.epoch)
    assert [(each.action, each.paused, each.canary and each.canary.share) for each in made] == [("advance", False, 5000)]


def test_an_ab_test_is_decided_by_its_rule(world: Canaried) -> None:
    assert FRAUD.drift is not None
    began = world.begin(steps=(5000,), rule="losses", deadline_ms=60 * DAY)
    world.evaluate(range(100), 20_000, wrong=lambda mine: not mine)
    world.predict(range(2), FRAUD.drift.age_ms + 60_000)
    world.guard()
    (made,) = by_guard(world, began.epoch)
    assert (made.action, made.champion) == ("advance", "2")


@pytest.mark.parametrize("point", ["before the record", "after the record"])
@pytest.mark.parametrize("action", ["rollback", "advance"])
def test_killed_at_any_point_it_leaves_one_answer(world: Canaried, point: str, action: str) -> None:
    began = world.begin(steps=(1000,))
    world.predict(range(6000), 1000, fails=lambda mine: mine and action == "rollback")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=guard_and_die, args=(str(world.settings.home), world.kafka, point), daemon=True)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(by_guard(world, began.epoch)) == (point == "after the record")
    folder: Any = champion(world.settings.models, "fraud")
    assert folder.name == "1", "the pointer is moved last"
    world.guard()
    (made,) = by_guard(world, began.epoch)
    assert (made.action, made.champion) == (action, "1" if action == "rollback" else "2")
    folder = champion(world.settings.models, "fraud")
    assert folder.name == made.champion == world.live().champion
    assert world.guard()[0] == []


def test_two_guards_step_once_and_one_without_the_epoch_would_step_twice(world: Canaried) -> None:
    began = world.begin(steps=(1000, 3000, 5000))
    log = ReleaseLog(world.kafka)
    asked = [Move("advance", f"guard-{n}", "fraud", "guard", world.at_ms, "", epoch=began.epoch) for n in range(2)]
    first, second = (log.act(each) for each in asked)
    careless = log.act(Move("advance", "guard-3", "fraud", "guard", world.at_ms, ""))
    log.close()
    assert isinstance(first, Release)
    assert isinstance(second, Refusal)
    assert isinstance(careless, Release)
    shares = [each.canary.share if each.canary else None for each in (first, careless)]
    assert shares == [3000, 5000], "the negative control: without it the same evidence counts again"


def guard_and_die(home: str, kafka: str, point: str) -> None:
    def die(at: str) -> None:
        if at == point:
            os.kill(os.getpid(), signal.SIGKILL)

    guard = Guard(Settings(home=Path(home), kafka=kafka, time="replay"), str, die)
    for _ in range(10_000):
        guard.step()
