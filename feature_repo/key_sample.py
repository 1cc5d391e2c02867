"""Keys of the online store to estimate from: all of a small store's, random ones of a large one's."""

from __future__ import annotations

from dataclasses import dataclass

from feature_repo.wire import Wire, pack

__all__ = ["DRAWS", "KeySample", "sample_keys"]

DRAWS = 20_000
"""A view with one key in a thousand is missed once in e^20 times; they take Redis about 20 ms."""
PAGE = 1_000


@dataclass(frozen=True)
class KeySample:
    """Each of ``keys`` stands for ``weight`` keys of the store; with a weight above 1 a key may come twice."""

    keys: list[bytes]
    weight: float


def sample_keys(wire: Wire) -> KeySample:
    """All keys where the store has at most ``DRAWS``, else as many random ones. Raises StoreError."""
    total = int(wire.call("DBSIZE"))
    if total > DRAWS:
        keys = [key for key in wire.exchange([pack(("RANDOMKEY",))] * DRAWS) if key is not None]
        return KeySample(keys, total / max(len(keys), 1))
    listed: dict[bytes, None] = {}  # a walk may come to a key twice
    cursor = b"0"
    while True:
        cursor, page = wire.call("SCAN", cursor, "COUNT", PAGE)
        listed.update(dict.fromkeys(page))
        if cursor == b"0":
            return KeySample(list(listed), 1.0)
