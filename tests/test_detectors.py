"""Detectors: what they promise on streams that do not change, what they find in those that do, and that batches do not matter."""

from __future__ import annotations

import doctest
import itertools
from dataclasses import asdict
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import bins
from feature_repo.bins import bin_counts, quantile_edges
from schemas.errors import DefinitionError
from streams.detectors import distances, intervals, seasons, second_opinion
from streams.detectors.contract import Detector
from streams.detectors.distances import compare, psi
from streams.detectors.losses import LossBatch, LossDetector, LossReference, LossState
from streams.detectors.second_opinion import OpinionState, adwin, page_hinkley
from streams.detectors.shapes import ShapeBatch, ShapeDetector, ShapeReference, ShapeState

HOUR_MS = 3_600_000
KNOWN = LossReference("v1", (1000.0,), (100_000,), error=None)


def losses(rate: Any, n: int, seed: int, start_ms: int = 0, step_ms: int = 1) -> LossBatch:
    return LossBatch((np.random.default_rng(seed).random(n) < rate).astype(float), start_ms + step_ms * np.arange(n))


def drawn(shares: Any, n: int, random: Any) -> Any:
    return np.stack([random.multinomial(n, row) for row in shares])


@pytest.mark.parametrize("module", [bins, distances, intervals, seasons])
def test_examples_run(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted > 0


def test_clean_losses_alarm_no_more_often_than_promised_and_tripled_ones_are_found() -> None:
    detector = LossDetector(KNOWN, 1e5)
    states = [detector.update(detector.start(), losses(0.01, 10_000, seed)) for seed in range(200)]
    assert sum(state.alarms > 0 for state in states) <= 200 * 10_000 / 1e5 + 3 * np.sqrt(18)
    after = [detector.update(LossState(), losses(0.03, 10_000, seed)) for seed in range(100)]
    assert all(state.alarms for state in after)
    assert sum(state.alarms for state in after) <= 105
    assert np.mean([state.alarm_ms for state in after]) < 800


def test_the_suspected_start_lies_near_the_change() -> None:
    detector, found = LossDetector(KNOWN, 1e5), []
    for seed in range(50):
        state = detector.update(detector.update(detector.start(), losses(0.01, 4_000, seed)), losses(0.04, 2_000, 1000 + seed, 4_000))
        verdict = detector.judge(state)
        assert verdict.status == "ALARM"
        assert verdict.effect > 0.01
        found.append(verdict.suspected_start_ms)
    assert abs(np.median([ms for ms in found if ms is not None]) - 4_000) < 100


@pytest.mark.parametrize(("error", "most"), [(0.01, 8), (None, 200)])
def test_an_estimated_reference_keeps_the_promise_only_with_its_bound(error: float | None, most: int) -> None:
    """Negative control: the same with the estimate taken for the truth alarms on far more clean streams than n / ARL allows."""
    random, alarms = np.random.default_rng(7), 0
    for seed in range(200):
        reference = LossReference("small", (float(random.binomial(2_000, 0.05)),), (2_000,), error)
        detector = LossDetector(reference, 1e6)
        alarms += detector.update(detector.start(), losses(0.05, 20_000, seed)).alarms > 0
    assert alarms <= most
    assert error is not None or alarms > 30


@given(st.lists(st.integers(0, 3_000), max_size=6), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_how_a_stream_is_cut_changes_no_bit(cuts: list[int], seed: int) -> None:
    stream = losses(np.where(np.arange(3_000) < 1_500, 0.01, 0.1), 3_000, seed)
    edges = [0, *sorted(cuts), 3_000]
    for detector in (LossDetector(KNOWN, 1e3), adwin(), page_hinkley()):
        state: Any = detector.start()
        for a, b in itertools.pairwise(edges):
            state = detector.update(state, LossBatch(stream.losses[a:b], stream.times_ms[a:b]))
            state = msgspec.json.decode(msgspec.json.encode(state), type=type(state))
        assert state == detector.update(detector.start(), stream)


@pytest.mark.parametrize("detector", [LossDetector(LossReference("v1", (20_000.0,), (100_000,)), 1e6), adwin(), page_hinkley()])
def test_worse_alarms_and_better_does_not(detector: Detector[Any, LossBatch]) -> None:
    for seed in range(10):
        before = detector.update(detector.start(), losses(0.2, 3_000, seed))
        worse = detector.update(before, losses(0.5, 3_000, seed + 100, 3_000))
        better = detector.update(before, losses(0.02, 3_000, seed + 100, 3_000))
        assert before.alarms == better.alarms == 0
        assert worse.alarms >= 1
        assert detector.judge(better).status == "OK"


def test_an_alarm_ends_when_the_stream_has_recovered() -> None:
    detector = LossDetector(KNOWN, 1e7)
    bad = detector.update(detector.start(), losses(0.1, 2_000, 1))
    well = detector.update(bad, losses(0.01, 20_000, 2, 2_000))
    again = detector.update(well, losses(0.1, 2_000, 3, 22_000))
    assert [detector.judge(state).status for state in (bad, well, again)] == ["ALARM", "OK", "ALARM"]
    assert (bad.alarms, well.alarms, again.alarms) == (1, 1, 2)


def test_losses_that_are_none_are_refused() -> None:
    detector = LossDetector(KNOWN, 1e4)
    for loss in (np.nan, 1.1, -0.1):
        with pytest.raises(DefinitionError, match="losses reach"):
            detector.update(detector.start(), LossBatch(np.array([0.0, loss]), np.arange(2)))


@pytest.mark.parametrize(("cluster", "alarmed"), [(5, 0), (1, 20)])
def test_losses_and_events_that_come_five_times_break_the_promise_unless_counted_as_one(cluster: int, alarmed: int) -> None:
    """Negative control: cluster 1."""
    counts = {"losses": 0, "shapes": 0}
    for seed in range(20):
        random = np.random.default_rng(seed)
        repeated = np.repeat(random.random(8_000) < 0.05, 5) * 1.0
        known = LossDetector(LossReference("v1", (float(5 * random.binomial(4_000, 0.05)),), (20_000,), cluster=cluster), 1e6)
        counts["losses"] += known.update(known.start(), LossBatch(repeated, np.arange(40_000))).alarms > 0
        shares = random.dirichlet(np.full(22, 20.0), 10)
        reference = ShapeReference("v1", tuple("abcdefghij"), 5 * drawn(shares, 4_000, random)[None], cluster=cluster)
        detector = ShapeDetector(reference, 1e3)
        state = detector.start()
        for window in range(60):
            state = detector.update(state, ShapeBatch(window, 5 * drawn(shares, 400, random)))
        counts["shapes"] += state.alarms > 0
    assert counts == {"losses": alarmed, "shapes": alarmed}


def test_a_daily_season_is_no_change() -> None:
    """Negative control: without the hours the same stream alarms."""
    step = HOUR_MS // 60
    def rate(n: int) -> Any:
        return 0.2 + 0.12 * np.sin(2 * np.pi * np.arange(n) * step / (24 * HOUR_MS))
    alarms = {"hours": 0, "flat": 0}
    n = 60 * 24 * 28
    for seed in range(10):
        past, now = losses(rate(n), n, seed, 0, step), losses(rate(n // 2), n // 2, seed + 50, n * step, step)
        cells = seasons.count_by_hour(past.losses, past.times_ms)
        flat = LossReference("flat", (past.losses.sum(),), (n,))
        for name, reference in (("hours", LossReference("hours", *cells)), ("flat", flat)):
            detector = LossDetector(reference, 1e6)
            alarms[name] += detector.update(detector.start(), now).alarms > 0
    assert alarms == {"hours": 0, "flat": 10}


def test_shapes_that_do_not_change_do_not_alarm_and_one_feature_that_does_is_named() -> None:
    random, names = np.random.default_rng(3), tuple(f"f{i}" for i in range(10))
    for _ in range(10):
        shares = random.dirichlet(np.full(22, 10.0), 10)
        detector = ShapeDetector(ShapeReference("v1", names, drawn(shares, 5_000, random)[None]), 1e3)
        state = detector.start()
        for window in range(100):
            state = detector.update(state, ShapeBatch(window, drawn(shares, 2_000, random)))
        assert state.alarms == 0
        shares[4] = np.roll(shares[4], 3)
        for window in range(100, 105):
            state = detector.update(state, ShapeBatch(window, drawn(shares, 2_000, random)))
        verdict = detector.judge(state)
        assert verdict.status == "ALARM"
        assert verdict.contributors[0][0] == "f4"
        assert verdict.suspected_start_ms == 100


def test_an_alarm_of_shapes_ends_when_they_have_recovered() -> None:
    random = np.random.default_rng(6)
    well = random.dirichlet(np.full(22, 20.0), 3)
    ill = np.roll(well, 5, axis=1)
    detector = ShapeDetector(ShapeReference("v1", ("a", "b", "c"), drawn(well, 20_000, random)[None]), 1e3)
    state, seen = detector.start(), []
    for window, shares in enumerate([well] * 3 + [ill] * 3 + [well] * 12 + [ill] * 2):
        state = detector.update(state, ShapeBatch(window, drawn(shares, 2_000, random)))
        state = msgspec.json.decode(msgspec.json.encode(state), type=ShapeState)
        seen.append(detector.judge(state).status)
    assert [seen[0], seen[3], seen[5], seen[18], seen[19]] == ["INSUFFICIENT_DATA", "OK", "ALARM", "OK", "ALARM"], "each of the one before"
    assert state.alarms == 2


def test_the_second_opinion_forgets_at_the_same_place_however_it_is_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_opinion, "MEMORY", 400)
    stream, opinion = losses(0.1, 3_000, 1), adwin()
    whole, state = opinion.update(opinion.start(), stream), opinion.start()
    for at in range(0, 3_000, 70):
        state = opinion.update(state, LossBatch(stream.losses[at:at + 70], stream.times_ms[at:at + 70]))
    assert state == whole
    assert sum(n for _, n in state.runs) < 400


def test_the_plug_in_likelihood_ratio_would_alarm_on_every_clean_stream() -> None:
    """Why shapes has bounds: the same streams, the estimated shares taken for the truth."""
    random, naive, ours = np.random.default_rng(5), 0, 0
    for _ in range(30):
        shares = random.dirichlet(np.full(22, 10.0), 1)
        seen = drawn(shares, 2_000, random)
        guess, grown, log_r = seen[0] / seen.sum(), np.full(22, 0.5), 0.0
        detector = ShapeDetector(ShapeReference("v1", ("f",), seen[None]), 1e3)
        state, crossed = detector.start(), False
        for window in range(150):
            counts = drawn(shares, 1_000, random)
            with np.errstate(divide="ignore"):
                log_r = np.logaddexp(0, log_r) + float((counts[0] * np.log(grown / grown.sum() / guess)).sum())
            grown += counts[0]
            crossed |= log_r >= np.log(1e3)
            state = detector.update(state, ShapeBatch(window, counts))
        naive, ours = naive + crossed, ours + (state.alarms > 0)
    assert ours == 0
    assert naive == 30


def test_windows_merge_until_they_are_large_enough_and_retractions_subtract() -> None:
    shares, random = np.full((2, 22), 1 / 22), np.random.default_rng(1)
    reference = ShapeReference("v1", ("a", "b"), drawn(shares, 10_000, random)[None])
    detector = ShapeDetector(reference, 1e3)
    part, rest, late = (drawn(shares, n, random) for n in (300, 900, 50))
    one = detector.update(detector.start(), ShapeBatch(0, part))
    assert detector.judge(one).status == "INSUFFICIENT_DATA"
    cut: ShapeState = one
    for batch in (ShapeBatch(1, rest), ShapeBatch(1, late), ShapeBatch(1, -late), ShapeBatch(2, part)):
        cut = detector.update(cut, batch)
    whole = detector.update(detector.update(one, ShapeBatch(1, rest)), ShapeBatch(2, part))
    assert cut == whole
    assert cut.windows == 1
    assert msgspec.json.decode(msgspec.json.encode(cut), type=ShapeState) == cut
    with pytest.raises(DefinitionError, match="came after"):
        detector.update(cut, ShapeBatch(1, part))


@pytest.mark.parametrize("zeros", [(0.7, 0.6), (0.97, 0.9), (0.03, 0.1)])
def test_the_shares_of_two_values_are_seen_to_change(zeros: tuple[float, float]) -> None:
    random = np.random.default_rng(5)

    def column(share: float, n: int) -> Any:
        return np.where(random.random(n) < share, 0.0, 1.0)

    learned = column(zeros[0], 20_000)
    edges = quantile_edges(learned)
    detector = ShapeDetector(ShapeReference("r", ("f",), bin_counts(learned, edges)[None, None]), arl=1_000)
    state = detector.start()
    for window in range(42):
        state = detector.update(state, ShapeBatch(window, bin_counts(column(zeros[window >= 30], 1_000), edges)[None]))
    assert (state.alarms, state.alarm_ms is not None and state.alarm_ms >= 30) == (1, True)


def test_psi_without_its_null_mean_is_nothing_where_nothing_changed() -> None:
    random, shares = np.random.default_rng(2), np.full(20, 1 / 20)
    for n in (500, 2_000):
        found = [psi(random.multinomial(50_000, shares), random.multinomial(n, shares)) for _ in range(500)]
        assert abs(np.mean(found)) < 0.1 * 19 / n + 3 * np.std(found) / np.sqrt(500)


def test_the_list_that_people_see_is_corrected_for_its_length() -> None:
    random, names, clean = np.random.default_rng(4), tuple(f"f{i}" for i in range(30)), 0
    shares = random.dirichlet(np.full(22, 5.0), 30)
    for _ in range(200):
        found = compare(names, drawn(shares, 20_000, random), drawn(shares, 1_000, random), effect=0.0)
        clean += any(distance.status == "ALARM" for distance in found)
    assert clean <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05)
    moved = shares.copy()
    moved[7] = np.roll(shares[7], 4)
    found = compare(names, drawn(shares, 20_000, random), drawn(moved, 1_000, random))
    assert [distance.feature for distance in found if distance.status == "ALARM"] == ["f7"]
    few = compare(names, drawn(shares, 20_000, random), drawn(moved, 499, random))
    assert {distance.status for distance in few} == {"INSUFFICIENT_DATA"}


@given(st.lists(st.one_of(st.just(float("nan")), st.integers(-5, 5).map(float)), min_size=1, max_size=60))
@settings(deadline=None)
def test_every_value_is_counted_once_and_the_reference_is_never_unseen(values: list[float]) -> None:
    column = np.array(values)
    edges = quantile_edges(column)
    counts = bin_counts(column, edges)
    assert len(edges) <= 21
    assert (np.diff(edges) > 0).all()
    assert counts.sum() == len(values)
    assert counts[21] == 0
    assert counts[20] == np.isnan(column).sum()


def test_states_are_plain_data() -> None:
    for kind in (LossState, ShapeState, OpinionState):
        assert msgspec.json.decode(msgspec.json.encode(asdict(kind())), type=kind) == kind()
