"""Monitor and governor together: the calendar beside a drift, another try after an inconclusive one, asks that are hostile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from schemas.envelope import CLOCK_HEADERS
from schemas.monitoring import ASKS, DECISIONS, REQUESTS, RUNS, RetrainDecision, RetrainRequest, RunRecord
from streams.monitors.readers import MonitorReader
from tests.monitor_runs import said
from tests.monitor_simulation import Memory, Workers, end_of_time, state_of
from tests.monitor_world import POLICY, SPEC, START, WINDOW, Change, Record, make_reference, make_stream, make_watch

RUN = 30


class Answering(MonitorReader):
    """With a runner in its place that claims whatever is granted and says ``outcome`` of it at once."""

    outcome = "inconclusive"

    def _publish(self, model: str, number: int, state: Any) -> int:
        for each in state.outbox:
            if each.topic == REQUESTS:
                request = msgspec.json.decode(each.value, type=RetrainRequest)
                lease = state.governor.lease + 1
                for what in ("claim", self.outcome):
                    tell(self._outlet, RUNS, RunRecord(model, "r", what, request.retrain_id, lease), each.at_ms)  # type: ignore[arg-type]
        return super()._publish(model, number, state)


def tell(memory: Any, topic: str, record: Any, at_ms: int) -> None:
    log = memory.logs[topic, 0]
    log.append(Record(len(log), at_ms, record if isinstance(record, bytes) else msgspec.json.encode(record)))


def run(watch: Any, change: Change, monitor: type[MonitorReader] = MonitorReader) -> Memory:
    """Window by window, so that what a runner says comes in between."""
    memory = Memory(make_stream(RUN, 500, change=change))
    workers = Workers(memory, watch, monitor=monitor)
    for window in range(RUN + 3):
        end_of_time(memory, START + window * WINDOW)
        workers.run(100)
    return memory


def granted(memory: Memory) -> list[RetrainRequest]:
    return said(memory, REQUESTS, RetrainRequest)


def test_the_calendar_asks_although_a_drift_that_had_its_retrain_asks_in_every_window() -> None:
    watch = make_watch(spec=replace(SPEC, drift=replace(POLICY, calendar_ms=8 * WINDOW)))
    memory = run(watch, Change(4, wrong=0.15), type("Rejecting", (Answering,), {"outcome": "rejected"}))
    asked = {each.episode for each in said(memory, DECISIONS, RetrainDecision) if each.by == "governor" and each.episode}
    first = START // (8 * WINDOW)
    assert {f"calendar:{number}" for number in range(first + 1, first + RUN // 8)} <= asked
    assert any(episode.startswith("drift:") for episode in asked)


def test_the_calendar_waits_for_a_feed_that_is_at_fault() -> None:
    watch = make_watch(spec=replace(SPEC, drift=replace(POLICY, calendar_ms=8 * WINDOW)))
    memory = run(watch, Change(1, nulls=0.4))
    assert granted(memory) == []
    assert len(granted(run(watch, Change()))) >= 1, "control: without the fault it asks"


def test_a_drift_whose_candidate_could_not_be_judged_is_tried_again_and_one_that_was_rejected_is_not() -> None:
    watch = make_watch(spec=replace(SPEC, drift=replace(POLICY, retrains_per_week=9)))
    rejected = run(watch, Change(4, wrong=0.15), type("Rejecting", (Answering,), {"outcome": "rejected"}))
    assert len(granted(rejected)) == 1
    memory = run(watch, Change(4, wrong=0.15), Answering)
    tries = granted(memory)
    assert 3 <= len(tries) <= 6, "the labels of 26 windows double so often"
    assert len({each.episode for each in tries}) == 1
    assert len({each.retrain_id for each in tries}) == len(tries)
    governor = state_of(memory).governor
    assert governor.ended == {"inconclusive": len(tries)}
    assert governor.rejected == 0
    waits = [each.at_ms for each in tries]
    assert all(later - then >= then - before for before, then, later in zip(waits, waits[1:], waits[2:], strict=False))


@pytest.mark.parametrize("value", [b'{"prediction_id":"x","event_id":"x"}', b"", b'{"arrival_ms":1' + b"0" * 40 + b"}"])
def test_a_record_of_another_age_of_the_world_neither_ends_nor_holds_up_the_watch(value: bytes) -> None:
    """A prediction that no scorer made, stamped by its producer; and one that says so itself."""
    change, watch = Change(4, wrong=0.15), make_watch()
    stream = make_stream(12, 500, change=change)
    for logs in (stream.predictions, stream.evaluations):
        log, at = logs[0], 700
        made = msgspec.json.encode({**msgspec.json.decode(log[at].value), "arrival_ms": 10**40, "at_ms": 10**40})
        odd = [Record(0, 1 << 62, value, tuple(CLOCK_HEADERS) if not value else ()), Record(0, log[at].timestamp, made)]
        log[at:at] = odd
        logs[0] = [replace(record, offset=offset) for offset, record in enumerate(log)]
    memory = Memory(stream)
    end_of_time(memory, START + 12 * WINDOW)
    Workers(memory, watch).run()
    assert state_of(memory).windows == 12
    assert len(granted(memory)) == 1


@pytest.mark.parametrize("champion", ["../../etc/passwd", "a\u0000b", "", ".hidden", "x" * 300])
def test_an_ask_about_what_is_no_version_is_passed_over(champion: str) -> None:
    """It would become the name of a file, in the monitor and in the runner."""
    asked: list[str] = []

    def read(version: str) -> Any:
        asked.append(version)
        return make_reference() if version == "1" else None

    memory = Memory(make_stream(2))
    tell(memory, ASKS, msgspec.json.encode({"ask_id": "a", "model": "fraud", "champion": champion, "why": "mischief"}), START)
    tell(memory, ASKS, msgspec.json.encode({"ask_id": "b", "model": "fraud", "champion": "1", "why": "in earnest"}), START)
    Workers(memory, make_watch(read=read)).run()
    assert set(asked) <= {"1"}
    assert [each.why for each in granted(memory)] == ["in earnest"]
