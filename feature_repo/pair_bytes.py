"""How the two sides of a pair lie in Redis: small enough for its compact hashes, which cost a third of its others.

``pairs:<topic>:<slice>:<bucket>`` is a hash with what is known of some events of one slice of event time:

<8 bytes of the event's digest>              its labels that count, 10 bytes each, in order
<the same 8 bytes, 2 of the model's digest>  its prediction by that model: 21 bytes and its subject

``pairs:<topic>``           ``slice_ms`` and ``buckets`` (of a slice), written once; ``floor_ms``: events before it are left to the tables
``pairs:<topic>:slices``    the slices that there are
``pairs:<topic>:releases``  4 bytes -> model, version and threshold, which many predictions share
``pairs:<topic>:counts``    what became of records, by name
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec
from xxhash import xxh3_64_digest, xxh3_128_digest

from feature_repo.pairs import Label, Scored

__all__ = ["FIELD_BYTES", "Place", "Release", "layout_key", "model_tag", "pack_label", "pack_release", "pack_scored", "pair_key",
           "place_of", "release_of", "unpack_labels", "unpack_release", "unpack_scored"]

FIELD_BYTES = 8
DEGRADED, HAS_SCORE, HAS_ALERT, ALERT = 1, 2, 4, 8
label_struct = struct.Struct("<IIh")
scored_struct = struct.Struct("<B4sHIHd")
Release = tuple[str, str | None, float | None]


class Place(NamedTuple):
    """Where an event's pair lies: in which slice and bucket, and the field of its labels."""

    slice: int
    bucket: int
    field: bytes


def layout_key(topic: str, part: str = "") -> str:
    """The key of the layout of the pairs with outcomes of ``topic``, or of ``part`` of what is beside it."""
    return f"pairs:{topic}:{part}" if part else f"pairs:{topic}"


def pair_key(topic: str, number: int, bucket: int) -> str:
    """The key of a bucket of slice ``number``."""
    return f"pairs:{topic}:{number}:{bucket}"


def place_of(event_id: str, event_time: int, slice_ms: int, buckets: int) -> Place:
    digest = xxh3_128_digest(f"{event_time}|{event_id}".encode())
    return Place(event_time // slice_ms, int.from_bytes(digest[FIELD_BYTES:], "little") % buckets, digest[:FIELD_BYTES])


def model_tag(model: str) -> bytes:
    return xxh3_64_digest(model.encode())[:2]


def pack_label(label: Label, event_time: int) -> bytes:
    delay_ms = label.outcome_ms - event_time
    return label_struct.pack(label.revision << 1 | label.label, delay_ms & 0xFFFFFFFF, delay_ms >> 32)


def unpack_labels(value: bytes | None, event_time: int = 0) -> list[Label]:
    """Without the event's time ``outcome_ms`` is how long after the event each arrived."""
    return [Label(word >> 1, bool(word & 1), event_time + (high << 32 | low)) for word, low, high in label_struct.iter_unpack(value or b"")]


def pack_release(release: Release) -> tuple[bytes, bytes]:
    """(4 bytes, what they stand for)."""
    value = msgspec.json.encode(release)
    return xxh3_64_digest(value)[:4], value


def unpack_release(value: bytes) -> Release:
    release: Release = msgspec.json.decode(value, type=Release)
    return release


def pack_scored(scored: Scored, release: bytes) -> bytes:
    flags = DEGRADED * scored.degraded
    if scored.score is not None:
        flags |= HAS_SCORE
    if scored.alert is not None:
        flags |= HAS_ALERT | ALERT * scored.alert
    ms, score = scored.predicted_ms, 0.0 if scored.score is None else scored.score  # -0.0 stays what it is
    return scored_struct.pack(flags, release, scored.partition, ms & 0xFFFFFFFF, ms >> 32, score) + scored.subject.encode()


def release_of(value: bytes) -> bytes:
    return value[1:5]


def unpack_scored(value: bytes, release: Release) -> Scored:
    flags, _, partition, low, high, score = scored_struct.unpack_from(value)
    model, version, threshold = release
    return Scored(model, version, threshold, score if flags & HAS_SCORE else None, bool(flags & ALERT) if flags & HAS_ALERT else None,
                  bool(flags & DEGRADED), high << 32 | low, partition, value[scored_struct.size:].decode())
