"""Which entities have been active: a walk over all sets of a view, page by page."""

from __future__ import annotations

from collections.abc import Iterator

from feature_repo.layout import entity_key, rows
from feature_repo.views import FeatureView
from feature_repo.wire import Wire, pack

__all__ = ["active_entities"]

PAGE = 1000


def active_entities(url: str, view: FeatureView, after_ms: int, until_ms: int) -> Iterator[str]:
    """Each entity with a record of ``view`` in (after_ms, until_ms], once, in no order.

    One that becomes active during the walk may be missed. Memory: the names that were given. Raises StoreError.
    """
    head, tail = entity_key(view, "\0").encode().split(b"\0")
    pattern, wire = head + b"*" + tail, Wire(url, 5000)
    given: set[bytes] = set()  # a walk may come to a key twice
    try:
        cursor = b"0"
        while True:
            cursor, keys = wire.call("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
            keys = [key for key in dict.fromkeys(keys) if key not in given]
            values = wire.exchange([pack(("MGET", *keys))])[0] if keys else []
            for key, value in zip(keys, values, strict=True):
                records = rows(view, value or b"")
                if ((records[:, 1] != 0) & (records[:, 0] > after_ms) & (records[:, 0] <= until_ms)).any():
                    given.add(key)
                    yield key[len(head):-len(tail)].decode()
            if cursor == b"0":
                return
    finally:
        wire.close()
