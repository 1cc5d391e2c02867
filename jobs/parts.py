"""A Delta table that Spark's Python processes write themselves: a file a task, all of them named by the driver in one commit.

What was computed in Arrow would else become rows of Spark and then columns of Parquet once more, in the JVM: half of the time of a
training set's last stage (docs/decisions/0035).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING

from feature_repo.delta_files import Part, write_part
from feature_repo.identity import digest, row_digests

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

__all__ = ["PARTS", "PartWriter", "written"]

PARTS = "file string, size long, rows long, first_ms long, last_ms long, digest string"
"""Spark schema of what is told of a file: its ``Part``, and the digest of its rows in hexadecimal."""


@dataclass(frozen=True)
class PartWriter:
    """Writes the rows of a task of Spark into the folder of the table at ``path``, and says what it wrote.

    A task that is tried again writes another file. Only what Spark takes for its result is named in a commit.
    """

    path: str
    schema: pa.Schema

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = (batch for batch in batches if batch.num_rows)
        if (first := next(rows, None)) is not None:
            yield self.write(chain([first], rows))

    def write(self, batches: Iterable[pa.RecordBatch]) -> pa.RecordBatch:
        """PARTS of the file that holds ``batches``, which have rows."""
        import pyarrow as pa

        digests: list[int] = []

        def seen(batch: pa.RecordBatch) -> pa.RecordBatch:
            digests.append(digest(row_digests(batch)))
            return batch

        part = write_part(self.path, self.schema, map(seen, batches))
        return pa.RecordBatch.from_pylist([{**asdict(part), "digest": f"{sum(digests) % 2**64:016x}"}])


def written(told: DataFrame) -> tuple[list[Part], int]:
    """What the tasks behind ``told`` (PARTS) wrote, and the digest of all rows: their sum modulo 2**64. Runs them."""
    rows = [row.asDict() for row in told.collect()]  # a row a file
    of_rows = sum(int(row.pop("digest"), 16) for row in rows)
    return [Part(**row) for row in rows], of_rows % 2**64
