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


def test_sets_that_are_nearly_everything_or_nothing_do_not_add_up() -> None:
    """Bins of one row, or of none, once raised their sets' sums by nearly one a window: 52 after 120 windows without any change, where an
    alarm ends below 21; so none that came later ended, and in the end there was one without a change."""
    random, day_ms = np.random.default_rng(1), 24 * HOUR_MS
    shares = np.zeros((29, 22))
    shares[:, :5] = 0.2
    counts = np.stack([drawn(shares, 4_000, random) for _ in range(7)])
    counts[:, :, 20:] += 1
    detector = ShapeDetector(ShapeReference("v1", tuple(map(str, range(29))), counts), 450)
    state = detector.start()
    for day in range(120):
        state = detector.update(state, ShapeBatch((4 + day) * day_ms, drawn(shares, 4_000, random)))
    assert detector.judge(state).statistic < 2
    ill = shares.copy()
    ill[0, [0, 20]] = (0.15, 0.05)
    found = []
    for day in range(120, 140):
        state = detector.update(state, ShapeBatch((4 + day) * day_ms, drawn(ill if day < 130 else shares, 4_000, random)))
        found.append(state.alarming)
    assert all(found[1:10])
    assert not any(found[15:])
    assert state.alarms == 1


@pytest.mark.parametrize("used", [2, 20])
def test_an_alarm_over_a_bin_that_was_rare_ends(used: int) -> None:
    """Windows of 600 against a reference of 28,000 bring a sum of a rare bin down by little each: from where the sums stood after thirty
    windows with one in 25 missing it took 176, or did not end in 220."""
    random = np.random.default_rng(2)
    shares = np.zeros((5, 22))
    shares[:, :used] = 1 / used
    ill = shares.copy()
    ill[0, [0, 20]] = (0.99 / used - 0.04, 0.04)
    detector = ShapeDetector(ShapeReference("v1", tuple("abcde"), drawn(shares, 28_000, random)[None]), 450)
    state, found = detector.start(), []
    for window in range(190):
        state = detector.update(state, ShapeBatch(window * HOUR_MS, drawn(ill if 100 <= window < 130 else shares, 600, random)))
        found.append(state.alarming)
        if found[-2:] in ([True], [False, True]):
            assert detector.judge(state).statistic >= 450, "what it is that alarms is what is told"
    assert not any(found[:100])
    assert all(found[103:130])
    assert not any(found[150:])


def test_a_weak_change_against_a_sharp_reference_keeps_its_alarm_on() -> None:
    """Held three mean windows above the end alone, it was ended by the noise of one, began anew, and ended again."""
    on, alarms = [], []
    for seed in range(4):
        random = np.random.default_rng(seed)
        well, ill = (np.zeros((1, 22)) for _ in range(2))
        well[0, :2], ill[0, :2] = (0.9995, 0.0005), (0.998, 0.002)
        detector = ShapeDetector(ShapeReference("v1", ("a",), drawn(well, 1_400_000, random)[None]), 450)
        state, found = detector.start(), []
        for window in range(200):
            state = detector.update(state, ShapeBatch(window * HOUR_MS, drawn(ill, 1_000, random)))
            found.append(state.alarming)
        on += found[found.index(True):]
        alarms.append(state.alarms)
    assert sum(alarms) <= 6
    assert np.mean(on) > 0.95
