"""What the simulation of compaction is made of: events, the store as it should be, the rules that a control leaves out, views to draw."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, NamedTuple

from feature_repo.views import Column, Feature, FeatureView, floor_to

NEVER = -10**9
COLUMNS = (Column("a"), Column("rev", revision=True))


class Event(NamedTuple):
    """A record of the log; ``id`` 0 is a clock record. ``rank`` decides among copies."""

    time: int
    id: int
    arrival: int
    rank: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a negative control leaves out."""

    skip_at_b: bool = True
    idle_counts_by_clock: bool = True
    scorers_in_low: bool = True
    scored_lateness: bool = True
    strictly_before: bool = True
    skew_margin: bool = True
    delay_of_exact_windows: bool = True
    exact_windows_hold_b: bool = True
    ladder_waits_for_windows: bool = True
    floor_by_hop: bool = True
    script_checks_what_was_read: bool = True
    script_keeps_the_tail: bool = True
    marks_read_with_the_set: bool = True
    arrival_moves_with_the_mark: bool = True
    one_mget: bool = True
    current_below_b_is_refused: bool = True
    partitions_from_the_log: bool = True


@dataclasses.dataclass
class Store:
    """What Redis holds of the entity, and ``told``: everything that was ever appended to this state of it."""

    raw: list[Event] = dataclasses.field(default_factory=list)
    tiles: dict[tuple[int, int], list[Event]] = dataclasses.field(default_factory=dict)
    bounds: tuple[int, ...] = ()
    floor: int = NEVER
    applied: dict[int, int] = dataclasses.field(default_factory=dict)
    applied_ms: dict[int, int] = dataclasses.field(default_factory=dict)
    scored_ms: dict[int, int] = dataclasses.field(default_factory=dict)
    told: list[Event] = dataclasses.field(default_factory=list)


def draw_view(r: random.Random, unit: int = 1, functions: tuple[str, ...] = ("sum",)) -> FeatureView:
    """A view with any ladder, delay, lateness and skew; ``unit`` ms is the grain of its times."""
    hops = r.choice(((5,), (5, 20), (3, 6, 24), (20,)))
    windows = [(hop * r.choice((1, 2, 4)) + r.choice((0, 1)), hop) for hop in (*hops, r.choice(hops))]
    if r.random() < 0.4:
        windows.append((r.choice((1, 7, 15)), 0))
    features = [Feature(f"{function}{i}", function, window * unit, None if function in ("count", "time_since_last") else "a", "rev",
                        hop_ms=hop * unit) for i, (window, hop) in enumerate(windows) for function in functions]
    return FeatureView("v", "e", "s", COLUMNS, tuple(features), delay_ms=r.choice((0, 0, 7, 20)) * unit,
                       allowed_lateness_ms=r.choice((0, 5, 20)) * unit, max_skew_ms=r.choice((0, 0, 2, 10)) * unit, peak_per_s=1)


def distinct(events: list[Event]) -> list[Event]:
    best: dict[tuple[int, int], Event] = {}
    for event in events:
        held = best.get(event[:2])
        if held is None or event.rank > held.rank:
            best[event[:2]] = event
    return list(best.values())


def summary(events: list[Event]) -> tuple[int, int, int | None]:
    """Count, sum, last."""
    return len(events), sum(e.rank[1] for e in events), max(events, key=lambda e: e[:2]).rank[1] if events else None


def planned(store: Store, hops: tuple[int, ...], found: tuple[int, ...], skip_at_b: bool) -> Any:
    """What a compactor that reads ``store`` would make of it: length, raw, tiles and bounds as read; then those to come."""
    if store.bounds:
        found = tuple(map(max, found, store.bounds))
    before = store.bounds[1] if store.bounds else NEVER
    floor, b = found[:2]
    tiles: dict[tuple[int, int], list[Event]] = {}
    rows = distinct([e for e in store.raw if e.time > (before if skip_at_b else NEVER)])
    pieces = [(hops[0], -floor_to(-e.time, hops[0]), [e]) for e in rows if e.time <= b]
    for hop, end, held in [*((h, e, x) for (h, e), x in store.tiles.items()), *pieces]:
        for rung, bound in zip(hops[1:], found[2:], strict=True):
            if end <= bound:
                hop, end = rung, -floor_to(-end, rung)
        if end > floor:
            tiles[hop, end] = tiles.get((hop, end), []) + held
    kept = [e for e in rows if e.time > max(b, floor)]
    return len(store.raw), list(store.raw), dict(store.tiles), store.bounds, kept, tiles, found


def window(view: FeatureView, feature: Feature, t: int) -> tuple[int, int]:
    edge = t - view.delay_ms
    right = floor_to(edge, feature.hop_ms) if view.delay_ms else edge
    return floor_to(edge - feature.window_ms, feature.hop_ms), right
