"""Publishing in lockstep with those who process: a step of simulated time is sent when all of the last one has been applied.

Of each step (a, b] the outcomes go first, then the transactions, each in order of arrival and each closed by a clock record at b
on every partition. So whoever reads knows everything up to b before anything later is sent, and two runs decide alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import pyarrow as pa

from schemas.errors import LogError, SettingsError
from schemas.topics import OUTCOMES, TRANSACTIONS
from services.events import Encoder, Record
from services.publisher import Publisher, arrival_is_ours
from services.timeline import Timeline

__all__ = ["HOUR_MS", "Lockstep", "Progress"]

HOUR_MS = 3_600_000
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.02


class Progress(Protocol):
    def groups(self, source: str) -> Mapping[str, Mapping[int, int]]:
        """Per group that must keep up, partition -> last offset of topic ``source`` that it is done with."""
        ...


class Lockstep:
    """Publishes event rows step by step.

    Parameters
    ----------
    batches
        Rows as ``services.inputs.EVENT_ROWS`` has them, in order of arrival.
    source
        Where they come from: ``ce_source`` of their headers.
    patience_s
        How long no group may move while it is waited for.
    tell
        Called after each step.

    Raises SettingsError when the broker stamps arrival itself (simulated time would be lost), LogError when Kafka refuses or a
    group stands still.
    """

    def __init__(self, bootstrap: str, batches: Iterable[pa.RecordBatch], progress: Progress, *, source: str, label_delay_ms: int,
                 step_ms: int = HOUR_MS, patience_s: float = 60.0, tell: Callable[[Lockstep], None] = lambda lockstep: None) -> None:
        if not 0 < step_ms <= label_delay_ms:
            raise SettingsError(f"a step of {step_ms} ms is not between 1 ms and the label delay of {label_delay_ms} ms",
                                hint="an hour is usual: --step 1h")
        self._publisher = Publisher(bootstrap)
        if not arrival_is_ours(bootstrap):
            raise SettingsError("this Kafka's topics take their times from the broker, and lockstep brings its own",
                                hint="HEADRACE_TIME=replay headrace up, in a fresh HEADRACE_HOME; or --rate N for real time")
        self._timeline = Timeline(batches, label_delay_ms)
        self._encoder = Encoder(source)
        self._progress, self._step_ms, self._patience_s, self._tell = progress, step_ms, patience_s, tell
        self.now_ms: int | None = None
        """The simulated time: everything that arrived until then is published and applied."""
        self.sent: Counter[str] = Counter()
        self.steps = 0

    @property
    def out_of_order(self) -> int:
        """Rows that were earlier than one before them, and so arrived late."""
        return self._timeline.out_of_order

    def run_until(self, hold_ms: int) -> None:
        """Go on to simulated time ``hold_ms`` and hold there. Steps in which nothing arrives are passed over."""
        while (next_ms := self._next_ms()) is not None and next_ms <= hold_ms:
            self._step(min(self._end_of_step(next_ms), hold_ms))
        if self.now_ms is None or self.now_ms < hold_ms:
            self._step(hold_ms)

    def run(self, drain: bool = False) -> None:
        """Go on to the last transaction, with ``drain`` to the last outcome. Without it, outcomes known later stay unpublished."""
        while (next_ms := self._timeline.next_transaction_ms()) is not None:
            self.run_until(self._end_of_step(next_ms))
        while drain and (next_ms := self._timeline.next_outcome_ms()) is not None:
            self.run_until(self._end_of_step(next_ms))

    def _next_ms(self) -> int | None:
        times = (self._timeline.next_transaction_ms(), self._timeline.next_outcome_ms())
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def _end_of_step(self, at_ms: int) -> int:
        return -(-at_ms // self._step_ms) * self._step_ms

    def _step(self, end_ms: int) -> None:
        if self._send(OUTCOMES, self._encoder.outcomes(self._timeline.take_outcomes(end_ms)), end_ms):
            self._settle(OUTCOMES)
        self._send(TRANSACTIONS, self._encoder.transactions(self._timeline.take_transactions(end_ms)), end_ms)
        self._settle(OUTCOMES, TRANSACTIONS)
        self.now_ms = end_ms
        self.steps += 1
        self._tell(self)

    def _send(self, source: str, records: Iterable[Record], end_ms: int) -> int:
        number = self._publisher.send(records)
        self._publisher.clock(source, end_ms)
        self.sent[source] += number
        return number

    def _settle(self, *sources: str) -> None:
        """Return when everything is acknowledged and every group has applied the last clock records of ``sources``."""
        self._publisher.flush()
        for source in sources:
            self._wait(source, self._publisher.clocked(source))

    def _wait(self, source: str, target: Mapping[int, int]) -> None:
        began = moved = time.monotonic()
        behind: dict[tuple[str, int], int] = {}
        while True:
            before, behind = behind, {(group, partition): marks.get(partition, -1) for group, marks in self._progress.groups(source).items()
                                      for partition, offset in target.items() if marks.get(partition, -1) < offset}
            if not behind:
                return
            now = time.monotonic()
            if behind != before:
                moved = now
            elif now - moved > self._patience_s:
                (group, partition), at = min(behind.items())
                raise LogError(f"{group} stands at offset {at} of {source}[{partition}] for {self._patience_s:.0f} s, "
                               f"{target[partition] - at} records to go", hint="`headrace status` says what runs; its log says why")
            time.sleep(min(LONGEST_PAUSE_S, max(SHORTEST_PAUSE_S, (now - began) / 10)))
