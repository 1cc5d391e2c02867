"""Event rows in order of arrival: transactions as they happen, outcomes when they become known. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["Arrivals", "Timeline"]

LATEST_MS = 4_102_444_800_000  # as in schemas/records.py; a row that claims more says nothing about when it arrived


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Rows (``services.inputs.EVENT_ROWS``) and when each arrives, ms, never falling."""

    rows: pa.RecordBatch
    arrival_ms: np.ndarray[Any, np.dtype[np.int64]]

    def __len__(self) -> int:
        return len(self.arrival_ms)

    def slice(self, first: int, stop: int | None = None) -> Arrivals:
        until = len(self) if stop is None else stop
        return Arrivals(self.rows.slice(first, until - first), self.arrival_ms[first:until])


class Timeline:
    """Reads rows as far as they are asked for.

    The order of the rows is the order of arrival. A transaction arrives at its event time, or with the row before it where that
    is later (``out_of_order`` counts those) or where its time cannot be read. Its outcome arrives ``label_delay_ms`` after it.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], label_delay_ms: int) -> None:
        self._batches = iter(batches)
        self._label_delay_ms = label_delay_ms
        self._ahead: Arrivals | None = None  # transactions read, not taken
        self._pending: deque[Arrivals] = deque()  # outcomes of those taken
        self._latest_ms: int | None = None
        self.out_of_order = 0

    def next_transaction_ms(self) -> int | None:
        """Arrival of the next transaction; None where there is no more."""
        while self._ahead is None or not len(self._ahead):
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._ahead = self._arrivals(batch)
        return int(self._ahead.arrival_ms[0])

    def read_until_ms(self, rows: int) -> int | None:
        """Arrival of the transaction about ``rows`` after the next one; None where there is no more."""
        if self.next_transaction_ms() is None or self._ahead is None:
            return None
        return int(self._ahead.arrival_ms[min(rows, len(self._ahead)) - 1])

    def next_outcome_ms(self) -> int | None:
        """Arrival of the next outcome among those of the transactions taken; None where there is none."""
        return int(self._pending[0].arrival_ms[0]) if self._pending else None

    def take_transactions(self, until_ms: int) -> list[Arrivals]:
        """The transactions that arrive at or before ``until_ms``; each is given once."""
        taken = []
        while (next_ms := self.next_transaction_ms()) is not None and next_ms <= until_ms:
            assert self._ahead is not None
            stop = int(np.searchsorted(self._ahead.arrival_ms, until_ms, side="right"))
            piece, self._ahead = self._ahead.slice(0, stop), self._ahead.slice(stop)
            taken.append(piece)
            self._expect_outcomes(piece)
        return taken

    def take_outcomes(self, until_ms: int) -> list[Arrivals]:
        """The outcomes that arrive at or before ``until_ms``, of transactions already taken; each is given once."""
        taken = []
        while self._pending and self._pending[0].arrival_ms[0] <= until_ms:
            piece = self._pending.popleft()
            stop = int(np.searchsorted(piece.arrival_ms, until_ms, side="right"))
            taken.append(piece.slice(0, stop))
            if stop < len(piece):
                self._pending.appendleft(piece.slice(stop))
        return taken

    def _expect_outcomes(self, piece: Arrivals) -> None:
        known = np.asarray(pc.or_(pc.is_valid(piece.rows["fraud"]), pc.is_valid(piece.rows["refused_outcome"])))
        if known.any():
            rows = piece.rows if known.all() else piece.rows.filter(pa.array(known))
            self._pending.append(Arrivals(rows, piece.arrival_ms[known] + self._label_delay_ms))

    def _arrivals(self, batch: pa.RecordBatch) -> Arrivals:
        told = np.asarray(pc.fill_null(batch["event_time"], -1))
        usable = (told >= 0) & (told <= LATEST_MS)
        before = self._latest_ms
        if before is None:  # rows before the first that says a time arrive with it
            before = int(told[usable][0]) if usable.any() else 0
        arrival = np.maximum.accumulate(np.concatenate([[before], np.where(usable, told, before)]))[1:]
        self.out_of_order += int((usable & (told < arrival)).sum())
        if usable.any():
            self._latest_ms = int(arrival[-1]) if len(arrival) else before
        return Arrivals(batch, arrival)
