"""128-bit unsigned integers as two uint64 limbs, for exact second moments in compiled code. All functions are pure.

n * sum(x**2) wraps int64 at 100,000 amounts of 10,000.00; two limbs hold it for ten million amounts of a billion.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["add", "multiply", "multiply_wide", "subtract", "to_float"]

U = np.uint64
LOW = U(0xFFFFFFFF)
HALF = U(32)
TOP_BIT = U(1 << 63)


@njit(cache=True, inline="always")
def multiply(a: Any, b: Any) -> Any:
    """(high, low) of a * b, by 32-bit halves."""
    a_low, a_high, b_low, b_high = a & LOW, a >> HALF, b & LOW, b >> HALF
    low = a_low * b_low
    middle = a_high * b_low + (low >> HALF)
    other = a_low * b_high + (middle & LOW)
    return a_high * b_high + (middle >> HALF) + (other >> HALF), (other << HALF) | (low & LOW)


@njit(cache=True, inline="always")
def add(a_high: Any, a_low: Any, b_high: Any, b_low: Any) -> Any:
    low = a_low + b_low
    carry = U(1) if low < a_low else U(0)
    return a_high + b_high + carry, low


@njit(cache=True, inline="always")
def subtract(a_high: Any, a_low: Any, b_high: Any, b_low: Any) -> Any:
    borrow = U(1) if a_low < b_low else U(0)
    return a_high - b_high - borrow, a_low - b_low


@njit(cache=True, inline="always")
def multiply_wide(high: Any, low: Any, factor: Any) -> Any:
    """(high, low) * factor, modulo 2**128."""
    carried, product = multiply(low, factor)
    return high * factor + carried, product


@njit(cache=True)
def to_float(high: Any, low: Any) -> float:
    """The nearest float64, ties to even, as Python's ``float(int)``.

    The top 64 significant bits are converted by the hardware; every bit shifted out is gathered into the lowest kept one, which
    lies far below the rounding position and so only breaks ties.
    """
    if high == U(0):
        return float(low)
    shift = 0
    while (high & TOP_BIT) == U(0):
        high = (high << U(1)) | (low >> U(63))
        low = low << U(1)
        shift += 1
    if low != U(0):
        high = high | U(1)
    return float(high) * 2.0 ** (64 - shift)
