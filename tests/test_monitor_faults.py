"""Monitors whose processes die and whose store is lost, in simulation: neither changes a word of what is said."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import monitoring
from schemas.monitoring import ASKS, DECISIONS, REQUESTS, RUNS, RetrainAsk, RetrainDecision, RunRecord
from streams.monitors.readers import CountReader, MonitorReader
from tests.monitor_runs import STREAM, WATCH, WINDOWS_RUN, run, said, undisturbed
from tests.monitor_simulation import OUTPUTS, Memory, Workers, end_of_time, state_of
from tests.monitor_world import START, WINDOW, Record


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.02, 0.1]), st.sampled_from([60, 400, 4_000]))
@settings(max_examples=10, deadline=None)
def test_cuts_and_crashes_change_no_word(seed: int, faults: float, most: int) -> None:
    memory = run(STREAM, seed, faults, most)
    for topic in OUTPUTS:
        assert memory.said(topic) == undisturbed().said(topic)
    assert len(memory.said(REQUESTS)) == 1


class HastyCounter(CountReader):
    """Moves its state before it publishes."""

    def _settle(self, partition: int, closed: Any) -> bool:
        super()._settle(partition, [])
        self._saved[partition] = -1 << 40, 0.0
        return super()._settle(partition, []) and super()._settle(partition, closed)


class HastyMonitor(MonitorReader):
    """Moves its state on without what is to be said, then says it."""

    def _save(self, model: str, number: int, state: Any) -> bool:
        outbox, state.outbox = state.outbox, []
        saved = super()._save(model, number, state)
        state.outbox = outbox
        return saved


@pytest.mark.parametrize("hasty", [{"counter": HastyCounter}, {"monitor": HastyMonitor}])
def test_states_that_move_before_publishing_lose_what_was_to_be_said(hasty: dict[str, Any]) -> None:
    """Negative control: with the order turned round, crashes show in what is said."""
    missing = 0
    for seed in range(8):
        memory = run(STREAM, seed, 0.1, 1_500, **hasty)
        missing += any(undisturbed().said(topic).keys() - memory.said(topic).keys() for topic in OUTPUTS)
    assert missing
    assert run(STREAM, 0, 0.0, **hasty).said(DECISIONS) == undisturbed().said(DECISIONS), "without crashes it is right"


def test_one_cause_is_one_retrain_however_often_it_is_asked_and_run() -> None:
    memory = Memory(STREAM, 4, 0.05)
    end_of_time(memory, START + WINDOWS_RUN * WINDOW)
    workers = Workers(memory, WATCH)
    workers.run(1_500)
    (request,) = said(memory, REQUESTS, monitoring.RetrainRequest)
    later = START + (WINDOWS_RUN + 1) * WINDOW

    def tell(topic: str, record: Any) -> None:
        memory.logs[topic, 0].append(Record(len(memory.logs[topic, 0]), later, msgspec.json.encode(record)))
        workers.run()

    for _ in range(3):
        tell(ASKS, RetrainAsk("a1", "fraud", "1", "after the merge"))
    tell(RUNS, RunRecord("fraud", "r1", "claim"))
    (started,) = (each for each in said(memory, DECISIONS, RetrainDecision) if each.what == "started")
    assert (started.retrain_id, started.source, started.offset) == (request.retrain_id, RUNS, 0)
    tell(RUNS, RunRecord("fraud", "r1", "rejected", request.retrain_id, started.lease))
    tell(RUNS, RunRecord("fraud", "r1", "rejected", request.retrain_id, started.lease))
    assert state_of(memory).governor.phase == "COOLDOWN"
    assert [each.what for each in said(memory, DECISIONS, RetrainDecision) if each.source == RUNS] == ["started", "rejected", "ignored"]
    assert len(memory.said(REQUESTS)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_is_lost_has_everything_said_again_and_nothing_new(seed: int) -> None:
    memory = Memory(STREAM, seed, 0.02)
    end_of_time(memory, START + WINDOWS_RUN * WINDOW)
    workers = Workers(memory, WATCH)
    for lost in (0.05, 0.0):
        workers.run(1_500, lost)
        memory.store.clear()
        memory.faults = 0.02
    workers.run()
    assert len(memory.logs[REQUESTS, 0]) >= 3
    for topic in OUTPUTS:
        assert memory.said(topic) == undisturbed().said(topic)
