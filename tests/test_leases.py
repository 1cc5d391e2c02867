"""Runners, the governor and the release chain in one simulation: runners die, are slow, are overtaken; leases run out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.monitoring import ASKS, DECISIONS, REQUESTS, RUNS, RetrainAsk, RetrainDecision, RetrainRequest, RunRecord
from schemas.releases import Chain
from services import leases
from services.leases import LeaseLost, Leases
from streams.monitors.monitor import Monitor
from streams.monitors.state import MonitorState
from streams.monitors.watch import watched
from tests.monitor_world import POLICY, SPEC

HOUR_MS = 3_600_000
SPECS = [replace(SPEC, name=name, drift=replace(POLICY, labels=0, retrains_per_week=99)) for name in ("one", "two")]
MODELS = [spec.name for spec in SPECS]


class World:
    """Control topics with a governor behind them that lags, a clock that leaps, and what a control log does."""

    def __init__(self, seed: int = 0) -> None:
        self.random, self.now_ms = random.Random(seed), 0
        self.logs: dict[str, list[Any]] = {topic: [] for topic in (RUNS, ASKS, REQUESTS, DECISIONS)}
        self.unread: list[tuple[str, int, int, Any]] = []
        self.monitors = {watch.model: (Monitor(watch), MonitorState()) for watch in watched(SPECS, Path("nowhere"), 2)}
        self.chain, self.releases = Chain(), 0
        self.verdicts: dict[str, Any] = {}

    def publish(self, topic: str, record: Any, at_ms: int) -> int:
        offset = len(self.logs[topic])
        self.logs[topic].append(record)
        self.unread.append((topic, offset, self.now_ms, record))  # the broker's time
        return offset

    def records(self, topic: str, kind: Any) -> list[tuple[int, Any]]:
        return list(enumerate(self.logs[topic]))

    def govern(self) -> None:
        while self.unread:
            topic, offset, at_ms, record = self.unread.pop(0)
            monitor, state = self.monitors[record.model]
            monitor.step(state, topic, offset, at_ms, record)
            for each in state.outbox:
                kind: Any = RetrainRequest if each.topic == REQUESTS else RetrainDecision
                self.logs[each.topic].append(msgspec.json.decode(each.value, type=kind))
            state.outbox.clear()

    def answer(self, topic: str, offset: int, wanted: Any, stopped: Any) -> Any:
        if self.random.random() < 0.2:
            return None  # the governor is too slow to be waited for
        self.govern()
        return next((each for each in self.logs[DECISIONS] if (each.source, each.offset) == (topic, offset) and each.what in wanted), None)

    def ended(self) -> dict[str, str]:
        return {each.retrain_id: each.what for each in self.logs[DECISIONS] if each.what in leases.ENDED}


def runner(world: World, name: str, shared: bool) -> Iterator[None]:
    """What services.runner does, cut into steps; any step may take long, or be the last one of this life."""
    own = Leases(world, name, MODELS, lambda: False)  # type: ignore[arg-type]
    while True:
        yield
        if (lease := own.take()) is None:
            continue
        request = lease.request
        try:
            for _ in range(4):
                yield
                world.publish(RUNS, RunRecord(request.model, name, "beat", request.retrain_id, lease.number), 0)
                own.check(lease)
            lease = own.renewed(lease)
        except LeaseLost:
            continue
        what = world.random.choice(["promoted", "rejected", "inconclusive"])
        if shared:
            what = world.verdicts.setdefault(request.retrain_id, what)
        if what == "promoted":
            following = world.chain.following(request.retrain_id, request.model, f"v{world.releases}", 0, "", name)
            world.releases += world.chain.take(world.releases, following)
        yield
        world.publish(RUNS, RunRecord(request.model, name, what, request.retrain_id, lease.number), 0)


def simulate(seed: int, shared: bool = True) -> World:
    """``shared``: the first verdict on a retrain is that of all runners, as the file beside the tables is."""
    world = World(seed)
    runners = {name: runner(world, name, shared) for name in ("a", "b", "c")}
    for step in range(600):
        if step % 40 == 0 and step < 480:
            world.publish(ASKS, RetrainAsk(f"a{step}", world.random.choice(MODELS), "1", "why"), 0)
        name = world.random.choice(list(runners))
        if world.random.random() < 0.03:
            runners[name] = runner(world, name, shared)  # killed, and started again
        next(runners[name])
        if world.random.random() < 0.4:
            world.govern()
        world.now_ms += world.random.choice([0, HOUR_MS // 100, HOUR_MS // 100, HOUR_MS // 3])
    for _ in range(300):  # calm: everything is heard in time
        for each in runners.values():
            next(each)
            world.govern()
    return world


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "CLAIM_EVERY_S", 0.0)


def test_every_retrain_ends_once_and_is_released_at_most_once() -> None:
    overtaken = 0
    for seed in range(30):
        world = simulate(seed)
        requests = [each.retrain_id for each in world.logs[REQUESTS]]
        assert len(requests) == len(set(requests)) > 0
        assert world.ended().keys() == set(requests), f"seed {seed}: none is forgotten"
        assert [each.what in leases.ENDED for each in world.logs[DECISIONS]].count(True) == len(requests)
        released = [release.release_id for model in MODELS for release in world.chain.history(model)]
        assert len(released) == len(set(released))
        overtaken += sum(each.what == "lease-expired" for each in world.logs[DECISIONS])
    assert overtaken > 30, "leases do run out here"


def test_what_is_live_was_promoted_for_all_or_its_runners_died_before_they_could_say_so() -> None:
    def otherwise(shared: bool) -> set[str]:
        """How retrains ended whose candidates are live."""
        found = set()
        for seed in range(40):
            world = simulate(seed, shared)
            ended = world.ended()
            found |= {ended[release.release_id] for model in MODELS for release in world.chain.history(model)}
        return found

    assert "promoted" in otherwise(shared=True) <= {"promoted", "failed"}
    assert otherwise(shared=False) & {"rejected", "inconclusive"}, "control: a verdict of each runner's own"


def test_a_retrain_that_another_runner_holds_does_not_keep_other_models_waiting() -> None:
    world = World()
    for model in MODELS:
        world.publish(ASKS, RetrainAsk("a", model, "1", "why"), 0)
    world.govern()
    held = []
    for name in ("a", "b"):
        of_runner = Leases(world, name, MODELS, lambda: False)  # type: ignore[arg-type]
        held.append(next(lease for _ in range(50) if (lease := of_runner.take()) is not None))
    assert sorted(lease.request.model for lease in held) == MODELS


def test_a_lease_that_ran_out_is_had_again_unless_another_has_it() -> None:
    world = World()
    world.publish(ASKS, RetrainAsk("a", "one", "1", "why"), 0)
    world.govern()
    first, second = (Leases(world, name, MODELS, lambda: False) for name in ("a", "b"))  # type: ignore[arg-type]

    def run_out(lease: Any) -> None:
        world.now_ms += 2 * HOUR_MS
        world.publish(RUNS, RunRecord("one", "a", "beat", lease.request.retrain_id, lease.number), 0)
        world.govern()

    def until(function: Any) -> Any:
        return next(lease for _ in range(50) if (lease := function()) is not None)

    lease = until(first.take)
    assert first.renewed(lease) == lease
    run_out(lease)
    first.check(lease)
    world.random.seed(0)  # it is answered
    again = first.renewed(lease)
    assert again == replace(lease, number=2)
    assert first.begin(again) == 1
    run_out(again)
    other = until(second.take)
    assert other.number == 3
    assert second.begin(other) == 2, "by whom ever"
    for look in (first.check, first.renewed):
        with pytest.raises(LeaseLost, match="without lease 2: started, b, attempt 3"):
            look(again)
    world.publish(RUNS, RunRecord("one", "b", "failed", other.request.retrain_id, 3), 0)
    world.govern()
    with pytest.raises(LeaseLost, match="without lease 3: failed"):
        second.check(other)


def test_of_two_runners_of_one_name_who_began_last_goes_on_and_the_other_leaves_it() -> None:
    world = World()
    world.publish(ASKS, RetrainAsk("a", "one", "1", "why"), 0)
    world.govern()
    first, second, later = (Leases(world, "a", MODELS, lambda: False) for _ in range(3))  # type: ignore[arg-type]
    lease = next(lease for _ in range(50) if (lease := first.take()) is not None)
    assert first.begin(lease) == 1
    first.check(lease)
    assert second.take() == lease, "by its name it is its own"
    first.check(lease)
    assert second.begin(lease) == 2
    for look in (first.check, first.renewed):
        with pytest.raises(LeaseLost, match="another runner that is called a began on lease 1"):
            look(lease)
    assert second.renewed(lease) == lease
    assert first.take() is None, "else they would take it from each other for ever"
    assert later.take() == lease, "who died and comes back finds it"
