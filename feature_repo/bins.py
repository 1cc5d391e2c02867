"""Frozen bins of a reference: 20 quantile bins, then missing, then unseen; counts in them add up."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["BINS", "MINIMUM_N", "MISSING", "UNSEEN", "are_two_values", "bin_counts", "count_columns", "quantile_edges"]

BINS = 20
MISSING, UNSEEN = BINS, BINS + 1
MINIMUM_N = 500
"""Fewer events than these say nothing of a shape."""


def quantile_edges(values: Any) -> Any:
    """float64[<= 21]: edges of 20 quantile bins of the reference, the range included; ties leave fewer. Of two values each has a bin of
    its own, else their shares could change unseen.

    >>> [bin_counts(np.array(flags), quantile_edges(np.array([0.0, 0.0, 1.0])))[:2].tolist() for flags in ([0.0, 1.0, 1.0], [1.0])]
    [[1, 2], [0, 1]]
    """
    known = _as_scored(values)
    known = known[np.isfinite(known)]
    if len(two := np.unique(known)) == 2:
        return np.append(two, np.nextafter(two[1], np.inf))
    return np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1))) if len(known) else np.empty(0)


def are_two_values(edges: Any) -> bool:
    """Whether ``quantile_edges`` found two values and no more."""
    return len(edges) == 3 and bool(edges[2] == np.nextafter(edges[1], np.inf))


def bin_counts(values: Any, edges: Any) -> Any:
    """int64[22]: left-closed bins (the last closed), then missing (NaN), then unseen (outside the reference's range).

    >>> bin_counts(np.array([1.0, 2.0, 3.0, 4.0, np.nan]), np.array([1.0, 2.0, 3.0]))[[0, 1, 20, 21]].tolist()
    [1, 2, 1, 1]
    """
    values = _as_scored(values)
    bins = np.searchsorted(edges, values, "right") - 1
    if len(edges):
        bins[values == edges[-1]] = max(len(edges) - 2, 0)
        bins[(values < edges[0]) | (values > edges[-1])] = BINS + 1
    else:
        bins[:] = BINS + 1
    bins[np.isnan(values)] = BINS
    return np.bincount(bins, minlength=BINS + 2)


def count_columns(matrix: Any, edges: Any) -> Any:
    """int64[F, 22]: ``bin_counts`` of each column of float64[n, F]."""
    return np.stack([bin_counts(column, edge) for column, edge in zip(np.ascontiguousarray(matrix.T), edges, strict=True)])


def _as_scored(values: Any) -> Any:
    """As models see them: a training set and a prediction may differ in digits that no model compares."""
    return np.asarray(values, np.float32).astype(np.float64)
