"""What goes wrong with a worker of the join, and workers with a rule left out."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from feature_repo.join_marks import MOVE, JoinMarks
from feature_repo.pair_bytes import place_of, unpack_labels
from feature_repo.pending import RAISE, TELL, Pending
from feature_repo.wire import Wire, pack
from schemas.errors import StoreError


class Around(Protocol):
    """What a worker needs of its world."""

    r: random.Random
    calm: bool
    seen: Counter[str]
    published: list[tuple[int, bytes, bytes]]

    def between(self) -> None: ...
    def fault(self, rate: float) -> bool: ...


class Crash(BaseException):
    """The process is gone."""


class Patient(threading.Event):
    """Lets a worker try again at once."""

    def wait(self, timeout: float | None = None) -> bool:
        return False


@dataclass(frozen=True)
class Rules:
    """What a negative control leaves out."""

    write_then_read: bool = True
    publish_then_move: bool = True
    begun_is_marked: bool = True
    compare_and_set: bool = True
    look_first: bool = True


class FaultyWire(Wire):
    """Another worker runs between two commands; the process dies, or the reply is lost."""

    def __init__(self, url: str, world: Around) -> None:
        super().__init__(url, 2000, (MOVE, TELL, RAISE))
        self._world, self._life = world, world.seen["restores"]

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        world, replies = self._world, []
        fault = world.r.choice(("before", "within", "after", "lost")) if not world.calm and world.r.random() < 0.02 else None
        at = world.r.randrange(len(commands) + 1)
        if fault == "before":
            raise Crash
        self._same_server()
        replies += super().exchange(commands[:at]) if at else []
        if fault == "within":
            raise Crash
        world.between()
        self._same_server()
        replies += super().exchange(commands[at:]) if at < len(commands) else []
        if fault == "after":
            raise Crash
        if fault == "lost":
            raise StoreError("reply lost")
        return replies

    def _same_server(self) -> None:
        """A server that comes back closes no connection of ours unnoticed."""
        if self._life != self._world.seen["restores"]:
            self._life = self._world.seen["restores"]
            self.close()
            raise StoreError("connection closed")


class Unlooking(Pending):
    def confirm(self, partition: int) -> bool:
        return True


class ReadFirst(Pending):
    def predicted(self, partition: int, offset: int, rows: Any) -> Any:
        layout = self.layout()
        places = [place_of(event_id, time, layout.slice_ms, layout.buckets) for event_id, time, _ in rows]
        before = self._wire.exchange([pack(("HGET", self._key(*place[:2]), place.field)) for place in places]) if rows else []
        found = super().predicted(partition, offset, rows)
        return None if found is None else [unpack_labels(labels, time) for labels, (_, time, _) in zip(before, rows, strict=True)]


class OneMark(JoinMarks):
    """A mark that does not say what was begun."""

    def _begun(self, partition: int, offset: int) -> bytes:
        return self._written[partition]


class PlainMarks(JoinMarks):
    """Marks that are set, whatever they were."""

    def _move(self, partition: int, mark: bytes, arrival_ms: int | None) -> bytes:
        return pack(("HSET", f"joined:{self.topic}", partition, mark))

    def _take(self, partition: int, mark: bytes, answer: Any) -> bool:
        self._written[partition] = mark
        return True


class Recorder:
    """What ``streams.publisher.Publisher`` does, into the world's list; a crash leaves a prefix."""

    def __init__(self, world: Around) -> None:
        self._world, self._queued = world, []

    def send(self, topic: str, partition: int, key: bytes, value: bytes, at_ms: int, headers: Any) -> None:
        self._queued.append((partition, key, value))

    def wait(self) -> None:
        queued, self._queued = self._queued, []
        if self._world.fault(0.03):
            self._world.published += queued[:self._world.r.randrange(len(queued) + 1)]
            raise Crash
        self._world.published += queued

    def forget(self, partition: int) -> None:
        self._queued.clear()


class Hasty(Recorder):
    """Publishes when the mark has moved: with the next chunk."""

    def wait(self) -> None:
        self._late, late = list(self._queued), getattr(self, "_late", [])
        self._queued = late
        super().wait()


