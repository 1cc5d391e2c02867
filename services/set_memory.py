"""What the online store spends on an entity and on an event, from a sample of its keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feature_repo.key_sample import KeySample, sample_keys
from feature_repo.layout import entity_key
from feature_repo.marks import hot_key
from feature_repo.tiles import events_in
from feature_repo.views import FeatureView
from feature_repo.wire import Wire, pack

__all__ = ["SetMemory", "set_memory"]

MEASURED = 400
"""Sets of a view that are read for their size."""


@dataclass(frozen=True)
class SetMemory:
    """``entities`` is an estimate; bytes are Redis's own count, key and tiles included; None where the sample has no entity.

    ``long_sets`` wait for the compactor.
    """

    view: str
    entities: int
    bytes_per_entity: float | None
    bytes_per_event: float | None
    long_sets: int


def set_memory(wire: Wire, views: tuple[FeatureView, ...]) -> list[SetMemory]:
    """One look at a sample of the store's keys. Raises StoreError."""
    drawn = sample_keys(wire)
    return [_of_view(wire, view, drawn) for view in views]


def _of_view(wire: Wire, view: FeatureView, drawn: KeySample) -> SetMemory:
    head, tail = (part.encode() for part in entity_key(view, "\0").split("\0"))
    sets = [key for key in drawn.keys if key.startswith(head) and key.endswith(tail)]
    measured = list(dict.fromkeys(sets))[:MEASURED]
    size = events = 0
    for key in measured:
        commands: list[tuple[Any, ...]] = [("MEMORY", "USAGE", key), ("GET", key), ("MEMORY", "USAGE", key + b":tiles"),
                                           ("GET", key + b":tiles")]
        of_set, raw, of_tiles, tiles = wire.exchange([pack(command) for command in commands])
        size += (of_set or 0) + (of_tiles or 0)
        events += events_in(view, raw, tiles)
    return SetMemory(view.versioned_name, round(len(sets) * drawn.weight),
                     round(size / len(measured), 1) if measured else None, round(size / events, 1) if events else None,
                     int(wire.call("SCARD", hot_key(view))))
