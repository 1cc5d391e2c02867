"""Where a record stands in the log, as one int64: source topic, partition and offset; it orders records of one arrival millisecond."""

from __future__ import annotations

from typing import Any

from schemas.topics import SOURCES

__all__ = ["from_source", "offset_of", "partition_of", "position_of"]

TOPIC_SHIFT, PARTITION_SHIFT = 56, 44
OFFSETS = (1 << PARTITION_SHIFT) - 1
PARTITIONS = (1 << TOPIC_SHIFT - PARTITION_SHIFT) - 1


def position_of(source: str, partition: Any, offset: Any) -> Any:
    """The position of record ``offset`` of a partition of ``source``; of ints or int64 arrays.

    Partitions below 0 (history, which the log never had) count as the highest ones.

    >>> position = position_of("transactions", 3, 5)
    >>> partition_of(position), offset_of(position)
    (3, 5)
    >>> from_source(position_of("transactions", -1, 5), "transactions")
    True
    """
    return (list(SOURCES).index(source) << TOPIC_SHIFT) + ((partition & PARTITIONS) << PARTITION_SHIFT) + offset


def from_source(position: Any, source: str) -> Any:
    """Whether these are positions in ``source``."""
    return position >> TOPIC_SHIFT == list(SOURCES).index(source)


def partition_of(position: Any) -> Any:
    return position >> PARTITION_SHIFT & PARTITIONS


def offset_of(position: Any) -> Any:
    return position & OFFSETS
