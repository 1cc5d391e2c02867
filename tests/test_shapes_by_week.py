"""Shapes against the hours of the week that a reference has seen, or has not; and alarms that end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from schemas.errors import DefinitionError
from streams.detectors.shapes import ShapeBatch, ShapeDetector, ShapeReference
from tests.test_detectors import HOUR_MS, drawn


def test_each_hour_of_the_week_has_shapes_of_its_own() -> None:
    """Negative control: the same windows against the week as a whole."""
    random, day = np.random.default_rng(8), random_days()
    counts = np.stack([drawn(day[hour % 24], 3_000, random) for hour in range(168)])
    hours, flat = (ShapeDetector(ShapeReference("v1", ("a",), some), 1e4) for some in (counts, counts.sum(0)[None]))
    states: list[Any] = [hours.start(), flat.start()]
    for hour in range(200):
        batch = ShapeBatch((hour + 96) * HOUR_MS, drawn(day[hour % 24], 1_000, random))
        states = [detector.update(state, batch) for detector, state in zip((hours, flat), states, strict=True)]
    assert states[0].alarms == 0 < states[1].alarms


@pytest.mark.parametrize(("tested", "judged"), [(range(7), 28), ((0, 1), 8)])
def test_days_of_the_week_that_the_reference_has_not_seen_are_not_judged(tested: Sequence[int], judged: int) -> None:
    """A feature that tells the weekend, four weeks: what borrowed from Monday and Tuesday would call every Saturday drift."""
    random, day_ms = np.random.default_rng(4), 24 * HOUR_MS
    week = np.zeros((7, 1, 22))
    week[:5, 0, 0] = week[5:, 0, 1] = 1.0
    counts = np.stack([drawn(week[day], 4_000, random) * (day in tested) for day in range(7)])
    detector = ShapeDetector(ShapeReference("v1", ("weekend",), counts), 1e3)
    state = detector.start()
    for day in range(29):
        state = detector.update(state, ShapeBatch((4 + day) * day_ms, drawn(week[day % 7], 1_000, random)))
    assert (state.windows, state.alarms) == (judged, 0)
    for day in range(29, 36):
        state = detector.update(state, ShapeBatch((4 + day) * day_ms, drawn(week[(day + 5) % 7], 1_000, random)))
    assert state.alarms == 1, "Tuesdays that look like Sundays"


def test_an_alarm_ends_although_some_sets_tell_nothing_and_thin_days_clear_none() -> None:
    """Bins that nobody uses are in sets that may be everything: their sums once rose by one a window, and held every alarm. And against
    the bounds of a Sunday of which three events are known a change looked like none, and was an alarm again on Monday."""
    random, day_ms = np.random.default_rng(12), 24 * HOUR_MS
    well, ill = (np.zeros((3, 22)) for _ in range(2))
    well[:, :2], ill[:, :2] = (0.7, 0.3), (0.3, 0.7)
    counts = np.stack([drawn(well, 3 if day == 6 else 4_000, random) for day in range(7)])
    detector, seen = ShapeDetector(ShapeReference("v1", ("a", "b", "c"), counts), 450), []
    state = detector.start()
    for day in range(220):
        shares = ill if 120 <= day < 160 else well
        state = detector.update(state, ShapeBatch((4 + day) * day_ms, drawn(shares, 1_000, random)))
        seen.append(state.alarming)
    assert state.alarms == 1
    assert all(seen[123:160])
    assert not any(seen[170:])


def test_a_change_in_joined_windows_began_with_the_first_of_them() -> None:
    random, day_ms = np.random.default_rng(13), 24 * HOUR_MS
    well, ill = (np.zeros((1, 22)) for _ in range(2))
    well[0, 0] = ill[0, 1] = 1.0
    detector = ShapeDetector(ShapeReference("v1", ("a",), drawn(well, 9_000, random)[None]), 1e3)
    state = detector.start()
    for day in range(40):
        state = detector.update(state, ShapeBatch(day * day_ms, drawn(ill if day >= 18 else well, 60, random)))
    since_ms = detector.judge(state).suspected_start_ms
    assert since_ms == 18 * day_ms, "nine days of sixty events are one window"
    with pytest.raises(DefinitionError, match="came after"):
        detector.update(state, ShapeBatch(state.last_ms or 0, drawn(well, 1, random)))


@pytest.mark.parametrize("tested", [range(7), (0, 1, 4)])
def test_small_windows_that_are_joined_are_held_to_the_bounds_of_all_their_days(tested: Sequence[int]) -> None:
    """Three hundred events a day, two days a window. Negative control: against the day of the last one alone it is all drift."""
    random, day_ms = np.random.default_rng(6), 24 * HOUR_MS
    week = np.zeros((7, 1, 22))
    for day in range(7):
        week[day, 0, day] = 1.0
    counts = np.stack([drawn(week[day], 4_000, random) * (day in tested) for day in range(7)])
    detectors = [ShapeDetector(ShapeReference("v1", ("day",), counts), 1e3), ShapeDetector(LastDay("v1", ("day",), counts), 1e3)]
    states = [detector.start() for detector in detectors]
    for day in range(70):
        batch = ShapeBatch((4 + day) * day_ms, drawn(week[day % 7], 300, random))
        states = [detector.update(state, batch) for detector, state in zip(detectors, states, strict=True)]
    assert states[0].windows > 10
    assert states[0].alarms == 0 < states[1].alarms


class LastDay(ShapeReference):
    def bounds_between(self, first_ms: int, last_ms: int) -> Any:
        return super().bounds_between(last_ms, last_ms)


def random_days() -> Any:
    """float64[24, 1, 22]: shares that move with the hour."""
    tilt = np.exp(np.outer(np.sin(2 * np.pi * np.arange(24) / 24), np.linspace(-0.8, 0.8, 22)))
    return (tilt / tilt.sum(1, keepdims=True))[:, None, :]
