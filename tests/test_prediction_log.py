"""The API's log of predictions: none that was told is lost where the loop ends at once, or the producer has no room."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from schemas.envelope import SCORED_EVENT, header
from schemas.fraud import PREDICTIONS
from schemas.topics import answered_topic
from services.api import prediction_log
from services.api.prediction_log import DECODE, PredictionLog
from services.api.spool import frames
from services.ledger import end_offsets, read_topic
from services.scoring import Scored

TOPIC = answered_topic(PREDICTIONS)


def scored(name: str, n: int) -> list[Scored]:
    return [Scored(b"c1", f"{name}{i}", b"{}") for i in range(n)]


def published(kafka: str, before: dict[int, int]) -> list[tuple[str, bytes]]:
    """(prediction id, event) of what was written since."""
    return [(header(m.headers(), "ce_id").decode(), header(m.headers(), SCORED_EVENT)) for m in read_topic(kafka, TOPIC)
            if m.offset() >= before[m.partition()]]


def ends(kafka: str) -> dict[int, int]:
    return {partition: high for partition, (_, high) in end_offsets(kafka, TOPIC).items()}


def test_what_is_told_goes_to_the_log_after_the_answer_also_where_the_loop_ends_at_once(kafka: str, tmp_path: Path) -> None:
    before, turns = ends(kafka), []

    async def answer() -> None:
        log = PredictionLog(kafka, tmp_path, 1 << 20)
        assert log.write(PREDICTIONS, ["e"] * 3, scored("first", 3)) is None
        turns.append(len(log._producer))
        await asyncio.sleep(0)
        turns.append(len(log._producer))  # the loop sends answers at the end of this turn
        await asyncio.sleep(0)
        turns.append(len(log._producer))
        assert log.write(PREDICTIONS, ["e"], scored("last", 1)) is None
        await log.close(30)

    asyncio.run(answer())
    assert turns[:2] == [0, 0]
    assert turns[2] > 0
    assert sorted(published(kafka, before)) == sorted((name, b'"e"') for name in ("first0", "first1", "first2", "last0"))
    assert list(tmp_path.rglob("*.spool")) == []


def test_what_there_is_no_room_for_is_on_disk_before_it_is_told(kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ends(kafka)
    monkeypatch.setattr(prediction_log, "QUEUE_MOST", 5)
    monkeypatch.setattr(prediction_log, "TICK_S", 60)

    async def answer() -> list[str]:
        log = PredictionLog(kafka, tmp_path, 1 << 20)
        waits: list[Awaitable[None] | None] = [log.write(PREDICTIONS, ["e"] * 4, scored(name, 4)) for name in "ab"]
        assert waits[0] is None
        assert log.spooling
        second: Any = waits[1]
        await second
        found = [DECODE(payload).prediction_id for segment in log._spool.segments() for payload in frames(segment)]
        await log.close(30)
        return found

    assert set(asyncio.run(answer())) >= {f"b{i}" for i in range(4)}
    told = {name for name, _ in published(kafka, before)}
    held = {DECODE(payload).prediction_id for segment in tmp_path.rglob("*.spool") for payload in frames(segment)}
    assert told | held == {f"{name}{i}" for name in "ab" for i in range(4)}
