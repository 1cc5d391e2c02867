"""Publishing in lockstep with those who process: a step of simulated time is sent when all of the last one has been applied.

Of each step (a, b] what scoring reads goes first (outcomes), then what is scored (transactions), each in order of arrival and each
closed by a clock record at b on every partition. So whoever reads knows everything up to b before anything later is sent, and two
runs decide alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import pyarrow as pa

from feature_repo.models import Emission
from schemas.errors import LogError, SettingsError
from services.events import Encoder, Record
from services.publisher import Publisher
from services.timeline import Timeline
from streams.clock import arrival_is_ours

__all__ = ["HOUR_MS", "Lockstep", "Progress"]

HOUR_MS = 3_600_000
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.02


class Progress(Protocol):
    def groups(self, source: str) -> Mapping[str, Mapping[int, int]]:
        """Per group that must keep up, partition -> last offset of topic ``source`` that it is done with."""
        ...


class Ticks(Protocol):
    topic: str

    def next_ms(self, at_ms: int) -> int:
        """The first time at or after ``at_ms`` at which something is asked."""
        ...

    def due(self, at_ms: int) -> Iterable[Record]:
        """What is asked then."""
        ...


class Pace(Protocol):
    def next_ms(self, at_ms: int) -> int | None:
        """The first time after ``at_ms`` at which the clock has to wait."""
        ...

    def wait(self, at_ms: int) -> None: ...


class Lockstep:
    """Publishes event rows step by step.

    Parameters
    ----------
    batches
        Rows as ``services.inputs`` makes them, in order of arrival.
    emissions
        What each row becomes, in the order in which a step publishes it.
    ticks
        What is asked at certain times of all that was applied by then; published last.
    pace
        Who else is waited for at certain times; may be set when it begins to matter.
    source
        Where they come from: ``ce_source`` of their headers.
    patience_s
        How long no group may move while it is waited for.
    tell
        Called after each step.

    Raises SettingsError when the broker stamps arrival itself (simulated time would be lost), LogError when Kafka refuses or a
    group stands still.
    """

    def __init__(self, bootstrap: str, batches: Iterable[pa.RecordBatch], progress: Progress, *, source: str, emissions: Sequence[Emission],
                 step_ms: int = HOUR_MS, patience_s: float = 60.0, ticks: Ticks | None = None, pace: Pace | None = None,
                 tell: Callable[[Lockstep], None] = lambda lockstep: None) -> None:
        shortest_ms = min((emission.delay_ms for emission in emissions if emission.delay_ms), default=step_ms)
        if not 0 < step_ms <= shortest_ms:
            raise SettingsError(f"a step of {step_ms} ms is not between 1 ms and the label delay of {shortest_ms} ms",
                                hint="an hour is usual: --step 1h")
        self._ticks, self.pace = ticks, pace
        self._topics = [*(emission.topic for emission in emissions), *([ticks.topic] if ticks is not None else [])]
        self._publisher = Publisher(bootstrap, self._topics)
        if not arrival_is_ours(bootstrap, self._topics):
            raise SettingsError("this Kafka's topics take their times from the broker, and lockstep brings its own",
                                hint="HEADRACE_TIME=replay headrace up, in a fresh HEADRACE_HOME; or in real time: replay FILE --rate N")
        self._timeline = Timeline(batches, emissions)
        self._encoders = {emission.topic: Encoder(emission.topic, source) for emission in emissions}
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
        """Go on to the last row, with ``drain`` to the last outcome. Without it, outcomes known later stay unpublished."""
        while (next_ms := self._timeline.next_row_ms()) is not None:
            self.run_until(self._end_of_step(next_ms))
        while drain and (next_ms := self._timeline.next_waiting_ms()) is not None:
            self.run_until(self._end_of_step(next_ms))

    def _next_ms(self) -> int | None:
        row_ms = self._timeline.next_row_ms()
        times = (row_ms, self._timeline.next_waiting_ms(), self._tick_ms(row_ms) if row_ms is not None else None)
        return min((at_ms for at_ms in times if at_ms is not None), default=None)

    def _tick_ms(self, at_ms: int) -> int | None:
        """The next tick; before the first step the first one at or after ``at_ms``."""
        return self._ticks.next_ms(at_ms if self.now_ms is None else self.now_ms + 1) if self._ticks is not None else None

    def _end_of_step(self, at_ms: int) -> int:
        end_ms, tick_ms, wait_ms = -(-at_ms // self._step_ms) * self._step_ms, self._tick_ms(at_ms), self._wait_ms()
        return min(each for each in (end_ms, tick_ms, wait_ms) if each is not None and each >= at_ms)

    def _wait_ms(self) -> int | None:
        return self.pace.next_ms(self.now_ms) if self.pace is not None and self.now_ms is not None else None

    def _step(self, end_ms: int) -> None:
        *read, scored = self._topics
        if any([self._send(topic, end_ms) for topic in read]):
            self._settle(*read)
        self._send(scored, end_ms)
        self._settle(*self._topics)
        wait_ms = self._wait_ms()
        if self.pace is not None and wait_ms is not None and wait_ms <= end_ms:
            self.pace.wait(end_ms)
        self.now_ms = end_ms
        self.steps += 1
        self._tell(self)

    def _send(self, topic: str, end_ms: int) -> int:
        if self._ticks is not None and topic == self._ticks.topic:
            number = self._publisher.send(self._ticks.due(end_ms) if self._ticks.next_ms(end_ms) == end_ms else ())
        else:
            number = self._publisher.send(self._encoders[topic].records(self._timeline.take(topic, end_ms)))
        self._publisher.clock(topic, end_ms)
        self.sent[topic] += number
        return number

    def _settle(self, *topics: str) -> None:
        """Return when everything is acknowledged and every group has applied the last clock records of ``topics``."""
        self._publisher.flush()
        for topic in topics:
            self._wait(topic, self._publisher.clocked(topic))

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
