"""Taking an entity out of the online store: its own sets, the records of its events in the sets of others, its pending pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from struct import Struct

from feature_repo.layout import entity_key, tiles_key
from feature_repo.marks import hot_key
from feature_repo.pair_bytes import model_tag, pair_key, place_of
from feature_repo.pending import read_layout
from feature_repo.tiles import events_in
from feature_repo.views import FeatureView
from feature_repo.wire import Script, Wire, pack

__all__ = ["IDENTITY", "remove_pairs", "remove_records", "remove_sets"]

IDENTITY = Struct("<qq")
"""Event time and id hash: how a record begins."""
BATCH = 1000

# Drops the records that begin with one of ARGV[3..]; the answer is how many there were. With ARGV[2] 0 it only counts. Atomic, so
# nothing that is appended meanwhile can be lost. KEYS[1] the set; ARGV[1] record bytes.
REMOVE = Script("""
local value = redis.call('GET', KEYS[1])
if not value then return 0 end
local size, gone, kept = tonumber(ARGV[1]), {}, {}
for i = 3, #ARGV do gone[ARGV[i]] = true end
local removed = 0
for at = 1, #value - size + 1, size do
  if gone[string.sub(value, at, at + 15)] then removed = removed + 1
  else kept[#kept + 1] = string.sub(value, at, at + size - 1) end
end
if removed > 0 and ARGV[2] == '1' then
  if #kept == 0 then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], table.concat(kept), 'KEEPTTL') end
end
return removed
""")


def remove_sets(url: str, views: Sequence[FeatureView], entity: str, *, dry_run: bool = False) -> dict[str, int]:
    """Delete the sets of ``entity`` and what was folded into their tiles; by versioned view name, how many records there were.

    A compactor that has looked at them meanwhile brings nothing back: it replaces what it saw, or nothing. Raises StoreError.
    """
    wire, found = Wire(url, 5000), {}
    try:
        for view in views:
            keys = [entity_key(view, entity), tiles_key(view, entity)]
            raw, tiles = wire.call("MGET", *keys)
            found[view.versioned_name] = events_in(view, raw, tiles)
            if not dry_run:
                wire.exchange([pack(("UNLINK", *keys)), pack(("SREM", hot_key(view), entity))])
        return found
    finally:
        wire.close()


def remove_records(url: str, view: FeatureView, records: Iterable[tuple[str, bytes]], *, dry_run: bool = False) -> int:
    """Take (entity, identity) pairs out of ``view``'s sets; how many records there were, copies included. Raises StoreError.

    Doing it again finds none.
    """
    wire, removed, waiting = Wire(url, 5000, (REMOVE,)), 0, iter(records)
    try:
        while batch := list(islice(waiting, BATCH)):
            by_entity: dict[str, set[bytes]] = {}
            for entity, identity in batch:
                by_entity.setdefault(entity, set()).add(identity)
            replies = wire.exchange([pack(("EVALSHA", REMOVE.sha, 1, entity_key(view, entity), 8 * view.record_words, int(not dry_run),
                                           *identities)) for entity, identities in by_entity.items()])
            removed += sum(map(int, replies))
        return removed
    finally:
        wire.close()


def remove_pairs(url: str, topic: str, models: Sequence[str], events: Iterable[tuple[str, int]], *, dry_run: bool = False) -> int:
    """Take the predictions and labels of (event id, event time) ``events`` out of the pairs with outcomes of ``topic``; returns how many.

    Raises StoreError. Doing it again finds none.
    """
    wire, removed, waiting = Wire(url, 5000), 0, iter(events)
    tags = (b"", *map(model_tag, models))
    try:
        layout = read_layout(wire, topic)
        while layout is not None and (batch := list(islice(waiting, BATCH))):
            places = [place_of(*event, layout.slice_ms, layout.buckets) for event in batch]
            commands = [pack(("HEXISTS" if dry_run else "HDEL", pair_key(topic, *place[:2]), place.field + tag))
                        for place in places for tag in tags]
            removed += sum(map(int, wire.exchange(commands)))
        return removed
    finally:
        wire.close()
