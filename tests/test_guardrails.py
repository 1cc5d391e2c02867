"""Guardrails keep their word: a candidate that harms nobody is seldom taken back, however often one looks, and one that harms is found."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.releases import Canary, Release
from services.canary import bucket
from services.guardrails import Guardrails, Predicted
from services.rails import Track
from streams.detectors.arms import FEWER, MORE, Evidence, drawn, tolerated
from streams.detectors.losses import LossBatch, LossDetector, LossReference
from tests.guard_world import DAY, World, run

ALPHA = 0.05
CHANCES = st.floats(0.001, 0.999)


@given(st.lists(st.tuples(st.booleans(), CHANCES), max_size=30), CHANCES, st.sampled_from([MORE, FEWER]))
def test_evidence_does_not_grow_by_chance(seen: list[tuple[bool, float]], u: float, odds: tuple[float, ...]) -> None:
    """The mean of what comes next is what is: a martingale where the chance is u; below, where it is on the harmless side of it."""
    evidence = Evidence.start(odds)
    for mine, chance in seen:
        evidence = evidence.after(mine, chance)

    def mean(chance: float) -> float:
        return chance * evidence.after(True, u).value + (1 - chance) * evidence.after(False, u).value

    assert math.isclose(mean(u), evidence.value, rel_tol=1e-9)
    harmless = u / 2 if odds is MORE else (1 + u) / 2
    assert mean(harmless) <= evidence.value * (1 + 1e-9)


def test_it_is_the_e_value_of_losses() -> None:
    """Without its restarts, the detector of losses multiplies the same factors: while its sums do not fall to 1 they agree."""
    detector = LossDetector(LossReference("r", (30.0,), (100,), error=None), 1e12)
    state = detector.update(detector.start(), LossBatch([1.0] * 4, [0] * 4))
    evidence = Evidence.start(MORE[:5])
    for _ in range(4):
        evidence = evidence.after(True, 0.3)
    assert state.cusums == pytest.approx([math.exp(log) for log in evidence.logs])


@given(st.lists(st.integers(1, 9_999), min_size=2, max_size=2, unique=True).map(sorted))
def test_an_entity_that_was_not_in_before_is_drawn_from_the_rest(shares: list[int]) -> None:
    small, large = (share / 10_000 for share in shares)
    assert math.isclose((1 - small) * drawn(large, small), large - small, rel_tol=1e-9)
    assert tolerated(small, 1.0) == pytest.approx(small)


def test_an_entity_counts_once_a_step_and_never_again_as_the_candidates() -> None:
    rails = guardrails((1000, 5000))
    track: Track = rails.tracks["errors"]
    for _ in range(5):
        track.count("a", False, 0.1)
        track.count("b", True, 0.1)
    assert track.expected == pytest.approx(0.2)
    track.count("a", True, 0.5)
    track.count("b", True, 0.5)
    assert track.expected == pytest.approx(0.2 + drawn(0.5, 0.1))


def test_what_is_not_of_this_canary_is_not_counted() -> None:
    rails = guardrails((5000,))
    for epoch in (None, 1, 3):
        rails.predicted(Predicted("c", "1", 0.5, True, True, 5, epoch))
    assert rails.predictions == [0, 0]
    rails.predicted(Predicted("c", "1", 0.5, True, True, 5, 2))
    assert sum(rails.predictions) == 1


def test_events_of_the_candidate_that_the_champion_scored_are_its_errors() -> None:
    rails = guardrails((5000,))
    card = next(f"c{i}" for i in range(100) if bucket("s", f"c{i}") < 5000)
    rails.predicted(Predicted(card, "1", 0.5, False, False, 5, 2))
    assert card in rails.tracks["errors"].mine


def test_all_of_the_traffic_has_nothing_to_be_compared_with() -> None:
    rails = guardrails((10_000,))
    for i in range(500):
        rails.predicted(Predicted(f"c{i}", "2", 0.5, True, True, 5, 2))
    assert rails.judge(release(rails.canary)).facts["evidence"] == 0.25, "blue/green: a person decides, or the deadline asks"


def test_false_rollbacks_are_rare_however_entities_cluster_and_a_usual_test_is_not() -> None:
    """24 canaries that change nothing, looked at each hour: were more than ALPHA taken back, 4 or more would be no surprise. The negative
    control is the usual test of two rates, looked at once a day."""
    ended = [run(World(burst=0.9), seed, alpha=ALPHA) for seed in range(24)]
    taken_back = sum(one.action == "rollback" for one in ended)
    assert taken_back < 4
    assert sum(one.action == "advance" for one in ended) >= 18, "and most of them go on"
    assert sum(one.naive for one in ended) >= 18


@pytest.mark.parametrize(("world", "rail"), [
    (World(errors=20), "errors"), (World(alerts=5), "alerts"), (World(slow=2), "latency"), (World(losses=8, label_ms=DAY), "losses")])
def test_harm_is_taken_back_by_the_rail_that_watches_it(world: World, rail: str) -> None:
    ended = [run(world, seed) for seed in range(8)]
    assert sum((one.action, one.rail) == ("rollback", rail) for one in ended) >= 7


def guardrails(steps: tuple[int, ...], **told: Any) -> Guardrails:
    canary = Canary("2", steps, 0, "s", 0, 0, 2, 1000, 10_000, ALPHA, **told)
    rails = Guardrails(canary, "1", 0)
    rails.step(release(canary))
    return rails


def release(canary: Canary) -> Release:
    return Release("r", "m", 2, 0, "1", "1", "", "", 0, canary=canary)
