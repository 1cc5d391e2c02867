"""Admission: whether a valid record enters an entity's set. A pure function of one record and its arrival time; batch uses it too."""

from __future__ import annotations

from typing import Literal

__all__ = ["MAX_SKEW_MS", "Verdict", "admit"]

MAX_SKEW_MS = 300_000
"""What clocks may differ by where no view says otherwise."""

Verdict = Literal["admitted", "late", "clock-skew"]


def admit(event_time_ms: int, arrival_ms: int, allowed_lateness_ms: int, max_skew_ms: int) -> Verdict:
    """What becomes of a record.

    ``clock-skew``: it claims to come from further in the future than clocks may differ, and is a dead letter. ``late``: it is
    archived and ledgered, and is in no set. Both bounds are inclusive for the record.

    >>> [admit(t, 100, allowed_lateness_ms=50, max_skew_ms=5) for t in (106, 105, 50, 49)]
    ['clock-skew', 'admitted', 'admitted', 'late']
    """
    if event_time_ms > arrival_ms + max_skew_ms:
        return "clock-skew"
    if arrival_ms - event_time_ms > allowed_lateness_ms:
        return "late"
    return "admitted"
