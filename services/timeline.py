"""Event rows in order of arrival: events as they happen, what becomes known of them later when it does. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.models import Emission

__all__ = ["Arrivals", "Timeline"]

Times = np.ndarray[Any, np.dtype[np.int64]]
LATEST_MS = 4_102_444_800_000  # as in schemas/records.py; a row that claims more says nothing about when it arrived


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Rows (``services.inputs``) and when each arrives, ms, never falling."""

    rows: pa.RecordBatch
    arrival_ms: Times

    def __len__(self) -> int:
        return len(self.arrival_ms)

    def slice(self, first: int, stop: int | None = None) -> Arrivals:
        until = len(self) if stop is None else stop
        return Arrivals(self.rows.slice(first, until - first), self.arrival_ms[first:until])


class Timeline:
    """Reads rows as far as they are asked for.

    The order of the rows is the order of arrival. A row arrives at its event time, or with the row before it where that is later
    (``out_of_order`` counts those) or where its time cannot be read. Each of ``emissions`` arrives its delay after the row. A column
    ``arrives`` says when a row arrives in place of its event time, ``arrives.<topic>`` when that does of it; both never fall.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], emissions: Sequence[Emission]) -> None:
        self._batches = iter(batches)
        self._emissions = emissions
        self._ahead: Arrivals | None = None  # rows read, not taken
        self._waiting: dict[str, deque[Arrivals]] = {emission.topic: deque() for emission in emissions}  # of rows taken
        self._latest_ms: int | None = None
        self.out_of_order = 0

    def next_row_ms(self) -> int | None:
        """Arrival of the next row; None where there is no more."""
        while self._ahead is None or not len(self._ahead):
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._ahead = self._arrivals(batch)
        return int(self._ahead.arrival_ms[0])

    def read_until_ms(self, rows: int) -> int | None:
        """Arrival of the row about ``rows`` after the next one; None where there is no more."""
        if self.next_row_ms() is None or self._ahead is None:
            return None
        return int(self._ahead.arrival_ms[min(rows, len(self._ahead)) - 1])

    def next_waiting_ms(self) -> int | None:
        """The first arrival of what rows already taken become later; None where there is none."""
        return min((int(queue[0].arrival_ms[0]) for queue in self._waiting.values() if queue), default=None)

    def take(self, topic: str, until_ms: int) -> list[Arrivals]:
        """What arrives on ``topic`` at or before ``until_ms``; each is given once."""
        self._take_rows(until_ms)
        taken, queue = [], self._waiting[topic]
        while queue and queue[0].arrival_ms[0] <= until_ms:
            piece = queue.popleft()
            stop = int(np.searchsorted(piece.arrival_ms, until_ms, side="right"))
            taken.append(piece.slice(0, stop))
            if stop < len(piece):
                queue.appendleft(piece.slice(stop))
        return taken

    def _take_rows(self, until_ms: int) -> None:
        while (next_ms := self.next_row_ms()) is not None and next_ms <= until_ms:
            assert self._ahead is not None
            stop = int(np.searchsorted(self._ahead.arrival_ms, until_ms, side="right"))
            piece, self._ahead = self._ahead.slice(0, stop), self._ahead.slice(stop)
            for emission in self._emissions:
                sent = np.asarray(piece.rows[f"sent.{emission.topic}"])
                if sent.any():
                    rows = piece.rows if sent.all() else piece.rows.filter(pa.array(sent))
                    self._waiting[emission.topic].append(Arrivals(rows, _arrives(rows, emission, piece.arrival_ms[sent])))

    def _arrivals(self, batch: pa.RecordBatch) -> Arrivals:
        told = np.asarray(pc.fill_null(batch["arrives" if "arrives" in batch.schema.names else "event_time"], -1))
        usable = (told >= 0) & (told <= LATEST_MS)
        before = self._latest_ms
        if before is None:  # rows before the first that says a time arrive with it
            before = int(told[usable][0]) if usable.any() else 0
        arrival = np.maximum.accumulate(np.concatenate([[before], np.where(usable, told, before)]))[1:]
        self.out_of_order += int((usable & (told < arrival)).sum())
        if usable.any():
            self._latest_ms = int(arrival[-1]) if len(arrival) else before
        return Arrivals(batch, arrival)


def _arrives(rows: pa.RecordBatch, emission: Emission, arrival_ms: Times) -> Times:
    own = f"arrives.{emission.topic}"
    return np.asarray(rows[own]) if own in rows.schema.names else arrival_ms + emission.delay_ms
