"""Working through a topic chunk by chunk so that nothing is passed over. Runs in one thread, beside Faust's event loop.

Offsets in Kafka are a hint only; marks in the store, moved with what they stand for, decide where work goes on. A store that comes back
with older marks has lost what was done since, and it is done again.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from streams.patience import patiently

__all__ = ["Marks", "Resuming"]

log = logging.getLogger(__name__)


class Marks(Protocol):
    """What a worker has written to the marks of each partition; ``held`` is what the store says they are."""

    def known(self, partition: int) -> bool: ...
    def lowest(self, partition: int) -> int: ...
    def adopt(self, partition: int, held: Any) -> None: ...
    def hold(self, partition: int, held: Any) -> bool: ...
    def forget(self, partition: int) -> None: ...


class Resuming(ABC):
    """The worker of one topic's partitions.

    Parameters
    ----------
    next_record
        Of (partition, offset): the offset of the first record of the topic at or after it, the partition's end where there is
        none. It tells a gap in the log (retention, control records of a transaction) from records that were not delivered.
    log_start
        Of partition: the offset below which the log has lost what it had; 0 where it has lost nothing.
    stopping
        Set when the worker is told to stop; ends every wait.
    """

    def __init__(self, topic: str, marks: Marks, next_record: Callable[[int, int], int], log_start: Callable[[int], int],
                 stopping: threading.Event) -> None:
        self.topic = topic
        self._marks, self._stopping = marks, stopping
        self._next_record, self._log_start = next_record, log_start
        self._done: dict[int, int] = {}  # partition -> everything up to this offset is worked through
        self._empty: dict[int, tuple[int, int]] = {}  # partition -> (from, to): the log has nothing there
        self._seen: dict[int, tuple[int, int]] = {}  # partition -> (position, done) at the last check

    @abstractmethod
    def _work(self, partition: int, records: Sequence[Any]) -> bool:
        """Do all that becomes of one chunk and move its marks; False where the store went back in time."""

    @abstractmethod
    def _held(self, partition: int) -> Any:
        """The marks of a partition as the store has them."""

    def apply(self, partition: int, records: Sequence[Any], committed: int) -> int | None:
        """Work through one chunk. None when it and all before it are done; else the offset to seek to, and the chunk is not done.

        ``committed`` is the offset before which everything is known to be done. A chunk may come twice, and chunks between it and
        the one before may have got lost on the way: what is missing is asked for until it comes. Raises StoreError or LogError
        when the worker is stopping, LogError when the broker refuses a record.
        """
        first, last = records[0].offset, records[-1].offset
        done = self._done.setdefault(partition, committed - 1)
        resume = self._resume_before(partition, first)
        if resume is not None:
            return resume
        if not self._work(partition, records):
            log.warning("online store went back in time topic=%s partition=%d", self.topic, partition)
            return self._resume_before(partition, last + 1)
        self._done[partition] = max(done, last)
        return None

    def flush(self) -> None:
        """See streams.agents.Worker."""
        return

    def check(self, partition: int, position: int, committed: int) -> int | None:
        """For a partition read up to ``position``: the offset to seek to where the store lacks records, else None.

        What was read may still be on its way to ``apply``, which asks for itself; only a partition that stands still is idle.
        """
        marks = self._marks
        done = self._done.setdefault(partition, committed - 1)
        if marks.known(partition) and not marks.hold(partition, self._retry(lambda: self._held(partition))):
            log.warning("online store went back in time topic=%s partition=%d", self.topic, partition)
            marks.forget(partition)
            self._went_back()
            return self._resume_before(partition, position)
        now = position, done
        before, self._seen[partition] = self._seen.get(partition), now
        return self._resume_before(partition, position) if before == now else None

    def tick(self, partition: int) -> None:
        """See streams.agents.Worker."""
        return

    def forget(self, partition: int) -> None:
        """The partition has, or had, another owner."""
        self._marks.forget(partition)
        self._done.pop(partition, None)
        self._seen.pop(partition, None)

    @abstractmethod
    def _went_back(self) -> None:
        """Forget what was known of the store: it may have lost more than records."""

    def _resume_before(self, partition: int, offset: int) -> int | None:
        """Where to resume so that nothing before ``offset`` is left undone; None where nothing is."""
        marks = self._marks
        if not marks.known(partition):
            marks.adopt(partition, self._retry(lambda: self._held(partition)))
        resume = min(marks.lowest(partition), self._done[partition]) + 1
        low, high = self._empty.get(partition, (0, 0))
        if resume >= offset or low <= resume <= offset <= high:
            return None
        found: int = self._retry(lambda: self._next_record(partition, resume))
        if found < offset:
            return found
        self._empty[partition] = resume, offset
        return None

    def _retry(self, attempt: Any) -> Any:
        return patiently(self._stopping, attempt)
