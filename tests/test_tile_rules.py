"""The rules of compaction, simulated: kept, no read is wrong or refused; each one left out, it shows."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from tests.tile_model import Rules
from tests.tile_world import World

SEEDS = range(300)


def test_with_every_rule_compaction_changes_no_value_and_refuses_no_scorer() -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        world = World(seed)
        assert not +world.run(), seed
        seen += world.seen
    assert seen["reads"] > 20_000
    assert min(seen[what] for what in ("compactions", "script refused", "crashes", "restores", "refused")) > 100, seen


@pytest.mark.parametrize("left_out", [field.name for field in dataclasses.fields(Rules)])
def test_a_rule_left_out_shows(left_out: str) -> None:
    rules = Rules(**{left_out: False})
    assert any(+World(seed, rules).run() for seed in range(1000))
