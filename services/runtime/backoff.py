"""When a child that ended is started again: a pure decision."""

from __future__ import annotations

__all__ = ["FIRST_S", "LONGEST_S", "SETTLED_S", "delay_s", "failures_after"]

FIRST_S = 0.2
LONGEST_S = 10.0
SETTLED_S = 30.0


def delay_s(failures: int) -> float:
    """Seconds to wait after the ``failures``-th failure in a row (from 1): doubling from 0.2 to 10.

    >>> [delay_s(n) for n in (1, 2, 3, 50)]
    [0.2, 0.4, 0.8, 10.0]
    """
    return min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 32))


def failures_after(failures: int, healthy_s: float) -> int:
    """Failures in a row, now that a child with ``failures`` of them ended after ``healthy_s`` seconds of health.

    >>> failures_after(4, 2.0), failures_after(4, 31.0)
    (5, 1)
    """
    return 1 if healthy_s >= SETTLED_S else failures + 1
