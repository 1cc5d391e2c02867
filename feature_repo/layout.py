"""The bytes of a record: event time i64, id hash u64, the view's columns as i64; little endian, records back to back.

An id hash of 0 is kept for the floor record ``(floor_ms, 0, 0, ...)``: what lies at or below ``floor_ms`` was trimmed. Being a record
it needs no second key, and like every record it may stand anywhere in the string (the highest floor counts).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from feature_repo.views import FeatureView

__all__ = ["entity_key", "entity_keys", "floor_record", "hash_id", "hash_text", "join_sets", "key_maker", "packer", "rows"]

Packer = Callable[[Any], bytes]


def hash_text(text: str) -> int:
    """xxh3-64 of the UTF-8 bytes, 0 .. 2**64 - 1."""
    return xxh3_64_intdigest(text.encode())


def hash_id(event_id: str) -> int:
    """The identity hash of an event, 1 .. 2**64 - 1."""
    return xxh3_64_intdigest(event_id.encode()) or 1


def packer(view: FeatureView) -> Packer:
    """A function from an event (a contract's record) to its bytes in ``view``.

    It is generated as one expression: a loop over columns would cost three times as much on the hot path.
    """
    fields = ["e.event_time", "digest(e.event_id.encode()) or 1"]  # as hash_id, without its call
    fields += [f"digest(e.{column.field}.encode())" if column.hashed else f"e.{column.field}" for column in view.columns]
    layout = "<qQ" + "".join("Q" if column.hashed else "q" for column in view.columns)
    pack: Packer = eval(f"lambda e: pack({', '.join(fields)})", {"pack": struct.Struct(layout).pack, "digest": xxh3_64_intdigest})
    return pack


def floor_record(view: FeatureView, floor_ms: int) -> bytes:
    return struct.pack(f"<{view.record_words}q", floor_ms, *([0] * (view.record_words - 1)))


def entity_key(view: FeatureView, entity: str) -> str:
    """The Redis key of one entity's set; the braces keep all keys of an entity on one shard."""
    return f"{view.versioned_name}:{{{entity}}}"


def entity_keys(view: FeatureView, entities: Iterable[str]) -> list[str]:
    """``entity_key`` of each."""
    head = f"{view.versioned_name}:{{"
    return [f"{head}{entity}}}" for entity in entities]


def key_maker(view: FeatureView) -> Callable[[Any], bytes]:
    """A function from an event to the Redis key of its entity's set, as ``entity_key`` encoded."""
    template = entity_key(view, "%b").encode()
    make: Callable[[Any], bytes] = eval(f"lambda e: template % e.{view.entity}.encode()", {"template": template})
    return make


def rows(view: FeatureView, value: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64[m, words] over ``value``; a torn tail (never seen, but bytes are bytes) is left out."""
    words = view.record_words
    usable = len(value) - len(value) % (8 * words)
    return np.frombuffer(value[:usable], dtype="<i8").reshape(-1, words)


def join_sets(view: FeatureView, values: Iterable[bytes | None]) -> tuple[Any, Any]:
    """All records of many sets in one int64[m, words], and bounds int64[k + 1]: set i is rows bounds[i] .. bounds[i + 1]."""
    parts = [value or b"" for value in values]
    bounds = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)) // (8 * view.record_words), out=bounds[1:])
    return np.frombuffer(b"".join(parts), dtype="<i8").reshape(-1, view.record_words), bounds
