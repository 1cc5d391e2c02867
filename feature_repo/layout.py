"""The bytes of a record: event time i64, id hash u64, the view's columns as i64; little endian, records back to back.

An id hash of 0 is kept for the floor record ``(floor_ms, 0, 0, ...)``: what lies at or below ``floor_ms`` was trimmed. Being a record
it needs no second key, and like every record it may stand anywhere in the string (the highest floor counts).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from feature_repo.views import FeatureView

__all__ = ["WORD", "appender", "entity_key", "entity_keys", "floor_record", "hash_id", "hash_text", "join_rows", "join_sets", "packer",
           "rows", "tiles_key"]

WORD = np.dtype("<i8")
Packer = Callable[[Any], bytes]


def hash_text(text: str) -> int:
    """xxh3-64 of the UTF-8 bytes, 0 .. 2**64 - 1."""
    return xxh3_64_intdigest(text.encode())


def hash_id(event_id: str) -> int:
    """The identity hash of an event, 1 .. 2**64 - 1."""
    return xxh3_64_intdigest(event_id.encode()) or 1


def packer(view: FeatureView) -> Packer:
    """A function from an event (a contract's record) to its bytes in ``view``."""
    packed, names = _record(view)
    pack: Packer = eval(f"lambda e: {packed}", names)
    return pack


def appender(view: FeatureView) -> Callable[[Sequence[tuple[Any, int]]], list[bytes]]:
    """A function from (event, arrival ms) pairs to the commands that append their records to the sets of their entities.

    The bytes of each are those of ``hiredis.pack_command(("APPEND", entity_key(...), record))``, at a quarter of its cost.
    """
    packed, names = _record(view)
    key = entity_key(view, "%b").encode()
    template = b"*3\r\n$6\r\nAPPEND\r\n$%d\r\n" + key + b"\r\n$%d\r\n%%b\r\n" % (8 * view.record_words)
    around = len(key) - len(b"%b")
    make: Callable[[Sequence[tuple[Any, int]]], list[bytes]] = eval(
        f"lambda pairs: [template % (len(key := e.{view.entity}.encode()) + {around}, key, {packed}) for e, _ in pairs]",
        {"template": template, **names})
    return make


def _record(view: FeatureView) -> tuple[str, dict[str, Any]]:
    """One expression for the bytes of event ``e``, and the names in it: a loop over columns would cost three times as much."""
    fields = ["e.event_time", "digest(e.event_id.encode()) or 1"]  # as hash_id, without its call
    fields += [f"digest(e.{column.field}.encode())" if column.hashed else f"e.{column.field}" for column in view.columns]
    layout = "<qQ" + "".join("Q" if column.hashed else "q" for column in view.columns)
    return f"pack({', '.join(fields)})", {"pack": struct.Struct(layout).pack, "digest": xxh3_64_intdigest}


def floor_record(view: FeatureView, floor_ms: int) -> bytes:
    return struct.pack(f"<{view.record_words}q", floor_ms, *([0] * (view.record_words - 1)))


def entity_key(view: FeatureView, entity: str) -> str:
    """The Redis key of one entity's set; the braces keep all keys of an entity on one shard."""
    return f"{view.versioned_name}:{{{entity}}}"


def entity_keys(view: FeatureView, entities: Iterable[str]) -> list[str]:
    """``entity_key`` of each."""
    head = f"{view.versioned_name}:{{"
    return [f"{head}{entity}}}" for entity in entities]


def tiles_key(view: FeatureView, entity: str) -> str:
    """The Redis key of one entity's tiles: beside its set, on the same shard. No entity's set can have it, for those end in a brace."""
    return f"{entity_key(view, entity)}:tiles"


def rows(view: FeatureView, value: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """int64[m, words] over ``value``; a torn tail (never seen, but bytes are bytes) is left out."""
    words = view.record_words
    usable = len(value) - len(value) % (8 * words)
    return np.frombuffer(value[:usable], WORD).reshape(-1, words)


def join_sets(view: FeatureView, values: Iterable[bytes | None]) -> tuple[Any, Any]:
    """All records of many sets in one int64[m, words], and bounds int64[k + 1]: set i is rows bounds[i] .. bounds[i + 1]."""
    return join_rows(values, view.record_words)


def join_rows(values: Iterable[bytes | None], words: int) -> tuple[Any, Any]:
    """As ``join_sets``, of rows of ``words`` int64."""
    parts = [value or b"" for value in values]
    bounds = np.zeros(len(parts) + 1, np.int64)
    bounds[1:] = [len(part) for part in parts]
    bounds //= 8 * words
    return np.frombuffer(b"".join(parts), WORD).reshape(-1, words), bounds.cumsum()
