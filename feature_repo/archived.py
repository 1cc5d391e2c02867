"""Archived records as typed events, with the verdicts of the feature worker: the same decoding, the same admission, the same words.

Spark's jobs and the in-process path read the archive through here; both see the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.decoding import decode_columns
from feature_repo.views import FeatureView, skew_ms
from schemas.topics import SOURCES

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["NO_ID_HASH", "Events", "Wanted", "read_events", "word_names"]

NO_ID_HASH = 1
"""What an event id whose hash is 0 has instead: 0 is the floor record's."""


def word_names(view: FeatureView) -> tuple[str, ...]:
    """The words of a record of ``view``, in its order, by names that no field of a contract has. Views of one source share words."""
    return ("event_time", "id_hash", *(f"{'hash' if column.hashed else 'word'}_{column.field}" for column in view.columns))


@dataclass(frozen=True)
class Wanted:
    """Which events of ``source`` with first_ms <= event time < end_ms, and which of their fields, as columns.

    ``views`` are a service's: bit i of ``admitted`` stands for views[i]; records are made for those of this source.
    """

    source: str
    views: tuple[FeatureView, ...]
    texts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    first_ms: int = 0
    end_ms: int = 2**63 - 1

    @property
    def own(self) -> tuple[tuple[int, FeatureView], ...]:
        return tuple((bit, view) for bit, view in enumerate(self.views) if view.source == self.source)

    @property
    def words(self) -> tuple[str, ...]:
        """Of all records of this source, and of an event's identity."""
        return tuple(dict.fromkeys(("event_time", "id_hash", *(name for _, view in self.own for name in word_names(view)))))

    @property
    def arrived_from_ms(self) -> int:
        """What arrived before that has a later event time at most by skew, or is a dead letter."""
        return self.first_ms - skew_ms(self.views, self.source)


@dataclass(frozen=True)
class Events:
    """m events as columns: ``rows`` of the batch they were, int64[m] each, as ``words`` by ``word_names`` are; ``texts`` Arrow."""

    rows: Any
    admitted: Any
    words: dict[str, Any]
    numbers: dict[str, Any]
    texts: dict[str, pa.Array]

    @property
    def event_time(self) -> Any:
        return self.words["event_time"]

    @property
    def id_hash(self) -> Any:
        return self.words["id_hash"]

    def records(self, view: FeatureView) -> Any:
        """int64[m, words], for a view of the events' source."""
        return np.stack([self.words[name] for name in word_names(view)], axis=1)


def read_events(wanted: Wanted, values: pa.Array, arrival_ms: Any, usable: Any) -> Events:
    """The wanted events among archived ``values``, which arrived at ``arrival_ms`` (int64[n]).

    ``usable`` (bool[n]) is False where a value's headers contradict the contract. Dead letters have no row; late records have one,
    with bits unset.
    """
    columns = [column for _, view in wanted.own for column in view.columns]
    numbers = {"event_time", *wanted.numbers, *(column.field for column in columns if not column.hashed)}
    hashed = {"event_id", *(column.field for column in columns if column.hashed)}
    found = decode_columns(SOURCES[wanted.source], values, usable, tuple(numbers), tuple(hashed), wanted.texts)
    time, arrival = found.numbers["event_time"], arrival_ms[found.rows]
    kept = np.flatnonzero((time >= wanted.first_ms) & (time < wanted.end_ms) & (time <= arrival + skew_ms(wanted.views, wanted.source)))
    time, arrival = time[kept], arrival[kept]
    ids = found.hashed["event_id"][kept]
    words = {"event_time": time, "id_hash": np.where(ids == 0, NO_ID_HASH, ids),
             **{f"hash_{name}": column[kept] for name, column in found.hashed.items()},
             **{f"word_{name}": column[kept] for name, column in found.numbers.items()}}
    admitted = np.zeros(len(kept), np.int64)
    for bit, view in wanted.own:
        on_time = (time <= arrival + view.max_skew_ms) & (arrival - time <= view.allowed_lateness_ms)
        admitted |= on_time.astype(np.int64) << bit
    whole = len(kept) == len(found.rows)
    texts = {name: text if whole else text.take(kept) for name, text in found.texts.items()}
    return Events(found.rows[kept], admitted, {name: words[name] for name in wanted.words},
                  {name: words[f"word_{name}"] for name in wanted.numbers}, texts)
