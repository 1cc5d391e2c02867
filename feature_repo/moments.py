"""Reads of history asked for by entity and time, for an archived event or for none; pure but for the archive they are placed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feature_repo.archive_table import FOR_EVER, Arrived
from feature_repo.history import Needed, Queries
from feature_repo.identity import first_of_each, number_identities
from feature_repo.layout import hash_id
from feature_repo.views import FeatureService
from schemas.errors import JobError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["HistoryMode", "Moments", "needs", "not_archived", "placed"]

HistoryMode = Literal["known", "ideal"]
"""``known``: what had arrived by then; ``ideal``: whatever arrived since."""


@dataclass(frozen=True)
class Moments:
    """What is asked of history: n reads. ``t`` int64[n] ms; ``texts`` Arrow texts by entity; ``event_ids`` Arrow texts, null: a look-up
    for no event."""

    t: Any
    texts: dict[str, pa.ChunkedArray]
    event_ids: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.t)


def needs(service: FeatureService, moments: Moments, mode: HistoryMode) -> Needed:
    """What ``moments`` can see; an event may have come long after its time, a look-up sees nothing later than its own."""
    look_ups = moments.event_ids.null_count == len(moments)
    last = int(moments.t.max())
    return Needed(service, int(moments.t.min()), last + 1, last if look_ups and mode == "known" else FOR_EVER,
                  numbers={} if look_ups else {service.source: ()})


def placed(moments: Moments, source: Arrived | None, mode: HistoryMode) -> Queries:
    """Each read with its own event and what had arrived before it. Raises JobError where an event is not in the archive."""
    own = np.full(len(moments), -1)
    asked = np.flatnonzero(moments.event_ids.is_valid().to_numpy())
    if len(asked):
        assert source is not None
        identity = np.array([hash_id(text) for text in moments.event_ids.drop_null().to_pylist()], np.uint64).view(np.int64)
        codes = number_identities(np.concatenate((source.events.id_hash, identity)),
                                  np.concatenate((source.events.event_time, moments.t[asked])))
        first = np.flatnonzero(first_of_each(codes[:len(source)], source.arrivals))
        row_of = np.full(codes.max(initial=-1) + 1, -1)
        row_of[codes[first]] = first
        own[asked] = row_of[codes[len(source):]]
        if (missing := asked[own[asked] < 0]).size:
            raise not_archived(missing.size, moments.event_ids[missing[0].item()].as_py(), moments.t[missing[0]])
    horizons = np.stack((moments.t, np.full(len(moments), FOR_EVER)), axis=1)
    if mode == "ideal":
        horizons[:] = FOR_EVER
    elif len(asked):
        assert source is not None
        horizons[asked] = source.arrivals[own[asked]]
    return Queries(moments.t, moments.texts, horizons, own)


def not_archived(number: int, event_id: str, event_time: int) -> JobError:
    return JobError(f"{number:,} events are not in the archive, the first is {event_id!r} at {event_time} ms",
                    hint="event_timestamp is the event's own time; is it archived? `headrace archive`")
