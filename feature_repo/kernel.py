"""The window kernel: feature values of many entities in one call, exact, and the same online and offline.

The value at t of a feature with window W in a view with delay D is a fold over the entity's records with

    t - D - W  <  event_time  <=  t - D

left-open, right-closed, integer ms. Records are identified by (event_time, id hash); of copies the highest
(revision, columns in order) counts. Sums are exact integers; floats appear once, at the end. ``feature_repo.oracle`` says the same
in plain Python, and tests hold them to ``==``.

Two entries: ``read_sets`` for byte strings as they lie in Redis (any order, copies, floors), ``sweep`` for sorted records offline
with a horizon of arrival for each read. Both end in ``_fold``.

Over 300 lines, on purpose: numba's cache does not see a change in another file, and a stale half of the kernel would be wrong in
silence. All that is compiled together lies here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from feature_repo.views import FUNCTIONS, FeatureView

__all__ = [
    "EXCLUDE", "INCLUDE", "MERGED", "NEWEST", "NONE", "NO_TIME", "REFUSED", "USED", "XOR", "Plan", "plan", "read_sets", "sort_order",
    "sweep",
]

NONE, INCLUDE, EXCLUDE = 0, 1, 2
"""What to do with the event that a read is for: there is none; it belongs to the read; it does not."""

USED, XOR, NEWEST, MERGED, REFUSED = range(5)
"""Columns of the stamps: records used, xor of their hashes, newest event time, current merged by the reader, below the floor."""

NO_TIME = np.iinfo(np.int64).min
(COUNT, SUM, MEAN, MIN, MAX, STD, LAST, SINCE, RATIO, DISTINCT, SAME) = range(len(FUNCTIONS))
FUNCTION, COLUMN, DENOMINATOR, WINDOW, SCALE, SCALE_2 = range(6)
SMALL = 48  # up to here insertion beats a general sort even on shuffled input

U = np.uint64
LOW = U(0xFFFFFFFF)
HALF = U(32)
TOP_BIT = U(1 << 63)
MIX_1, MIX_2, SEED = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB), U(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Plan:
    """A view as the kernel reads it. ``features`` is int64[F, 6]; ``tie_break`` the record words that order copies."""

    features: Any
    tie_break: Any
    delay_ms: int
    longest_ms: int


@lru_cache(maxsize=256)
def plan(view: FeatureView) -> Plan:
    features = [
        (FUNCTIONS.index(f.function), 2 + view.column_index(f.column), 2 + view.column_index(f.denominator), f.window_ms,
         view.scale(f.column), view.scale(f.denominator))
        for f in view.features
    ]
    revisions_first = sorted(range(len(view.columns)), key=lambda i: not view.columns[i].revision)
    tie_break = [2 + i for i in revisions_first]
    return Plan(np.array(features, np.int64), np.array(tie_break, np.int64), view.delay_ms, view.longest_window_ms)


def read_sets(view: FeatureView, records: Any, starts: Any, ends: Any, t: Any, current: Any, modes: Any) -> tuple[Any, Any]:
    """Feature values of n reads over sets as they lie in the online store.

    Parameters
    ----------
    records : int64[m, words]
        The records of all sets, each set contiguous, in any order, copies and floor records included.
    starts, ends : int64[n]
        Rows of the set that read i is over; reads may share a set.
    t : int64[n]
        Time of each read, ms.
    current : int64[n, words]
        The event each read is for, as a record of this view; ignored where the mode is NONE.
    modes : int64[n]
        NONE, INCLUDE or EXCLUDE.

    Returns
    -------
    values : float64[n, F]
        NaN is null.
    stamps : int64[n, 5]
        See USED .. REFUSED. A read below the floor has REFUSED 1 and no values.
    """
    p = plan(view)
    values = np.empty((len(t), len(p.features)))
    stamps = np.zeros((len(t), 5), np.int64)
    _read_sets(p.features, p.tie_break, p.delay_ms, p.longest_ms, records, starts, ends, t, current, modes, values, stamps)
    return values, stamps


def sweep(view: FeatureView, records: Any, arrivals: Any, starts: Any, ends: Any, t: Any, current: Any, modes: Any,
          horizons: Any) -> tuple[Any, Any]:
    """Feature values of n reads over sorted records, each seeing only what had arrived before its horizon.

    Parameters are those of ``read_sets`` and

    records : int64[m, words]
        Sorted within each entity by (event_time, id hash, tie break); see ``sort_order``.
    arrivals : int64[m, 2]
        (arrival ms, position) of each record; position orders records of one millisecond.
    horizons : int64[n, 2]
        A record is seen where its arrival is less than the horizon; the greatest int64 sees all.
    """
    p = plan(view)
    values = np.empty((len(t), len(p.features)))
    stamps = np.zeros((len(t), 5), np.int64)
    _sweep(p.features, p.tie_break, p.delay_ms, p.longest_ms, records, arrivals, starts, ends, t, current, modes, horizons, values,
           stamps)
    return values, stamps


def sort_order(view: FeatureView, entity: Any, records: Any) -> Any:
    """Row order by (entity code, event_time, id hash, tie break), as ``sweep`` wants it."""
    keys = [records[:, word] for word in plan(view).tie_break[::-1]]
    return np.lexsort((*keys, records[:, 1], records[:, 0], entity))


@njit(cache=True, nogil=True)
def _before(rows: Any, a: int, b: int, tie_break: Any) -> bool:
    if rows[a, 0] != rows[b, 0]:
        return bool(rows[a, 0] < rows[b, 0])
    if rows[a, 1] != rows[b, 1]:
        return bool(rows[a, 1] < rows[b, 1])
    for word in tie_break:
        if rows[a, word] != rows[b, word]:
            return bool(rows[a, word] < rows[b, word])
    return False


@njit(cache=True, nogil=True)
def _sort(rows: Any, order: Any, n: int, tie_break: Any) -> None:
    """Order by time, id, tie break. Sets are nearly in time order, so insertion is linear; a shuffled large one is sorted first."""
    if n > SMALL:
        inversions = 0
        for i in range(1, n):
            inversions += rows[order[i], 0] < rows[order[i - 1], 0]
        if inversions > n // 16:
            times = np.empty(n, np.int64)
            for i in range(n):
                times[i] = rows[order[i], 0]
            order[:n] = order[:n][np.argsort(times, kind="mergesort")]
    for i in range(1, n):
        row = order[i]
        j = i - 1
        while j >= 0 and _before(rows, row, order[j], tie_break):
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = row


@njit(cache=True, nogil=True)
def _drop_copies(rows: Any, order: Any, n: int) -> int:
    """Keep the last of each identity in sorted ``order``; the number kept."""
    kept = 0
    for i in range(n):
        if i + 1 < n and rows[order[i], 0] == rows[order[i + 1], 0] and rows[order[i], 1] == rows[order[i + 1], 1]:
            continue
        order[kept] = order[i]
        kept += 1
    return kept


@njit(cache=True, nogil=True)
def _hash_row(rows: Any, row: int) -> Any:
    """splitmix64's finaliser over the words of a record."""
    h = SEED
    for word in range(rows.shape[1]):
        h = (h ^ U(rows[row, word])) + SEED
        h = (h ^ (h >> U(30))) * MIX_1
        h = (h ^ (h >> U(27))) * MIX_2
        h = h ^ (h >> U(31))
    return h


@njit(cache=True, nogil=True)
def _distinct(rows: Any, order: Any, low: int, n: int, word: int) -> int:
    if n - low > SMALL:
        column = np.empty(n - low, np.int64)
        for i in range(low, n):
            column[i - low] = rows[order[i], word]
        column.sort()
        return 1 + int(np.sum(column[1:] != column[:-1]))
    distinct = 0
    for i in range(low, n):
        fresh = 1
        for j in range(low, i):
            if rows[order[j], word] == rows[order[i], word]:
                fresh = 0
                break
        distinct += fresh
    return distinct


# 128-bit unsigned integers as two uint64 limbs, for exact second moments: n * sum(x**2) wraps int64 at 100,000 amounts of 10,000.00;
# two limbs hold it for ten million amounts of a billion.

@njit(cache=True, inline="always")
def wide_multiply(a: Any, b: Any) -> Any:
    """(high, low) of a * b, by 32-bit halves."""
    a_low, a_high, b_low, b_high = a & LOW, a >> HALF, b & LOW, b >> HALF
    low = a_low * b_low
    middle = a_high * b_low + (low >> HALF)
    other = a_low * b_high + (middle & LOW)
    return a_high * b_high + (middle >> HALF) + (other >> HALF), (other << HALF) | (low & LOW)


@njit(cache=True, inline="always")
def wide_add(a_high: Any, a_low: Any, b_high: Any, b_low: Any) -> Any:
    low = a_low + b_low
    carry = U(1) if low < a_low else U(0)
    return a_high + b_high + carry, low


@njit(cache=True, inline="always")
def wide_subtract(a_high: Any, a_low: Any, b_high: Any, b_low: Any) -> Any:
    borrow = U(1) if a_low < b_low else U(0)
    return a_high - b_high - borrow, a_low - b_low


@njit(cache=True, inline="always")
def wide_scale(high: Any, low: Any, factor: Any) -> Any:
    """(high, low) * factor, modulo 2**128."""
    carried, product = wide_multiply(low, factor)
    return high * factor + carried, product


@njit(cache=True)
def wide_to_float(high: Any, low: Any) -> float:
    """The nearest float64, ties to even, as Python's ``float(int)``.

    The top 64 significant bits are converted by the hardware; every bit shifted out is gathered into the lowest kept one, which
    lies far below the rounding position and so only breaks ties.
    """
    if high == U(0):
        return float(low)
    shift = 0
    while (high & TOP_BIT) == U(0):
        high = (high << U(1)) | (low >> U(63))
        low = low << U(1)
        shift += 1
    if low != U(0):
        high = high | U(1)
    return float(high) * 2.0 ** (64 - shift)


@njit(cache=True, nogil=True)
def _deviation(rows: Any, order: Any, low: int, n: int, word: int, total: int, scale: int) -> float:
    """Population standard deviation, sqrt(n Σx² - (Σx)²) / n, exact until the square root."""
    high, bottom = U(0), U(0)
    for i in range(low, n):
        x = U(abs(rows[order[i], word]))
        square_high, square_low = wide_multiply(x, x)
        high, bottom = wide_add(high, bottom, square_high, square_low)
    count = n - low
    high, bottom = wide_scale(high, bottom, U(count))
    size = U(abs(total))
    square_high, square_low = wide_multiply(size, size)
    high, bottom = wide_subtract(high, bottom, square_high, square_low)
    return float(np.sqrt(wide_to_float(high, bottom)) / float(count * scale))


@njit(cache=True, nogil=True)
def _fold(features: Any, rows: Any, order: Any, n: int, t: int, edge: int, current: int, values: Any, stamp: Any) -> None:
    """All features of one read over ``order[:n]``: sorted, without copies, inside the longest window. ``current`` is a row or -1."""
    stamp[USED] = n
    stamp[NEWEST] = rows[order[n - 1], 0] if n else NO_TIME
    mixed = U(0)
    for i in range(n):
        mixed ^= _hash_row(rows, order[i])
    stamp[XOR] = np.int64(mixed)
    for f in range(features.shape[0]):
        function, word, scale = features[f, FUNCTION], features[f, COLUMN], features[f, SCALE]
        left = edge - features[f, WINDOW]
        low = n
        while low > 0 and rows[order[low - 1], 0] > left:
            low -= 1
        count = n - low
        if function == COUNT:
            values[f] = float(count)
            continue
        if function == DISTINCT:
            values[f] = float(_distinct(rows, order, low, n, word))
            continue
        if function == SAME:
            if current < 0:
                values[f] = np.nan
                continue
            same = 0
            for i in range(low, n):
                same += rows[order[i], word] == rows[current, word]
            values[f] = float(same)
            continue
        if function in (SUM, MEAN, STD, RATIO):
            total = 0
            for i in range(low, n):
                total += rows[order[i], word]
            if function == SUM:
                values[f] = float(total) / float(scale)
            elif count == 0:
                values[f] = np.nan
            elif function == MEAN:
                values[f] = float(total) / float(count * scale)
            elif function == STD:
                values[f] = _deviation(rows, order, low, n, word, total, scale)
            else:
                below = 0
                for i in range(low, n):
                    below += rows[order[i], features[f, DENOMINATOR]]
                if below == 0:
                    values[f] = np.nan
                else:
                    values[f] = (float(total) / float(scale)) / (float(below) / float(features[f, SCALE_2]))
            continue
        if count == 0:
            values[f] = np.nan
        elif function == LAST:
            values[f] = float(rows[order[n - 1], word]) / float(scale)
        elif function == SINCE:
            values[f] = float(t - rows[order[n - 1], 0]) / 1000.0
        else:
            extreme = rows[order[low], word]
            for i in range(low + 1, n):
                x = rows[order[i], word]
                if (function == MIN and x < extreme) or (function == MAX and x > extreme):
                    extreme = x
            values[f] = float(extreme) / float(scale)


@njit(cache=True, nogil=True)
def _read_sets(features: Any, tie_break: Any, delay: int, longest: int, records: Any, starts: Any, ends: Any, t: Any, current: Any,
               modes: Any, values: Any, stamps: Any) -> None:
    m = records.shape[0]
    rows = np.concatenate((records, current))  # so that a current event is a row like any other
    most = 1
    for i in range(len(t)):
        most = max(most, ends[i] - starts[i] + 1)
    order = np.empty(most, np.int64)
    for i in range(len(t)):
        edge = t[i] - delay
        left = edge - longest
        own, n, seen, floor = m + i, 0, False, NO_TIME
        for row in range(starts[i], ends[i]):
            if rows[row, 1] == 0:
                floor = max(floor, rows[row, 0])
                continue
            time = rows[row, 0]
            if time <= left or time > edge:
                continue
            if modes[i] != NONE and time == rows[own, 0] and rows[row, 1] == rows[own, 1]:
                if modes[i] == EXCLUDE:
                    continue
                seen = True
            order[n] = row
            n += 1
        if left < floor:
            stamps[i, REFUSED] = 1
            stamps[i, NEWEST] = NO_TIME
            values[i, :] = np.nan
            continue
        if modes[i] == INCLUDE and left < rows[own, 0] <= edge:
            order[n] = own
            n += 1
            stamps[i, MERGED] = 0 if seen else 1
        _sort(rows, order, n, tie_break)
        n = _drop_copies(rows, order, n)
        _fold(features, rows, order, n, t[i], edge, own if modes[i] != NONE else -1, values[i], stamps[i])


@njit(cache=True, nogil=True)
def _sweep(features: Any, tie_break: Any, delay: int, longest: int, records: Any, arrivals: Any, starts: Any, ends: Any, t: Any,
           current: Any, modes: Any, horizons: Any, values: Any, stamps: Any) -> None:
    m = records.shape[0]
    rows = np.concatenate((records, current))
    most = 1
    for i in range(len(t)):
        most = max(most, ends[i] - starts[i] + 1)
    order = np.empty(most, np.int64)
    for i in range(len(t)):
        edge = t[i] - delay
        left = edge - longest
        own, n, seen = m + i, 0, False
        low, high = starts[i], ends[i]
        while low < high:  # first record after the left edge
            middle = (low + high) // 2
            if rows[middle, 0] <= left:
                low = middle + 1
            else:
                high = middle
        for row in range(low, ends[i]):
            if rows[row, 0] > edge:
                break
            if arrivals[row, 0] > horizons[i, 0] or (arrivals[row, 0] == horizons[i, 0] and arrivals[row, 1] >= horizons[i, 1]):
                continue
            if modes[i] != NONE and rows[row, 0] == rows[own, 0] and rows[row, 1] == rows[own, 1]:
                if modes[i] == EXCLUDE:
                    continue
                seen = True
            order[n] = row
            n += 1
        if modes[i] == INCLUDE and left < rows[own, 0] <= edge:
            order[n] = own
            n += 1
            stamps[i, MERGED] = 0 if seen else 1
        _sort(rows, order, n, tie_break)
        n = _drop_copies(rows, order, n)
        _fold(features, rows, order, n, t[i], edge, own if modes[i] != NONE else -1, values[i], stamps[i])
