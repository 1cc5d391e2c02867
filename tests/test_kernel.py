"""Kernel, sweep and oracle are one meaning: equal with ``==`` on random, hostile input."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import kernel
from feature_repo.layout import floor_record, rows
from feature_repo.oracle import Record, feature_values, members
from feature_repo.views import FUNCTIONS, Column, Feature, FeatureView

BIG = 10**11


def view_of(delay_ms: int, include_current: bool, hops: tuple[int, ...] = (0, 0, 0)) -> FeatureView:
    features = tuple(
        Feature(f"{function}_{w}", function, w, None if function in ("count", "time_since_last") else column, "b",
                hop_ms=0 if function.startswith("count_") else hop)
        for w, hop in zip((7, 40, 1000), hops, strict=True)
        for function in FUNCTIONS
        for column in (["h"] if function.startswith("count_") else ["a"])
    )
    return FeatureView("v", "e", "s", (Column("a", scale=100), Column("rev", revision=True), Column("b"), Column("h", hashed=True)),
                       features, delay_ms=delay_ms, include_current=include_current, peak_per_s=1)


VIEWS = [view_of(delay, include, hops) for hops in ((0, 0, 0), (0, 10, 50)) for delay in (0, 15) for include in (True, False)]
LIMIT = np.iinfo(np.int64).max


def random_records(r: random.Random, n: int) -> list[Record]:
    records: list[Record] = []
    for _ in range(n):
        if records and r.random() < 0.3:  # a copy, sometimes with other content
            old = r.choice(records)
            columns = list(old.columns)
            if r.random() < 0.5:
                columns[r.randrange(4)] += 1
            records.append(Record(old.time, old.id, tuple(columns)))
        else:
            amount = r.choice([r.randrange(-50, 50), BIG - r.randrange(3), -BIG, 0])
            time = r.randrange(0, 120 if r.random() < 0.8 else 3000)
            records.append(Record(time, r.randrange(1, 40), (amount, r.randrange(3), r.randrange(-2, 3), r.randrange(4) - 2)))
    return records


def as_rows(view: FeatureView, records: list[Record]) -> np.ndarray:
    return np.array([[r.time, r.id, *r.columns] for r in records], np.int64).reshape(-1, view.record_words)


def mode_of(view: FeatureView, current: Record | None) -> int:
    return kernel.NONE if current is None else kernel.INCLUDE if view.include_current else kernel.EXCLUDE


def same(a: object, b: object) -> bool:
    return np.array_equal(np.asarray(a, float), np.asarray(b, float), equal_nan=True)


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: f"delay{v.delay_ms}-current{v.include_current}-hops{len(v.hops)}")
@pytest.mark.parametrize("size", [0, 1, 5, 40, 400])
def test_kernel_equals_oracle_on_hostile_sets(view: FeatureView, size: int) -> None:
    r = random.Random(f"{view.delay_ms}{view.include_current}{size}")
    for _ in range(60):
        records = random_records(r, size)
        reads = [(r.randrange(0, 1400), r.choice([None, r.choice(records) if records else None, random_records(r, 1)[0]]))
                 for _ in range(5)]
        n = len(reads)
        current = as_rows(view, [c or Record(0, 0, (0,) * 4) for _, c in reads])
        values, stamps = kernel.read_sets(view, as_rows(view, records), np.zeros(n, np.int64), np.full(n, len(records)),
                                          np.array([t for t, _ in reads]), current,
                                          np.array([mode_of(view, c) for _, c in reads]))
        for i, (t, c) in enumerate(reads):
            assert same(values[i], feature_values(view, records, t, c))
            assert stamps[i, kernel.USED] == len(members(view, records, t, c))


def read_alone(view: FeatureView, records: list[Record], t: int, sets: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Reads for no event over ``records``, cut into equal ``sets``."""
    starts, zeros = np.arange(sets) * (len(records) // sets), np.zeros(sets, np.int64)
    return kernel.read_sets(view, as_rows(view, records), starts, starts + len(records) // sets, zeros + t,
                            np.zeros((sets, view.record_words), np.int64), zeros)


def test_one_copy_anywhere_in_a_long_set_counts_once() -> None:
    view, r = VIEWS[0], random.Random(5)
    for _ in range(150):
        n = r.choice([48, 60, 300, 600])
        records = [Record(i + (r.randrange(-30, 30) if r.random() < 0.2 else 0), 1 + i, (r.randrange(100), 0, 1, i % 7)) for i in range(n)]
        copied = r.choice(records)
        records.insert(r.randrange(n + 1), r.choice([copied, copied._replace(columns=(7, r.choice([-1, 1]), 1, 1))]))
        t = n + r.randrange(-10, 40)
        values, stamps = read_alone(view, records, t)
        assert same(values[0], feature_values(view, records, t))
        assert stamps[0, kernel.USED] == len(members(view, records, t, None))


def test_the_fingerprint_of_many_records_is_the_xor_of_each() -> None:
    r = random.Random(6)
    records = [Record(r.randrange(500), 1 + i, (r.randrange(100), 0, 1, 2)) for i in range(700)]
    (_, together), (_, each) = read_alone(VIEWS[0], records, 600), read_alone(VIEWS[0], records, 600, sets=700)
    assert together[0, kernel.XOR] == np.bitwise_xor.reduce(each[:, kernel.XOR])


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: f"delay{v.delay_ms}-current{v.include_current}-hops{len(v.hops)}")
def test_sweep_equals_oracle_over_what_had_arrived(view: FeatureView) -> None:
    r = random.Random(7)
    for _ in range(200):
        entities = [random_records(r, r.choice([0, 3, 30])) for _ in range(3)]
        table = [(e, record, (r.randrange(50), i)) for e, records in enumerate(entities) for i, record in enumerate(records)]
        reads = [(r.randrange(3), r.randrange(0, 1400), r.choice([None, *random_records(r, 1)]), (r.randrange(60), r.randrange(9)))
                 for _ in range(8)]
        recs = as_rows(view, [x[1] for x in table])
        codes = np.array([x[0] for x in table], np.int64)
        order = kernel.sort_order(view, codes, recs)
        codes = codes[order]
        values, stamps = kernel.sweep(
            view, recs[order], np.array([x[2] for x in table], np.int64).reshape(-1, 2)[order],
            np.searchsorted(codes, [e for e, *_ in reads]), np.searchsorted(codes, [e for e, *_ in reads], "right"),
            np.array([t for _, t, *_ in reads]), as_rows(view, [c or Record(0, 0, (0,) * 4) for _, _, c, _ in reads]),
            np.array([mode_of(view, c) for _, _, c, _ in reads]), np.array([h for *_, h in reads]))
        again = kernel.sweep_values(
            view, recs[order], np.array([x[2] for x in table], np.int64).reshape(-1, 2)[order],
            np.searchsorted(codes, [e for e, *_ in reads]), np.searchsorted(codes, [e for e, *_ in reads], "right"),
            np.array([t for _, t, *_ in reads]), as_rows(view, [c or Record(0, 0, (0,) * 4) for _, _, c, _ in reads]),
            np.array([mode_of(view, c) for _, _, c, _ in reads]), np.array([h for *_, h in reads]))
        assert same(values, again)
        for i, (e, t, c, horizon) in enumerate(reads):
            visible = [record for entity, record, arrival in table if entity == e and arrival < horizon]
            assert same(values[i], feature_values(view, visible, t, c))
            online, stamp = kernel.read_sets(view, as_rows(view, visible), np.zeros(1, np.int64), np.array([len(visible)]),
                                             np.array([t]), as_rows(view, [c or Record(0, 0, (0,) * 4)]), np.array([mode_of(view, c)]))
            assert same(values[i], online[0])
            assert (stamps[i] == stamp[0]).all(), "one read has one fingerprint, online and offline"


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: f"delay{v.delay_ms}-current{v.include_current}")
@pytest.mark.parametrize("late", [0.0, 0.05, 0.5])
def test_running_sums_are_the_sweep(view: FeatureView, late: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads for the records themselves, some late, some twice; where nothing is late, no read goes the long way but for tiles."""
    r, slow = random.Random(3), 0
    sweep = kernel.sweep

    def counted(*arguments: Any) -> Any:
        nonlocal slow
        slow += len(arguments[5])
        return sweep(*arguments)

    for plain in (True, False) * 20:
        records = [record._replace(time=i * 7) for i, record in enumerate(random_records(r, 120))]
        records += [r.choice(records) for _ in range(int(30 * late))]
        arrived = [(record.time + (r.randrange(400) if r.random() < late else 0), i) for i, record in enumerate(records)]
        recs, codes = as_rows(view, records), np.array([r.randrange(4) for _ in records], np.int64)
        order = kernel.sort_order(view, codes, recs)
        recs, codes, arrivals = recs[order], codes[order], np.array(arrived, np.int64)[order]
        bounds = [np.searchsorted(codes, codes, side) for side in ("left", "right")]
        t, horizons, modes = recs[:, 0], arrivals, np.full(len(recs), kernel.INCLUDE)
        if not plain:
            t, horizons = t + r.randrange(50), r.choice([arrivals, np.full_like(arrivals, LIMIT)])
            modes = np.array([r.choice([kernel.NONE, kernel.INCLUDE, kernel.EXCLUDE]) for _ in records])
        asked = (view, recs, arrivals, *bounds, t, recs, modes, horizons)
        expected, slow = sweep(*asked)[0], 0
        monkeypatch.setattr(kernel, "sweep", counted)
        assert same(kernel.sweep_values(*asked), expected)
        places, matrix = np.array(r.sample(range(200), len(t))), np.full((200, len(view.features)), 5.0)
        assert kernel.sweep_values(*asked, into=(matrix, places)) is matrix
        assert same(matrix[places], expected)
        assert (np.delete(matrix, places, axis=0) == 5.0).all()
        monkeypatch.undo()
        assert view.hops or not (plain and slow and not late)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(VIEWS))
def test_order_copies_and_splits_of_a_set_change_no_bit(r: random.Random, view: FeatureView) -> None:
    records = random_records(r, r.randrange(1, 120))
    again = records + [r.choice(records) for _ in range(r.randrange(5))]
    r.shuffle(again)
    t, current = r.randrange(1400), r.choice(records)

    def read(of: list[Record]) -> tuple[np.ndarray, np.ndarray]:
        return kernel.read_sets(view, as_rows(view, of), np.zeros(1, np.int64), np.array([len(of)]), np.array([t]),
                                as_rows(view, [current]), np.array([mode_of(view, current)]))

    (a, stamp_a), (b, stamp_b) = read(records), read(again)
    assert a.tobytes() == b.tobytes()
    assert (stamp_a == stamp_b).all()


def test_a_read_below_the_floor_is_refused_and_one_above_it_is_not() -> None:
    view = VIEWS[0]
    value = as_rows(view, [Record(2000, 5, (1, 0, 1, 1))]).tobytes() + floor_record(view, 1000)
    t = np.array([1999, 2000, 2500])
    z = np.zeros(3, np.int64)
    values, stamps = kernel.read_sets(view, rows(view, value), z, z + 2, t, np.zeros((3, view.record_words), np.int64), z)
    assert stamps[:, kernel.REFUSED].tolist() == [1, 0, 0]
    assert np.isnan(values[0]).all()
    assert values[1, 0] == 1.0


@settings(deadline=None)  # the first call compiles
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_wide_integers_agree_with_python(a: int, b: int) -> None:
    high, low = kernel.wide_multiply(np.uint64(a), np.uint64(b))
    assert (int(high) << 64) + int(low) == a * b
    assert kernel.wide_to_float(np.uint64(a), np.uint64(b)) == float((a << 64) + b)
    big, small = max(a, b), min(a, b)
    h, lo = kernel.wide_subtract(np.uint64(big), np.uint64(small), np.uint64(small), np.uint64(big))
    assert (int(h) << 64) + int(lo) == ((big << 64) + small) - ((small << 64) + big)
