"""A/B tests on real engines, by the command, with labels that come a week later: one that the candidate loses and one that it wins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.views import DAY_MS
from schemas.fraud import PREDICTION, Outcome, Prediction, Transaction
from schemas.releases import Release
from schemas.settings import Settings
from services.canary import bucket
from services.cli import main
from services.ledger import read_topic
from services.releasing import read_chain
from services.retrain_hold import wait_served
from services.runtime.embedded import Runtime
from tests.deadline import eventually
from tests.small_model import Learnt, register_small_model
from tests.test_faults import caught_up
from tests.world_check import publish, small_world

STEP_MS = 480_000
Sent = list[tuple[Transaction, int]]


def learnt(low: float, high: float) -> Learnt:
    """Rows of which those with an amount in between are positive; payments here are even from 0 to 500, and fraud above 300."""
    r = np.random.default_rng(5)
    rows = r.normal(10, 10, size=(1_500, len(SERVICE.feature_names)))
    amount = rows[:, SERVICE.feature_names.index("amount")] = r.uniform(0, 500, 1_500)
    return rows, ((amount > low) & (amount < high)).astype(int)


class World:
    """A stream of which one version is right and another, which alerts as often, is wrong on two of five; who acts is the command."""

    def __init__(self, runtime: Runtime, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
        self.runtime, self._settings, self._capsys = runtime, settings, capsys
        self._producer = Producer({"bootstrap.servers": runtime.kafka, "acks": "all", "enable.idempotence": True})
        self._all = small_world(2_200, seed=6, cards=300, step_ms=STEP_MS).transactions
        self._at = self._later_ms = 0

    def send(self, n: int) -> Sent:
        """The next ``n`` events; all of them are scored when this returns."""
        found = [(msgspec.structs.replace(event, event_time=event.event_time + self._later_ms), arrival_ms + self._later_ms)
                 for event, arrival_ms in self._all[self._at:self._at + n]]
        self._at += n
        publish(self._producer, "transactions", found)
        assert self._producer.flush(60) == 0
        eventually(lambda: caught_up(self.runtime))
        return found

    def tell(self, sent: Sent) -> None:
        """Labels, each a week after its event. What is sent from now on is later than all of them."""
        outcomes = [(Outcome(event.event_id, event.event_time, event.card_id, event.terminal_id, event.amount_minor > 30_000),
                     arrival_ms + 7 * DAY_MS) for event, arrival_ms in sent]
        publish(self._producer, "outcomes", outcomes)
        assert self._producer.flush(60) == 0
        self._later_ms += 10 * DAY_MS

    def release(self, *words: str) -> Release:
        assert main(["release", *words, "--json"]) == 0, self._capsys.readouterr().err
        return msgspec.convert(msgspec.json.decode(self._capsys.readouterr().out)["released"], Release)

    @property
    def live(self) -> Any:
        return read_chain(self.runtime.kafka).current(FRAUD.name)

    def decided(self, began: Release) -> Any:
        """What followed ``began``, once every partition is served by it."""
        ended = eventually(lambda: self.live.epoch > began.epoch and self.live)
        wait_served(self._settings, self.runtime.endpoints, FRAUD.name)
        return ended

    def made(self, sent: Sent) -> Iterable[Prediction]:
        wanted = {event.event_id for event, _ in sent}
        found = [PREDICTION.decode(message.value()) for message in read_topic(self.runtime.kafka, SERVICE.predictions)]
        return [each for each in found if each.event_id in wanted]


def test_the_version_with_fewer_wrong_decisions_wins_whichever_of_the_two_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                               capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(home=tmp_path, time="replay")
    assert [register_small_model(settings, learnt(*band)) for band in ((300, 501), (200, 400))] == ["1", "2"]
    with Runtime(settings, ("worker", "loop", "scorer", "guard")) as runtime:
        for name, value in (("HOME", tmp_path), ("KAFKA", runtime.kafka), ("REDIS", runtime.redis), ("TIME", "replay")):
            monkeypatch.setenv(f"HEADRACE_{name}", str(value))
        world = World(runtime, settings, capsys)
        world.release("champion", "fraud@1", "--why", "the first")
        world.send(100)

        began = world.release("canary", "fraud@2", "--hold-at", "50", "--hold", "1d", "--deadline", "30d", "--why", "an A/B test")
        assert began.canary is not None
        assert (began.canary.rule, began.canary.share) == ("losses", 5_000)
        tested = world.send(900)
        salt = began.canary.salt
        arms = {(bucket(salt, one.card_id) < 5_000, one.model_version, one.candidate) for one in world.made(tested)}
        assert arms == {(True, "2", True), (False, "1", False)}
        alerts = {version: np.mean([one.alert for one in world.made(tested) if one.model_version == version]) for version in "12"}
        assert abs(alerts["1"] - alerts["2"]) < 0.15, "only labels tell the two apart"
        assert world.live == began, "nothing is decided before there are labels"
        world.tell(tested)
        lost = world.decided(began)
        assert (lost.action, lost.by, lost.champion, lost.canary) == ("rollback", "guard", "1", None)
        assert lost.why.startswith("losses:")
        losses = lost.facts["rails"]["losses"]
        assert losses["candidate"] > losses["candidate_expected"]
        assert lost.evidence
        assert {(one.model_version, one.candidate, one.epoch) for one in world.made(world.send(100))} == {("1", False, lost.epoch)}

        # The other way round: the wrong one is live by somebody's word, and the better one wins by the same rule.
        world.release("champion", "fraud@2", "--why", "I insist")
        began = world.release("canary", "fraud@1", "--hold-at", "50", "--hold", "1d", "--deadline", "30d", "--why", "an A/B test")
        tested = world.send(900)
        assert world.live == began
        world.tell(tested)
        won = world.decided(began)
        assert (won.action, won.by, won.champion, won.canary, won.shadows) == ("advance", "guard", "1", None, ["2"])
        assert won.facts["rails"]["losses"]["candidate"] < won.facts["rails"]["losses"]["candidate_expected"]
        assert {(one.model_version, one.candidate, one.epoch) for one in world.made(world.send(100))} == {("1", False, won.epoch)}
        print(lost.why, won.why, sep="\n")
