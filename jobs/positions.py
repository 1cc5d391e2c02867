"""Where a record stands in the log, as one int64: source topic, partition and offset; it orders records of one arrival millisecond."""

from __future__ import annotations

from typing import Any

from schemas.topics import SOURCES

__all__ = ["offset_of", "partition_of", "position_of"]

TOPIC_SHIFT, PARTITION_SHIFT = 56, 44
OFFSETS = (1 << PARTITION_SHIFT) - 1
PARTITIONS = (1 << TOPIC_SHIFT - PARTITION_SHIFT) - 1


def position_of(source: str, partition: Any, offset: Any) -> Any:
    """The position of record ``offset`` of a partition of ``source``; of ints or int64 arrays.

    >>> position = position_of("transactions", 3, 5)
    >>> partition_of(position), offset_of(position)
    (3, 5)
    """
    return (list(SOURCES).index(source) << TOPIC_SHIFT) + (partition << PARTITION_SHIFT) + offset


def partition_of(position: Any) -> Any:
    return position >> PARTITION_SHIFT & PARTITIONS


def offset_of(position: Any) -> Any:
    return position & OFFSETS
