"""Applies chunks of one source: sort, append to the sets, then publish. Runs in one thread, beside Faust's event loop.

The order is the promise: records are in the sets before ``<source>.valid`` has them, so a reader of the valid topic finds every event
that came before. Offsets in Kafka are a hint only; the applied marks in the store decide where work goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from feature_repo.appends import SetWriter
from feature_repo.views import FeatureView
from schemas.contracts import Contract
from schemas.errors import LogError, StoreError
from schemas.topics import dead_letter_topic, valid_topic
from streams.publisher import Publisher
from streams.sort import sort_chunk

__all__ = ["Applier"]

log = logging.getLogger(__name__)
RETRY_FIRST_S, RETRY_LAST_S = 0.05, 2.0


class Applier:
    """The feature worker of one source.

    Parameters
    ----------
    writer
        The write side of the online store for ``views``.
    next_record
        Of (partition, offset): the offset of the first record of the source at or after it, the partition's end where there is
        none. It tells a gap in the log (retention, control records of a transaction) from records that were not delivered.
    stopping
        Set when the worker is told to stop; ends every wait.
    """

    def __init__(self, source: str, contract: Contract, views: Sequence[FeatureView], writer: SetWriter, publisher: Publisher,
                 next_record: Callable[[int, int], int], stopping: threading.Event) -> None:
        self.source = source
        self._contract, self._views = contract, views
        self._writer, self._publisher, self._next_record, self._stopping = writer, publisher, next_record, stopping
        self._done: dict[int, int] = {}  # partition -> everything up to this offset is applied and published
        self._empty: dict[int, tuple[int, int]] = {}  # partition -> (from, to): the log has nothing there
        self._seen: dict[int, tuple[int, int]] = {}  # partition -> (position, done) at the last check

    def apply(self, partition: int, records: Sequence[Any], committed: int) -> int | None:
        """Apply one chunk. None when it and all before it are done; else the offset to seek to, and the chunk is not done.

        ``committed`` is the offset before which everything is known to be done. A chunk may come twice, and chunks between it and
        the one before may have got lost on the way: what is missing is asked for until it comes. Raises StoreError or LogError
        when the worker is stopping, LogError when the broker refuses a record.
        """
        first, last = records[0].offset, records[-1].offset
        done = self._done.setdefault(partition, committed - 1)
        resume = self._resume_before(partition, first)
        if resume is not None:
            return resume
        chunk = sort_chunk(self._contract, self._views, records)
        if not self._retry(lambda: self._writer.apply(partition, last, chunk.admitted)):
            log.warning("online store went back in time source=%s partition=%d", self.source, partition)
            return self._resume_before(partition, last + 1)
        self._publisher.publish(valid_topic(self.source), partition, chunk.valid)
        self._publisher.publish(dead_letter_topic(self.source), partition, chunk.dead)
        self._publisher.wait()
        self._done[partition] = max(done, last)
        return None

    def check(self, partition: int, position: int, committed: int) -> int | None:
        """For a partition read up to ``position``: the offset to seek to where the store lacks records, else None.

        What was read may still be on its way to ``apply``, which asks for itself; only a partition that stands still is idle.
        """
        marks = self._writer.marks
        done = self._done.setdefault(partition, committed - 1)
        if marks.known(partition) and not marks.hold(partition, self._retry(lambda: self._writer.held(partition))):
            log.warning("online store went back in time source=%s partition=%d", self.source, partition)
            marks.forget(partition)
            self._writer.forget_refreshes()
            return self._resume_before(partition, position)
        now = position, done
        before, self._seen[partition] = self._seen.get(partition), now
        return self._resume_before(partition, position) if before == now else None

    def forget(self, partition: int) -> None:
        """The partition has, or had, another owner."""
        self._writer.marks.forget(partition)
        self._publisher.forget(partition)
        self._done.pop(partition, None)
        self._seen.pop(partition, None)

    def _resume_before(self, partition: int, offset: int) -> int | None:
        """Where to resume so that nothing before ``offset`` is missing from the sets or unpublished; None where nothing is."""
        marks = self._writer.marks
        if not marks.known(partition):
            marks.adopt(partition, self._retry(lambda: self._writer.held(partition)))
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
        wait_s = RETRY_FIRST_S
        while True:
            try:
                return attempt()
            except (StoreError, LogError) as error:
                log.warning("trying again in %.2f s: %s", wait_s, error)
                if self._stopping.wait(wait_s):
                    raise
                wait_s = min(2 * wait_s, RETRY_LAST_S)
