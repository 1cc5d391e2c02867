"""Declarations: what an entity, a feature view, a request-time feature and a feature service are. Pure values, no I/O.

A feature is a function of (the entity's set of records, t); see ``feature_repo.kernel`` for the one meaning of each word here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from schemas.admission import MAX_SKEW_MS
from schemas.errors import DefinitionError

__all__ = ["DAY_MS", "FUNCTIONS", "HOUR_MS", "MINUTE_MS", "MOST_RUNGS", "Column", "Feature", "FeatureService", "FeatureView",
           "RequestFeature", "floor_to", "skew_ms"]

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

FUNCTIONS = ("count", "sum", "mean", "min", "max", "std", "last", "time_since_last", "ratio", "count_distinct", "count_same")
"""Window functions, in the order of their codes in the kernel."""
NEEDS_NO_COLUMN = {"count", "time_since_last"}
NEEDS_RECORDS = {"count_distinct", "count_same"}
"""These cannot be folded into tiles."""
MOST_RUNGS = 4


@dataclass(frozen=True)
class Column:
    """One int64 of a record.

    ``field`` is the contract's field. ``scale`` divides the exact integer when it becomes a float (100: minor units to units).
    ``hashed`` columns hold the 64-bit hash of a text and can only be compared. ``revision`` marks the column that decides among
    copies of a record: the highest wins.
    """

    field: str
    scale: int = 1
    hashed: bool = False
    revision: bool = False


@dataclass(frozen=True)
class Feature:
    """``function`` over the last ``window_ms`` of a view's records; ``denominator`` is the second column of a ratio of sums.

    With ``hop_ms`` the window begins at the multiple of the hop at or before its exact edge, so that what lies behind can be kept
    as tiles of that length; 0 is exact.
    """

    name: str
    function: str
    window_ms: int
    column: str | None = None
    denominator: str | None = None
    hop_ms: int = 0


@dataclass(frozen=True)
class FeatureView:
    """The features of one entity from one source.

    Parameters
    ----------
    entity
        The contract field whose text names the entity, e.g. ``card_id``.
    source
        The topic whose records make the set.
    delay_ms
        D of the contract: a read at t sees records up to t - D.
    allowed_lateness_ms
        A record that arrives later after its event time than this is never in the set.
    max_skew_ms
        A record whose event time lies further in the future of its arrival than this is a dead letter.
    include_current
        Whether the scored event belongs to its own read (only where it comes from the same source).
    peak_per_s
        The most records a second that one entity is expected to have; a view with hops must say it, for it bounds what is kept
        as records (``feature_repo.sizes``).
    """

    name: str
    entity: str
    source: str
    columns: tuple[Column, ...]
    features: tuple[Feature, ...]
    delay_ms: int = 0
    allowed_lateness_ms: int = DAY_MS
    max_skew_ms: int = MAX_SKEW_MS
    include_current: bool = True
    peak_per_s: float | None = None
    owner: str = ""
    doc: str = ""

    def __post_init__(self) -> None:
        names = [column.field for column in self.columns]
        if len(set(names)) != len(names) or len({feature.name for feature in self.features}) != len(self.features):
            raise DefinitionError(f"feature view {self.name!r} names a column or a feature twice", hint="rename one")
        if sum(column.revision for column in self.columns) > 1:
            raise DefinitionError(f"feature view {self.name!r} has more than one revision column", hint="keep one")
        for feature in self.features:
            self._check(feature, names)
        self._check_ladder()

    def _check(self, feature: Feature, names: Sequence[str]) -> None:
        where = f"feature {feature.name!r} of view {self.name!r}"
        if feature.function not in FUNCTIONS:
            raise DefinitionError(f"{where} uses unknown function {feature.function!r}", hint=f"one of {', '.join(FUNCTIONS)}")
        if feature.window_ms <= 0:
            raise DefinitionError(f"{where} has a window of {feature.window_ms} ms", hint="windows are longer than 0")
        if feature.function not in NEEDS_NO_COLUMN and feature.column not in names:
            raise DefinitionError(f"{where} needs a column, got {feature.column!r}", hint=f"one of {', '.join(names)}")
        if feature.function == "ratio" and feature.denominator not in names:
            raise DefinitionError(f"{where} needs a denominator column", hint=f"one of {', '.join(names)}")
        hashed = {column.field for column in self.columns if column.hashed}
        if feature.column in hashed and feature.function not in ("count_distinct", "count_same"):
            raise DefinitionError(f"{where} does arithmetic on the hashed column {feature.column!r}",
                                  hint="hashes can be counted and compared only")

        if feature.hop_ms < 0 or feature.hop_ms > feature.window_ms:
            raise DefinitionError(f"{where} has a hop of {feature.hop_ms} ms in a window of {feature.window_ms} ms",
                                  hint="a hop is between 0 (exact) and its window")
        if feature.hop_ms and feature.function in NEEDS_RECORDS:
            raise DefinitionError(f"{where} has a hop, and {feature.function} needs every record", hint="leave hop_ms out: 0 is exact")

    def _check_ladder(self) -> None:
        """Each hop a multiple of the one below: else a fine tile could not be folded into a coarse one."""
        for below, above in pairwise(self.hops):
            if above % below:
                raise DefinitionError(f"feature view {self.name!r} has hops of {below} and {above} ms, and the second is no multiple",
                                      hint="a ladder is e.g. 5 minutes, 1 hour, 1 day")
        if len(self.hops) > MOST_RUNGS:
            raise DefinitionError(f"feature view {self.name!r} has {len(self.hops)} different hops", hint=f"use at most {MOST_RUNGS}")
        if self.hops and not self.peak_per_s:
            raise DefinitionError(f"feature view {self.name!r} has hops and does not say how busy an entity may be",
                                  hint="declare peak_per_s, the most records a second of one entity")

    @cached_property
    def hops(self) -> tuple[int, ...]:
        """The ladder: the different hops, finest first, without 0; empty where every window is exact."""
        return tuple(sorted({feature.hop_ms for feature in self.features} - {0}))

    def left_edges(self, edge_ms: int) -> dict[int, int]:
        """Hop -> the lowest left edge of its windows, where ``edge_ms`` is t - D."""
        lowest: dict[int, int] = {}
        for feature in self.features:
            left = floor_to(edge_ms - feature.window_ms, feature.hop_ms)
            lowest[feature.hop_ms] = min(left, lowest.get(feature.hop_ms, left))
        return lowest

    @cached_property
    def definition_hash(self) -> str:
        """Eight hex digits that change when bytes or meaning would: what the Redis key holds."""
        meaning = {key: value for key, value in asdict(self).items() if key not in ("owner", "doc", "peak_per_s")}
        for feature in meaning["features"]:
            if not feature["hop_ms"]:
                del feature["hop_ms"]  # as before there were hops: an exact view keeps its keys
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:8]

    def __hash__(self) -> int:
        """Plans are looked up by view at every read: the tuple of all fields, hashed each time, would cost more than the kernel."""
        return hash(self.definition_hash)

    @cached_property
    def versioned_name(self) -> str:
        return f"{self.name}@{self.definition_hash}"

    @cached_property
    def record_words(self) -> int:
        """int64 words of one record: event time, id hash, the columns."""
        return 2 + len(self.columns)

    @cached_property
    def longest_window_ms(self) -> int:
        return max(feature.window_ms for feature in self.features)

    @property
    def retention_ms(self) -> int:
        """How long after its event time a record can still be read."""
        return self.longest_window_ms + max(self.hops, default=0) + self.delay_ms + self.allowed_lateness_ms

    def column_index(self, field: str | None) -> int:
        return next((i for i, column in enumerate(self.columns) if column.field == field), -1)

    def scale(self, field: str | None) -> int:
        return next((column.scale for column in self.columns if column.field == field), 1)


def floor_to(ms: int, hop_ms: int) -> int:
    """The multiple of ``hop_ms`` at or before ``ms``; ``ms`` itself where the hop is 0.

    >>> floor_to(17, 5), floor_to(-17, 5), floor_to(17, 0)
    (15, -20, 17)
    """
    return ms - ms % hop_ms if hop_ms else ms


def skew_ms(views: Iterable[FeatureView], source: str) -> int:
    """How far in the future of its arrival a record of ``source`` may claim to be: the least that a view of it allows."""
    return min((view.max_skew_ms for view in views if view.source == source), default=MAX_SKEW_MS)


RequestFunction = Callable[[dict[str, np.ndarray[Any, Any]]], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class RequestFeature:
    """A feature of the event itself and of features computed before it: a vectorised pure function.

    ``function`` takes a dict of float64/int64 arrays, one row an event: the event's numeric fields and all window features, and
    returns float64 of the same length. ``version`` is part of the definition hash: raise it when the function's meaning changes.
    """

    name: str
    function: RequestFunction
    version: int = 1
    doc: str = ""


@dataclass(frozen=True)
class FeatureService:
    """The ordered vector that a model reads: all features of ``views``, then the request-time features.

    ``source`` is the topic whose events are scored, ``predictions`` the topic that their scores go to (empty: nobody scores).
    """

    name: str
    source: str
    views: tuple[FeatureView, ...]
    request: tuple[RequestFeature, ...] = ()
    event_columns: tuple[str, ...] = ()
    doc: str = ""
    predictions: str = ""

    def __post_init__(self) -> None:
        names = self.feature_names
        if len(set(names)) != len(names):
            raise DefinitionError(f"feature service {self.name!r} has two features of one name", hint="rename one")

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        windowed = [feature.name for view in self.views for feature in view.features]
        return (*windowed, *(feature.name for feature in self.request))

    @cached_property
    def definition_hash(self) -> str:
        meaning = [[view.versioned_name for view in self.views], [[f.name, f.version] for f in self.request], self.event_columns]
        return hashlib.sha256(json.dumps([self.name, *meaning]).encode()).hexdigest()[:8]

    @property
    def entities(self) -> tuple[str, ...]:
        """The contract fields that its views are keyed by, each once."""
        return tuple(dict.fromkeys(view.entity for view in self.views))

    @property
    def scored_lateness_ms(self) -> int:
        """How late a scored event may be and still find its history: the least that its own source's views allow."""
        return min((view.allowed_lateness_ms for view in self.views if view.source == self.source), default=DAY_MS)

    def view_slice(self, view: FeatureView) -> slice:
        """Where ``view``'s features stand in the vector."""
        start = 0
        for other in self.views:
            if other is view:
                return slice(start, start + len(view.features))
            start += len(other.features)
        raise DefinitionError(f"feature service {self.name!r} has no view {view.name!r}")
