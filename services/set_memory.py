"""What the online store spends on an entity and on an event, from a sample of its keys: no key is looked for, none is scanned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feature_repo.layout import entity_key
from feature_repo.marks import hot_key
from feature_repo.tiles import events_in
from feature_repo.views import FeatureView
from feature_repo.wire import Wire, pack

__all__ = ["SetMemory", "set_memory"]

SAMPLE = 400


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


def set_memory(wire: Wire, views: tuple[FeatureView, ...], keys: int) -> list[SetMemory]:
    """One look at ``SAMPLE`` keys of the store's ``keys``. Raises StoreError."""
    drawn = [key for key in wire.exchange([pack(("RANDOMKEY",))] * SAMPLE) if key is not None] if keys else []
    return [_of_view(wire, view, drawn, keys) for view in views]


def _of_view(wire: Wire, view: FeatureView, drawn: list[bytes], keys: int) -> SetMemory:
    head, tail = (part.encode() for part in entity_key(view, "\0").split("\0"))
    sets = [key for key in drawn if key.startswith(head) and key.endswith(tail)]
    size = events = 0
    for key in set(sets):
        commands: list[tuple[Any, ...]] = [("MEMORY", "USAGE", key), ("GET", key), ("MEMORY", "USAGE", key + b":tiles"),
                                           ("GET", key + b":tiles")]
        of_set, raw, of_tiles, tiles = wire.exchange([pack(command) for command in commands])
        size += (of_set or 0) + (of_tiles or 0)
        events += events_in(view, raw, tiles)
    distinct = len(set(sets))
    return SetMemory(view.versioned_name, round(keys * len(sets) / len(drawn)) if drawn else 0,
                     round(size / distinct, 1) if distinct else None, round(size / events, 1) if events else None,
                     int(wire.call("SCARD", hot_key(view))))
