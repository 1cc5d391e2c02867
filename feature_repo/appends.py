"""The write side of the online store: append records, move the applied marks, keep keys alive, trim what no read can need.

An append is idempotent in effect (readers drop copies) and commutative, so a chunk may be applied again after any fault. The applied
mark moves by compare-and-set: an answer other than the one last written means that Redis went back in time (restart from an
older append-only file, fail-over) and the worker must seek back. A plain HSET would erase that trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from feature_repo.layout import Packer, floor_record, key_maker, packer
from feature_repo.marks import NOTHING, applied_key, scored_ms_key
from feature_repo.views import DAY_MS, FeatureService, FeatureView
from feature_repo.wire import Script, Wire, pack

__all__ = ["AppliedMarks", "SetWriter", "ViewAppends", "floor_ms"]

# The mark is moved to ARGV[3] if it is still ARGV[2] (empty: absent); the answer is what it is afterwards.
ADVANCE = Script("""
local held = redis.call('HGET', KEYS[1], ARGV[1])
if (held or '') == ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]); return ARGV[3] end
return held or ''
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


class ViewAppends:
    """Commands that bring one chunk's records into one view's sets."""

    def __init__(self, view: FeatureView, scored_lateness_ms: int) -> None:
        self.view = view
        self._scored_lateness_ms = scored_lateness_ms
        self._pack: Packer = packer(view)
        size = 8 * view.record_words
        # The bytes that ``pack(("APPEND", key, record))`` gives, at a third of its cost.
        self._append = b"*3\r\n$6\r\nAPPEND\r\n$%%d\r\n%%b\r\n$%d\r\n%%b\r\n" % size
        self._period_ms = max(DAY_MS, view.retention_ms // 4)
        self._ttl_s = 2 * view.retention_ms // 1000
        self._refreshed: dict[bytes, int] = {}
        self._key: Callable[[Any], bytes] = key_maker(view)

    def commands(self, events: Sequence[tuple[Any, int]], scored_up_to_ms: int | None) -> list[bytes]:
        """APPENDs of (event, arrival ms) pairs; an entity's first one of a period also trims and refreshes its key.

        Expiry is set with twice the retention at least once per quarter of it: never only at creation (deletes a live
        entity), never on each append (doubles the commands). ``scored_up_to_ms`` is the arrival time that every scorer has
        passed; None where that is not known, and then nothing is trimmed.
        """
        commands: list[bytes] = []
        add, pack_record, refreshed, period_ms = commands.append, self._pack, self._refreshed, self._period_ms
        for event, arrival_ms in events:
            key = self._key(event)
            add(self._append % (len(key), key, pack_record(event)))
            period = arrival_ms // period_ms
            if refreshed.get(key) != period:
                add(self._refresh(key, scored_up_to_ms))
                if len(refreshed) >= KEYS_REMEMBERED:
                    refreshed.clear()
                refreshed[key] = period
        return commands

    def forget(self) -> None:
        """Refresh every key anew: the store may have lost what it was told."""
        self._refreshed.clear()

    def _refresh(self, key: bytes, scored_up_to_ms: int | None) -> bytes:
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
    return scored_up_to_ms - scored_lateness_ms - view.max_skew_ms - view.delay_ms - view.longest_window_ms


class AppliedMarks:
    """What this worker last wrote as applied, per view and partition, and what the store answered."""

    def __init__(self, views: Sequence[FeatureView]) -> None:
        self.views = tuple(views)
        self._written: dict[int, list[int]] = {}

    def known(self, partition: int) -> bool:
        return partition in self._written

    def lowest(self, partition: int) -> int:
        return min(self._written[partition])

    def adopt(self, partition: int, held: list[int]) -> None:
        self._written[partition] = held

    def forget(self, partition: int) -> None:
        self._written.pop(partition, None)

    def commands(self, partition: int, offset: int) -> list[bytes]:
        """One compare-and-set per view that is behind ``offset``; for the others a look that changes nothing."""
        return [
            pack(("EVALSHA", ADVANCE.sha, 1, applied_key(view), partition, "" if held == NOTHING else held, max(offset, held)))
            for view, held in zip(self.views, self._written[partition], strict=True)
        ]

    def take(self, partition: int, offset: int, answers: Sequence[bytes]) -> bool:
        """Whether the answers fit what was written before. If not, Redis went back in time, or another worker was here."""
        held = [int(answer) if answer else NOTHING for answer in answers]
        fits = min(held) >= offset and self.hold(partition, held)
        if fits:
            self._written[partition] = held
        return fits

    def hold(self, partition: int, held: Sequence[int]) -> bool:
        """Whether a store that holds these marks has everything that was written."""
        return all(now >= before for now, before in zip(held, self._written[partition], strict=True))


class SetWriter:
    """Applies chunks of one source to the sets of its views. One connection, one thread."""

    def __init__(self, url: str, views: Sequence[FeatureView], service: FeatureService, partitions: int,
                 timeout_ms: int = 2000) -> None:
        self._wire = Wire(url, timeout_ms, (ADVANCE, TRIM))
        self.appends = [ViewAppends(view, service.scored_lateness_ms) for view in views]
        self.marks = AppliedMarks(views)
        self._scored_ms = scored_ms_key(service.name)
        self._partitions = partitions
        self._scored_up_to_ms: int | None = None

    def held(self, partition: int) -> list[int]:
        """The applied offset of each view as the store has it now."""
        replies = self._wire.exchange([pack(("HGET", applied_key(view), partition)) for view in self.marks.views])
        return [int(reply) if reply is not None else NOTHING for reply in replies]

    def apply(self, partition: int, offset: int, events: Sequence[Sequence[tuple[Any, int]]]) -> bool:
        """Append ``events[i]`` to view i and move the marks to ``offset``, in one round trip.

        Returns False where the store's marks are older than what this worker wrote: seek back, nothing is lost. Raises
        StoreError where the store does not answer; calling again is safe.
        """
        commands = [c for view, of_view in zip(self.appends, events, strict=True) for c in view.commands(of_view, self._scored_up_to_ms)]
        moves = self.marks.commands(partition, offset)
        try:
            replies = self._wire.exchange([*commands, *moves, pack(("HVALS", self._scored_ms))])
        except BaseException:
            self.forget_refreshes()
            raise
        scored = replies.pop()
        # Only when every partition has been scored from is it known what no scorer can still ask for.
        self._scored_up_to_ms = min(map(int, scored)) if len(scored) == self._partitions else None
        if self.marks.take(partition, offset, replies[len(commands):]):
            return True
        self.marks.forget(partition)
        self.forget_refreshes()
        return False

    def forget_refreshes(self) -> None:
        for view in self.appends:
            view.forget()

    def close(self) -> None:
        self._wire.close()

