"""The keys of a view's versions in the store: where a new one begins, how far each has come, how large, and how they are removed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from feature_repo.fills import fill_key
from feature_repo.key_sample import sample_keys
from feature_repo.marks import NOTHING, applied_key, applied_ms_key, hot_key, offsets, shortages
from feature_repo.views import FeatureView
from feature_repo.wire import Script, Wire, pack

__all__ = ["Removed", "Size", "VersionKeys"]

# Marks where there are none yet: KEYS[1] applied marks, KEYS[2] their arrival times; ARGV partition, offset, arrival ms, ...
BEGIN = Script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
for i = 1, #ARGV, 3 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1], 'from:' .. ARGV[i], (ARGV[i + 1] + 1) .. ' ' .. ARGV[i + 2])
end
return 1
""")
SWEEP = 1_000
LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Size:
    """About how many sets a version has, and their bytes in memory, by a sample of ``sampled`` keys."""

    keys: int
    memory_bytes: int
    sampled: int


@dataclass(frozen=True)
class Removed:
    """What was removed of a version; bytes are those of the values."""

    version: str
    keys: int
    value_bytes: int


class VersionKeys:
    """One connection, one thread."""

    def __init__(self, url: str, timeout_ms: int = 5000) -> None:
        self._wire = Wire(url, timeout_ms, (BEGIN,))
        self._wait = threading.Event().wait

    def begin(self, view: FeatureView, archived: Mapping[int, tuple[int, int]]) -> bool:
        """Let workers go on with ``view`` behind what the archive has: partition -> (last offset, arrival ms) of it.

        Until a backfill makes up for what lies before, reads are refused (``from`` of ``feature_repo.marks``). Without marks
        workers would read the whole log again, and live views would wait for it. False where the version has marks: then
        nothing is changed.
        """
        told = [word for partition, (offset, arrival_ms) in archived.items() for word in (partition, offset, arrival_ms)]
        return bool(told) and self._wire.call("EVALSHA", BEGIN.sha, 2, applied_key(view), applied_ms_key(view), *told) == 1

    def marks(self, view: FeatureView) -> dict[int, int]:
        return offsets(self._wire.call("HGETALL", applied_key(view)))

    def shortages(self, view: FeatureView) -> dict[int, tuple[int, int]]:
        return shortages(self._wire.call("HGETALL", applied_key(view)))

    def passed(self, views: Sequence[FeatureView], patience_s: float) -> bool:
        """Wait until each of ``views`` has what any of them has now; False where that takes longer than ``patience_s``."""
        give_up, goal = time.monotonic() + patience_s, Counter[int]()
        for view in views:
            goal |= Counter({partition: offset + 1 for partition, offset in self.marks(view).items()})  # the higher one of each
        while any(self.marks(view).get(partition, NOTHING) + 1 < offset for view in views for partition, offset in goal.items()):
            if time.monotonic() > give_up:
                return False
            self._wait(LOOK_EVERY_S)
        return True

    def arrived_ms(self, views: Iterable[FeatureView]) -> int | None:
        """The stream's time: the newest arrival that was applied to one of ``views``; None before the first."""
        replies = self._wire.exchange([pack(("HVALS", applied_ms_key(view))) for view in views])
        return max((int(ms) for reply in replies for ms in reply), default=None)

    def sizes(self, names: Iterable[str]) -> dict[str, Size]:
        """Versioned name -> its size, from a sample: asking each key would take as long as there are entities."""
        drawn = sample_keys(self._wire)
        memory = self._wire.exchange([pack(("MEMORY", "USAGE", key)) for key in drawn.keys])
        sizes = {}
        for name in names:
            own = [int(bytes_ or 0) for key, bytes_ in zip(drawn.keys, memory, strict=True) if key.startswith(f"{name}:".encode())]
            sizes[name] = Size(round(len(own) * drawn.weight), round(sum(own) * drawn.weight), len(drawn.keys))
        return sizes

    def stand_still(self, views: Sequence[FeatureView], for_s: float, patience_s: float) -> bool:
        """Wait until nobody has moved the marks of ``views`` for ``for_s``; False where that takes longer than ``patience_s``."""
        since = began = time.monotonic()
        last = [self.marks(view) for view in views]
        while time.monotonic() - since < for_s:
            if time.monotonic() - began > patience_s:
                return False
            self._wait(LOOK_EVERY_S)
            now = [self.marks(view) for view in views]
            if now != last:
                since, last = time.monotonic(), now
        return True

    def remove(self, view: FeatureView, tell: Callable[[int], None] = lambda keys: None) -> Removed:
        """Every key of ``view``'s version, in batches that hold nobody up; ``tell`` is told how many are gone."""
        cursor, keys, size = b"0", 0, 0
        while True:
            cursor, found = self._wire.call("SCAN", cursor, "MATCH", f"{view.versioned_name}:{{*", "COUNT", SWEEP)
            if found:
                lengths = self._wire.exchange([*(pack(("STRLEN", key)) for key in found), pack(("UNLINK", *found))])
                keys, size = keys + lengths.pop(), size + sum(lengths)
                tell(keys)
            if cursor == b"0":
                break
        keys += self._wire.call("UNLINK", applied_key(view), applied_ms_key(view), hot_key(view), fill_key(view))
        return Removed(view.versioned_name, keys, size)

    def close(self) -> None:
        self._wire.close()
