"""Tiles: what a view with hops keeps of records that nothing can change any more, as bytes in the store and as the kernel's arrays.

A tile of hop h covers ((k - 1)h, kh] and is named by its end; only those with records are kept. Records at or below ``B`` are in tiles, the
later ones in the raw set; as windows pass on, tiles of one rung of the ladder are folded into the next (``feature_repo.bounds``). An
entity's tiles are one value: a header with the trim floor, B and the other bounds, then the tiles in order of time, all int64,
little endian (``feature_repo.kernel``: TILE_END ..).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from feature_repo.kernel import TILE_N, Tiles, compact, tile_words
from feature_repo.layout import join_rows, join_sets
from feature_repo.views import FeatureView

__all__ = ["events_in", "folded", "join_tiles", "tiles_of"]


def join_tiles(view: FeatureView, values: Iterable[bytes | None]) -> tuple[Any, Any]:
    """All tiles of many entities as int64[k, tile words], and bounds int64[n + 1], as ``layout.join_sets`` does for records."""
    return join_rows(values, tile_words(view))


def tiles_of(view: FeatureView, tiles: Mapping[str, bytes | None], at: Any) -> Tiles | None:
    """The tiles that reads take: read i is over the ``at[i]``-th entity of ``tiles``. None where the view has no hop."""
    if not view.hops:
        return None
    rows, edges = join_tiles(view, tiles.values())
    return Tiles(rows, edges[at], edges[at + 1])


def folded(view: FeatureView, raw: bytes, tiles: bytes | None, found: tuple[int, ...]) -> tuple[bytes, bytes]:
    """The bytes of an entity's set and tiles, compacted as far as ``found`` (see ``bounds``) allows."""
    kept, made = compact(view, join_sets(view, [raw])[0], join_tiles(view, [tiles])[0], found)
    return kept.tobytes(), made.tobytes()


def events_in(view: FeatureView, raw: bytes | None, tiles: bytes | None) -> int:
    """How many records a set and its tiles hold, copies included."""
    records, rows = join_sets(view, [raw])[0], join_tiles(view, [tiles])[0]
    return int((records[:, 1] != 0).sum()) + int(rows[1:, TILE_N].sum())
