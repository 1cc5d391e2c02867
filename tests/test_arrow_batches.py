"""Batches between Spark and Python stay small whatever is in the rows, and nothing is lost or moved for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from jobs.arrow_batches import BATCH_ROWS, PLACE_BYTES, Mapping, map_values

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

LARGE, LARGE_ROWS, ROWS = 1 << 20, 192, 2_000
BOUND = BATCH_ROWS * PLACE_BYTES + LARGE


def told(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Each row's number and size in bytes (null: no value), and the size of the batch that it came in."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in batches:
        assert batch.schema.names == ["number", "value", "text"]
        sizes = pc.binary_length(batch["value"])
        yield pa.RecordBatch.from_pydict({"number": batch["number"], "size": sizes, "text": batch["text"],
                                          "batch": pa.repeat(pa.scalar(pc.sum(sizes).as_py() or 0, pa.int64()), batch.num_rows)})


SCHEMA = "number long, size int, text string, batch long"


def plainly(rows: DataFrame, mapping: Mapping, schema: str) -> DataFrame:
    return rows.mapInArrow(mapping, schema)


def seen(rows: DataFrame, how: Any) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = how(rows, told, SCHEMA).toArrow().to_pydict()
    return columns


@pytest.fixture
def rows(spark: SparkSession) -> DataFrame:
    """One partition; among small values LARGE_ROWS large ones in a row, some nulls and some empty ones; some texts are large too."""
    from pyspark.sql import functions as F

    number = F.col("id")
    value = (F.when(number.between(500, 499 + LARGE_ROWS), F.repeat(F.lit("x"), LARGE)).when(number % 7 == 0, F.lit(None))
             .when(number % 7 == 1, F.lit("")).otherwise(F.repeat(F.lit("y"), (number % 50).cast("int"))))
    text = F.when(number % 500 == 3, F.repeat(F.lit("z"), 3 * PLACE_BYTES)).otherwise(number.cast("string"))
    return spark.range(0, ROWS, 1, 1).select(number.alias("number"), value.cast("binary").alias("value"), text.alias("text"))


def test_a_batch_holds_no_more_than_its_bound_and_every_row_comes_through_once_and_in_order(rows: DataFrame) -> None:
    found = seen(rows, map_values)
    assert found["number"] == list(range(ROWS))
    sizes = [LARGE if 500 <= n < 500 + LARGE_ROWS else None if n % 7 == 0 else 0 if n % 7 == 1 else n % 50 for n in range(ROWS)]
    assert found["size"] == sizes
    assert [len(text) for text in found["text"]] == [3 * PLACE_BYTES if n % 500 == 3 else len(str(n)) for n in range(ROWS)]
    assert LARGE < max(found["batch"]) <= BOUND
    assert len(np.unique(found["batch"])) > 2


def test_without_it_they_would_all_be_in_one(rows: DataFrame) -> None:
    """The control: sessions have Spark's own limit off."""
    assert max(seen(rows, plainly)["batch"]) > LARGE_ROWS * LARGE > BOUND
