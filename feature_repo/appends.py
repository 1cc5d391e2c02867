"""The write side of the online store: append records, move the applied marks, keep keys alive, trim what no read can need.

An append is idempotent in effect (readers drop copies) and commutative, so a chunk may be applied again after any fault. The applied
mark moves by compare-and-set: an answer other than the one last written means that Redis went back in time (restart from an
older append-only file, fail-over) and the worker must seek back. A plain HSET would erase that trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter
from typing import Any

from feature_repo.bounds import bounds
from feature_repo.layout import appender, entity_key, floor_record, tiles_key
from feature_repo.marks import NOTHING, applied_key, applied_ms_key, hot_key, scored_ms_key
from feature_repo.views import DAY_MS, FeatureService, FeatureView
from feature_repo.wire import Script, Wire, pack

__all__ = ["AppliedMarks", "SetWriter", "ViewAppends", "floor_ms"]

# The mark is moved to ARGV[3] if it is still ARGV[2] (empty: absent), and with it the arrival time that it stands for (ARGV[4], empty:
# not known); the answer is what the mark is afterwards. An arrival time that moved without its mark would let compaction fold past
# records that are about to come again. Where there was no mark, ARGV[5] (if given) says in the same step from where on the sets
# have records: a mark without that would promise all of them.
ADVANCE = Script("""
local held = redis.call('HGET', KEYS[1], ARGV[1])
if (held or '') ~= ARGV[2] then return held or '' end
if (ARGV[4] or '') ~= '' and ARGV[3] ~= ARGV[2] then redis.call('HSET', KEYS[2], ARGV[1], ARGV[4]) end
if ARGV[5] then redis.call('HSET', KEYS[1], 'from:' .. ARGV[1], ARGV[5]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return ARGV[3]
""")

# Drops records at or below the floor and byte-identical copies, leaves one floor record, keeps order. Atomic, so nothing that is
# appended meanwhile can be lost. KEYS[1] the set; ARGV floor ms, record bytes, floor record, seconds to live.
TRIM = Script("""
local value = redis.call('GET', KEYS[1])
if value then
  local size, floor, kept, seen = tonumber(ARGV[2]), tonumber(ARGV[1]), {}, {}
  for at = 1, #value - size + 1, size do
    local record = string.sub(value, at, at + size - 1)
    local time = struct.unpack('<i8', record)
    if time > floor and not seen[record] then seen[record] = true; kept[#kept + 1] = record end
  end
  if #kept * size < #value then redis.call('SET', KEYS[1], ARGV[3] .. table.concat(kept)) end
end
redis.call('EXPIRE', KEYS[1], ARGV[4])
return 0
""")

KEYS_REMEMBERED = 200_000
NO_VIEW = 1 << 62  # of a source without views everything is in the sets
LONG_RECORDS = 1_000
"""A view with hops has the compactor look at sets with more records than these; a quiet entity never has tiles."""


class ViewAppends:
    """Commands that bring one chunk's records into one view's sets.

    ``scored_lateness_ms`` is the largest of the services that read the view. What arrived ``forgotten_ms`` ago can be scored no
    more, for its log is gone; None: the log is kept.
    """

    def __init__(self, view: FeatureView, scored_lateness_ms: int, forgotten_ms: int | None = None) -> None:
        self.view = view
        self._scored_lateness_ms = scored_lateness_ms
        self._forgotten_ms = forgotten_ms
        self._append = appender(view)
        self._period_ms = max(DAY_MS, view.retention_ms // 4)
        self._ttl_s = 2 * view.retention_ms // 1000
        self._entity = attrgetter(view.entity)
        self._refreshed: dict[str, int] = {}
        self._long = LONG_RECORDS * 8 * view.record_words

    def commands(self, events: Sequence[tuple[Any, int]], scored_up_to_ms: int | None) -> list[bytes]:
        """One APPEND for each (event, arrival ms) pair; then, for entities whose first one of a period it is, what trims and
        refreshes their keys.

        Expiry is set with twice the retention at least once per quarter of it: never only at creation (deletes a live
        entity), never on each append (doubles the commands). ``scored_up_to_ms`` is the arrival time that every scorer has
        passed; None where that is not known, and then nothing is trimmed that a scorer may still find in the log.
        """
        refreshes: list[bytes] = []
        entity_of, refreshed, period_ms = self._entity, self._refreshed, self._period_ms
        for entity, arrival_ms in {entity_of(event): arrival_ms for event, arrival_ms in events}.items():
            period = arrival_ms // period_ms
            if refreshed.get(entity) != period:
                refreshes.append(self._refresh(entity_key(self.view, entity), arrival_ms, scored_up_to_ms))
                if self.view.hops:
                    refreshes.append(pack(("EXPIRE", tiles_key(self.view, entity), self._ttl_s)))
                if len(refreshed) >= KEYS_REMEMBERED:
                    refreshed.clear()
                refreshed[entity] = period
        return self._append(events) + refreshes

    def noted(self, events: Sequence[tuple[Any, int]], replies: Sequence[Any]) -> list[bytes]:
        """What tells the compactor of the entities whose sets are long, by the ``replies`` to the commands for ``events``."""
        if not self.view.hops:
            return []
        long = {self._entity(event) for (event, _), length in zip(events, replies, strict=False) if length > self._long}
        return [pack(("SADD", hot_key(self.view), *long))] if long else []

    def forget(self) -> None:
        """Refresh every key anew: the store may have lost what it was told."""
        self._refreshed.clear()

    def _refresh(self, key: str, arrival_ms: int, scored_up_to_ms: int | None) -> bytes:
        if self._forgotten_ms is not None:
            scored_up_to_ms = max(scored_up_to_ms or 0, arrival_ms - self._forgotten_ms)
        if scored_up_to_ms is None:
            return pack(("EXPIRE", key, self._ttl_s))
        floor = floor_ms(self.view, scored_up_to_ms, self._scored_lateness_ms)
        mark = floor_record(self.view, floor)
        return pack(("EVALSHA", TRIM.sha, 1, key, floor, len(mark), mark, self._ttl_s))


def floor_ms(view: FeatureView, scored_up_to_ms: int, scored_lateness_ms: int) -> int:
    """What no read can need: records with event time at or below this.

    A scorer that has passed arrival A reads later only for arrivals from A on, at event times no more than the lateness of what
    it scores before that (a later event's read is refused), and back over the delay and the longest window.
    """
    return bounds(view, scored_up_to_ms, scored_up_to_ms - scored_lateness_ms)[0]


class AppliedMarks:
    """What this worker last wrote as applied, per view and partition, and what the store answered."""

    def __init__(self, views: Sequence[FeatureView]) -> None:
        self.views = tuple(views)
        self._written: dict[int, list[int]] = {}

    def known(self, partition: int) -> bool:
        return partition in self._written

    def lowest(self, partition: int) -> int:
        return min(self._written[partition], default=NO_VIEW)

    def adopt(self, partition: int, held: list[int]) -> None:
        self._written[partition] = held

    def forget(self, partition: int) -> None:
        self._written.pop(partition, None)

    def commands(self, partition: int, offset: int, began: tuple[int, int] | None = None, arrival_ms: int | None = None) -> list[bytes]:
        """One compare-and-set per view that is behind ``offset``, which arrived at ``arrival_ms``; for the others a look that
        changes nothing.

        ``began`` is (offset, arrival ms) of the first record of a chunk before which the log has lost records: sets to which nothing
        was applied before are short of them.
        """
        arrival = "" if arrival_ms is None else arrival_ms
        short = (f"{began[0]} {began[1]}",) if began is not None else ()
        return [
            pack(("EVALSHA", ADVANCE.sha, 2, applied_key(view), applied_ms_key(view), partition,
                  *(("", offset, arrival, *short) if held == NOTHING else (held, max(offset, held), arrival))))
            for view, held in zip(self.views, self._written[partition], strict=True)
        ]

    def take(self, partition: int, offset: int, answers: Sequence[bytes]) -> bool:
        """Whether the answers fit what was written before. If not, Redis went back in time, or another worker was here."""
        held = [int(answer) if answer else NOTHING for answer in answers]
        fits = min(held, default=offset) >= offset and self.hold(partition, held)
        if fits:
            self._written[partition] = held
        return fits

    def hold(self, partition: int, held: Sequence[int]) -> bool:
        """Whether a store that holds these marks has everything that was written."""
        return all(now >= before for now, before in zip(held, self._written[partition], strict=True))


class SetWriter:
    """Applies chunks of one source to the sets of its views. One connection, one thread.

    ``services`` are all that are scored anywhere: a view keeps what the slowest of those that read it can still ask for.
    ``forgotten_ms`` as in ``ViewAppends``: so one that never runs does not keep it for ever.
    """

    def __init__(self, url: str, views: Sequence[FeatureView], services: Sequence[FeatureService], partitions: int,
                 timeout_ms: int = 2000, forgotten_ms: int | None = None) -> None:
        self._wire = Wire(url, timeout_ms, (ADVANCE, TRIM))
        readers = [[service for service in services if view in service.views] for view in views]
        self.appends = [ViewAppends(view, max((service.scored_lateness_ms for service in of_view), default=0), forgotten_ms)
                        for view, of_view in zip(views, readers, strict=True)]
        self.marks = AppliedMarks(views)
        self._readers = [[service.name for service in of_view] for of_view in readers]
        self._partitions = partitions
        self._scored_up_to_ms: dict[str, int | None] = dict.fromkeys(name for names in self._readers for name in names)
        self._notes: list[bytes] = []  # for the compactor, with the next chunk

    def held(self, partition: int) -> list[int]:
        """The applied offset of each view as the store has it now."""
        replies = self._wire.exchange([pack(("HGET", applied_key(view), partition)) for view in self.marks.views])
        return [int(reply) if reply is not None else NOTHING for reply in replies]

    def apply(self, partition: int, offset: int, events: Sequence[Sequence[tuple[Any, int]]],
              began: tuple[int, int] | None = None, arrival_ms: int | None = None) -> bool:
        """Append ``events[i]`` to view i and move the marks to ``offset``, in one round trip. ``began``: see AppliedMarks.

        ``arrival_ms`` is when the record at ``offset`` arrived, event or not; without it nothing of the partition is compacted.
        Returns False where the store's marks are older than what this worker wrote: seek back, nothing is lost. Raises
        StoreError where the store does not answer; calling again is safe.
        """
        of_views = [view.commands(of_view, self._passed_ms(names))
                    for view, names, of_view in zip(self.appends, self._readers, events, strict=True)]
        commands = [command for of_view in of_views for command in of_view]
        moves = self.marks.commands(partition, offset, began, arrival_ms)
        asked = [pack(("HVALS", scored_ms_key(name))) for name in self._scored_up_to_ms]
        try:
            replies = self._wire.exchange([*commands, *moves, *asked, *self._notes])
        except BaseException:
            self.forget_refreshes()
            raise
        answers, scored = replies[len(commands):][:len(moves)], replies[len(commands) + len(moves):][:len(asked)]
        starts = accumulate(map(len, of_views), initial=0)
        self._notes = [note for view, of_view, start in zip(self.appends, events, starts, strict=False)
                       for note in view.noted(of_view, replies[start:start + len(of_view)])]
        # Only when every partition has been scored from is it known what no scorer can still ask for.
        self._scored_up_to_ms = {name: min(map(int, marks)) if len(marks) == self._partitions else None
                                 for name, marks in zip(self._scored_up_to_ms, scored, strict=True)}
        if self.marks.take(partition, offset, answers):
            return True
        self.marks.forget(partition)
        self.forget_refreshes()
        return False

    def _passed_ms(self, services: Sequence[str]) -> int | None:
        """The arrival time that all ``services`` have passed; None where that is not known of one."""
        passed = [at for name in services if (at := self._scored_up_to_ms[name]) is not None]
        return min(passed) if passed and len(passed) == len(services) else None

    def forget_refreshes(self) -> None:
        for view in self.appends:
            view.forget()

    def close(self) -> None:
        self._wire.close()

