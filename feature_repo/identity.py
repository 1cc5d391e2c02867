"""Which rows are of one event, and a digest of rows by which two tables are told to be the same, whatever their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from feature_repo.hashing import hash_spans

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["digest", "first_of_each", "number_identities", "row_digests"]

U = np.uint64
MIX_1, MIX_2, SEED = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB), U(0x9E3779B97F4A7C15)
NULL_TEXT = -1
NO_VALUE = int(np.array(np.nan).view(np.int64))


def number_identities(id_hash: Any, event_time: Any) -> Any:
    """int64[n]: 0, 1, 2 .. for each (id hash, event time), in the order in which they first appear."""
    codes = np.empty(len(id_hash), np.int64)
    table = np.full(1 << max(4, int(2 * len(id_hash)).bit_length()), -1, np.int64)
    _number(np.ascontiguousarray(id_hash), np.ascontiguousarray(event_time), table, codes)
    return codes


def first_of_each(codes: Any, arrivals: Any) -> Any:
    """bool[n]: whether a row is the first to arrive, by ``arrivals`` int64[n, 2], of those with its code."""
    first = np.ones(len(codes), bool)
    for word in range(arrivals.shape[1]):
        least = np.full(codes.max(initial=-1) + 1, np.iinfo(np.int64).max)
        np.minimum.at(least, codes[first], arrivals[first, word])
        first &= arrivals[:, word] == least[codes]
    return first


def row_digests(table: pa.Table | pa.RecordBatch) -> Any:
    """uint64[n]: 64 bits of all columns in their order; texts by xxh3, numbers and booleans by value, null like NaN."""
    import pyarrow as pa

    words = np.empty((table.num_rows, table.num_columns), np.int64)
    for i, column in enumerate(table.columns):
        words[:, i] = _words(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    mixed = np.empty(len(words), np.uint64)
    _mix_rows(words, mixed)
    return mixed


def digest(of_rows: Any) -> int:
    """The sum of row digests, modulo 2**64: of no rows 0, of two tables' rows together the sum of both."""
    return int(np.sum(of_rows, dtype=np.uint64))


def _words(column: pa.Array) -> Any:
    import pyarrow as pa

    if pa.types.is_string(column.type):
        _, offsets, data = column.buffers()
        bounds = np.frombuffer(offsets, np.int32)[column.offset:column.offset + len(column) + 1].astype(np.int64)
        words = hash_spans(np.frombuffer(data or b"", np.uint8), np.stack((bounds[:-1], bounds[1:]), axis=1))
        return np.where(column.is_valid().to_numpy(zero_copy_only=False), words, NULL_TEXT)
    if pa.types.is_floating(column.type):
        values = column.to_numpy(zero_copy_only=False)
        return np.where(np.isnan(values), NO_VALUE, (values + 0.0).view(np.int64))  # -0.0 equals 0.0
    return column.cast(pa.int64()).fill_null(NO_VALUE).to_numpy(zero_copy_only=False)


@njit(cache=True, inline="always")
def _mix(h: Any) -> Any:
    """splitmix64's finaliser."""
    h = (h ^ (h >> U(30))) * MIX_1
    h = (h ^ (h >> U(27))) * MIX_2
    return h ^ (h >> U(31))


@njit(cache=True, nogil=True)
def _mix_rows(words: Any, mixed: Any) -> None:
    for i in range(len(words)):
        h = SEED
        for j in range(words.shape[1]):
            h = _mix((h ^ U(words[i, j])) + SEED)
        mixed[i] = h


@njit(cache=True, nogil=True)
def _number(id_hash: Any, event_time: Any, table: Any, codes: Any) -> None:
    """Open addressing: ``table`` holds the first row of each identity, its length is a power of two above the rows."""
    last, found = U(len(table) - 1), 0
    for row in range(len(id_hash)):
        at = _mix(U(id_hash[row]) ^ U(event_time[row]) * SEED) & last
        while True:
            other = table[at]
            if other < 0:
                table[at] = row
                codes[row] = found
                found += 1
                break
            if id_hash[other] == id_hash[row] and event_time[other] == event_time[row]:
                codes[row] = codes[other]
                break
            at = (at + U(1)) & last
