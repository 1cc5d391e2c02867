"""What a finite sample says about a rate: the bounds that keep a guarantee honest when the reference is itself an estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betaincinv, gammaincc, gammaincinv

__all__ = ["chi2_tail", "event_rate_bound", "mean_bound", "rate_bound"]


def rate_bound(hits: Any, n: Any, error: float) -> Any:
    """The Clopper-Pearson upper bound: the true rate exceeds it in at most ``error`` of samples (Clopper and Pearson 1934).

    >>> round(float(rate_bound(100, 10_000, 0.01)), 4)
    0.0126
    """
    hits, n = np.asarray(hits, float), np.asarray(n, float)
    inner = betaincinv(hits + 1, np.maximum(n - hits, 1e-9), 1 - error)
    return np.where(hits >= n, 1.0, inner)


def mean_bound(total: float, n: float, error: float) -> float:
    """An upper bound of the mean of losses within [0, 1] that need not be 0 or 1: Chernoff-Hoeffding (Hoeffding 1963, theorem 1).

    >>> round(mean_bound(100, 10_000, 0.01), 4)
    0.0133
    """
    mean, low, high = total / n, total / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if n * _divergence(mean, middle) < -np.log(error) else (low, middle)
    return high


def event_rate_bound(events: int, exposure: float, error: float = 0.05) -> float:
    """Upper bound of a Poisson rate per unit of exposure: eight clean weeks say at most 4.8 per 90 days, no less.

    >>> round(90 * event_rate_bound(0, 56), 2)
    4.81
    """
    return float(gammaincinv(events + 1, 1 - error)) / exposure


def chi2_tail(statistic: Any, freedom: Any) -> Any:
    """P(chi-squared of ``freedom`` degrees >= statistic)."""
    return gammaincc(np.asarray(freedom) / 2, np.asarray(statistic) / 2)


def _divergence(p: float, q: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(p) from Bernoulli(q), q in (0, 1]."""
    first = p * np.log(p / q) if p > 0 else 0.0
    second = 0.0 if p >= 1 else np.inf if q >= 1 else (1 - p) * np.log((1 - p) / (1 - q))
    return float(first + second)
