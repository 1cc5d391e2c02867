"""The join of predictions with outcomes: its rules against brute force, whatever happens to workers and to Redis."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from feature_repo.fraud import FRAUD
from feature_repo.join_marks import JoinMarks
from feature_repo.models import Outcomes
from schemas.evaluations import EVALUATION
from schemas.fraud import OUTCOME
from streams.outcomes import OutcomeJoiner, PredictionJoiner
from tests.join_faults import Rules
from tests.join_oracle import expected
from tests.join_world import JoinWorld

SEEDS = range(40)


def worlds(redis_url: str, rules: Rules) -> Iterator[JoinWorld]:
    for seed in SEEDS:
        yield JoinWorld(redis_url.rsplit("/", 1)[0] + "/8", seed, rules).run()


def wrong(world: JoinWorld) -> dict[str, Any]:
    """What is lost, made up or contradictory among what was published; empty when all is right."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    problems: Counter[str] = Counter()
    for partition, key, value in world.published:
        told = json.loads(value)
        assert EVALUATION.decode(value).subject.encode() == key
        problems["two contents"] += found.setdefault(told["evaluation_id"], (partition, told)) != (partition, told)
    right = expected(world.log)
    problems["told too soon"] = world.seen["told too soon"]
    problems["lost"] += len(right.keys() - found.keys())
    problems["phantom"] += len(found.keys() - right.keys())
    problems["other"] += sum(found[name] != right[name] for name in right.keys() & found.keys())
    return dict(+problems)


def test_no_crash_zombie_interleaving_or_step_back_of_redis_loses_or_changes_an_evaluation(redis_url: str) -> None:
    seen: Counter[str] = Counter()
    for world in worlds(redis_url, Rules()):
        assert wrong(world) == {}, world.seed
        seen += world.seen
        right = expected(world.log)
        seen["evaluations"] += len(right)
        seen["revised"] += sum(record["previous"] is not None for _, record in right.values())
        seen["published again"] += len(world.published) - len(right)
    assert all(seen[name] >= len(SEEDS) // 2 for name in ("crashes", "restores", "moves", "seeks", "revised", "told of")), seen
    print(dict(seen))


@pytest.mark.parametrize(("left_out", "damage"), [
    ("write_then_read", "lost"), ("publish_then_move", "lost"), ("begun_is_marked", "lost"), ("compare_and_set", "lost"),
    ("look_first", "two contents"),
])
def test_a_rule_that_is_left_out_shows(redis_url: str, left_out: str, damage: str) -> None:
    found: Counter[str] = Counter()
    for world in worlds(redis_url, Rules(**{left_out: False})):
        found += Counter(wrong(world))
        if found[damage]:
            return
    raise AssertionError(f"without {left_out} only {dict(found)}")


def test_a_time_beyond_all_contracts_moves_no_mark() -> None:
    """A mark in the next century would say that every slice is over."""
    pairs = SimpleNamespace(marks=JoinMarks("t"), budget_bytes=1 << 20, floor_ms=0, horizon_ms=1 << 40)
    common: Any = pairs, None, None, None, None
    predicted = {"event_id": "e", "event_time": 5, "model": FRAUD.name, "model_version": "1", "threshold": 0.5, "score": 0.7, "alert": True,
                 "degraded": False, "arrival_ms": 7, "card_id": "c"}
    rows, arrived_ms = PredictionJoiner(FRAUD, lambda partition: 0, *common)._read(
        0, [SimpleNamespace(value=msgspec.json.encode(predicted | {"arrival_ms": at_ms})) for at_ms in (7, 10**15)], Counter())
    assert (len(rows), arrived_ms) == (1, 7)
    assert isinstance(FRAUD.labels, Outcomes)
    outcome = msgspec.json.encode({"event_id": "e", "event_time": 5, "card_id": "c", "terminal_id": "t", "fraud": True})
    rows, arrived_ms = OutcomeJoiner(FRAUD.labels, OUTCOME, *common)._read(
        0, [SimpleNamespace(value=outcome, timestamp=at_ms, headers=()) for at_ms in (9, 10**15)], Counter())
    assert (len(rows), arrived_ms) == (1, 9)
