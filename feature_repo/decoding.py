"""Archived values as columns: what ``Contract.decode`` says of each, for many at once.

The scanner takes what producers usually send, the contract's decoder the rest; nothing here has a verdict of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.hashing import hash_spans
from feature_repo.layout import hash_text
from feature_repo.scanner import copy_spans, layout_of, scan
from schemas.contracts import Contract
from schemas.errors import ContractError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Decoded", "as_text", "decode_columns"]


@dataclass(frozen=True)
class Decoded:
    """The valid records among some values, in their order.

    ``rows`` int64[m] says which values they are, ``numbers`` int64[m] by field (booleans as 0 and 1), ``hashed`` int64[m] by text field
    (the word a record holds), ``texts`` Arrow string by text field.
    """

    rows: Any
    numbers: dict[str, Any]
    hashed: dict[str, Any]
    texts: dict[str, pa.Array]


def decode_columns(contract: Contract, values: pa.Array, usable: Any, numbers: Sequence[str], hashed: Sequence[str],
                   texts: Sequence[str]) -> Decoded:
    """Decode the rows of a binary column where ``usable`` (bool[n]); only the fields that are asked for become columns."""
    layout = layout_of(contract)
    usable = usable & values.is_valid().to_numpy(zero_copy_only=False)
    if layout is None or not {*numbers, *hashed, *texts} <= set(layout.fields):  # what a record derives is no text to scan
        return _by_decoder(contract, values, np.flatnonzero(usable), numbers, hashed, texts)
    data, starts, ends = _buffers(values)
    found = scan(layout, data, starts, ends)
    sure = np.flatnonzero(found.sure & usable)
    field = {name: layout.fields.index(name) for name in {*numbers, *hashed, *texts}}
    spans = {name: found.spans[sure, field[name]] for name in {*hashed, *texts}}
    scanned = Decoded(sure, {name: found.numbers[sure, field[name]] for name in numbers},
                      {name: hash_spans(data, spans[name]) for name in hashed},
                      {name: as_text(*copy_spans(data, spans[name])) for name in texts})
    others = np.flatnonzero(usable & ~found.sure)
    return _merged(scanned, _by_decoder(contract, values, others, numbers, hashed, texts)) if len(others) else scanned


def as_text(offsets: Any, data: Any) -> pa.Array:
    """Arrow's string over int32 offsets and the bytes of UTF-8."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def _buffers(values: pa.Array) -> tuple[Any, Any, Any]:
    """The bytes of a binary column, and where each value begins and ends."""
    import pyarrow as pa

    _, offsets, data = values.buffers()
    wide = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    bounds = np.frombuffer(offsets, wide)[values.offset:values.offset + len(values) + 1].astype(np.int64)
    return np.frombuffer(data or b"", np.uint8), bounds[:-1], bounds[1:]


def _by_decoder(contract: Contract, values: pa.Array, rows: Any, numbers: Sequence[str], hashed: Sequence[str],
                texts: Sequence[str]) -> Decoded:
    import pyarrow as pa

    kept, events = [], []
    for row, value in zip(rows.tolist(), values.take(pa.array(rows)).to_pylist(), strict=True):
        try:
            events.append(contract.decode(value))
        except ContractError:
            continue
        kept.append(row)
    return Decoded(
        np.array(kept, np.int64), {name: np.array([int(getattr(event, name)) for event in events], np.int64) for name in numbers},
        {name: np.array([hash_text(getattr(event, name)) for event in events], np.uint64).view(np.int64) for name in hashed},
        {name: pa.array([getattr(event, name) for event in events], pa.string()) for name in texts})


def _merged(a: Decoded, b: Decoded) -> Decoded:
    import pyarrow as pa

    rows = np.concatenate((a.rows, b.rows))
    order = np.argsort(rows)
    return Decoded(rows[order], {name: np.concatenate((a.numbers[name], b.numbers[name]))[order] for name in a.numbers},
                   {name: np.concatenate((a.hashed[name], b.hashed[name]))[order] for name in a.hashed},
                   {name: pa.concat_arrays([a.texts[name], b.texts[name]]).take(pa.array(order)) for name in a.texts})
