"""Files of transactions as event rows: Parquet, CSV and NDJSON in streamed batches, through a declared mapping of columns.

Nothing in a file is lost and nothing in it stops a replay: a row that the contract cannot hold travels in ``refused`` as JSON of
what could be read, and ends among the dead letters with a reason.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import SettingsError
from services.columns import flag, integer, minor_units, read, text, time_ms
from services.files import Chunk, column_names, read_chunks

__all__ = ["EVENT_ROWS", "MAPPINGS", "ColumnMapping", "event_rows", "find_mapping", "read_rows"]

EVENT_ROWS = pa.schema([
    ("event_id", pa.string()), ("event_time", pa.int64()), ("card_id", pa.string()), ("terminal_id", pa.string()),
    ("amount_minor", pa.int64()), ("fraud", pa.bool_()), ("refused", pa.binary()), ("refused_outcome", pa.binary()),
])
"""One transaction a row, with the outcome that becomes known of it (null: none ever does).

Where ``refused`` has a value, that is what is published in place of the transaction; ``refused_outcome`` likewise.
"""

KINDS = {"event_id": text, "event_time": time_ms, "card_id": text, "terminal_id": text, "amount": minor_units,
         "amount_minor": integer, "fraud": flag}
FIELD_OF = {"amount": "amount_minor"}  # `amount` is in currency units with decimals
IDENTITY = ("event_id", "event_time", "card_id", "terminal_id")

Columns = dict[str, Any]


@dataclass(frozen=True)
class ColumnMapping:
    """Which column of a file each name of ``KINDS`` is read from; a file may lack those named in ``optional``."""

    name: str
    columns: Mapping[str, str]
    optional: frozenset[str] = frozenset()

    def missing(self, present: Iterable[str]) -> list[str]:
        """The columns that a file with ``present`` ones lacks."""
        lacking = set(self.columns.values()) - set(present)
        return [column for target, column in self.columns.items() if column in lacking and target not in self.optional]


MAPPINGS = {
    mapping.name: mapping for mapping in (
        ColumnMapping("contract", {name: name for name in (*IDENTITY, "amount_minor", "fraud")}, frozenset({"fraud"})),
        ColumnMapping("fraud", {"event_id": "TRANSACTION_ID", "event_time": "TX_DATETIME", "card_id": "CUSTOMER_ID",
                                "terminal_id": "TERMINAL_ID", "amount": "TX_AMOUNT", "fraud": "TX_FRAUD"}),
    )
}


def find_mapping(path: Path, named: str | None) -> ColumnMapping:
    """The mapping ``named`` (a built-in one or a TOML file), else the built-in one that fits the file.

    Raises SettingsError, naming the columns, when the file lacks some.
    """
    present = column_names(path)
    if named is not None:
        mapping = MAPPINGS.get(named) or _load_mapping(Path(named))
        if missing := mapping.missing(present):
            raise SettingsError(f"{path.name} has no column {', '.join(missing)}, which mapping {mapping.name} reads",
                                hint=f"it has {', '.join(present)}; --mapping FILE.toml names others")
        return mapping
    for mapping in MAPPINGS.values():
        if not mapping.missing(present):
            return mapping
    lacks = "; ".join(f"mapping {name} misses {', '.join(mapping.missing(present))}" for name, mapping in MAPPINGS.items())
    raise SettingsError(f"{path.name} fits no built-in mapping: {lacks}",
                        hint=f"it has {', '.join(present)}; write --mapping FILE.toml with a [columns] table")


def read_rows(path: Path, mapping: ColumnMapping, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a file in its order, at most ``limit``, as batches of ``EVENT_ROWS``. Raises SettingsError on a damaged file."""
    left = limit
    for chunk in read_chunks(path, sorted(set(mapping.columns.values()))):
        batch = to_rows(chunk, mapping)
        yield batch if left is None else batch.slice(0, left)
        if left is not None and (left := left - batch.num_rows) <= 0:
            return


def event_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch in contract form, with or without ``fraud``, as ``EVENT_ROWS``; other columns are left behind."""
    return to_rows(Chunk(dict(zip(batch.schema.names, batch.columns, strict=True)), batch.num_rows), MAPPINGS["contract"])


def to_rows(chunk: Chunk, mapping: ColumnMapping) -> pa.RecordBatch:
    """A chunk through ``mapping``, as one batch of ``EVENT_ROWS``."""
    source = {FIELD_OF.get(target, target): chunk.columns[column] for target, column in mapping.columns.items() if column in chunk.columns}
    kinds = {FIELD_OF.get(target, target): KINDS[target] for target in mapping.columns}
    values = {name: read(kinds[name], column) if chunk.rows else pa.nulls(0) for name, column in source.items()}
    values.setdefault("fraud", pa.nulls(chunk.rows, pa.bool_()))
    refused = {row: _readable(row, (*IDENTITY, "amount_minor"), values, source)
               for row in _null_rows(values, (*IDENTITY, "amount_minor"))} | chunk.verbatim
    refused_outcome = {row: _readable(row, (*IDENTITY, "fraud"), values, source)
                       for row in _bad_outcomes(values, source) if row not in chunk.verbatim}
    arrays = [*(pc.cast(values[name], EVENT_ROWS.field(name).type) for name in (*IDENTITY, "amount_minor", "fraud")),
              _sparse(refused, chunk.rows), _sparse(refused_outcome, chunk.rows)]
    return pa.RecordBatch.from_arrays(arrays, schema=EVENT_ROWS)


def _load_mapping(path: Path) -> ColumnMapping:
    try:
        columns = tomllib.loads(path.read_text())["columns"]
        unknown = set(columns) - set(KINDS)
        missing = {*IDENTITY} - set(columns)
    except (OSError, KeyError, TypeError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"mapping {path} cannot be read: {error}",
                            hint=f"one of {', '.join(MAPPINGS)}, or a TOML file with a [columns] table") from error
    if unknown or missing or len({"amount", "amount_minor"} & set(columns)) != 1:
        raise SettingsError(f"mapping {path} has {', '.join(columns)}",
                            hint=f"it needs {', '.join(IDENTITY)}, one of amount and amount_minor, and may have fraud")
    return ColumnMapping(path.stem, columns)


def _null_rows(values: Columns, names: Iterable[str]) -> list[int]:
    null = np.zeros(len(values["event_id"]), dtype=bool)
    for name in names:
        null |= np.asarray(values[name].is_null())
    return [int(row) for row in np.flatnonzero(null)]


def _bad_outcomes(values: Columns, source: Columns) -> list[int]:
    """Rows whose outcome is said but cannot be read, or is read and belongs to a transaction that cannot be named."""
    nameless = set(_null_rows(values, IDENTITY))
    unread = set(_null_rows(values, ("fraud",)))
    said = {row for row in nameless | unread if "fraud" in source and _raw(source["fraud"], row) is not None}
    return sorted(said)


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
