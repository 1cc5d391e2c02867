"""Sorted Arrow batches, cut where an entity ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["whole_entities"]


def whole_entities(batches: Iterable[pa.RecordBatch], entity: str) -> Iterator[pa.Table]:
    """Sorted batches, cut where an entity ends: memory is that of one batch and the largest entity."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    for batch in batches:
        if not batch.num_rows:
            continue
        names = batch[entity].to_numpy(zero_copy_only=False)
        cut = 0 if names[0] == names[-1] else _last_run(names)
        if held and (cut or held[-1][entity][-1].as_py() != names[0]):
            yield pa.Table.from_batches([*held, *([batch.slice(0, cut)] if cut else [])])
            held = []
        elif cut:
            yield pa.Table.from_batches([batch.slice(0, cut)])
        held.append(batch.slice(cut))
    if held:
        yield pa.Table.from_batches(held)


def _last_run(names: Any) -> int:
    """Where the last run of equal names begins."""
    return int(np.flatnonzero(names[1:] != names[:-1])[-1]) + 1
