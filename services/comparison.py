"""Do two versions of a view say the same of the events that come in now? Bit by bit, for the features that mean the same in both.

Both are read while workers append to them, so one may be ahead of the other by what is under way. Where they differ they are read again
after each has come as far as the other was: a difference that stays is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo import kernel
from feature_repo.changes import same_features
from feature_repo.online import Reading, SetReader
from feature_repo.vector import VectorBuilder
from feature_repo.version_keys import VersionKeys
from feature_repo.views import FeatureService, FeatureView
from schemas.topics import SOURCES, valid_topic
from services.ledger import read_events

__all__ = ["Compared", "compare", "recent_events"]

LOOKS = 10
PATIENCE_S = 30.0
EXAMPLES = 5


@dataclass(frozen=True)
class Compared:
    """``values`` of ``features`` were compared over ``events``, ``different`` of them are not the same bits.

    ``refused`` events were not compared: one version no longer has, or lacks, what they need. An example is (event id, feature, old
    value, new value).
    """

    old: str
    new: str
    features: list[str]
    events: int
    refused: int
    values: int
    different: int
    examples: list[tuple[str, str, float, float]]


def recent_events(kafka: str, source: str, last: int) -> list[Any]:
    """The valid events among the ``last`` offsets of each partition of ``source``. Raises LogError."""
    decode = SOURCES[source].decoder.decode
    return [decode(message.value()) for message in read_events(kafka, valid_topic(source), last=last)]


def compare(redis: str, old: FeatureView, new: FeatureView, source: str, events: Sequence[Any], partitions: int) -> Compared:
    """What ``old`` and ``new`` say of ``events`` of ``source``. Raises StoreError."""
    features = same_features(old, new)
    if not features or not events:
        return Compared(old.versioned_name, new.versioned_name, features, 0, 0, 0, 0, [])
    reader, keys = SetReader(redis, 5000, partitions), VersionKeys(redis)
    try:
        waiting, refused = list(events), 0
        for look in range(LOOKS):
            if look and not keys.passed((old, new), PATIENCE_S):
                break
            (before, cut_old), (after, cut_new) = _values(reader, (old, new), source, waiting, features)
            cut = cut_old | cut_new
            wrong = (before.view(np.int64) != after.view(np.int64)) & ~cut[:, None]
            refused += int(cut.sum())
            rows = np.flatnonzero(wrong.any(axis=1))
            waiting, wrong, before, after = [waiting[row] for row in rows], wrong[rows], before[rows], after[rows]
            if not waiting:
                break
    finally:
        reader.close()
        keys.close()
    examples = [(waiting[row].event_id, features[column], float(before[row, column]), float(after[row, column]))
                for row, column in np.argwhere(wrong)[:EXAMPLES]]
    return Compared(old.versioned_name, new.versioned_name, features, len(events) - refused, refused,
                    (len(events) - refused) * len(features), int(wrong.sum()), examples)


def _values(reader: SetReader, views: Sequence[FeatureView], source: str, events: Sequence[Any],
            features: Sequence[str]) -> list[tuple[Any, Any]]:
    """Of each view, read in one go: float64[n, features], and whether the read was refused, bool[n]."""
    builders = [VectorBuilder(FeatureService("compare", source, (view,))) for view in views]
    reading = reader.read([wanted for builder in builders for wanted in builder.wanted(events)])
    found = []
    for i, (view, builder) in enumerate(zip(views, builders, strict=True)):
        vectors = builder.build(events, Reading(reading.applied[i:i + 1], reading.sets[i:i + 1], reading.tiles[i:i + 1]))
        names = [feature.name for feature in view.features]
        found.append((vectors.matrix[:, [names.index(name) for name in features]].copy(), vectors.stamps[0][:, kernel.REFUSED] != 0))
    return found
