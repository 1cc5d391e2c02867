"""The read side of the online store: the applied marks, then the sets of many entities, in one bounded round trip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from feature_repo.layout import entity_keys, floor_record, tiles_key
from feature_repo.marks import NOTHING, applied_key, offsets, scored_key, scored_ms_key, serving_key, shortages
from feature_repo.views import FeatureView
from feature_repo.wire import Wire, pack

__all__ = ["Asked", "Reading", "SetReader"]

ScoredMarks = dict[int, tuple[int, int]]
"""Partition -> (last scored source offset, its arrival ms)."""


@dataclass(frozen=True)
class Asked:
    """A read under way: the distinct entities of each view, behind ``before`` replies that are none of its own."""

    views: tuple[FeatureView, ...]
    entities: tuple[tuple[str, ...], ...]
    before: int


@dataclass(frozen=True)
class Reading:
    """What one round trip saw.

    ``sets[v]`` maps an entity of view v to the bytes of its set (None: there is none); ``applied[v]`` is the last applied source
    offset of each partition, read before the sets, so every record at or below it is in them. Where the sets of a view are short
    of what the log had lost when they were begun, a floor record says up to what event time: reads that need it are refused.
    ``tiles[v]`` maps the same entities to the bytes of their tiles, read with the sets; it is empty where the view has no hop.
    """

    applied: tuple[tuple[int, ...], ...]
    sets: tuple[dict[str, bytes | None], ...]
    tiles: tuple[dict[str, bytes | None], ...] = ()

    def __post_init__(self) -> None:
        if len(self.tiles) != len(self.sets):
            object.__setattr__(self, "tiles", ({},) * len(self.sets))


class SetReader:
    """Reads event sets. One connection, one thread. An attempt ends within twice ``timeout_ms``; a dead connection is tried once more."""

    def __init__(self, url: str, timeout_ms: int, partitions: int) -> None:
        self._wire = Wire(url, timeout_ms, hurried=True)
        self._partitions = partitions

    def read(self, wanted: Sequence[tuple[FeatureView, Sequence[str]]]) -> Reading:
        """The sets of (view, entities) pairs; each distinct entity is fetched once. Raises StoreError when there is no answer."""
        return self.answer(self.ask(wanted))

    def ask(self, wanted: Sequence[tuple[FeatureView, Sequence[str]]], service: str = "", scored: ScoredMarks | None = None,
            epoch: int | None = None) -> Asked:
        """Send a read, and on the way what ``publish_scored`` says of ``service``. ``answer`` it before anything else is asked."""
        views = [view for view, _ in wanted]
        entities = tuple(tuple(dict.fromkeys(names)) for _, names in wanted)
        said = _scored_commands(service, scored or {}, epoch)
        applied = [_ask_applied(view) for view in views]
        sets = [pack(("MGET", *_keys(view, names))) for view, names in zip(views, entities, strict=True) if names]
        self._wire.send([*said, *applied, *sets])
        return Asked(tuple(views), entities, len(said))

    def answer(self, asked: Asked) -> Reading:
        """What ``asked`` found. Raises StoreError when there is no answer."""
        views = len(asked.views)
        replies = self._wire.receive(asked.before + views + sum(map(bool, asked.entities)))[asked.before:]
        values = iter(replies[views:])
        found = [next(values) if names else [] for names in asked.entities]
        sets = tuple(dict(zip(names, value, strict=False)) for names, value in zip(asked.entities, found, strict=True))
        for view, reply, of_view in zip(asked.views, replies, sets, strict=False):
            if short := shortages(reply):
                floor = floor_record(view, max(arrival_ms for _, arrival_ms in short.values()) + view.max_skew_ms)
                of_view.update({name: floor + (value or b"") for name, value in of_view.items()})
        tiles = tuple(dict(zip(names, value[len(names):], strict=True)) if view.hops else {}
                      for names, value, view in zip(asked.entities, found, asked.views, strict=True))
        return Reading(tuple(self._by_partition(reply) for reply in replies[:views]), sets, tiles)

    @property
    def fileno(self) -> int | None:
        """The socket on which the reply to what was asked will come; None where nothing is connected."""
        return self._wire.fileno

    def publish_scored(self, service: str, positions: ScoredMarks, epoch: int | None = None) -> None:
        """Say that ``service`` has scored up to (source offset, arrival ms) per partition, and by which release it goes on."""
        if positions:
            self._wire.exchange(_scored_commands(service, positions, epoch))

    def newest_scored_ms(self, services: Iterable[str]) -> int | None:
        """The stream's clock: the newest arrival time that one of ``services`` has scored; None before the first."""
        replies = self._wire.exchange([pack(("HVALS", scored_ms_key(service))) for service in services])
        return max((int(ms) for reply in replies for ms in reply), default=None)

    def serving_epochs(self, service: str) -> dict[int, int]:
        """Partition -> epoch of the release that its next event is scored by; 0 where that was not released."""
        return offsets(self._wire.call("HGETALL", serving_key(service)))

    def close(self) -> None:
        self._wire.close()

    def _by_partition(self, reply: object) -> tuple[int, ...]:
        held = offsets(reply)
        return tuple(held.get(partition, NOTHING) for partition in range(max(self._partitions, max(held, default=-1) + 1)))


@cache
def _ask_applied(view: FeatureView) -> bytes:
    return pack(("HGETALL", applied_key(view)))


def _keys(view: FeatureView, entities: Sequence[str]) -> list[str]:
    """The sets, then their tiles where there can be some: one MGET, or a compaction between two would go unseen."""
    keys = entity_keys(view, entities)
    return [*keys, *(tiles_key(view, entity) for entity in entities)] if view.hops else keys


def _scored_commands(service: str, positions: ScoredMarks, epoch: int | None) -> list[bytes]:
    if not positions:
        return []
    return [pack(("HSET", scored_key(service), *(x for p, (offset, _) in positions.items() for x in (p, offset)))),
            pack(("HSET", scored_ms_key(service), *(x for p, (_, ms) in positions.items() for x in (p, ms)))),
            pack(("HSET", serving_key(service), *(x for p in positions for x in (p, epoch or 0))))]
