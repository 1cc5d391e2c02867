"""Hops and tiles: what may be declared, and that compaction at any moment changes no bit of any feature."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import kernel
from feature_repo.bounds import bounds
from feature_repo.fraud import VIEWS as FRAUD_VIEWS
from feature_repo.oracle import Record, feature_values, members
from feature_repo.views import FUNCTIONS, Column, Feature, FeatureView
from schemas.errors import DefinitionError
from tests.test_kernel import as_rows, mode_of, random_records, same

COLUMNS = (Column("a", scale=100), Column("rev", revision=True), Column("b"), Column("h", hashed=True))


def feature(name: str, function: str, window: int, hop: int) -> Feature:
    column = None if function in ("count", "time_since_last") else "h" if function.startswith("count_") else "a"
    return Feature(name, function, window, column, "b", hop_ms=hop)


def view_of(delay_ms: int, include_current: bool, windows: tuple[tuple[int, int], ...], exact: bool) -> FeatureView:
    features = [feature(f"{f}_{w}", f, w, hop) for w, hop in windows for f in FUNCTIONS if not f.startswith("count_")]
    features += [feature(f"{f}_exact", f, 9, 0) for f in FUNCTIONS if exact]
    return FeatureView("v", "e", "s", COLUMNS, tuple(features), delay_ms=delay_ms, include_current=include_current, peak_per_s=1)


VIEWS = [view_of(delay, include, windows, exact) for delay in (0, 15) for include in (True, False)
         for windows in (((40, 10), (300, 50)), ((12, 3), (25, 6), (90, 24)), ((5, 5), (6, 5))) for exact in (True, False)]
ONE = np.zeros(1, np.int64)


class Compacted:
    """An entity's records and tiles after compaction at some moments; copies of what was told come again in between."""

    def __init__(self, r: random.Random, view: FeatureView, records: list[Record]) -> None:
        self.view = view
        self.raw, self.tiles = as_rows(view, records), np.empty((0, kernel.tile_words(view)), np.int64)
        now = r.randrange(-50, 50)
        for _ in range(r.randrange(1, 5)):
            self.raw, self.tiles = kernel.compact(view, self.raw, self.tiles, bounds_at(view, now))
            again = as_rows(view, [r.choice(records) for _ in range(r.randrange(4))])
            self.raw = np.random.default_rng(r.randrange(1000)).permutation(np.concatenate((self.raw, again)))
            now += r.randrange(0, 120)

    def read(self, t: int, current: Record | None) -> tuple[Any, Any]:
        tiles = kernel.Tiles(self.tiles, ONE, ONE + len(self.tiles))
        return read(self.view, self.raw, t, current, tiles)


def bounds_at(view: FeatureView, now: int) -> tuple[int, ...]:
    return bounds(view, now + view.allowed_lateness_ms + view.max_skew_ms + 1, now + view.max_skew_ms + 1)


def read(view: FeatureView, raw: Any, t: int, current: Record | None, tiles: kernel.Tiles | None = None) -> tuple[Any, Any]:
    own = as_rows(view, [current or Record(0, 0, (0,) * 4)])
    values, stamps = kernel.read_sets(view, raw, ONE, ONE + len(raw), np.array([t]), own, np.array([mode_of(view, current)]), tiles)
    return values[0], stamps[0]


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(VIEWS))
def test_compaction_at_any_moment_changes_no_value_and_no_fingerprint(r: random.Random, view: FeatureView) -> None:
    records = random_records(r, r.choice([1, 5, 40, 150]))
    compacted = Compacted(r, view, records)
    for _ in range(8):
        t = r.randrange(-20, 500)
        current = r.choice([None, r.choice(records), random_records(r, 1)[0]])
        values, stamp = compacted.read(t, current)
        if stamp[kernel.REFUSED]:
            continue
        assert same(values, feature_values(view, records, t, current))
        _, whole = read(view, as_rows(view, records), t, current)
        judged = [kernel.USED, kernel.XOR, kernel.NEWEST]
        assert (stamp[judged] == whole[judged]).all()
        assert stamp[kernel.USED] == len(members(view, records, t, current))


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(VIEWS))
def test_only_reads_that_begin_or_end_in_what_is_folded_are_refused(r: random.Random, view: FeatureView) -> None:
    now, records = r.randrange(0, 300), random_records(r, 60)
    raw, tiles = kernel.compact(view, as_rows(view, records), np.empty((0, kernel.tile_words(view)), np.int64), bounds_at(view, now))
    served = kernel.Tiles(tiles, ONE, ONE + len(tiles))
    earliest = now + 1
    for t in range(earliest, earliest + 80):
        assert not read(view, raw, t, None, served)[1][kernel.REFUSED]
    assert read(view, raw, now - 400, None, served)[1][kernel.REFUSED]


def test_a_current_event_that_may_be_folded_already_is_refused_not_counted_twice() -> None:
    view = view_of(0, True, ((40, 10),), exact=False)
    own = Record(100, 7, (1, 0, 1, 1))
    raw, tiles = kernel.compact(view, as_rows(view, [own]), np.empty((0, kernel.tile_words(view)), np.int64), (0, 100))
    served = kernel.Tiles(tiles, ONE, ONE + len(tiles))
    assert len(raw) == 0
    assert read(view, raw, 100, own, served)[1][kernel.REFUSED]
    values, stamp = read(view, raw, 100, None, served)
    assert (values[0], stamp[kernel.USED]) == (1.0, 1)


def test_replays_and_corrections_at_or_below_b_are_ignored() -> None:
    view = view_of(0, True, ((40, 10),), exact=False)
    told = [Record(95, 7, (1, 0, 1, 1)), Record(98, 8, (2, 0, 1, 1))]
    raw, tiles = kernel.compact(view, as_rows(view, told), np.empty((0, kernel.tile_words(view)), np.int64), (0, 97))
    raw = np.concatenate((raw, as_rows(view, [told[0], told[0]._replace(columns=(9, 3, 1, 1)), told[1]])))
    values, stamp = read(view, raw, 101, None, kernel.Tiles(tiles, ONE, ONE + len(tiles)))
    assert same(values, feature_values(view, told, 101))
    assert stamp[kernel.USED] == 2


def test_a_fingerprint_leaves_out_the_newest_tile_where_an_exact_window_begins_behind_it() -> None:
    """Found by tests/tiled_store.py, seed 382: the window begins inside of the tile's span, and after its last record."""
    features = (Feature("tiled", "count", 6, hop_ms=5), Feature("exact", "count", 7))
    view = FeatureView("v", "e", "s", COLUMNS, features, peak_per_s=1)
    told = [Record(time, time, (1, 0, 1, 1)) for time in (101, 102, 106)]
    raw, tiles = kernel.compact(view, as_rows(view, told), np.empty((0, kernel.tile_words(view)), np.int64), (100, 102))
    values, stamp = read(view, raw, 111, None, kernel.Tiles(tiles, ONE, ONE + len(tiles)))
    assert (values.tolist(), stamp[kernel.USED]) == ([1.0, 1.0], 1)
    _, whole = read(view, as_rows(view, told), 111, None)
    assert (stamp == whole).all()


def test_second_moments_of_a_tile_need_128_bits_and_are_exact() -> None:
    view = view_of(0, True, ((1000, 100),), exact=False)
    told = [Record(i, i + 1, (10**11 - i % 3, 0, 1, 1)) for i in range(900)]
    raw, tiles = kernel.compact(view, as_rows(view, told), np.empty((0, kernel.tile_words(view)), np.int64), (NONE_BELOW, 850))
    assert len(raw) == 49
    values, _ = read(view, raw, 899, None, kernel.Tiles(tiles, ONE, ONE + len(tiles)))
    assert same(values, feature_values(view, told, 899))


NONE_BELOW = -10**6


def test_tiles_are_folded_up_the_ladder_so_that_their_number_is_bounded() -> None:
    minute, hour, day = 60_000, 3_600_000, 86_400_000
    view = FeatureView("v", "e", "s", COLUMNS, tuple(Feature(f"n{w}", "count", w, hop_ms=h) for w, h in
                                                      ((day, 5 * minute), (7 * day, hour), (30 * day, day))), peak_per_s=1,
                       allowed_lateness_ms=10_000, max_skew_ms=2_000)
    raw, tiles = np.empty((0, view.record_words), np.int64), np.empty((0, kernel.tile_words(view)), np.int64)
    times = np.arange(0, 60 * day, minute)
    for chunk in np.split(times, 60):
        more = np.stack([chunk, chunk + 1, *([chunk * 0] * 4)], axis=1)
        raw, tiles = kernel.compact(view, np.concatenate((raw, more)), tiles, bounds(view, int(chunk[-1]), int(chunk[-1]) - 10_000))
        assert len(tiles) - 1 <= 288 + 168 + 30 + 12 + 24  # a rung keeps up to one tile of the next
        assert len(raw) <= 2
    values, _ = read(view, raw, int(times[-1]), None, kernel.Tiles(tiles, ONE, ONE + len(tiles)))
    assert values.tolist() == [(t - left) / minute for t, left in ((times[-1], w) for w in (
        58 * day + 86_100_000, 52 * day + 82_800_000, 29 * day))]


@pytest.mark.parametrize(("broken", "fact"), [
    ({"hop_ms": -1}, "has a hop of -1 ms"),
    ({"hop_ms": 70}, "hop of 70 ms in a window of 60 ms"),
    ({"hop_ms": 5, "function": "count_distinct", "column": "h"}, "count_distinct needs every record"),
    ({"hop_ms": 5, "function": "count_same", "column": "h"}, "count_same needs every record"),
])
def test_a_hop_that_cannot_be_is_refused(broken: dict[str, Any], fact: str) -> None:
    with pytest.raises(DefinitionError, match=fact):
        FeatureView("v", "e", "s", COLUMNS, (dataclasses.replace(Feature("n", "count", 60), **broken),), peak_per_s=1)


@pytest.mark.parametrize(("hops", "peak", "fact"), [
    ((5, 12), 1, "hops of 5 and 12 ms"), ((5, 10), None, "does not say how busy"), ((1, 2, 4, 8, 16), 1, "5 different hops"),
])
def test_a_ladder_that_cannot_be_folded_is_refused(hops: tuple[int, ...], peak: float | None, fact: str) -> None:
    with pytest.raises(DefinitionError, match=fact):
        FeatureView("v", "e", "s", COLUMNS, tuple(Feature(f"n{hop}", "count", 60, hop_ms=hop) for hop in hops), peak_per_s=peak)


def test_exact_views_keep_the_keys_they_had_before_there_were_hops() -> None:
    assert [view.versioned_name for view in FRAUD_VIEWS] == [
        "card_spend@e4182ce2", "terminal_activity@3b23188d", "terminal_risk@b63fa4f8"]
    plain = FeatureView("v", "e", "s", COLUMNS, (Feature("n", "count", 60),))
    assert dataclasses.replace(plain, peak_per_s=9).definition_hash == plain.definition_hash
    hopped = dataclasses.replace(plain, features=(Feature("n", "count", 60, hop_ms=5),), peak_per_s=9)
    assert hopped.definition_hash != plain.definition_hash
