"""How far compaction may go without changing any value, and how large an entity's raw set can become. Pure; semantics, compaction.

Every rule here is left out once in tests/tile_world.py, to see what it is for.
"""

from __future__ import annotations

from itertools import pairwise

from feature_repo.views import FeatureView, floor_to
from schemas.errors import DefinitionError

__all__ = ["MOST_RAW", "bounds", "check_size", "raw_records"]

MOST_RAW = 20_000
"""Raw records of one entity: at 24 bytes each half a megabyte, which a read fetches and folds in less than a millisecond."""


def bounds(view: FeatureView, applied_ms: int, earliest_read_ms: int) -> tuple[int, ...]:
    """How far compaction may go: (trim floor, B, what is in tiles of the second rung or above, of the third ...), ms.

    Parameters
    ----------
    applied_ms
        The arrival time up to which every partition of the view's source has been applied.
    earliest_read_ms
        The arrival time up to which everything that readers score has been scored, less the lateness of what they score: event
        times of reads still to come.

    Arrival times of a partition may go back by ``max_skew_ms`` (brokers' clocks differ). So no record can still be admitted at or
    below B, nor a read be answered that begins or ends inside of what is folded. B is no multiple of a hop: the newest tile
    is one that still grows, else the raw set would hold a hop more than it must.
    """
    first = earliest_read_ms - view.max_skew_ms
    lefts = view.left_edges(first - view.delay_ms)
    floor = min(lefts.values())
    if not view.hops:
        return (floor,)
    closed = applied_ms - view.allowed_lateness_ms - view.max_skew_ms - 1
    if view.delay_ms == 0:
        closed = min(closed, first - 1)  # the right edge is exact
    rungs = [min(closed, lefts.get(0, closed))]
    for below, hop in pairwise(view.hops):
        rungs.append(floor_to(min(rungs[-1], lefts[below]), hop))
    return (floor, *rungs)


def raw_records(view: FeatureView, scored_lateness_ms: int, lag_ms: int) -> float:
    """How many records of one entity lie in its raw set at the declared peak, when everybody is ``lag_ms`` behind.

    0 where no peak is declared.
    """
    found = bounds(view, -lag_ms, -lag_ms - scored_lateness_ms)
    return -min(found[:2][-1], 0) * (view.peak_per_s or 0.0) / 1000


def check_size(view: FeatureView, scored_lateness_ms: int, lag_ms: int) -> float:
    """``raw_records``. Raises DefinitionError where they are more than a read can take."""
    records = raw_records(view, scored_lateness_ms, lag_ms)
    if records > MOST_RAW:
        raise DefinitionError(f"feature view {view.name!r} would hold {records:,.0f} raw records of one entity at its peak of "
                              f"{view.peak_per_s:g} a second, {MOST_RAW:,} is the most",
                              hint="lower allowed_lateness_ms and max_skew_ms, and give long windows a hop")
    return records
