"""Applies chunks of one source: sort, append to the sets, then publish. Runs in one thread, beside Faust's event loop.

The order is the promise: records are in the sets before ``<source>.valid`` has them, so a reader of the valid topic finds every event
that came before. Offsets in Kafka are a hint only; the applied marks in the store decide where work goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

from feature_repo.appends import SetWriter
from feature_repo.views import FeatureView
from schemas.contracts import Contract
from schemas.errors import StoreError
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
    stopping
        Set when the worker is told to stop; ends every wait.
    """

    def __init__(self, source: str, contract: Contract, views: Sequence[FeatureView], writer: SetWriter, publisher: Publisher,
                 stopping: threading.Event) -> None:
        self.source = source
        self._contract, self._views = contract, views
        self._writer, self._publisher, self._stopping = writer, publisher, stopping
        self._resumed: dict[int, int] = {}  # partition -> resume point last asked for
        self._epochs: dict[int, int] = {}  # partition -> first epoch of chunks that count

    def apply(self, partition: int, records: Sequence[Any], epoch: int) -> int | None:
        """Apply one chunk. None when it is done; else the offset to seek to, and nothing of the chunk counts as done.

        ``epoch`` is the chunk's; after a seek was asked for, chunks fetched before it are passed over. Raises StoreError or
        LogError only when the worker is stopping.
        """
        if epoch < self._epochs.get(partition, 0):
            return None
        resume = self._resume_before(partition, records[0].offset, epoch)
        if resume is not None:
            return resume
        chunk = sort_chunk(self._contract, self._views, records)
        last = records[-1].offset
        if not self._retry(lambda: self._writer.apply(partition, last, chunk.admitted)):
            log.warning("online store went back in time source=%s partition=%d", self.source, partition)
            self._resumed.pop(partition, None)
            return self._resume_before(partition, last + 1, epoch)
        self._resumed.pop(partition, None)
        self._publisher.publish(valid_topic(self.source), partition, chunk.valid)
        self._publisher.publish(dead_letter_topic(self.source), partition, chunk.dead)
        self._publisher.wait()
        return None

    def check(self, partition: int, position: int, epoch: int) -> int | None:
        """For a partition read up to ``position``: the offset to seek to where the store lacks records, else None."""
        marks = self._writer.marks
        if marks.known(partition) and min(self._retry(lambda: self._writer.held(partition))) < marks.lowest(partition):
            log.warning("online store went back in time source=%s partition=%d", self.source, partition)
            marks.forget(partition)
            self._writer.forget_refreshes()
            self._resumed.pop(partition, None)
        return self._resume_before(partition, position, epoch)

    def forget(self, partition: int) -> None:
        """The partition was taken away."""
        self._writer.marks.forget(partition)
        self._publisher.forget(partition)
        self._resumed.pop(partition, None)

    def _resume_before(self, partition: int, offset: int, epoch: int) -> int | None:
        """Where to resume so that nothing before ``offset`` is missing from the sets; None where nothing is.

        Each resume point is asked for once: where the log itself has a gap (retention, control records of a producer's
        transaction) the chunk that comes after the seek is taken as it is.
        """
        marks = self._writer.marks
        if not marks.known(partition):
            marks.adopt(partition, self._retry(lambda: self._writer.held(partition)))
        resume = marks.lowest(partition) + 1
        if resume >= offset or self._resumed.get(partition) == resume:
            return None
        self._resumed[partition] = resume
        self._epochs[partition] = epoch + 1
        return resume

    def _retry(self, attempt: Any) -> Any:
        wait_s = RETRY_FIRST_S
        while True:
            try:
                return attempt()
            except StoreError as error:
                log.warning("online store failed, trying again in %.2f s: %s", wait_s, error)
                if self._stopping.wait(wait_s):
                    raise
                wait_s = min(2 * wait_s, RETRY_LAST_S)
