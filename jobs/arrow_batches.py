"""Arrow batches between Spark and Python: none of more than a few tens of megabytes, whatever somebody has published.

Spark's own limit in bytes measures a batch anew with each row, column by column: a third of what a stage of many columns costs.
Sessions here have it off, and rows that may be large go through ``map_values``: there each takes as many places as it is large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

__all__ = ["BATCH_ROWS", "PLACE_BYTES", "Mapping", "in_slices", "map_values", "one_batch", "whole"]

BATCH_ROWS = 16_384
"""Rows of one Arrow batch: large enough for numpy, small enough that a dozen of them are nothing."""
PLACE_BYTES = 4096
"""So much text and binary a row may hold and be one of BATCH_ROWS: 64 MiB a batch, and one row more that is larger."""
SLICE_ROWS = 1 << 16
PLACE = "_place"

Mapping = Callable[[Iterator["pa.RecordBatch"]], Iterator["pa.RecordBatch"]]


def map_values(rows: DataFrame, mapping: Mapping, schema: str) -> DataFrame:
    """``rows.mapInArrow(mapping, schema)`` where rows come from outside: one of n * PLACE_BYTES counts as n + 1 in the batch it is in."""
    from pyspark.sql import functions as F

    names = [field.name for field in rows.schema if field.dataType.simpleString() in ("string", "binary")]
    size = reduce(add, (F.coalesce(F.octet_length(name), F.lit(0)) for name in names), F.lit(0))
    placed = rows.withColumn(PLACE, F.explode(F.sequence(F.lit(0), F.floor(size / PLACE_BYTES).cast("int"))))
    blanked = placed.withColumns({name: F.when(F.col(PLACE) == 0, F.col(name)) for name in names})
    return blanked.mapInArrow(partial(_without_places, mapping), schema)


def _without_places(mapping: Mapping, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    return mapping(map(_rows, batches))


def _rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch without what only took a row's further places."""
    import pyarrow.compute as pc

    first, alone = pc.equal(batch[PLACE], 0), batch.drop_columns([PLACE])
    return alone if pc.all(first).as_py() else alone.filter(first)


def whole(batches: Iterable[pa.RecordBatch]) -> pa.Table | None:
    """A partition's rows; None where it has none."""
    import pyarrow as pa

    held = [batch for batch in batches if batch.num_rows]
    return pa.Table.from_batches(held) if held else None


def in_slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The same rows in pieces that Spark can hold many of."""
    yield from (batch.slice(first, SLICE_ROWS) for first in range(0, batch.num_rows, SLICE_ROWS))


def one_batch(table: pa.Table) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)
