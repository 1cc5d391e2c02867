"""Applies chunks of one source: sort, append to the sets, then publish.

The order is the promise: records are in the sets before ``<source>.valid`` has them, so a reader of the valid topic finds every event
that came before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from feature_repo.appends import SetWriter
from feature_repo.marks import NOTHING
from feature_repo.views import FeatureView
from schemas.contracts import Contract
from schemas.topics import dead_letter_topic, valid_topic
from streams.publisher import Publisher
from streams.resuming import Resuming
from streams.sort import sort_chunk

__all__ = ["Applier"]


class Applier(Resuming):
    """The feature worker of one source. ``writer`` is the write side of the online store for ``views``; for the rest see Resuming."""

    def __init__(self, source: str, contract: Contract, views: Sequence[FeatureView], writer: SetWriter, publisher: Publisher,
                 next_record: Callable[[int, int], int], log_start: Callable[[int], int], stopping: threading.Event) -> None:
        super().__init__(source, writer.marks, next_record, log_start, stopping)
        self._contract, self._views = contract, views
        self._writer, self._publisher = writer, publisher

    def feed(self, views: Sequence[FeatureView], writer: SetWriter) -> None:
        """Go on with other versions of the views. What lies between their marks and what is done is read again."""
        self._writer.close()
        self._views, self._writer, self._marks = views, writer, writer.marks

    def forget(self, partition: int) -> None:
        super().forget(partition)
        self._publisher.forget(partition)

    def _work(self, partition: int, records: Sequence[Any]) -> bool:
        chunk = sort_chunk(self._contract, self._views, (self.topic, partition), records)
        short = self._writer.marks.lowest(partition) == NOTHING and self._retry(lambda: self._log_start(partition)) > 0
        began = (records[0].offset, records[0].timestamp) if short else None
        if not self._retry(lambda: self._writer.apply(partition, records[-1].offset, chunk.admitted, began, records[-1].timestamp)):
            return False
        self._publisher.publish(valid_topic(self.topic), partition, chunk.valid)
        self._publisher.publish(dead_letter_topic(self.topic), partition, chunk.dead)
        return True

    def flush(self) -> None:
        """Return when what the chunks gave is acknowledged. Raises LogError as ``apply`` does."""
        self._publisher.wait()

    def _held(self, partition: int) -> list[int]:
        return self._writer.held(partition)

    def _went_back(self) -> None:
        self._writer.forget_refreshes()
