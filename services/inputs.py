"""Files of events as event rows: Parquet, CSV and NDJSON in streamed batches, through a declared mapping of columns.

An event row has the fields of every record that it becomes (``UseCase.emissions``) and for each of these topics ``sent.<topic>``,
whether it becomes one, and ``refused.<topic>``: where that has a value, it is what is published in place of the record.

Nothing in a file is lost and nothing in it stops a replay: a row that the contract cannot hold travels in ``refused.<topic>`` as
JSON of what could be read, and ends among the dead letters with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from services.columns import read
from services.files import Chunk, read_chunks
from services.mappings import MAPPINGS, ColumnMapping, kind_of, required, row_fields

__all__ = ["event_rows", "read_rows", "to_rows"]

ARROW = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
Columns = dict[str, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def read_rows(path: Path, mapping: ColumnMapping, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file in its order, at most ``limit``, as batches of event rows. Raises SettingsError on a damaged file."""
    left, prepare = limit, mapping.prepare() if mapping.prepare is not None else None
    for chunk in read_chunks(path, sorted(set(mapping.columns.values()))):
        batch = to_rows(chunk, mapping, prepare)
        yield batch if left is None else batch.slice(0, left)
        if left is not None and (left := left - batch.num_rows) <= 0:
            return


def event_rows(batch: pa.RecordBatch, mapping: ColumnMapping = MAPPINGS["contract"]) -> pa.RecordBatch:
    """A batch in contract form as event rows; other columns are left behind."""
    return to_rows(Chunk(dict(zip(batch.schema.names, batch.columns, strict=True)), batch.num_rows), mapping)


def to_rows(chunk: Chunk, mapping: ColumnMapping, prepare: Any = None) -> pa.RecordBatch:
    """A chunk through ``mapping``, as one batch of event rows."""
    case, fields = mapping.use_case, row_fields(mapping.use_case)
    targets = {kind_of(target, fields): column for target, column in mapping.columns.items() if column in chunk.columns}
    source = {field: chunk.columns[column] for (field, _), column in targets.items()}
    values: Columns = {field: read(kind, chunk.columns[column]) if chunk.rows else pa.nulls(0) for (field, kind), column in targets.items()}
    if prepare is not None:
        values = prepare(values)
    arrays = {name: values[name].cast(ARROW[kind]) if name in values else pa.nulls(chunk.rows, ARROW[kind])
              for name, kind in fields.items()}
    parsed = np.ones(chunk.rows, bool)
    parsed[list(chunk.verbatim)] = False
    for emission in case.emissions:
        names = required(emission)
        sent = values.get(f"sent.{emission.topic}")
        if sent is None:
            sent = parsed & _said(source, emission.when, chunk.rows) if emission.when else np.ones(chunk.rows, bool)
        bad = sent & np.any([np.asarray(arrays[name].is_null()) for name in names], axis=0)
        refused = {int(row): chunk.verbatim.get(int(row)) or _readable(int(row), names, arrays, source) for row in np.flatnonzero(bad)}
        arrays |= {f"sent.{emission.topic}": pa.array(sent), f"refused.{emission.topic}": _sparse(refused, chunk.rows)}
    return pa.RecordBatch.from_pydict(arrays)


def _said(source: Columns, name: str, rows: int) -> Mask:
    """In which rows the file says something of a field, readable or not."""
    column = source.get(name)
    if column is None:
        return np.zeros(rows, bool)
    return np.asarray(column.is_valid()) if isinstance(column, pa.Array) else np.array([value is not None for value in column], bool)


def _readable(row: int, names: Iterable[str], values: Columns, source: Columns) -> bytes:
    """JSON of what can be read of a row: its mapped fields, and as the file has them those that cannot be mapped."""
    read_of: dict[str, Any] = {}
    for name in names:
        value = values[name][row].as_py()
        raw = _raw(source[name], row) if value is None and name in source else value
        if raw is not None:
            read_of[name] = {"bytes": raw} if isinstance(raw, bytes) else raw
    return msgspec.json.encode(read_of, enc_hook=str)


def _raw(column: Any, row: int) -> Any:
    raw = column[row].as_py() if isinstance(column, pa.Array) else column[row]
    if isinstance(raw, bytes):
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw
    return raw


def _sparse(values: dict[int, bytes], rows: int) -> pa.Array:
    if not values:
        return pa.nulls(rows, pa.binary())
    return pa.array([values.get(row) for row in range(rows)], pa.binary())
