"""Whether a served value can be explained by the log: the parity verdict of one view's read. Pure.

A reader learns the stamp, the last applied offset of each source partition, before it reads the sets. So what it read must hold every
admitted record at or below the stamp and, above it, a prefix of each partition's records; its count and fingerprint say which.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from feature_repo.kernel import EXCLUDE, INCLUDE, NONE, USED, XOR, plan, reach, read_sets
from feature_repo.positions import offset_of, partition_of
from feature_repo.views import FeatureView

__all__ = ["Read", "Verdict", "classify", "find_set", "same_values", "stamped_later"]

MOST_SETS = 1 << 20
"""How many combinations of prefixes are tried before a read counts as unexplained."""
MOST_MATCHES = 64


class Verdict(IntEnum):
    """Of one view's read; those from DROPPED on are unexplained."""

    EXACT = 0
    IN_FLIGHT = 1
    REFUSED = 2
    DEGRADED = 3
    DROPPED = 4
    NO_SUCH_SET = 5
    OTHER_VALUES = 6
    TOO_MANY_SETS = 7
    NOT_ARCHIVED = 8
    NO_STAMP = 9
    REFUSED_WITH_VALUES = 10

    @property
    def unexplained(self) -> bool:
        return self >= Verdict.DROPPED


@dataclass(frozen=True)
class Read:
    """One view's read as it was served, and all admitted records of its entity as the archive has them.

    Parameters
    ----------
    records, arrivals
        int64[m, words] and int64[m, 2] (arrival ms, position), in any order.
    t, current, mode, horizon
        As ``kernel.sweep`` takes them; ``horizon`` is the arrival of the scored event.
    applied
        int64[P]: the stamp; partitions beyond it count as -1, nothing applied.
    values, n, fingerprint
        What was served: float64[F], records used, xor of their hashes (int64).
    """

    view: FeatureView
    records: Any
    arrivals: Any
    t: int
    current: Any
    mode: int
    horizon: Any
    applied: Any
    values: Any
    n: int
    fingerprint: int

    def fold(self, rows: Any) -> tuple[Any, int, int]:
        """Values, n and fingerprint of this read over ``rows`` of the records."""
        values, stamps = read_sets(self.view, self.records[rows], np.zeros(1, np.int64), np.array([len(self.records[rows])]),
                                   np.array([self.t]), self.current[None], np.array([self.mode]))
        return values[0], int(stamps[0, USED]), int(stamps[0, XOR])

    def served(self, folded: tuple[Any, int, int]) -> bool:
        return folded[1:] == (self.n, self.fingerprint) and same_values(folded[0], self.values)


def same_values(a: Any, b: Any) -> bool:
    """Equal bit for bit, null equal to null."""
    return bool(np.array_equal(a, b, equal_nan=True))


def classify(read: Read) -> Verdict:
    """EXACT: the value over what had arrived before the scored event. IN_FLIGHT: over another set that the stamp allows."""
    return find_set(read)[0]


def find_set(read: Read) -> tuple[Verdict, Any]:
    """The verdict and bool[m], which of the records the read was over; None where no set explains it.

    Of equal copies that a read in flight may have had, the first is told.
    """
    left, right = reach(read.view, read.t)
    inside = (read.records[:, 0] > left) & (read.records[:, 0] <= right)
    if read.mode == EXCLUDE:
        inside &= (read.records[:, :2] != read.current[:2]).any(axis=1)
    verdict, rows = _set_within(Read(read.view, read.records[inside], read.arrivals[inside], read.t, read.current, read.mode, read.horizon,
                                     read.applied, read.values, read.n, read.fingerprint))
    if rows is not None:
        inside[inside] = rows
    return verdict, None if rows is None else inside


def _set_within(read: Read) -> tuple[Verdict, Any]:
    """``find_set`` of a read all of whose records are inside its longest window."""
    partition, offset = partition_of(read.arrivals[:, 1]), offset_of(read.arrivals[:, 1])
    applied = np.full(max(int(partition.max(initial=-1)) + 1, len(read.applied)), -1)
    applied[:len(read.applied)] = read.applied
    stamped = offset <= applied[partition]
    arrived = (read.arrivals[:, 0] < read.horizon[0]) | ((read.arrivals[:, 0] == read.horizon[0])
                                                         & (read.arrivals[:, 1] < read.horizon[1]))
    exact = read.fold(arrived)
    if read.served(exact) and read.fold(arrived | stamped)[1:] == exact[1:]:
        return Verdict.EXACT, arrived
    return _by_prefixes(read, stamped, partition, offset)


def _by_prefixes(read: Read, stamped: Any, partition: Any, offset: Any) -> tuple[Verdict, Any]:
    """Try every set that the stamp allows, by its count and fingerprint; only what fits both is folded."""
    queues = []
    for p in np.unique(partition[~stamped]):
        rows = np.flatnonzero(~stamped & (partition == p))
        rows = rows[np.argsort(offset[rows])]
        queues.append(_first_of_each(read, stamped, _while_fewer(read, stamped, rows)))
    shape = tuple(len(rows) + 1 for rows in queues)
    if np.prod(shape, dtype=float) > MOST_SETS:
        return Verdict.TOO_MANY_SETS, None
    n, mixed, hashes = _count_and_mix(read, stamped, queues, shape)
    cells = np.argwhere((n == read.n) & (mixed == read.fingerprint))
    for cell in cells[:MOST_MATCHES]:
        rows = stamped.copy()
        for taken, queue in zip(cell, queues, strict=True):
            rows[queue[:taken]] = True
        if read.served(read.fold(rows)):
            return Verdict.IN_FLIGHT, rows
    if len(cells):
        return Verdict.OTHER_VALUES, None
    one_less = (n == read.n + 1) & np.isin(mixed ^ read.fingerprint, hashes[stamped])
    return (Verdict.DROPPED if one_less.any() else Verdict.NO_SUCH_SET), None


def _while_fewer(read: Read, stamped: Any, queue: Any) -> Any:
    """The part of a partition's records that can be in the set: adding records never makes them fewer."""
    def count(taken: int) -> int:
        rows = stamped.copy()
        rows[queue[:taken]] = True
        return read.fold(rows)[1]

    return queue[:bisect_right(range(len(queue) + 1), read.n, key=count) - 1] if count(0) <= read.n else queue[:0]


def _first_of_each(read: Read, stamped: Any, queue: Any) -> Any:
    """``queue`` without copies, word for word, of what is stamped or before them: no set is another by them, however many come later."""
    order = np.concatenate((np.flatnonzero(stamped), queue))
    first = np.unique(read.records[order], axis=0, return_index=True)[1] - np.count_nonzero(stamped)
    return queue[np.sort(first[first >= 0])]


def _count_and_mix(read: Read, stamped: Any, queues: list[Any], shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """Count and fingerprint for every combination of prefixes, one axis a queue; and each record's hash.

    Records of one identity are taken together: of those in the set the highest counts.
    """
    left, right = reach(read.view, read.t)
    own = 1 if read.mode == INCLUDE and left < read.current[0] <= right else 0
    records = np.concatenate((read.records, read.current[None])) if own else read.records
    m = len(records)
    rows = np.arange(m)
    _, stamps = read_sets(read.view, records, rows, rows + 1, np.full(m, read.t), np.zeros_like(records), np.full(m, NONE))
    hashes = stamps[:, XOR]
    axis, place = np.full(m, -1), np.full(m, -1)  # -1: in every set
    for number, queue in enumerate(queues):
        axis[queue], place[queue] = number, np.arange(len(queue))
    possible = np.concatenate((stamped, np.ones(own, bool))) | (axis >= 0)
    n, mixed = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    order = np.lexsort((*(records[:, word] for word in plan(read.view).tie_break[::-1]), records[:, 1], records[:, 0]))
    order = order[possible[order]]
    ends = np.flatnonzero((records[order[1:], :2] != records[order[:-1], :2]).any(axis=1)) + 1
    for copies in np.split(order, ends):
        taken = np.zeros(shape, bool)
        for row in copies[::-1]:
            here = ~taken
            if axis[row] >= 0:
                steps = [1] * len(shape)
                steps[axis[row]] = -1
                here &= (np.arange(shape[axis[row]]) > place[row]).reshape(steps)
            n += here
            mixed ^= np.where(here, hashes[row], 0)
            taken |= here
            if axis[row] < 0:
                break
    return n, mixed, hashes[:len(read.records)]


def stamped_later(view: FeatureView, records: Any, arrivals: Any, starts: Any, ends: Any, t: Any, horizons: Any, applied: Any) -> Any:
    """bool[n]: whether a read's window holds a record at or below its stamp that had not arrived before its horizon.

    Parameters are those of ``kernel.sweep``; ``applied`` is int64[n, P]. Where it is False the set of what had arrived is one
    that the stamp allows. The scored record itself, which is its own horizon, is not meant.
    """
    left, right = reach(view, t)
    low, high = _first_after(records[:, 0], starts, ends, left), _first_after(records[:, 0], starts, ends, right)
    m = len(records)
    both = np.concatenate((arrivals, horizons))
    # A horizon sorts after the record it equals, so a record is later exactly where its rank is higher.
    rank = np.empty(len(both), np.int64)
    rank[np.lexsort((np.arange(len(both)) >= m, both[:, 1], both[:, 0]))] = np.arange(len(both))
    later = np.zeros(len(t), bool)
    some = np.flatnonzero(high > low)
    if not len(some):
        return later
    bounds = np.stack((low[some], high[some]), axis=1).ravel()
    latest = np.maximum.reduceat(np.append(rank[:m], -1), bounds)[::2]
    partition, offset = partition_of(arrivals[:, 1]), offset_of(arrivals[:, 1])
    for i in some[latest > rank[m + some]]:
        rows = low[i] + np.flatnonzero(rank[low[i]:high[i]] > rank[m + i])
        rows = rows[partition[rows] < applied.shape[1]]
        later[i] = (offset[rows] <= applied[i, partition[rows]]).any()
    return later


def _first_after(times: Any, starts: Any, ends: Any, bound: Any) -> Any:
    """For each sorted range of ``times``, the first row later than its ``bound``."""
    low, high = starts.copy(), ends.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        before = open_ & (times[np.minimum(middle, len(times) - 1)] <= bound)
        low, high = np.where(before, middle + 1, low), np.where(open_ & ~before, middle, high)
    return low
