"""JSON objects of a contract, scanned into columns by compiled code; what it is not sure of it leaves to the contract's decoder.

It is sure of an object of the contract's own fields, each at most once, with ASCII text without escapes, plain integers within
bounds, true and false. That is what producers send. All else (escapes, UTF-8, fractions, unknown or missing fields, anything
broken) has ``sure`` False, so a verdict never differs from ``Contract.decode``: tests hold both to ``==``.

Compiled together in one file, see docs/decisions/0006.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from numba import njit

from schemas.contracts import MAX_VALUE_BYTES, Contract

__all__ = ["Layout", "Scanned", "copy_spans", "layout_of", "scan"]

TEXT, INTEGER, BOOLEAN = 0, 1, 2
MOST_DIGITS = 18
"""More might not fit an int64."""

U = np.uint64
QUOTE, BACKSLASH, OPEN, CLOSE, COLON, COMMA, MINUS, ZERO, NINE = (np.uint8(ord(c)) for c in '"\\{}:,-09')


@dataclass(frozen=True)
class Layout:
    """A contract's fields as the scanner reads them: ``names`` back to back, ``name_ends``, and int64[F] columns."""

    fields: tuple[str, ...]
    names: Any
    name_ends: Any
    kinds: Any
    least: Any
    most: Any
    defaults: Any
    required: Any


@dataclass(frozen=True)
class Scanned:
    """``numbers`` int64[n, F]; ``spans`` int64[n, F, 2], where a text begins and ends in the data. Rows not ``sure`` mean nothing."""

    sure: Any
    numbers: Any
    spans: Any


@lru_cache(maxsize=64)
def layout_of(contract: Contract) -> Layout | None:
    """None where the contract has a field that is neither text, integer nor boolean, or a check of its own."""
    rows: list[tuple[int, int, int, int, bool]] = []
    info = msgspec.inspect.type_info(contract.record)
    if not isinstance(info, msgspec.inspect.StructType) or info.tag is not None or info.array_like:
        return None
    if hasattr(contract.record, "__post_init__"):
        return None
    for field in info.fields:
        kind, default = field.type, 0 if field.required else field.default
        if isinstance(kind, msgspec.inspect.StrType) and kind.pattern is None and field.required:
            bounds = (TEXT, kind.min_length or 0, kind.max_length if kind.max_length is not None else MAX_VALUE_BYTES)
        elif isinstance(kind, msgspec.inspect.IntType) and (kind.gt, kind.lt, kind.multiple_of) == (None,) * 3 and isinstance(default, int):
            limits = np.iinfo(np.int64)
            bounds = (INTEGER, limits.min if kind.ge is None else kind.ge, limits.max if kind.le is None else kind.le)
        elif isinstance(kind, msgspec.inspect.BoolType) and isinstance(default, int):
            bounds = (BOOLEAN, 0, 1)
        else:
            return None
        rows.append((*bounds, int(default), field.required))
    names = [field.encode_name.encode() for field in info.fields]
    kinds, least, most, defaults, required = np.array(rows, np.int64).reshape(-1, 5).T.copy()
    return Layout(tuple(field.name for field in info.fields), np.frombuffer(b"".join(names), np.uint8),
                  np.cumsum([len(name) for name in names]), kinds, least, most, defaults, required)


def scan(layout: Layout, data: Any, starts: Any, ends: Any) -> Scanned:
    """Scan the values ``data[starts[i]:ends[i]]``; ``data`` is uint8, bounds int64[n]."""
    n, width = len(starts), len(layout.fields)
    found = Scanned(np.zeros(n, np.bool_), np.empty((n, width), np.int64), np.zeros((n, width, 2), np.int64))
    _scan(data, starts, ends, layout.names, layout.name_ends, layout.kinds, layout.least, layout.most, layout.defaults, layout.required,
          found.sure, found.numbers, found.spans)
    return found


def copy_spans(data: Any, spans: Any) -> tuple[Any, Any]:
    """(offsets int32[n + 1], bytes): the spans back to back, as Arrow has text."""
    offsets = np.zeros(len(spans) + 1, np.int32)
    np.cumsum(spans[:, 1] - spans[:, 0], out=offsets[1:])
    out = np.empty(offsets[-1], np.uint8)
    _copy_spans(data, spans, offsets, out)
    return offsets, out
PLAIN = np.array([32 <= c < 128 and chr(c) not in '"\\' for c in range(256)])
"""Bytes of text that stand for themselves."""


@njit(cache=True, inline="always")
def _skip(data: Any, at: int, end: int) -> int:
    while at < end and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@njit(cache=True, inline="always")
def _text_end(data: Any, at: int, end: int) -> int:
    """Where the quote after the text beginning at ``at`` stands, -1 where the text is none that we are sure of."""
    while at < end:
        if not PLAIN[data[at]]:
            return at if data[at] == QUOTE else -1
        at += 1
    return -1


@njit(cache=True, inline="always")
def _begins(data: Any, at: int, end: int, words: Any, begin: int, stop: int) -> bool:
    """Whether ``data[at:end]`` begins with ``words[begin:stop]``."""
    same = end - at >= stop - begin
    while same and begin < stop:
        same = data[at] == words[begin]
        at += 1
        begin += 1
    return same


TRUE, FALSE = np.frombuffer(b"true", np.uint8), np.frombuffer(b"false", np.uint8)


@njit(cache=True, nogil=True)
def _scan(data: Any, starts: Any, ends: Any, names: Any, name_ends: Any, kinds: Any, least: Any, most: Any, defaults: Any, required: Any,
          sure: Any, numbers: Any, spans: Any) -> None:
    width = len(kinds)
    needed = 0
    for field in range(width):
        needed |= required[field] << field
    for row in range(len(starts)):
        end = ends[row]
        if end - starts[row] > MAX_VALUE_BYTES:
            continue
        at = _skip(data, starts[row], end)
        if at >= end or data[at] != OPEN:
            continue
        at = _skip(data, at + 1, end)
        seen, expected, fine = 0, 0, True
        while fine:
            fine = False
            if at >= end or data[at] != QUOTE:
                break
            stop = _text_end(data, at + 1, end)
            if stop < 0:
                break
            field = -1
            for candidate in range(expected, expected + width):
                candidate -= width if candidate >= width else 0
                begin = name_ends[candidate - 1] if candidate else 0
                if stop - at - 1 == name_ends[candidate] - begin and _begins(data, at + 1, stop, names, begin, name_ends[candidate]):
                    field = candidate
                    break
            if field < 0 or seen >> field & 1:
                break
            at = _skip(data, stop + 1, end)
            if at >= end or data[at] != COLON:
                break
            at = _skip(data, at + 1, end)
            if at >= end:
                break
            if kinds[field] == TEXT:
                if data[at] != QUOTE:
                    break
                stop = _text_end(data, at + 1, end)
                if stop < 0 or stop - at - 1 < least[field] or stop - at - 1 > most[field]:
                    break
                spans[row, field, 0], spans[row, field, 1] = at + 1, stop
                at = stop + 1
            elif kinds[field] == INTEGER:
                negative = data[at] == MINUS
                first = at + 1 if negative else at
                at, value = first, 0
                while at < end and ZERO <= data[at] <= NINE and at - first <= MOST_DIGITS:
                    value = value * 10 + int(data[at]) - 48
                    at += 1
                digits = at - first
                if digits == 0 or digits > MOST_DIGITS or (data[first] == ZERO and (digits > 1 or negative)):
                    break
                value = -value if negative else value
                if value < least[field] or value > most[field]:
                    break
                numbers[row, field] = value
            elif _begins(data, at, end, TRUE, 0, 4):
                numbers[row, field] = 1
                at += 4
            elif _begins(data, at, end, FALSE, 0, 5):
                numbers[row, field] = 0
                at += 5
            else:
                break
            seen |= 1 << field
            expected = field + 1
            at = _skip(data, at, end)
            if at < end and data[at] == COMMA:
                at = _skip(data, at + 1, end)
                fine = True
            elif at < end and data[at] == CLOSE:
                sure[row] = _skip(data, at + 1, end) == end
        if seen & needed != needed:
            sure[row] = False
        for field in range(width):
            if not seen >> field & 1:
                numbers[row, field] = defaults[field]


@njit(cache=True, nogil=True)
def _copy_spans(data: Any, spans: Any, offsets: Any, out: Any) -> None:
    for i in range(len(spans)):
        to = offsets[i]
        for at in range(spans[i, 0], spans[i, 1]):
            out[to] = data[at]
            to += 1
