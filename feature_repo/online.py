"""The read side of the online store: the applied marks, then the sets of many entities, in one bounded round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feature_repo.layout import entity_keys
from feature_repo.marks import NOTHING, applied_key, offsets, scored_key, scored_ms_key
from feature_repo.views import FeatureView
from feature_repo.wire import Wire, pack

__all__ = ["Asked", "Reading", "SetReader"]

ScoredMarks = dict[int, tuple[int, int]]
"""Partition -> (last scored source offset, its arrival ms)."""


@dataclass(frozen=True)
class Asked:
    """A read under way: the distinct entities of each view, behind ``before`` replies that are none of its own."""

    entities: tuple[tuple[str, ...], ...]
    before: int


@dataclass(frozen=True)
class Reading:
    """What one round trip saw.

    ``sets[v]`` maps an entity of view v to the bytes of its set (None: there is none); ``applied[v]`` is the last applied source
    offset of each partition, read before the sets, so every record at or below it is in them.
    """

    applied: tuple[tuple[int, ...], ...]
    sets: tuple[dict[str, bytes | None], ...]


class SetReader:
    """Reads event sets. One connection, one thread; ``timeout_ms`` bounds each attempt, and a dead connection is tried once more."""

    def __init__(self, url: str, timeout_ms: int, partitions: int) -> None:
        self._wire = Wire(url, timeout_ms)
        self._partitions = partitions

    def read(self, wanted: Sequence[tuple[FeatureView, Sequence[str]]]) -> Reading:
        """The sets of (view, entities) pairs; each distinct entity is fetched once. Raises StoreError when there is no answer."""
        return self.answer(self.ask(wanted))

    def ask(self, wanted: Sequence[tuple[FeatureView, Sequence[str]]], service: str = "", scored: ScoredMarks | None = None) -> Asked:
        """Send a read, and on the way what ``publish_scored`` says of ``service``. ``answer`` it before anything else is asked."""
        views = [view for view, _ in wanted]
        entities = tuple(tuple(dict.fromkeys(names)) for _, names in wanted)
        said = _scored_commands(service, scored or {})
        applied = [pack(("HGETALL", applied_key(view))) for view in views]
        sets = [pack(("MGET", *entity_keys(view, names))) for view, names in zip(views, entities, strict=True) if names]
        self._wire.send([*said, *applied, *sets])
        return Asked(entities, len(said))

    def answer(self, asked: Asked) -> Reading:
        """What ``asked`` found. Raises StoreError when there is no answer."""
        views = len(asked.entities)
        replies = self._wire.receive(asked.before + views + sum(map(bool, asked.entities)))[asked.before:]
        values = iter(replies[views:])
        sets = tuple(dict(zip(names, next(values), strict=True)) if names else {} for names in asked.entities)
        return Reading(tuple(self._by_partition(reply) for reply in replies[:views]), sets)

    def publish_scored(self, service: str, positions: ScoredMarks) -> None:
        """Say that ``service`` has scored up to (source offset, arrival ms) per partition."""
        if positions:
            self._wire.exchange(_scored_commands(service, positions))

    def newest_scored_ms(self, service: str) -> int | None:
        """The stream's clock: the newest arrival time that ``service`` has scored; None before the first."""
        values = self._wire.call("HVALS", scored_ms_key(service))
        return max(map(int, values)) if values else None

    def close(self) -> None:
        self._wire.close()

    def _by_partition(self, reply: object) -> tuple[int, ...]:
        held = offsets(reply)
        return tuple(held.get(partition, NOTHING) for partition in range(max(self._partitions, max(held, default=-1) + 1)))


def _scored_commands(service: str, positions: ScoredMarks) -> list[bytes]:
    if not positions:
        return []
    return [pack(("HSET", scored_key(service), *(x for p, (offset, _) in positions.items() for x in (p, offset)))),
            pack(("HSET", scored_ms_key(service), *(x for p, (_, ms) in positions.items() for x in (p, ms))))]
