"""How far a window's histogram lies from the reference's, for people to read: PSI without its null mean, Jensen-Shannon, binned KS.

Decisions are made by ``shapes``; these alarm only where they are significant after Benjamini-Hochberg *and* large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.bins import MINIMUM_N
from streams.detectors.contract import Status
from streams.detectors.intervals import chi2_tail

__all__ = ["Distance", "compare", "discoveries", "psi"]

SPARSE = 5.0
"""Bins whose expected count is lower than this are tested as one (Cochran 1954)."""


@dataclass(frozen=True, slots=True)
class Distance:
    """One feature of one window. ``psi`` is without its null mean and may be negative; ``p`` is before any correction."""

    feature: str
    status: Status
    psi: float
    js: float
    ks: float
    p: float
    n: int


def psi(reference: Any, current: Any) -> float:
    """The population stability index minus its mean where nothing changed, (B - 1)(1/n_ref + 1/n_cur) over the B bins in use.

    Half a count is added to every bin in use, so that an empty one is not infinitely far.
    """
    reference, current = _used(reference, current)
    if len(reference) < 2:
        return 0.0
    null = (len(reference) - 1) * (1 / reference.sum() + 1 / current.sum())
    p, q = (x / x.sum() for x in (reference + 0.5, current + 0.5))
    return float(((q - p) * np.log(q / p)).sum() - null)


def compare(features: tuple[str, ...], reference: Any, current: Any, *, effect: float = 0.1, alpha: float = 0.05) -> tuple[Distance, ...]:
    """All features of a window, from counts [F, B]. ALARM: a discovery at level ``alpha``, and PSI >= ``effect``."""
    rows = []
    for name, old, new in zip(features, np.asarray(reference, float), np.asarray(current, float), strict=True):
        enough = old.sum() >= MINIMUM_N and new.sum() >= MINIMUM_N
        rows.append((name, enough, old, new, _significance(old, new) if enough else 1.0))
    chosen = iter(discoveries([p for _, enough, _, _, p in rows if enough], alpha))
    found = []
    for name, enough, old, new, p in rows:
        distance = psi(old, new) if old.sum() and new.sum() else 0.0
        alarm = enough and next(chosen) and distance >= effect
        found.append(Distance(name, "INSUFFICIENT_DATA" if not enough else "ALARM" if alarm else "OK",
                              distance, _js(old, new), _ks(old, new), p, int(new.sum())))
    return tuple(found)


def discoveries(p: list[float], alpha: float) -> list[bool]:
    """Which hypotheses Benjamini and Hochberg (1995) reject: of those, a share of at most ``alpha`` is expected to be wrong.

    >>> discoveries([0.01, 0.04, 0.03, 0.9], 0.05)
    [True, False, False, False]
    """
    order = np.argsort(p, kind="stable")
    passed = np.flatnonzero(np.asarray(p)[order] <= alpha * np.arange(1, len(p) + 1) / max(len(p), 1))
    rejected = set(order[: passed[-1] + 1].tolist()) if len(passed) else set()
    return [i in rejected for i in range(len(p))]


def _used(reference: Any, current: Any) -> tuple[Any, Any]:
    used = (np.asarray(reference) + np.asarray(current)) > 0
    return np.asarray(reference, float)[used], np.asarray(current, float)[used]


def _significance(reference: Any, current: Any) -> float:
    """Pearson's test that both samples have one distribution, sparse bins together: it knows that the reference is a sample too."""
    reference, current = _used(reference, current)
    share = min(reference.sum(), current.sum()) / (reference.sum() + current.sum())
    sparse = (reference + current) * share < SPARSE
    table = np.array([np.append(x[~sparse], x[sparse].sum()) for x in (reference, current)])
    table = table[:, table.sum(0) > 0]
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    return float(chi2_tail(((table - expected) ** 2 / expected).sum(), table.shape[1] - 1)) if table.shape[1] > 1 else 1.0


def _js(reference: Any, current: Any) -> float:
    """Jensen-Shannon divergence in bits, 0 to 1."""
    p, q = (np.asarray(x, float) / max(float(np.sum(x)), 1.0) for x in (reference, current))
    middle = (p + q) / 2
    return float(sum(0.5 * (x[x > 0] * np.log2(x[x > 0] / middle[x > 0])).sum() for x in (p, q)))


def _ks(reference: Any, current: Any) -> float:
    """The largest distance of the two distribution functions at the bins' edges."""
    p, q = (np.asarray(x, float) / max(float(np.sum(x)), 1.0) for x in (reference, current))
    return float(np.abs(np.cumsum(p - q)).max())
