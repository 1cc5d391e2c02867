"""Runs of both stages in memory over the monitors' world, and what they said."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from schemas.monitoring import DECISIONS, DETECTIONS, Detection, RetrainDecision
from tests.monitor_simulation import Memory, Workers, end_of_time
from tests.monitor_world import START, WINDOW, Change, Stream, make_stream, make_watch

WINDOWS_RUN, PER_WINDOW = 12, 600
PLANTED = Change(6, wrong=0.15)
STREAM = make_stream(WINDOWS_RUN, PER_WINDOW, change=PLANTED)
WATCH = make_watch()


def run(stream: Stream, seed: int = 0, faults: float = 0.0, most: int = 4000, watch: Any = WATCH, **readers: Any) -> Memory:
    memory = Memory(stream, seed, faults)
    end_of_time(memory, START + WINDOWS_RUN * WINDOW)
    Workers(memory, watch, **readers).run(most)
    return memory


def said(memory: Memory, topic: str, kind: type[Any]) -> list[Any]:
    return [msgspec.json.decode(value, type=kind) for value in memory.said(topic).values()]


def detected(memory: Memory) -> list[tuple[int, str]]:
    """(window, signal) of each detection."""
    return [((each.from_ms - START) // WINDOW, each.signal) for each in said(memory, DETECTIONS, Detection)]


def reasons(memory: Memory, by: str = "policy") -> list[str]:
    return [each.reason for each in said(memory, DECISIONS, RetrainDecision) if each.by == by]


@cache
def undisturbed() -> Memory:
    return run(STREAM)
