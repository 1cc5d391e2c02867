"""Where a record stands in the log, as one int64: source topic, partition and offset; it orders records of one arrival millisecond."""

from __future__ import annotations

from typing import Any

from schemas.topics import SOURCES

__all__ = ["ANSWER_SHIFT", "ASKED", "asked_position", "from_source", "offset_of", "partition_of", "position_of"]

TOPIC_SHIFT, PARTITION_SHIFT = 56, 44
OFFSETS = (1 << PARTITION_SHIFT) - 1
ASKED, ANSWER_SHIFT = 1 << 11, 34
"""A partition that no topic has, and below the offset there the partition of the answer."""
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


def asked_position(source: str, partition: Any, offset: Any) -> Any:
    """Where an event of ``source`` stands that was scored by request: it has no place there, but its answer has one on a topic of answers.

    >>> at = asked_position("transactions", 3, 5)
    >>> at > position_of("transactions", 3, 10**9), from_source(at, "transactions"), partition_of(at)
    (True, True, 2048)
    """
    return position_of(source, ASKED, (partition << ANSWER_SHIFT) + offset)


def from_source(position: Any, source: str) -> Any:
    """Whether these are positions in ``source``."""
    return position >> TOPIC_SHIFT == list(SOURCES).index(source)


def partition_of(position: Any) -> Any:
    return position >> PARTITION_SHIFT & PARTITIONS


def offset_of(position: Any) -> Any:
    return position & OFFSETS
