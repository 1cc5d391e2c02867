"""xxh3-64 of many texts at once, seed 0: short ones here, as the algorithm's specification has them (xxHash, doc/xxhash_spec.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["hash_spans"]

HASHED_BYTES = 64
"""Longer text, and none, is hashed by the library."""
U = np.uint64
SECRET = np.frombuffer(bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"),
    np.uint8)
PRIME_1, PRIME_2, PRIME_3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
AVALANCHE, RRMXMX = U(0x165667919E3779F9), U(0x9FB21C651E98DF25)
LOW, BYTE = U(0xFFFFFFFF), U(0xFF)


def hash_spans(data: Any, spans: Any) -> Any:
    """xxh3-64 of each ``data[spans[i, 0]:spans[i, 1]]``, as int64[n]: the words that ``layout.packer`` writes for a text."""
    hashed = np.empty(len(spans), np.uint64)
    _hash_spans(data, spans, hashed)
    size = spans[:, 1] - spans[:, 0]
    others = np.flatnonzero((size > HASHED_BYTES) | (size == 0))
    if len(others):
        from xxhash import xxh3_64_intdigest

        hashed[others] = [xxh3_64_intdigest(data[a:b].tobytes()) for a, b in spans[others].tolist()]
    return hashed.view(np.int64)


@njit(cache=True, inline="always")
def _u32(data: Any, at: int) -> Any:
    return U(data[at]) | U(data[at + 1]) << U(8) | U(data[at + 2]) << U(16) | U(data[at + 3]) << U(24)


@njit(cache=True, inline="always")
def _u64(data: Any, at: int) -> Any:
    return _u32(data, at) | _u32(data, at + 4) << U(32)


@njit(cache=True, inline="always")
def _fold(a: Any, b: Any) -> Any:
    """Both halves of the 128-bit product, xored."""
    a_low, a_high, b_low, b_high = a & LOW, a >> U(32), b & LOW, b >> U(32)
    low = a_low * b_low
    middle = a_high * b_low + (low >> U(32))
    other = a_low * b_high + (middle & LOW)
    return (a_high * b_high + (middle >> U(32)) + (other >> U(32))) ^ ((other << U(32)) | (low & LOW))


@njit(cache=True, inline="always")
def _mix(data: Any, at: int, secret: Any, key: int) -> Any:
    return _fold(_u64(data, at) ^ _u64(secret, key), _u64(data, at + 8) ^ _u64(secret, key + 8))


@njit(cache=True, inline="always")
def _avalanche(h: Any) -> Any:
    h = (h ^ (h >> U(37))) * AVALANCHE
    return h ^ (h >> U(32))


@njit(cache=True, nogil=True)
def _hash_spans(data: Any, spans: Any, hashed: Any) -> None:
    for i in range(len(spans)):
        at, end = spans[i, 0], spans[i, 1]
        n = end - at
        size = U(n)
        if n > HASHED_BYTES or n == 0:
            continue
        if n > 16:
            h = size * PRIME_1
            for pair in range((n - 1) // 32, -1, -1):
                h += _mix(data, at + 16 * pair, SECRET, 32 * pair) + _mix(data, end - 16 * (pair + 1), SECRET, 32 * pair + 16)
            hashed[i] = _avalanche(h)
        elif n > 8:
            low = _u64(data, at) ^ _u64(SECRET, 24) ^ _u64(SECRET, 32)
            high = _u64(data, end - 8) ^ _u64(SECRET, 40) ^ _u64(SECRET, 48)
            swapped = U(0)
            for byte in range(8):
                swapped = swapped << U(8) | (low >> U(8 * byte) & BYTE)
            hashed[i] = _avalanche(size + swapped + high + _fold(low, high))
        elif n > 3:
            h = (_u32(data, end - 4) + (_u32(data, at) << U(32))) ^ _u64(SECRET, 8) ^ _u64(SECRET, 16)
            h ^= (h << U(49) | h >> U(15)) ^ (h << U(24) | h >> U(40))
            h = h * RRMXMX
            h = (h ^ ((h >> U(35)) + size)) * RRMXMX
            hashed[i] = h ^ (h >> U(28))
        else:
            h = U(data[at]) << U(16) | U(data[at + n // 2]) << U(24) | U(data[end - 1]) | size << U(8)
            h ^= _u32(SECRET, 0) ^ _u32(SECRET, 4)
            h = (h ^ (h >> U(33))) * PRIME_2
            h = (h ^ (h >> U(29))) * PRIME_3
            hashed[i] = h ^ (h >> U(32))
