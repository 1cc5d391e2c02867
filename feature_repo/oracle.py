"""The meaning of every feature in plain Python, for tests only: slow, obvious, and independent of the kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from feature_repo.views import Feature, FeatureView

__all__ = ["Record", "feature_values", "members", "window"]


class Record(NamedTuple):
    """One admitted record of one entity: event time, identity, the view's columns in order."""

    time: int
    id: int
    columns: tuple[int, ...]


def window(view: FeatureView, feature: Feature, t: int) -> tuple[int, int]:
    """(left, right]: exact, or beginning at a multiple of the hop; with a delay it ends at one too."""
    edge, hop = t - view.delay_ms, feature.hop_ms
    if not hop:
        return edge - feature.window_ms, edge
    return (edge - feature.window_ms) // hop * hop, edge // hop * hop if view.delay_ms else edge


def members(view: FeatureView, records: Iterable[Record], t: int, current: Record | None) -> list[Record]:
    """The records a read at ``t`` is over, by (time, id); of copies the highest (revision, columns)."""
    def rank(record: Record) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return tuple(x for x, c in zip(record.columns, view.columns, strict=True) if c.revision), record.columns

    candidates = list(records)
    if current is not None:
        candidates = [r for r in candidates if view.include_current or r[:2] != current[:2]]
        candidates += [current] if view.include_current else []
    windows = [window(view, feature, t) for feature in view.features]
    left, right = min(left for left, _ in windows), max(right for _, right in windows)
    best: dict[tuple[int, int], Record] = {}
    for record in candidates:
        if left < record.time <= right:
            held = best.get(record[:2])
            if held is None or rank(record) > rank(held):
                best[record[:2]] = record
    return [best[identity] for identity in sorted(best)]


def feature_values(view: FeatureView, records: Iterable[Record], t: int, current: Record | None = None) -> list[float]:
    """All features of ``view`` at ``t``; NaN is null."""
    chosen = members(view, records, t, current)
    windows = [window(view, feature, t) for feature in view.features]
    return [_value(view, f, [r for r in chosen if left < r.time <= right], t, current)
            for f, (left, right) in zip(view.features, windows, strict=True)]


def _value(view: FeatureView, feature: Feature, window: list[Record], t: int, current: Record | None) -> float:
    at, scale = view.column_index(feature.column), view.scale(feature.column)
    x = [record.columns[at] for record in window] if at >= 0 else []
    n = len(window)
    match feature.function:
        case "count":
            return float(n)
        case "sum":
            return float(sum(x)) / float(scale)
        case "count_distinct":
            return float(len(set(x)))
        case "count_same":
            return math.nan if current is None else float(x.count(current.columns[at]))
    if n == 0:
        return math.nan
    match feature.function:
        case "mean":
            return float(sum(x)) / float(n * scale)
        case "min":
            return float(min(x)) / float(scale)
        case "max":
            return float(max(x)) / float(scale)
        case "std":
            return math.sqrt(float(n * sum(v * v for v in x) - sum(x) ** 2)) / float(n * scale)
        case "last":
            return float(x[-1]) / float(scale)
        case "time_since_last":
            return float(t - window[-1].time) / 1000.0
        case "ratio":
            below = sum(record.columns[view.column_index(feature.denominator)] for record in window)
            return (float(sum(x)) / float(scale)) / (float(below) / float(view.scale(feature.denominator))) if below else math.nan
    raise AssertionError(feature.function)
