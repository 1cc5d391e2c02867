"""Pairs of predictions and outcomes in Redis: one side is written, then the other is read, so sides that come at once meet.

Both sides of an event lie in the same small hash (``feature_repo.pair_bytes``). They stay until the horizon is over, matched or not: a
revision may come, or another model's prediction. Slices of event time go as a whole: those that are over for every partition, and,
where more is held than the budget allows, the oldest; then a floor says which events are left to the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from feature_repo.join_marks import MOVE, JoinMarks, joined_ms_key
from feature_repo.marks import lowest, offsets
from feature_repo.pair_bytes import (
    Place,
    Release,
    layout_key,
    model_tag,
    pack_label,
    pack_release,
    pack_scored,
    pair_key,
    place_of,
    release_of,
    unpack_labels,
    unpack_release,
    unpack_scored,
)
from feature_repo.pairs import Label, Scored
from feature_repo.wire import Script, Wire, pack
from schemas.errors import DefinitionError, StoreError

__all__ = ["Layout", "Pending", "Told", "read_layout"]

SLICES = 720
BUCKET_PAIRS = 32
"""Redis keeps a hash compact up to 128 or 512 fields, by its version. A full budget has so many predictions in a bucket, and half or
none as many outcomes; ten times the rate still fits where 512 do."""
PAIR_BYTES = 60
SAMPLED = 6
"""Buckets of a slice that are measured. Over hundreds of slices the sum is known to a hundredth."""

# Adds label ARGV[2] to those in field ARGV[1] if its revision is higher than theirs; answers with all that count, and with what the
# fields after ARGV[2] hold. One step: two workers that both think the partition theirs cannot lose each other's.
TELL = Script("""
local told = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local function revision(label) return math.floor(struct.unpack('<I4', label) / 2) end
if told == '' or revision(ARGV[2]) > revision(string.sub(told, -10)) then
  told = told .. ARGV[2]
  redis.call('HSET', KEYS[1], ARGV[1], told)
end
return {told, redis.call('HMGET', KEYS[1], unpack(ARGV, 3))}
""")
RAISE = Script("""
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held or tonumber(held) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return 0
""")


@dataclass(frozen=True)
class Layout:
    """``slice_ms`` and ``buckets`` were settled when the first pair was written; events before ``floor_ms`` are left to the tables."""

    slice_ms: int
    buckets: int
    floor_ms: int


@dataclass(frozen=True)
class Told:
    """What an outcome met: ``labels`` of its event that count, its own the one at ``index`` (None: it does not), and the predictions."""

    labels: list[Label]
    index: int | None
    scored: list[Scored]


def read_layout(wire: Wire, topic: str) -> Layout | None:
    """None where no pair was ever written."""
    slice_ms, buckets, floor_ms = wire.exchange([pack(("HMGET", layout_key(topic), "slice_ms", "buckets", "floor_ms"))])[0]
    return Layout(int(slice_ms), int(buckets), int(floor_ms or 0)) if slice_ms and buckets else None


class Pending:
    """The pairs with outcomes of ``topic``, for one who reads ``marks.topic``. One connection, one thread.

    Parameters
    ----------
    models
        Those whose labels the topic tells.
    reads
        Topic -> partitions of all that is read for these pairs: what each has passed is over.
    horizon_ms
        How long after its event a record is still joined here.
    budget_bytes
        What the pairs may take in Redis, keys included.
    """

    def __init__(self, url: str, topic: str, marks: JoinMarks, models: Sequence[str], reads: Mapping[str, int], horizon_ms: int,
                 budget_bytes: int, timeout_ms: int = 2000) -> None:
        self.topic, self.marks = topic, marks
        self.horizon_ms, self.budget_bytes = horizon_ms, budget_bytes
        self._wire = Wire(url, timeout_ms, (MOVE, TELL, RAISE))
        self._tags = [model_tag(model) for model in models]
        if len(set(self._tags)) < len(self._tags):
            raise DefinitionError(f"two of the models {', '.join(models)} have one tag in Redis", hint="give one of them another name")
        self._reads = reads
        self._layout: Layout | None = None
        self._slices: set[int] = set()
        self._releases: dict[bytes, Release] = {}
        self._late_slices: set[int] = set()
        self._confirmed: dict[int, int | None] = {}  # partition -> the connection over which its mark was seen

    @property
    def floor_ms(self) -> int:
        """As the store last said."""
        return self.layout().floor_ms

    def layout(self) -> Layout:
        """What the store has; where it has none, one in which a full budget fills its hashes well."""
        if self._layout is None:
            slice_ms = max(1, self.horizon_ms // SLICES)
            buckets = max(1, self.budget_bytes // (SLICES * BUCKET_PAIRS * PAIR_BYTES))
            key = layout_key(self.topic)
            self._wire.exchange([pack(("HSETNX", key, "slice_ms", slice_ms)), pack(("HSETNX", key, "buckets", buckets))])
            self._layout = read_layout(self._wire, self.topic)
            if self._layout is None:
                raise StoreError(f"the layout of {key} went away", hint="is somebody flushing Redis?")
        return self._layout

    def held(self, partition: int) -> bytes:
        """The mark of ``partition`` as the store has it. What else was known of the store is asked anew."""
        self.forget_store()
        return self._wire.exchange([self.marks.ask(partition)])[0] or b""

    def forget_store(self) -> None:
        self._layout = None
        self._slices.clear()

    def confirm(self, partition: int) -> bool:
        """Whether the store is where we left it, to be asked before each chunk; over the same connection it is.

        A store that went back must not get later records before those it lost: the first prediction counts, and labels in their order.
        """
        if self._wire.connection is None or self._confirmed.get(partition) != self._wire.connection:
            self.forget_store()
            if not self.marks.same(partition, self._wire.exchange([self.marks.ask(partition)])[0] or b""):
                self.marks.forget(partition)
                return False
            self._confirmed[partition] = self._wire.connection
        return True

    def predicted(self, partition: int, offset: int, rows: Sequence[tuple[str, int, Scored]]) -> list[list[Label]] | None:
        """Write predictions (event id, event time, what to keep) up to ``offset``; what is known of the event of each.

        Of several with the same id the first one is *the* prediction; to the others nothing is answered, nor to what has come below
        the floor meanwhile: some of it may be dropped. None where the store went back in time. Raises StoreError; calling again is safe.
        """
        layout = self.layout()
        places = [place_of(event_id, time, layout.slice_ms, layout.buckets) for event_id, time, _ in rows]
        releases = {release: pack_release(release) for release in {_release(scored) for *_, scored in rows}}
        named = [pack(("HSETNX", layout_key(self.topic, "releases"), *pair)) for pair in releases.values()]
        tags = {release[0]: model_tag(release[0]) for release in releases}
        values = [pack_scored(scored, releases[_release(scored)][0]) for *_, scored in rows]
        commands: list[bytes] = []
        for place, (_, _, scored), value in zip(places, rows, values, strict=True):
            key, field = self._key(*place[:2]), place.field + tags[scored.model]
            commands += (pack(("HSETNX", key, field, value)), pack(("HMGET", key, field, place.field)))
        replies = self._exchange(partition, offset, places, named, commands)
        if replies is None:
            return None
        floor_ms = self.floor_ms
        return [unpack_labels(labels, time) if labels is not None and first == value and time >= floor_ms else []
                for (_, time, _), value, (first, labels) in zip(rows, values, replies[1::2], strict=True)]

    def told(self, partition: int, offset: int, rows: Sequence[tuple[str, int, Label]]) -> list[Told] | None:
        """Write labels (event id, event time, label) up to ``offset``; what each met. Else as ``predicted``."""
        layout = self.layout()
        places = [place_of(event_id, time, layout.slice_ms, layout.buckets) for event_id, time, _ in rows]
        packed = [pack_label(label, time) for _, time, label in rows]
        commands = [pack(("EVALSHA", TELL.sha, 1, self._key(*place[:2]), place.field, label, *(place.field + tag for tag in self._tags)))
                    for place, label in zip(places, packed, strict=True)]
        replies = self._exchange(partition, offset, places, [], commands)
        if replies is None:
            return None
        self._learn({release_of(value) for _, values in replies for value in values if value is not None})
        found = []
        for (_, time, label), (told, values) in zip(rows, replies, strict=True):
            if time < self.floor_ms:
                found.append(Told([], None, []))
                continue
            labels = unpack_labels(told, time)
            scored = [unpack_scored(value, self._releases[release_of(value)]) for value in values if value is not None]
            found.append(Told(labels, labels.index(label) if label in labels else None, scored))
        return found

    def finish(self, partition: int, offset: int, arrival_ms: int, counts: Mapping[str, int]) -> bool:
        """Say that everything up to ``offset``, which arrived by ``arrival_ms``, is published, and what was counted on the way.

        False: the store went back in time.
        """
        counted = [pack(("HINCRBY", layout_key(self.topic, "counts"), name, number)) for name, number in counts.items() if number]
        answer = self._wire.exchange([self.marks.finish(partition, offset, arrival_ms), *counted])[0]
        return self.marks.take_finished(partition, offset, arrival_ms, answer)

    def passed_ms(self, key: str, partition: int) -> int | None:
        """Of a hash ``key`` as ``feature_repo.marks`` has them: the arrival time that is told of ``partition``."""
        told = self._wire.exchange([pack(("HGET", key, partition))])[0]
        return int(told) if told is not None else None

    def raise_floor(self, floor_ms: int) -> None:
        """Leave events before ``floor_ms`` to the tables."""
        self._wire.exchange([pack(("EVALSHA", RAISE.sha, 1, layout_key(self.topic), "floor_ms", floor_ms))])
        self._layout = None

    def keep_within(self) -> int:
        """Drop what is over and what does not fit. Returns how many bytes are held."""
        self._layout = None  # its floor may be that of a store which is gone
        layout = self.layout()
        asked = [pack(("SMEMBERS", layout_key(self.topic, "slices"))), *(pack(("HGETALL", joined_ms_key(topic))) for topic in self._reads)]
        members, *passed = self._wire.exchange(asked)
        slices = sorted(map(int, members))
        reached = [lowest(offsets(reply), partitions) for reply, partitions in zip(passed, self._reads.values(), strict=True)]
        over_ms = min((at_ms for at_ms in reached if at_ms is not None), default=0) if None not in reached else 0
        over_ms -= self.horizon_ms
        gone = [number for number in slices if (number + 1) * layout.slice_ms <= max(over_ms, layout.floor_ms)]
        held = self._measure(slices[len(gone):], layout)
        total = sum(held.values())
        for number, size in held.items():
            if total <= self.budget_bytes:
                break
            self.raise_floor((number + 1) * layout.slice_ms)  # first: what is dropped must never be waited for
            gone.append(number)
            total -= size
        for number in gone:
            self._drop(number, layout)
        return total

    def _exchange(self, partition: int, offset: int, places: Sequence[Place], named: Sequence[bytes],
                  commands: Sequence[bytes]) -> list[Any] | None:
        """The replies to ``commands``, after which the chunk up to ``offset`` is begun; None: the store went back in time."""
        layout = self.layout()
        new = ({place.slice for place in places} - self._slices) | self._late_slices
        known = [pack(("SADD", layout_key(self.topic, "slices"), *sorted(new)))] if new else []
        before = [*known, *named]
        floor, begin = pack(("HGET", layout_key(self.topic), "floor_ms")), self.marks.begin(partition, offset)
        *replies, floor_ms, answer = self._wire.exchange([*before, *commands, floor, begin])
        if not self.marks.take_begun(partition, offset, answer):
            self.forget_store()
            return None
        self._slices |= new
        if int(floor_ms or 0) != layout.floor_ms:
            # Slices that were dropped while this was under way have come back with it: they are named again, to be dropped again.
            self._layout = Layout(layout.slice_ms, layout.buckets, int(floor_ms or 0))
            self._late_slices = {place.slice for place in places if (place.slice + 1) * layout.slice_ms <= self._layout.floor_ms}
        else:
            self._late_slices = set()
        return replies[len(before):]

    def _learn(self, releases: Iterable[bytes]) -> None:
        unknown = [release for release in releases if release not in self._releases]
        if unknown:
            values = self._wire.exchange([pack(("HMGET", layout_key(self.topic, "releases"), *unknown))])[0]
            if None in values:
                raise StoreError("a prediction is of a release that the store does not know", hint="Redis may have gone back in time")
            self._releases |= {release: unpack_release(value) for release, value in zip(unknown, values, strict=True)}

    def _measure(self, slices: Sequence[int], layout: Layout) -> dict[int, int]:
        """Bytes of each slice, from a few of its buckets."""
        step = max(1, layout.buckets // SAMPLED)
        buckets = range(0, layout.buckets, step)
        sizes = iter(self._wire.exchange([pack(("MEMORY", "USAGE", self._key(number, bucket)))
                                          for number in slices for bucket in buckets]))
        return {number: sum(size or 0 for size in islice(sizes, len(buckets))) * layout.buckets // len(buckets) for number in slices}

    def _drop(self, number: int, layout: Layout) -> None:
        keys = [self._key(number, bucket) for bucket in range(layout.buckets)]
        self._wire.exchange([*(pack(("UNLINK", *keys[at:at + 500])) for at in range(0, len(keys), 500)),
                             pack(("SREM", layout_key(self.topic, "slices"), number))])
        self._slices.discard(number)

    def _key(self, number: int, bucket: int) -> str:
        return pair_key(self.topic, number, bucket)

    def close(self) -> None:
        self._wire.close()


def _release(scored: Scored) -> Release:
    return scored.model, scored.model_version, scored.threshold
