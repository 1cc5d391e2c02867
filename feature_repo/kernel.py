"""The window kernel: feature values of many entities in one call, exact, and the same online and offline.

The value at t of a feature with window W and hop H in a view with delay D is a fold over the entity's records with

    floor_H(t - D - W)  <  event_time  <=  e,     e = t - D, or floor_H(t - D) where D > 0 and H > 0

left-open, right-closed, integer ms; floor_0 changes nothing. What lies far enough back may be in tiles (``feature_repo.tiles``): then
it is folded from them, with the same result. Records are identified by (event_time, id hash); of copies the highest
(revision, columns in order) counts. Sums are exact integers; floats appear once, at the end. ``feature_repo.oracle`` says the same
in plain Python, and tests hold them to ``==``.

Three entries: ``read_sets`` for byte strings as they lie in Redis (any order, copies, floors, tiles; ``read_views``: those of several
views in one call), ``sweep`` for sorted records offline with a horizon of arrival for each read, both of which end in ``_fold``; and
``compact``, which makes tiles of records.

Over 300 lines, on purpose: numba's cache does not see a change in another file, and a stale half of the kernel would be wrong in
silence. All that is compiled together lies here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from feature_repo.views import FUNCTIONS, Feature, FeatureView

__all__ = [
    "EXCLUDE", "INCLUDE", "MERGED", "NEWEST", "NONE", "NO_TIME", "REFUSED", "TILE_N", "USED", "XOR", "Plan", "Plans", "Tiles", "compact",
    "plan", "plans", "reach", "read_sets", "read_views", "sort_order", "sweep", "sweep_values", "tile_words",
]

NONE, INCLUDE, EXCLUDE = 0, 1, 2
"""What to do with the event that a read is for: there is none; it belongs to the read; it does not."""

USED, XOR, NEWEST, MERGED, REFUSED = range(5)
"""Columns of the stamps: records used, xor of their hashes, newest event time, current merged by the reader, below the floor."""

NO_TIME = np.iinfo(np.int64).min
(COUNT, SUM, MEAN, MIN, MAX, STD, LAST, SINCE, RATIO, DISTINCT, SAME) = range(len(FUNCTIONS))
FUNCTION, COLUMN, DENOMINATOR, WINDOW, SCALE, SCALE_2, HOP, RUNG, SLOT, SLOT_2 = range(10)
TILE_END, TILE_HOP, TILE_N, TILE_XOR, TILE_NEWEST, TILE_HEAD = range(6)
"""Words of a tile; from TILE_HEAD on its slots. The first row of an entity's tiles holds the trim floor and the bound of each rung."""
SLOT_SUM, SLOT_SQUARES, SLOT_MIN, SLOT_MAX, SLOT_LAST = range(5)
NEEDS = {"sum": (SLOT_SUM,), "mean": (SLOT_SUM,), "ratio": (SLOT_SUM,), "std": (SLOT_SUM, SLOT_SQUARES), "min": (SLOT_MIN,),
         "max": (SLOT_MAX,), "last": (SLOT_LAST,)}
"""What a tile must hold of a column for a function."""
SQUARED, EXTREMES = 1 << 10, 1 << 11  # apart from any word of a record
SMALL = 48  # up to here insertion beats a general sort even on shuffled input
ABREAST = 256  # hashes that are made side by side, within the processor's first cache

U = np.uint64
LOW = U(0xFFFFFFFF)
HALF = U(32)
TOP_BIT = U(1 << 63)
MIX_1, MIX_2, SEED = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB), U(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Plan:
    """A view as the kernel reads it.

    ``features`` is int64[F, 10]; ``tie_break`` the record words that order copies; ``slots`` int64[S, 3]: what is kept, of which
    record word, in which tile word (squares take two).
    """

    features: Any
    tie_break: Any
    delay_ms: int
    slots: Any
    tile_words: int


@dataclass(frozen=True)
class Plans:
    """Several views as one call reads them: their plans' ``features`` and ``tie_break`` one after another, and int64[V, 8] of each view.

    The words of ``views``: its first feature and the one after its last, the same of its tie break, its delay, the words of a record
    and of a tile, and the mode of all reads of it (NONE, INCLUDE or EXCLUDE).
    """

    features: Any
    tie_breaks: Any
    views: Any


class Tiles(NamedTuple):
    """Tiles of many entities, int64[k, tile words], and for each of n reads the rows of its entity: none, or header and tiles."""

    rows: Any
    starts: Any
    ends: Any


@lru_cache(maxsize=256)
def plan(view: FeatureView) -> Plan:
    slots: dict[tuple[int, int], int] = {}
    width = TILE_HEAD
    for f in view.features:
        for column in (f.column, f.denominator) if f.function == "ratio" else (f.column,):
            for kind in NEEDS.get(f.function, ()) if f.hop_ms else ():
                if (kind, view.column_index(column)) not in slots:
                    slots[kind, view.column_index(column)] = width
                    width += 2 if kind == SLOT_SQUARES else 1

    def slot(f: Feature, column: str | None, place: int) -> int:
        kinds = NEEDS.get(f.function, ())
        return slots.get((kinds[min(place, len(kinds) - 1)], view.column_index(column)), -1) if kinds else -1

    features = [
        (FUNCTIONS.index(f.function), 2 + view.column_index(f.column), 2 + view.column_index(f.denominator), f.window_ms,
         view.scale(f.column), view.scale(f.denominator), f.hop_ms, (0, *view.hops).index(f.hop_ms), slot(f, f.column, 0),
         slot(f, f.denominator if f.function == "ratio" else f.column, 1))
        for f in view.features
    ]
    revisions_first = sorted(range(len(view.columns)), key=lambda i: not view.columns[i].revision)
    tie_break = [2 + i for i in revisions_first]
    kept = [(kind, 2 + column, word) for (kind, column), word in slots.items()]
    return Plan(np.array(features, np.int64), np.array(tie_break, np.int64), view.delay_ms, np.array(kept, np.int64).reshape(-1, 3), width)


def tile_words(view: FeatureView) -> int:
    """int64 words of a tile, and of the header before an entity's tiles."""
    return plan(view).tile_words


def plans(views: Sequence[FeatureView], modes: Sequence[int]) -> Plans:
    """For ``read_views``, with the mode of each view."""
    each = [plan(view) for view in views]
    features, ties = (np.cumsum([0, *map(len, lists)]) for lists in ([p.features for p in each], [p.tie_break for p in each]))
    table = [(features[v], features[v + 1], ties[v], ties[v + 1], p.delay_ms, view.record_words, p.tile_words, mode)
             for v, (view, p, mode) in enumerate(zip(views, each, modes, strict=True))]
    return Plans(np.concatenate([p.features for p in each]), np.concatenate([p.tie_break for p in each]), np.array(table, np.int64))


def reach(view: FeatureView, t: Any) -> tuple[Any, Any]:
    """int64, shaped as ``t``, twice: a read at t is over the records with left < event_time <= right, all its windows together."""
    p, at = plan(view), np.asarray(t, np.int64)
    lefts, rights = _reaches(p.features, p.delay_ms, at.ravel())
    return lefts.reshape(at.shape)[()], rights.reshape(at.shape)[()]


def read_sets(view: FeatureView, records: Any, starts: Any, ends: Any, t: Any, current: Any, modes: Any,
              tiles: Tiles | None = None) -> tuple[Any, Any]:
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
    tiles
        What compaction made of older records; None where the view has no hop, or for records that were never compacted. Records
        at or below their B are in them, and those in the set are copies.

    Returns
    -------
    values : float64[n, F]
        NaN is null.
    stamps : int64[n, 5]
        See USED .. REFUSED. A read below a floor, or that begins or ends inside of what is folded, has REFUSED 1 and no values.
    """
    p = plan(view)
    values = np.empty((len(t), len(p.features)))
    stamps = np.zeros((len(t), 5), np.int64)
    if tiles is None:
        tiles = _no_tiles(p, len(t))
    _read_sets(p.features, p.tie_break, p.delay_ms, *reach(view, t), records, starts, ends, *tiles, t, current, modes, values, stamps)
    return values, stamps


def read_views(p: Plans, words: Any, directory: Any, t: Any) -> tuple[Any, Any]:
    """As ``read_sets``, of all views of ``p`` at once: a read of one event would else be made of some fifty small steps.

    Parameters
    ----------
    words : int64[..]
        View after view: the sets of its k entities, their tiles, and n records of the events that the reads are for (zeros: none).
    directory : int64[..]
        View after view: k; the bytes of each set; the bytes of the tiles of each entity; which of the k entities read i is over.
    t : int64[n]
        Time of each read, ms.

    Returns
    -------
    values : float64[n, F]
        The features of all views, side by side.
    stamps : int64[V, n, 5]
    """
    values = np.empty((len(t), len(p.features)))
    stamps = np.zeros((len(p.views), len(t), 5), np.int64)
    if _read_views(p.features, p.tie_breaks, p.views, words, directory, t, values, stamps) != len(words):
        raise ValueError("a set or its tiles are no whole number of records")  # all that lies behind it would be read askew
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
    _sweep(p.features, p.tie_break, p.delay_ms, *reach(view, t), records, arrivals, starts, ends, t, current, modes, horizons, values,
           stamps)
    return values, stamps


def compact(view: FeatureView, records: Any, tiles: Any, bounds: Sequence[int]) -> tuple[Any, Any]:
    """An entity's records and tiles, folded as far as ``bounds`` allow.

    Parameters
    ----------
    records : int64[m, words]
        As ``read_sets`` takes them.
    tiles : int64[k, tile words]
        Header and tiles in order of time, or no row.
    bounds
        As ``feature_repo.tiles.bounds`` gives them; where the entity is further already it stays there.

    Returns
    -------
    kept : int64[.., words]
        The records that stay, in order of time, without copies.
    tiles : int64[.., tile words]
    """
    p = plan(view)
    header = np.full(p.tile_words, NO_TIME)
    header[:len(bounds)] = bounds
    before = NO_TIME
    if len(tiles):
        header = np.maximum(header, tiles[0])
        before = tiles[0, 1]
    floors = records[records[:, 1] == 0, 0]
    header[0] = max(header[0], floors.max(initial=NO_TIME))
    kept, folded = _compact(p.slots, p.tie_break, np.array(view.hops, np.int64), records, tiles[1:], before, header)
    return kept, np.concatenate((header[None], folded))


def _no_tiles(p: Plan, n: int) -> Tiles:
    nothing = np.zeros(n, np.int64)
    return Tiles(np.empty((0, p.tile_words), np.int64), nothing, nothing)


def sweep_values(view: FeatureView, records: Any, arrivals: Any, starts: Any, ends: Any, t: Any, current: Any, modes: Any,
                 horizons: Any, into: tuple[Any, Any] | None = None) -> Any:
    """The values of ``sweep``, without stamps, at a fraction of its cost where reads are plain.

    A read is plain where all it may see lies side by side in ``records``: nothing in between came too late for it, or twice. Its sums
    are then differences of running sums. Fastest where an entity's reads stand together in order of time. With ``into``, a
    float64[.., F] and int64[n], read i goes to that row of that matrix, and the matrix is returned.
    """
    p, (windows, of_feature, summed, squared) = plan(view), _run_plan(view)
    n = len(t)
    values, at = into if into is not None else (np.empty((len(p.features), n)).T, np.arange(n))
    if any(getattr(feature, "hop_ms", 0) for feature in view.features):
        values[at] = sweep(view, records, arrivals, starts, ends, t, current, modes, horizons)[0]
        return values
    plain = np.zeros(n, np.bool_)
    lows, rights = np.empty((len(windows), n), np.int64), np.empty(n, np.int64)
    _find_runs(windows, p.delay_ms, records, arrivals, starts, ends, t, current, modes, horizons, lows, rights, plain)
    sums, squares = _running(summed, squared, records)
    for f, feature in enumerate(p.features):
        _fill(feature, records, lows[of_feature[f]], rights, sums, squares, summed, squared, t, current, modes, plain, at,
              values[:, f])
    others = np.flatnonzero(~plain)
    if len(others):
        values[at[others]] = sweep(view, records, arrivals, *(each[others] for each in (starts, ends, t, current, modes, horizons)))[0]
    return values


@lru_cache(maxsize=256)
def _run_plan(view: FeatureView) -> tuple[Any, Any, Any, Any]:
    """Distinct windows and the one of each feature; per record word the place of its running sum and sum of squares, -1: none."""
    windows = sorted({f.window_ms for f in view.features})
    of_feature = [windows.index(f.window_ms) for f in view.features]
    summed, squared = np.full(view.record_words, -1), np.full(view.record_words, -1)
    for f in view.features:
        if f.function in ("sum", "mean", "std", "ratio"):
            for column in (f.column, f.denominator) if f.function == "ratio" else (f.column,):
                summed[2 + view.column_index(column)] = 0
        if f.function == "std":
            squared[2 + view.column_index(f.column)] = 0
    for places in (summed, squared):
        places[places == 0] = np.arange((places == 0).sum())
    return np.array(windows, np.int64), np.array(of_feature, np.int64), summed, squared


def sort_order(view: FeatureView, entity: Any, records: Any) -> Any:
    """Row order by (entity code, event_time, id hash, tie break), as ``sweep`` wants it."""
    order = np.empty(len(entity), np.int64)
    _sort_entities(np.ascontiguousarray(entity, np.int64), np.ascontiguousarray(records), plan(view).tie_break, order)
    return order


@njit(cache=True, nogil=True)
def _reaches(features: Any, delay: int, t: Any) -> Any:
    lefts, rights = np.empty(len(t), np.int64), np.empty(len(t), np.int64)
    for i in range(len(t)):
        edge = t[i] - delay
        lefts[i], rights[i] = edge, NO_TIME
        for f in range(features.shape[0]):
            left, right, hop = edge - features[f, WINDOW], edge, features[f, HOP]
            if hop:
                left -= left % hop
                right -= edge % hop if delay else 0
            lefts[i], rights[i] = min(lefts[i], left), max(rights[i], right)
    return lefts, rights


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


@njit(cache=True, inline="always")
def _same(rows: Any, a: int, b: int) -> Any:
    """Whether two rows are copies of one event; without a branch, for times are often equal."""
    return (rows[a, 0] == rows[b, 0]) & (rows[a, 1] == rows[b, 1])


@njit(cache=True, nogil=True)
def _sort(rows: Any, order: Any, n: int, tie_break: Any) -> bool:
    """Order by time, id, tie break; False where it is sure that there are no copies.

    Sets are nearly in order: what compaction left is, and most of what was appended since. So all but those before an earlier one
    stay as they are; the late ones are sorted by themselves and brought in.
    """
    if n <= SMALL:
        for i in range(1, n):
            _insert(rows, order, i, tie_break)
        return True
    late, run, copies = np.empty(n, np.int64), 1, False
    for i in range(1, n):
        row, last = order[i], order[run - 1]
        fine = (rows[row, 0] > rows[last, 0]) | ((rows[row, 0] == rows[last, 0]) & (rows[row, 1] > rows[last, 1]))
        if not fine and _before(rows, row, last, tie_break):
            late[i - run] = row
        else:
            copies |= not fine
            order[run] = row
            run += 1
    late = late[:n - run]
    if len(late) > SMALL:
        late = late[np.argsort(np.array([rows[row, 0] for row in late]), kind="mergesort")]
    for i in range(1, len(late)):
        _insert(rows, late, i, tie_break)
    for i in range(1, len(late)):
        copies |= _same(rows, late[i - 1], late[i])
    for j in range(len(late) - 1, -1, -1):
        low, high = 0, run
        while low < high:
            middle = (low + high) // 2
            if _before(rows, late[j], order[middle], tie_break):
                high = middle
            else:
                low = middle + 1
        copies |= (low > 0 and _same(rows, order[low - 1], late[j])) or (low < run and _same(rows, order[low], late[j]))
        for i in range(run - 1, low - 1, -1):
            order[i + j + 1] = order[i]
        order[low + j] = late[j]
        run = low
    return bool(copies)


@njit(cache=True, inline="always")
def _insert(rows: Any, order: Any, i: int, tie_break: Any) -> None:
    """Move ``order[i]`` to its place among those before it, which are sorted."""
    row = order[i]
    j = i - 1
    while j >= 0 and _before(rows, row, order[j], tie_break):
        order[j + 1] = order[j]
        j -= 1
    order[j + 1] = row


@njit(cache=True, nogil=True)
def _sort_entities(entity: Any, rows: Any, tie_break: Any, order: Any) -> None:
    """Count, then sort within each entity: records come nearly in time order, so this is nearly linear. Codes are 0, 1, 2 .."""
    most = 0
    for code in entity:
        most = max(most, code + 1)
    ends = np.zeros(most + 1, np.int64)
    for code in entity:
        ends[code + 1] += 1
    for code in range(most):
        ends[code + 1] += ends[code]
    place = ends[:-1].copy()
    for row in range(len(entity)):
        order[place[entity[row]]] = row
        place[entity[row]] += 1
    for code in range(most):
        _sort(rows, order[ends[code]:ends[code + 1]], ends[code + 1] - ends[code], tie_break)


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


@njit(cache=True, inline="always")
def _mix(h: Any, word: Any) -> Any:
    """splitmix64's finaliser, over what was mixed before and one word more."""
    h = (h ^ word) + SEED
    h = (h ^ (h >> U(30))) * MIX_1
    h = (h ^ (h >> U(27))) * MIX_2
    return h ^ (h >> U(31))


@njit(cache=True, nogil=True)
def _hash_row(rows: Any, row: int) -> Any:
    """A hash of the words of a record."""
    h = SEED
    for word in range(rows.shape[1]):
        h = _mix(h, U(rows[row, word]))
    return h


@njit(cache=True, nogil=True)
def _hash_rows(rows: Any, order: Any, n: int) -> Any:
    """Xor of ``_hash_row`` over records; many are hashed word by word, side by side, which the processor does several at a time."""
    mixed = U(0)
    if n <= SMALL:
        for i in range(n):
            mixed ^= _hash_row(rows, order[i])
        return mixed
    hashes, words = np.empty(ABREAST, np.uint64), np.empty(ABREAST, np.uint64)
    for begin in range(0, n, ABREAST):
        size = min(ABREAST, n - begin)
        hashes[:] = SEED
        for word in range(rows.shape[1]):
            for i in range(size):
                words[i] = U(rows[order[begin + i], word])
            for i in range(size):
                hashes[i] = _mix(hashes[i], words[i])
        for i in range(size):
            mixed ^= hashes[i]
    return mixed


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


@njit(cache=True, nogil=True)
def _find_runs(windows: Any, delay: int, rows: Any, arrivals: Any, starts: Any, ends: Any, t: Any, current: Any, modes: Any, horizons: Any,
               lows: Any, rights: Any, plain: Any) -> None:
    """Of each read the rows ``lows[w, i]`` .. ``rights[i]`` of each window, and whether it is plain."""
    m = rows.shape[0]
    copies, newest = np.zeros(m + 1, np.int64), np.zeros(m, np.int64)
    for row in range(m):
        copies[row + 1] = copies[row] + (row > 0 and rows[row, 0] == rows[row - 1, 0] and rows[row, 1] == rows[row - 1, 1])
    left, widest = np.zeros(len(windows), np.int64), len(windows) - 1
    entity, entity_end, right, before = -1, -1, 0, NO_TIME
    for i in range(len(t)):
        start, end, edge = starts[i], ends[i], t[i] - delay
        if start != entity or end != entity_end:
            entity, entity_end, before = start, end, NO_TIME
            for row in range(start, end):  # the last to arrive so far
                last = newest[row - 1] if row > start else row
                newest[row] = row if _arrived(arrivals, last, arrivals[row, 0], arrivals[row, 1]) else last
        if edge < before or before == NO_TIME:
            left[:] = start
            right = start
        before = edge
        while right < end and rows[right, 0] <= edge:
            right += 1
        for w in range(len(windows)):
            while left[w] < right and rows[left[w], 0] <= edge - windows[w]:
                left[w] += 1
            lows[w, i] = left[w]
        rights[i] = right
        low, seen = left[widest], modes[i] == NONE or (modes[i] == INCLUDE and current[i, 0] > edge)
        last = newest[right - 1] if right > start else -1
        fine = last < 0 or _arrived(arrivals, last, horizons[i, 0], horizons[i, 1])
        if modes[i] == INCLUDE and not seen:
            own = right - 1
            while own >= low and rows[own, 0] == current[i, 0] and rows[own, 1] != current[i, 1]:
                own -= 1
            seen = own >= low
            for word in range(rows.shape[1]):
                seen = seen and rows[own, word] == current[i, word]
            fine = fine or (seen and last == own and arrivals[own, 0] == horizons[i, 0] and arrivals[own, 1] == horizons[i, 1])
        plain[i] = seen and fine and (right <= low or copies[right] == copies[low + 1])


@njit(cache=True, inline="always")
def _arrived(arrivals: Any, row: int, ms: int, position: int) -> bool:
    return bool(arrivals[row, 0] < ms or (arrivals[row, 0] == ms and arrivals[row, 1] < position))


@njit(cache=True, nogil=True)
def _running(summed: Any, squared: Any, rows: Any) -> Any:
    """Sums and squares of all rows before each; they may wrap, their differences do not."""
    m = rows.shape[0]
    sums, squares = np.zeros((summed.max() + 1, m + 1), np.int64), np.zeros((squared.max() + 1, m + 1, 2), np.uint64)
    for word in range(2, rows.shape[1]):
        if summed[word] >= 0:
            of_word = sums[summed[word]]
            for row in range(m):
                of_word[row + 1] = of_word[row] + rows[row, word]
        if squared[word] >= 0:
            of_squares = squares[squared[word]]
            for row in range(m):
                high, low = wide_square(rows[row, word])
                of_squares[row + 1, 0], of_squares[row + 1, 1] = wide_add(of_squares[row, 0], of_squares[row, 1], high, low)
    return sums, squares


@njit(cache=True, nogil=True)
def _fill(feature: Any, rows: Any, lows: Any, rights: Any, sums: Any, squares: Any, summed: Any, squared: Any, t: Any, current: Any,
          modes: Any, plain: Any, at: Any, values: Any) -> None:
    """One feature of all plain reads, by the formulas of ``_fold``; read i goes to ``values[at[i]]``."""
    function, word, other = feature[FUNCTION], feature[COLUMN], feature[DENOMINATOR]
    scale, scale_2, divisor = feature[SCALE], feature[SCALE_2], float(feature[SCALE])
    of_word = sums[summed[word]] if function in (SUM, MEAN, STD, RATIO) else np.empty(0, np.int64)
    of_other = sums[summed[other]] if function == RATIO else of_word
    of_squares = squares[squared[word]] if function == STD else np.empty((0, 2), np.uint64)
    for i in range(len(t)):
        if not plain[i]:
            continue
        low, high = lows[i], rights[i]
        count, to = high - low, at[i]
        if function == COUNT:
            values[to] = float(count)
        elif function == DISTINCT:
            values[to] = float(_distinct_of_run(rows, low, high, word))
        elif function == SAME:
            same = 0
            for row in range(low, high):
                same += rows[row, word] == current[i, word]
            values[to] = np.nan if modes[i] == NONE else float(same)
        elif function == SUM:
            values[to] = float(of_word[high] - of_word[low]) / divisor
        elif count == 0:
            values[to] = np.nan
        elif function == LAST:
            values[to] = float(rows[high - 1, word]) / divisor
        elif function == SINCE:
            values[to] = float(t[i] - rows[high - 1, 0]) / 1000.0
        elif function in (MIN, MAX):
            extreme = rows[low, word]
            for row in range(low + 1, high):
                extreme = min(extreme, rows[row, word]) if function == MIN else max(extreme, rows[row, word])
            values[to] = float(extreme) / divisor
        elif function == MEAN:
            values[to] = float(of_word[high] - of_word[low]) / float(count * scale)
        elif function == RATIO:
            below = of_other[high] - of_other[low]
            above = float(of_word[high] - of_word[low]) / divisor
            values[to] = np.nan if below == 0 else above / (float(below) / float(scale_2))
        else:
            top, bottom = wide_subtract(of_squares[high, 0], of_squares[high, 1], of_squares[low, 0], of_squares[low, 1])
            top, bottom = wide_scale(top, bottom, U(count))
            square_top, square_bottom = wide_square(of_word[high] - of_word[low])
            top, bottom = wide_subtract(top, bottom, square_top, square_bottom)
            values[to] = float(np.sqrt(wide_to_float(top, bottom)) / float(count * scale))


@njit(cache=True, nogil=True)
def _distinct_of_run(rows: Any, low: int, high: int, word: int) -> int:
    if high - low > SMALL:
        column = np.sort(rows[low:high, word])
        return 1 + int(np.sum(column[1:] != column[:-1]))
    distinct = 0
    for i in range(low, high):
        fresh = 1
        for j in range(low, i):
            if rows[j, word] == rows[i, word]:
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
def wide_square(x: Any) -> Any:
    """(high, low) of x * x; nearly every amount has its square in one limb."""
    size = U(abs(x))
    if size <= LOW:
        return U(0), size * size
    return wide_multiply(size, size)


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


# Windows that are longer than the raw set goes back are over the same records, so a long run of one column is folded once a read.
# A memo is int64[features, 6]: first, end, which fold of which word, result (two limbs of squares).

@njit(cache=True, nogil=True)
def _recalled(memo: Any, f: int, low: int, high: int, key: int) -> int:
    """The row of the memo where a feature before ``f`` left this fold; -1 where none did, and then row f is to have it."""
    for g in range(f):
        if memo[g, 2] == key and memo[g, 0] == low and memo[g, 1] == high:
            return g
    memo[f, 0], memo[f, 1], memo[f, 2] = low, high, key
    return -1


@njit(cache=True, nogil=True)
def _total(rows: Any, order: Any, low: int, high: int, word: int, memo: Any, f: int) -> int:
    """The sum of one column over records."""
    long = high - low > SMALL
    if long:
        g = _recalled(memo, f, low, high, word)
        if g >= 0:
            return int(memo[g, 3])
    total = 0
    for i in range(low, high):
        total += rows[order[i], word]
    if long:
        memo[f, 3] = total
    return total


@njit(cache=True, nogil=True)
def _squares(rows: Any, order: Any, low: int, high: int, word: int, memo: Any, f: int) -> Any:
    """The sum of squares of one column over records, as two limbs."""
    long = high - low > SMALL
    if long:
        g = _recalled(memo, f, low, high, SQUARED + word)
        if g >= 0:
            return U(memo[g, 4]), U(memo[g, 5])
    top, bottom = U(0), U(0)
    for i in range(low, high):
        square_high, square_low = wide_square(rows[order[i], word])
        top, bottom = wide_add(top, bottom, square_high, square_low)
    if long:
        memo[f, 4], memo[f, 5] = np.int64(top), np.int64(bottom)
    return top, bottom


@njit(cache=True, nogil=True)
def _extreme(rows: Any, order: Any, low: int, high: int, word: int, function: int, memo: Any, f: int) -> int:
    """The least or greatest of one column over records, of which there is one at least."""
    long = high - low > SMALL
    if long:
        g = _recalled(memo, f, low, high, function * EXTREMES + word)
        if g >= 0:
            return int(memo[g, 3])
    extreme = rows[order[low], word]
    for i in range(low + 1, high):
        x = rows[order[i], word]
        if (function == MIN and x < extreme) or (function == MAX and x > extreme):
            extreme = x
    if long:
        memo[f, 3] = extreme
    return int(extreme)


@njit(cache=True, nogil=True)
def _deviation(count: int, total: int, scale: int, top: Any, bottom: Any) -> float:
    """Population standard deviation, sqrt(n Σx² - (Σx)²) / n, exact until the square root; (top, bottom) is Σx²."""
    top, bottom = wide_scale(top, bottom, U(count))
    square_high, square_low = wide_square(total)
    top, bottom = wide_subtract(top, bottom, square_high, square_low)
    return float(np.sqrt(wide_to_float(top, bottom)) / float(count * scale))


@njit(cache=True, nogil=True)
def _fold(features: Any, rows: Any, order: Any, n: int, tiles: Any, begin: int, end: int, t: int, delay: int, left_most: int,
          right_most: int, current: int, memo: Any, values: Any, stamp: Any) -> None:
    """All features of one read over ``order[:n]`` (sorted, without copies, inside the reach of all windows) and ``tiles[begin:end]``.

    ``current`` is a row or -1.
    """
    edge = t - delay
    if n > SMALL:
        memo[:, 2] = -1  # nothing of another read's records
    while begin < end and tiles[begin, TILE_END] <= left_most:
        begin += 1
    while begin < end and tiles[end - 1, TILE_END] - tiles[end - 1, TILE_HOP] >= right_most:
        end -= 1
    used = n
    mixed = U(0)
    for i in range(begin, end):
        used += tiles[i, TILE_N]
        mixed ^= U(tiles[i, TILE_XOR])
    mixed ^= _hash_rows(rows, order, n)
    stamp[USED] = used
    stamp[NEWEST] = rows[order[n - 1], 0] if n else tiles[end - 1, TILE_NEWEST] if begin < end else NO_TIME
    stamp[XOR] = np.int64(mixed)
    for f in range(features.shape[0]):
        function, word, scale, hop = features[f, FUNCTION], features[f, COLUMN], features[f, SCALE], features[f, HOP]
        slot = features[f, SLOT]
        left, high = edge - features[f, WINDOW], n
        first, last = end, end
        if hop:
            left -= left % hop
            right = edge
            if delay:
                right -= edge % hop
                while high > 0 and rows[order[high - 1], 0] > right:
                    high -= 1
            while last > begin and tiles[last - 1, TILE_END] - tiles[last - 1, TILE_HOP] >= right:
                last -= 1
            first = last
            while first > begin and tiles[first - 1, TILE_END] > left:
                first -= 1
        low = high
        if n and rows[order[0], 0] > left:
            low = 0
        while low > 0 and rows[order[low - 1], 0] > left:
            low -= 1
        count = high - low
        for i in range(first, last):
            count += tiles[i, TILE_N]
        if function == COUNT:
            values[f] = float(count)
            continue
        if function == DISTINCT:
            values[f] = float(_distinct(rows, order, low, high, word))
            continue
        if function == SAME:
            if current < 0:
                values[f] = np.nan
                continue
            same = 0
            for i in range(low, high):
                same += rows[order[i], word] == rows[current, word]
            values[f] = float(same)
            continue
        if function in (SUM, MEAN, STD, RATIO):
            total = 0
            if high - low <= SMALL:  # a call would cost more than the sum
                for i in range(low, high):
                    total += rows[order[i], word]
            else:
                total = _total(rows, order, low, high, word, memo, f)
            for i in range(first, last):
                total += tiles[i, slot]
            if function == SUM:
                values[f] = float(total) / float(scale)
            elif count == 0:
                values[f] = np.nan
            elif function == MEAN:
                values[f] = float(total) / float(count * scale)
            elif function == STD:
                top, bottom = _squares(rows, order, low, high, word, memo, f)
                for i in range(first, last):
                    top, bottom = wide_add(top, bottom, U(tiles[i, features[f, SLOT_2]]), U(tiles[i, features[f, SLOT_2] + 1]))
                values[f] = _deviation(count, total, scale, top, bottom)
            else:
                below = _total(rows, order, low, high, features[f, DENOMINATOR], memo, f)
                for i in range(first, last):
                    below += tiles[i, features[f, SLOT_2]]
                if below == 0:
                    values[f] = np.nan
                else:
                    values[f] = (float(total) / float(scale)) / (float(below) / float(features[f, SCALE_2]))
            continue
        if count == 0:
            values[f] = np.nan
        elif function == LAST:
            values[f] = float(rows[order[high - 1], word] if high > low else tiles[last - 1, slot]) / float(scale)
        elif function == SINCE:
            values[f] = float(t - (rows[order[high - 1], 0] if high > low else tiles[last - 1, TILE_NEWEST])) / 1000.0
        else:
            extreme = _extreme(rows, order, low, high, word, function, memo, f) if high > low else tiles[first, slot]
            for i in range(first, last):
                extreme = min(extreme, tiles[i, slot]) if function == MIN else max(extreme, tiles[i, slot])
            values[f] = float(extreme) / float(scale)


@njit(cache=True, nogil=True)
def _crosses(features: Any, header: Any, t: int, delay: int) -> bool:
    """Whether a read at ``t`` begins below the floor, or begins or ends inside of what is folded."""
    if delay == 0 and t < header[1]:
        return True
    for f in range(features.shape[0]):
        left = t - delay - features[f, WINDOW]
        if features[f, HOP]:
            left -= left % features[f, HOP]
        rung = features[f, RUNG] + 1
        if left < header[0] or (rung < header.shape[0] and left < header[rung]):
            return True
    return False


@njit(cache=True, nogil=True)
def _read_sets(features: Any, tie_break: Any, delay: int, lefts: Any, rights: Any, records: Any, starts: Any, ends: Any, tiles: Any,
               tile_starts: Any, tile_ends: Any, t: Any, current: Any, modes: Any, values: Any, stamps: Any) -> None:
    m = records.shape[0]
    rows = np.concatenate((records, current))  # so that a current event is a row like any other
    most = 1
    for i in range(len(t)):
        most = max(most, ends[i] - starts[i] + 1)
    order = np.empty(most, np.int64)
    memo = np.full((features.shape[0], 6), -1)
    for i in range(len(t)):
        left, right = lefts[i], rights[i]
        own, n, seen, floor = m + i, 0, False, NO_TIME
        begin, end = tile_starts[i], tile_ends[i]
        refused, after = False, left
        if begin < end:  # what is at or below B is in the tiles, and here only as copies
            header = tiles[begin]
            begin += 1
            after = max(left, header[1])
            refused = _crosses(features, header, t[i], delay) or (modes[i] != NONE and left < rows[own, 0] <= min(right, header[1]))
            if left >= header[1]:  # an exact window may begin within the newest tile, but not before its last record
                begin = end
        for row in range(starts[i], ends[i]):
            if rows[row, 1] == 0:
                floor = max(floor, rows[row, 0])
                continue
            time = rows[row, 0]
            if time <= after or time > right:
                continue
            if modes[i] != NONE and time == rows[own, 0] and rows[row, 1] == rows[own, 1]:
                if modes[i] == EXCLUDE:
                    continue
                seen = True
            order[n] = row
            n += 1
        if refused or left < floor:
            stamps[i, REFUSED] = 1
            stamps[i, NEWEST] = NO_TIME
            values[i, :] = np.nan
            continue
        if modes[i] == INCLUDE and left < rows[own, 0] <= right:
            order[n] = own
            n += 1
            stamps[i, MERGED] = 0 if seen else 1
        if _sort(rows, order, n, tie_break):
            n = _drop_copies(rows, order, n)
        _fold(features, rows, order, n, tiles, begin, end, t[i], delay, left, right, own if modes[i] != NONE else -1, memo,
              values[i], stamps[i])


@njit(cache=True, nogil=True)
def _read_views(features: Any, tie_breaks: Any, views: Any, words: Any, directory: Any, t: Any, values: Any, stamps: Any) -> int:
    """Fills ``values`` and ``stamps``; how many words were taken."""
    n, word, place = len(t), 0, 0
    for v in range(views.shape[0]):
        first, last, delay, width, tile_width = views[v, 0], views[v, 1], views[v, 4], views[v, 5], views[v, 6]
        own = features[first:last]
        k = directory[place]
        bounds, tile_bounds = np.zeros(k + 1, np.int64), np.zeros(k + 1, np.int64)
        for e in range(k):
            bounds[e + 1] = bounds[e] + directory[place + 1 + e] // (8 * width)
            tile_bounds[e + 1] = tile_bounds[e] + directory[place + 1 + k + e] // (8 * tile_width)
        at = directory[place + 1 + 2 * k:place + 1 + 2 * k + n]
        place += 1 + 2 * k + n
        records = words[word:word + bounds[k] * width].reshape((bounds[k], width))
        word += records.size
        tiles = words[word:word + tile_bounds[k] * tile_width].reshape((tile_bounds[k], tile_width))
        word += tiles.size
        current = words[word:word + n * width].reshape((n, width))
        word += current.size
        lefts, rights = _reaches(own, delay, t)
        found = np.empty((n, last - first))
        _read_sets(own, tie_breaks[views[v, 2]:views[v, 3]], delay, lefts, rights, records, bounds[at], bounds[at + 1], tiles,
                   tile_bounds[at], tile_bounds[at + 1], t, current, np.full(n, views[v, 7]), found, stamps[v])
        values[:, first:last] = found
    return word


@njit(cache=True, nogil=True)
def _sweep(features: Any, tie_break: Any, delay: int, lefts: Any, rights: Any, records: Any, arrivals: Any, starts: Any, ends: Any, t: Any,
           current: Any, modes: Any, horizons: Any, values: Any, stamps: Any) -> None:
    m = records.shape[0]
    rows = np.concatenate((records, current))
    nothing = np.empty((0, 0), np.int64)
    most = 1
    for i in range(len(t)):
        most = max(most, ends[i] - starts[i] + 1)
    order = np.empty(most, np.int64)
    memo = np.full((features.shape[0], 6), -1)
    for i in range(len(t)):
        left, right = lefts[i], rights[i]
        own, n, seen = m + i, 0, False
        low, high = starts[i], ends[i]
        while low < high:  # first record after the left edge
            middle = (low + high) // 2
            if rows[middle, 0] <= left:
                low = middle + 1
            else:
                high = middle
        for row in range(low, ends[i]):
            if rows[row, 0] > right:
                break
            if arrivals[row, 0] > horizons[i, 0] or (arrivals[row, 0] == horizons[i, 0] and arrivals[row, 1] >= horizons[i, 1]):
                continue
            if modes[i] != NONE and rows[row, 0] == rows[own, 0] and rows[row, 1] == rows[own, 1]:
                if modes[i] == EXCLUDE:
                    continue
                seen = True
            order[n] = row
            n += 1
        if modes[i] == INCLUDE and left < rows[own, 0] <= right:
            order[n] = own
            n += 1
            stamps[i, MERGED] = 0 if seen else 1
        if _sort(rows, order, n, tie_break):
            n = _drop_copies(rows, order, n)
        _fold(features, rows, order, n, nothing, 0, 0, t[i], delay, left, right, own if modes[i] != NONE else -1, memo,
              values[i], stamps[i])


@njit(cache=True, nogil=True)
def _compact(slots: Any, tie_break: Any, hops: Any, rows: Any, tiles: Any, before: int, header: Any) -> Any:
    """Records after the new B, in order; and all tiles, old ones moved up the ladder and the records up to B folded in."""
    floor, b = header[0], header[1]
    order = np.empty(rows.shape[0], np.int64)
    n = 0
    for row in range(rows.shape[0]):
        if rows[row, 1] != 0 and rows[row, 0] > before and rows[row, 0] > floor:
            order[n] = row
            n += 1
    if _sort(rows, order, n, tie_break):
        n = _drop_copies(rows, order, n)
    split = 0
    while split < n and rows[order[split], 0] <= b:
        split += 1
    made = np.zeros((tiles.shape[0] + split, header.shape[0]), np.int64)
    one = np.empty(header.shape[0], np.int64)
    k = 0
    for i in range(tiles.shape[0] + split):
        if i < tiles.shape[0]:
            one[:] = tiles[i]
        else:
            _tile_of(slots, hops[0], rows, order[i - tiles.shape[0]], one)
        for rung in range(1, len(hops)):
            if one[TILE_END] <= header[1 + rung]:
                one[TILE_HOP] = hops[rung]
                one[TILE_END] += -one[TILE_END] % hops[rung]
        if one[TILE_END] <= floor:
            continue
        if k and made[k - 1, TILE_END] == one[TILE_END]:
            _join(slots, made[k - 1], one)
        else:
            made[k] = one
            k += 1
    return rows[order[split:n]], made[:k].copy()


@njit(cache=True, nogil=True)
def _tile_of(slots: Any, hop: int, rows: Any, row: int, tile: Any) -> None:
    """The tile of one record."""
    time = rows[row, 0]
    tile[TILE_END] = time + -time % hop
    tile[TILE_HOP] = hop
    tile[TILE_N] = 1
    tile[TILE_XOR] = np.int64(_hash_row(rows, row))
    tile[TILE_NEWEST] = time
    for s in range(slots.shape[0]):
        x, word = rows[row, slots[s, 1]], slots[s, 2]
        if slots[s, 0] == SLOT_SQUARES:
            high, low = wide_square(x)
            tile[word] = np.int64(high)
            tile[word + 1] = np.int64(low)
        else:
            tile[word] = x


@njit(cache=True, nogil=True)
def _join(slots: Any, into: Any, later: Any) -> None:
    """Put a tile, or part of one, to that before it in time."""
    into[TILE_HOP] = later[TILE_HOP]
    into[TILE_N] += later[TILE_N]
    into[TILE_XOR] ^= later[TILE_XOR]
    into[TILE_NEWEST] = later[TILE_NEWEST]
    for s in range(slots.shape[0]):
        kind, word = slots[s, 0], slots[s, 2]
        if kind == SLOT_SUM:
            into[word] += later[word]
        elif kind == SLOT_SQUARES:
            high, low = wide_add(U(into[word]), U(into[word + 1]), U(later[word]), U(later[word + 1]))
            into[word] = np.int64(high)
            into[word + 1] = np.int64(low)
        elif kind == SLOT_LAST or (kind == SLOT_MIN and later[word] < into[word]) or (kind == SLOT_MAX and later[word] > into[word]):
            into[word] = later[word]
