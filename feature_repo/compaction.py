"""Compaction of one entity in the store: read marks, set and tiles as of one moment, fold, and put back what was read only.

What is folded follows from the marks and the set of one moment (MULTI): marks from before Redis went back, or a set from after, would let
records be folded past that are about to come again. The script replaces exactly the bytes that were read, by their digests; whatever
came to be there meanwhile (another compactor, a trim, an older file) makes it refuse, and appended records stay.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from feature_repo.bounds import bounds
from feature_repo.layout import entity_key, tiles_key
from feature_repo.marks import applied_ms_key, hot_key, lowest, offsets
from feature_repo.tiles import folded
from feature_repo.views import FeatureView
from feature_repo.wire import Script, Wire, pack

__all__ = ["COMPACT", "Compacted", "EntityCompactor", "Seen"]

# KEYS the set, its tiles; ARGV bytes of the set that were read, their digest, that of the tiles (empty: there were none), what becomes of
# the bytes read, the tiles, seconds to live. The rest of the set is what was appended meanwhile.
COMPACT = Script("""
local read = tonumber(ARGV[1])
if redis.sha1hex(redis.call('GETRANGE', KEYS[1], 0, read - 1)) ~= ARGV[2] then return 0 end
local tiles = redis.call('GET', KEYS[2])
if (tiles and redis.sha1hex(tiles) or '') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[4] .. redis.call('GETRANGE', KEYS[1], read, -1), 'EX', ARGV[6])
redis.call('SET', KEYS[2], ARGV[5], 'EX', ARGV[6])
return 1
""")


@dataclass(frozen=True)
class Seen:
    """An entity as it was at one moment, and how far it may be folded by the marks of that moment."""

    entity: str
    raw: bytes
    tiles: bytes | None
    bounds: tuple[int, ...]


@dataclass(frozen=True)
class Compacted:
    """``done`` is False where something else was there by the time of the script. Bytes are before and after, of set and tiles."""

    entity: str
    done: bool
    raw_before: int
    raw_after: int
    tiles_after: int


class EntityCompactor:
    """Compacts entities of one view. One connection, one thread; any number may work at once."""

    def __init__(self, url: str, view: FeatureView, timeout_ms: int = 5000) -> None:
        self.view = view
        self._wire = Wire(url, timeout_ms, (COMPACT,))
        self._ttl_s = 2 * view.retention_ms // 1000 + 1

    def applied_ms(self) -> dict[int, int]:
        """Partition -> arrival time of the last record applied."""
        return offsets(self._wire.call("HGETALL", applied_ms_key(self.view)))

    def hot(self, most: int, keep: bool = False) -> list[str]:
        """Entities with long sets, taken off their list unless ``keep``: the next append of each puts it there again."""
        found = self._wire.call("SRANDMEMBER" if keep else "SPOP", hot_key(self.view), most)
        return sorted(name.decode() for name in found)

    def put_back(self, entity: str) -> None:
        self._wire.call("SADD", hot_key(self.view), entity)

    def look(self, entity: str, applied_ms: int, earliest_read_ms: int, partitions: int) -> Seen | None:
        """The entity now; None where it has no records, or not every partition has a mark.

        ``applied_ms`` is as of before the number of ``partitions`` was asked for: records of a partition that came to be since then
        are later.
        """
        keys = entity_key(self.view, entity), tiles_key(self.view, entity)
        answers = self._wire.exchange([pack(("MULTI",)), pack(("HGETALL", applied_ms_key(self.view))), pack(("GET", keys[0])),
                                       pack(("GET", keys[1])), pack(("EXEC",))])
        marks, raw, tiles = answers[-1]
        now_ms = lowest(offsets(marks), partitions)
        if now_ms is None or not raw:
            return None
        return Seen(entity, raw, tiles, bounds(self.view, min(now_ms, applied_ms), earliest_read_ms))

    def compact(self, seen: Seen) -> Compacted:
        """Fold what was seen as far as may be, and replace it where it still is what it was."""
        raw, tiles = self.fold(seen)
        done = self._wire.call(*self.script(seen, raw, tiles)) == 1
        return Compacted(seen.entity, done, len(seen.raw), len(raw), len(tiles))

    def fold(self, seen: Seen) -> tuple[bytes, bytes]:
        """What becomes of set and tiles."""
        return folded(self.view, seen.raw, seen.tiles, seen.bounds)

    def script(self, seen: Seen, raw: bytes, tiles: bytes) -> tuple[Any, ...]:
        """The command that makes ``raw`` and ``tiles`` of what was seen."""
        return ("EVALSHA", COMPACT.sha, 2, entity_key(self.view, seen.entity), tiles_key(self.view, seen.entity), len(seen.raw),
                _digest(seen.raw), _digest(seen.tiles) if seen.tiles is not None else "", raw, tiles, self._ttl_s)

    def close(self) -> None:
        self._wire.close()


def _digest(value: bytes) -> str:
    return hashlib.sha1(value, usedforsecurity=False).hexdigest()
