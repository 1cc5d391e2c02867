"""The same hour of the week: what a stream with days and weeks in it is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["HOURS", "count_by_hour", "hour_of_week", "shrink"]

HOURS = 168
HOUR_MS = 3_600_000
MINIMUM = 200
"""An hour with fewer reference events than this borrows the rest from the whole week."""


def hour_of_week(times_ms: Any) -> Any:
    """0 to 167 from Monday 00:00 UTC; int or int64 array (1970 began on a Thursday).

    >>> hour_of_week(0), hour_of_week(4 * 86_400_000)
    (72, 0)
    """
    return (times_ms // HOUR_MS + 72) % HOURS


def count_by_hour(values: Any, times_ms: Any) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Sums and counts of ``values`` for each hour of the week."""
    hours = hour_of_week(np.asarray(times_ms))
    return (tuple(np.bincount(hours, values, HOURS).tolist()), tuple(np.bincount(hours, minlength=HOURS).tolist()))


def shrink(cells: Any, counts: Any) -> Any:
    """float64[H, B]: the shares of each hour; below 200 events the week's shares fill up.

    Parameters
    ----------
    cells
        float64[H, B], sums or counts per hour and bin.
    counts
        [H], events per hour.
    """
    cells, counts = np.asarray(cells, float), np.asarray(counts, float)
    week = cells.sum(0) / max(counts.sum(), 1)
    missing = np.maximum(MINIMUM - counts, 0)
    return (cells + missing[:, None] * week) / (counts + missing)[:, None]
