"""Header names that are no UTF-8, which any producer can send: they are read as Kafka's own clients read them, with U+FFFD.

aiokafka 0.14 raises UnicodeDecodeError for the fetch that holds one, again and again, and its partition stands still for good.
It has no hook for this: ``install`` puts two classes in the place of those its fetcher makes. Only a fetch that failed is read by
them, in Python. tests/test_header_names.py tells when this can go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords, _MemoryRecordsPy

__all__ = ["install"]


class KeptRecords(MemoryRecords):  # type: ignore[misc]
    """A fetch that can be read again."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class TolerantRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    _records: Any

    def _unpack_records(self) -> Iterator[Any]:
        try:
            yield from super()._unpack_records()
        except UnicodeDecodeError:
            self._records = PlainRecords(self._records.data)
            yield from super()._unpack_records()  # passes over what lies before ``next_fetch_offset``


class PlainRecords(_MemoryRecordsPy):  # type: ignore[misc]
    def next_batch(self) -> Any:
        part = self._next_slice
        super().next_batch()
        return PlainBatch(part)


class PlainBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    _buffer: Any

    def __iter__(self) -> PlainBatch:
        super().__iter__()
        self._buffer = PlainBytes(self._buffer)
        return self


class PlainBytes(bytearray):
    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return PlainBytes(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "replace") -> str:
        return super().decode(encoding, errors)


def install() -> None:
    """Let every consumer of this process read them."""
    fetcher.MemoryRecords = KeptRecords
    fetcher.PartitionRecords = TolerantRecords
