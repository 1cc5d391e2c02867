"""From a file's columns to a contract's fields: text, time, money, flag. Whole arrays at once; what cannot be read becomes null."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["flag", "integer", "minor_units", "read", "text", "time_ms"]

Kind = Callable[[pa.Array], pa.Array]
UNREADABLE = (ValueError, TypeError, OverflowError, NotImplementedError)  # pyarrow's errors are kinds of these
EXACT_FLOAT = 2.0**53
CENT = Decimal("0.01")


def read(kind: Kind, values: pa.Array | Sequence[Any]) -> pa.Array:
    """``kind`` of ``values``, with null where there is no value or where ``kind`` cannot read it.

    Halves what raises until the fault stands alone, so that a good column costs one call and each fault a few more.
    """
    try:
        return kind(_plain(values))
    except UNREADABLE:
        if len(values) == 1:
            return pa.nulls(1, kind(pa.nulls(0)).type)
        half = len(values) // 2
        return pa.concat_arrays([read(kind, values[:half]), read(kind, values[half:])])


def text(column: pa.Array) -> pa.Array:
    """Identifiers: text, or whole numbers in digits."""
    if pa.types.is_floating(column.type):
        column = pc.cast(column, pa.int64())
    elif not (pa.types.is_string(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        raise TypeError(f"{column.type} is not an identifier")
    return pc.cast(column, pa.string())


def integer(column: pa.Array) -> pa.Array:
    """Whole numbers as int64; a fraction is refused."""
    if pa.types.is_boolean(column.type) or pa.types.is_temporal(column.type):
        raise TypeError(f"{column.type} is not a number")
    return pc.cast(column, pa.int64())


def time_ms(column: pa.Array) -> pa.Array:
    """UTC milliseconds, from timestamps (without a zone they are UTC), ISO 8601 text, or numbers that are UTC milliseconds already.

    Finer fractions are cut.
    """
    if pa.types.is_string(column.type):
        for unit in (pa.int64(), pa.timestamp("ns"), pa.timestamp("ns", "UTC")):
            try:
                return time_ms(pc.cast(column, unit))
            except pa.ArrowInvalid:
                continue
        raise ValueError("not one form of time")
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        zone = getattr(column.type, "tz", None)
        return pc.cast(pc.cast(column, pa.timestamp("ms", zone), safe=False), pa.int64())
    return integer(column)


def flag(column: pa.Array) -> pa.Array:
    """Booleans, 0 and 1, or text that says one of these."""
    if pa.types.is_string(column.type) or pa.types.is_boolean(column.type):
        return pc.cast(column, pa.bool_())
    numbers = integer(column)
    extremes = pc.min_max(numbers).as_py()
    if (extremes["min"] or 0) < 0 or (extremes["max"] or 0) > 1:
        raise ValueError("neither 0 nor 1")
    return pc.cast(numbers, pa.bool_())


def minor_units(column: pa.Array) -> pa.Array:
    """Money in currency units to int64 hundredths, HALF_EVEN on the decimal that the file shows.

    A float stands for the shortest decimal that reads back as it (1.015 is a tie, though its bits lie below): so the same amount
    means the same in Parquet, CSV and JSON.
    """
    if pa.types.is_floating(column.type):
        missing = np.asarray(column.is_null())
        cents = _cents(np.asarray(pc.fill_null(column, 0.0), dtype=np.float64))
        return pa.array(cents, pa.int64(), mask=missing)
    if pa.types.is_integer(column.type):
        return pc.multiply_checked(integer(column), pa.scalar(100, pa.int64()))
    if not (pa.types.is_string(column.type) or pa.types.is_decimal(column.type) or pa.types.is_null(column.type)):
        raise TypeError(f"{column.type} is not money")
    rounded = pc.round(pc.cast(column, pa.decimal128(38, 18)), 2, "half_to_even")
    hundredths = pc.cast(rounded, pa.decimal128(38, 2))
    whole = pa.Array.from_buffers(pa.decimal128(38, 0), len(hundredths), hundredths.buffers(), offset=hundredths.offset)
    return pc.cast(whole, pa.int64())


def _cents(amounts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    scaled = amounts * 100.0
    cents = np.rint(scaled)
    if not np.all(np.abs(cents) < EXACT_FLOAT):  # also where it is not a number
        raise ValueError("not an amount")
    from_tie = np.abs(np.abs(scaled - np.trunc(scaled)) - 0.5)
    # Reading the decimal and multiplying are off by at most 2**-52 of the value: only this close to a tie can it matter.
    for i in np.flatnonzero(from_tie <= np.abs(scaled) * 2.0**-50):
        cents[i] = int(Decimal(repr(float(amounts[i]))).quantize(CENT, ROUND_HALF_EVEN).scaleb(2))
    return cents.astype(np.int64)


def _plain(values: pa.Array | Sequence[Any]) -> pa.Array:
    column = values if isinstance(values, pa.Array) else pa.array(values)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_binary(column.type) or pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = pc.cast(column, pa.string())
    return column
