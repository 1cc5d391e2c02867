"""How good alarms were, given what truly changed: detection delay, false alarm rate, missed detection rate, F1 per episode. Pure.

An episode is one true change, from its start to its end or to the next change; the first alarm within it detects it and any further
one is a repetition, neither right nor wrong. An alarm outside every episode is false. The words are those of river and of
Bifet and others, "Machine Learning for Data Streams" (2018), section 5.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.errors import DefinitionError

__all__ = ["Change", "Score", "score_alarms"]

FOR_EVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Change:
    """A true change, at ``start`` (ms, or any count that alarms use too); ``end`` is when the stream was as before again."""

    start: int
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """``false_alarm_rate`` is per unit of time that no episode covers, None where there is none; delays are in the same unit.

    ``f1`` is that of precision detected / (detected + false alarms) and recall detected / changes; None without changes and alarms.
    """

    changes: int
    alarms: int
    detected: int
    missed: int
    false_alarms: int
    repeated: int
    missed_detection_rate: float | None
    false_alarm_rate: float | None
    clean: int
    mean_delay: float | None
    median_delay: float | None
    delays: tuple[int | None, ...]
    precision: float | None
    recall: float | None
    f1: float | None


def score_alarms(alarms: Sequence[int], changes: Sequence[Change], began: int, ended: int, horizon: int | None = None) -> Score:
    """Alarms of one detector between ``began`` and ``ended``, both included; those at the instant of a change count as its detection.

    ``horizon``: how long after its start a change may be detected at all. Raises DefinitionError for what lies outside, or overlaps.
    """
    spans = _spans(changes, began, ended, horizon)
    if alarms and not began <= min(alarms) <= max(alarms) <= ended:
        raise DefinitionError(f"alarms reach from {min(alarms)} to {max(alarms)}, the stream from {began} to {ended}",
                              hint="give the whole stretch that the detector has watched")
    starts = [start for start, _ in spans]
    delays: list[int | None] = [None] * len(spans)
    false = repeated = 0
    for alarm in sorted(alarms):
        at = bisect_right(starts, alarm) - 1
        if at < 0 or alarm >= spans[at][1]:
            false += 1
        elif delays[at] is None:
            delays[at] = alarm - starts[at]
        else:
            repeated += 1
    found = [delay for delay in delays if delay is not None]
    clean = ended - began - sum(min(end, ended) - start for start, end in spans)
    precision = len(found) / (len(found) + false) if found or false else None
    recall = len(found) / len(spans) if spans else None
    right = 2 * len(found) + false + len(spans) - len(found)
    return Score(
        len(spans), len(alarms), len(found), len(spans) - len(found), false, repeated, None if recall is None else 1 - recall,
        false / clean if clean > 0 else None, max(clean, 0), statistics.fmean(found) if found else None,
        statistics.median(found) if found else None, tuple(delays), precision, recall, 2 * len(found) / right if right else None)


def _spans(changes: Sequence[Change], began: int, ended: int, horizon: int | None) -> list[tuple[int, int]]:
    """[start, end) of each episode, in order."""
    ordered = sorted(changes, key=lambda change: change.start)
    spans = []
    for i, change in enumerate(ordered):
        until = ordered[i + 1].start if i + 1 < len(ordered) else FOR_EVER
        if not began <= change.start <= ended or (change.end is not None and change.end <= change.start) or until == change.start:
            raise DefinitionError(f"a change from {change.start} to {change.end} in a stream from {began} to {ended}",
                                  hint="changes start within the stream, each at a time of its own, and end later")
        limits = [until, FOR_EVER if change.end is None else change.end, FOR_EVER if horizon is None else change.start + horizon]
        spans.append((change.start, min(limits)))
    return spans
