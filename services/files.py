"""Files in streamed chunks of their own columns: Parquet, CSV, NDJSON. What cannot be parsed comes along as bytes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from schemas.errors import SettingsError

__all__ = ["Chunk", "column_names", "count_rows", "read_chunks"]

CHUNK_ROWS = 1 << 15
CSV_BLOCK_BYTES = 4 << 20
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson"}


@dataclass
class Chunk:
    """Some rows as the file has them; ``verbatim`` rows could not be parsed at all."""

    columns: dict[str, Any]
    rows: int
    verbatim: dict[int, bytes] = field(default_factory=dict)


def read_chunks(path: Path, columns: list[str]) -> Iterator[Chunk]:
    """The rows of a file in its order, with those of ``columns`` that it has. Raises SettingsError when it is damaged."""
    try:
        yield from READERS[_format(path)](path, columns)
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", hint="is it complete, and of the format that its name says?") from error


def count_rows(path: Path) -> int | None:
    """How many rows a file has, where that can be told without reading it."""
    return pq.read_metadata(path).num_rows if _format(path) == "parquet" else None


def column_names(path: Path) -> list[str]:
    """The columns of a file; of NDJSON those of its first chunk. Raises SettingsError when it cannot be read."""
    try:
        if _format(path) == "parquet":
            return [str(name) for name in pq.read_schema(path).names]
        if _format(path) == "csv":
            return [str(name) for name in _open_csv(path, None, {}).schema.names]
        first: Chunk = next(_read_ndjson(path, None), Chunk({}, 0))
        return list(first.columns)
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(f"{path} cannot be read: {error}", hint="give a Parquet, CSV or NDJSON file") from error


def _format(path: Path) -> str:
    if path.suffix.lower() in FORMATS:
        return FORMATS[path.suffix.lower()]
    raise SettingsError(f"{path.name} is of no known format", hint=f"known endings are {', '.join(FORMATS)}")


def _read_parquet(path: Path, columns: list[str]) -> Iterator[Chunk]:
    with pq.ParquetFile(path) as file:
        present = [column for column in columns if column in file.schema_arrow.names]
        for batch in file.iter_batches(CHUNK_ROWS, columns=present):
            yield Chunk(dict(zip(batch.schema.names, batch.columns, strict=True)), batch.num_rows)


def _read_csv(path: Path, columns: list[str]) -> Iterator[Chunk]:
    ragged: dict[int, bytes] = {}
    present = [column for column in columns if column in _open_csv(path, None, {}).schema.names]
    for batch in _open_csv(path, present, ragged):
        yield Chunk(dict(zip(batch.schema.names, batch.columns, strict=True)), batch.num_rows)
    if ragged:
        yield Chunk({column: pa.nulls(len(ragged)) for column in present}, len(ragged), ragged)


def _open_csv(path: Path, columns: list[str] | None, ragged: dict[int, bytes]) -> Any:
    """A reader of ``columns`` as bytes: types and UTF-8 are judged per value, later. Rows of another width go to ``ragged``."""

    def keep(row: Any) -> str:
        ragged[len(ragged)] = row.text.encode()
        return "skip"

    convert = pa.csv.ConvertOptions(check_utf8=False, include_columns=columns, column_types=dict.fromkeys(columns or (), pa.binary()))
    return pa.csv.open_csv(path, pa.csv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False),
                           pa.csv.ParseOptions(invalid_row_handler=keep, newlines_in_values=True), convert)


def _read_ndjson(path: Path, columns: list[str] | None) -> Iterator[Chunk]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as raw:
        lines = (stripped for line in raw if (stripped := line.strip()))
        while some := list(itertools.islice(lines, CHUNK_ROWS)):
            parsed, verbatim = [], {}
            for row, line in enumerate(some):
                try:
                    found = decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    found = None
                if not isinstance(found, dict):
                    found, verbatim[row] = {}, line
                parsed.append(found)
            names = columns if columns is not None else list(dict.fromkeys(itertools.chain.from_iterable(parsed)))
            yield Chunk({name: [row.get(name) for row in parsed] for name in names}, len(some), verbatim)


READERS = {"parquet": _read_parquet, "csv": _read_csv, "ndjson": _read_ndjson}
