"""Concurrent requests scored together: what comes while a batch is read and scored is the next one. Nothing waits when none is.

While one batch is scored the store already answers for the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from feature_repo.online import Reading
from schemas.errors import RefusedError
from services.api.store import EventStore
from services.judge import Judge
from services.scoring import Arrived, Scored

__all__ = ["Batcher", "Sizing"]

log = logging.getLogger("api")
SMOOTH = 0.1
LONGEST_QUEUE = 10_000
TINY_S = 1e-9


class Sizing:
    """How many may go together: as many as are scored in ``target_s``, for so long whoever comes next waits; ``most`` at most.

    By what an event costs this process, not by how long it took: on a busy machine smaller batches would only cost more.

    >>> sizing = Sizing(64, target_s=0.005)
    >>> for _ in range(100): sizing.took(10, cpu_s=0.01, seconds=0.02)
    >>> sizing.size, round(sizing.wait_s(12), 2)
    (5, 0.08)
    """

    def __init__(self, most: int, target_s: float) -> None:
        self.size = self._most = most
        self.batch_s = 0.0
        self._event_s = 0.0
        self._target_s = target_s

    def took(self, n: int, cpu_s: float, seconds: float) -> None:
        self.batch_s += SMOOTH * (seconds - self.batch_s)
        self._event_s += SMOOTH * (cpu_s / n - self._event_s)
        self.size = max(1, min(self._most, int(self._target_s / max(self._event_s, TINY_S))))

    def wait_s(self, ahead: int) -> float:
        """About how long it takes until an event with ``ahead`` others before it is scored."""
        return self.batch_s * (2 + ahead // self.size)


class Waiting(msgspec.Struct, gc=False):
    arrived: Arrived
    deadline: float
    answer: Any  # asyncio.Future[Scored]


Write = Callable[[Sequence[Any], Sequence[Scored]], Awaitable[None] | None]


class Batcher:
    """``write`` logs events and what was scored; where it returns something to wait for, answers wait. ``scored`` hears (n, seconds)."""

    def __init__(self, judge: Judge, store: EventStore, write: Write, sizing: Sizing,
                 scored: Callable[[int, float], None] = lambda n, seconds: None) -> None:
        self._loop = asyncio.get_running_loop()
        self._judge, self._store, self._write, self._sizing, self._told = judge, store, write, sizing, scored
        self._queue: deque[Waiting] = deque()
        self._reading = self._begun = self._parked = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._highest: dict[str, tuple[int, ...]] = {}

    def submit(self, arrived: Arrived, deadline: float) -> asyncio.Future[Scored]:
        """The prediction, once it is made. ``deadline`` is monotonic time; what cannot make it is refused now (RefusedError)."""
        waits = len(self._queue)
        busy = waits > 0 or self._reading  # one that comes alone is always tried, or nothing would tell that it has become faster
        if waits >= LONGEST_QUEUE or (busy and time.monotonic() + self._sizing.wait_s(waits) > deadline):
            raise _overloaded(f"{waits} events wait, this one would not be scored in time")
        answer: asyncio.Future[Scored] = self._loop.create_future()
        self._queue.append(Waiting(arrived, deadline, answer))
        if not self._begun and not self._reading and not self._parked:
            self._begun = True
            self._loop.call_soon(self._begin)  # whatever this turn of the loop brings goes along
        return answer

    async def park(self) -> None:
        """Return when nothing is under way; nothing is begun before ``unpark``."""
        self._parked = True
        await self._idle.wait()

    def unpark(self) -> None:
        self._parked = False
        self._begin()

    def _begin(self) -> None:
        self._begun = False
        if self._reading or self._parked:
            return
        batch: list[Waiting] = []
        now = time.monotonic()
        while self._queue and len(batch) < self._sizing.size:
            one = self._queue.popleft()
            if one.answer.done():
                continue  # whoever asked has gone
            if one.deadline < now + (self._sizing.batch_s if batch else 0.0):
                one.answer.set_exception(_overloaded("the deadline would be missed"))
            else:
                batch.append(one)
        if not batch:
            if not self._queue:
                self._idle.set()
            return
        self._reading = True
        self._idle.clear()
        began = time.monotonic()
        wanted = self._judge.builder.wanted([one.arrived.event for one in batch])
        self._store.ask(wanted, lambda reading: self._answered(batch, reading, began))

    def _answered(self, batch: list[Waiting], reading: Reading | None, began: float) -> None:
        self._reading = False
        if self._queue and not self._parked and reading is not None:
            self._begin()  # without a store there is nothing to wait for meanwhile, and one would begin within the other
        busy = time.thread_time()
        self._score(batch, reading)
        self._sizing.took(len(batch), time.thread_time() - busy, seconds := time.monotonic() - began)
        self._told(len(batch), seconds)
        if not self._reading:
            self._idle.set()
            if self._queue and not self._begun and not self._parked:
                self._begun = True
                self._loop.call_soon(self._begin)

    def _score(self, batch: list[Waiting], reading: Reading | None) -> None:
        arrived = [one.arrived for one in batch]
        if reading is not None and self._went_back(reading):
            arrived = [msgspec.structs.replace(one, short=True) for one in arrived]
        try:
            results = self._judge.predict(arrived, reading, time.time_ns() // 1_000_000)
        except Exception as error:  # whoever asked is told, and the next batch may be better
            log.exception("a batch was not scored events=%d", len(batch))
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        held = self._write([one.event for one in arrived], results)
        if held is None:
            return _tell(batch, results)
        task = asyncio.ensure_future(held)
        task.add_done_callback(lambda done: _tell(batch, results, done.exception()))

    def _went_back(self, reading: Reading) -> bool:
        """Whether the store has less than it once had: it lost something, and is being rebuilt."""
        back = False
        for view, applied in zip(self._judge.spec.service.views, reading.applied, strict=True):
            before = self._highest.get(view.versioned_name, ())
            if any(now < then for now, then in zip(applied, before, strict=False)):
                back = True
            else:
                self._highest[view.versioned_name] = applied
        return back


def _tell(batch: Sequence[Waiting], results: Sequence[Scored], error: BaseException | None = None) -> None:
    for one, result in zip(batch, results, strict=True):
        if one.answer.done():
            continue
        if error is None:
            one.answer.set_result(result)
        else:
            one.answer.set_exception(error)


def _overloaded(fact: str) -> RefusedError:
    return RefusedError(503, "overloaded", fact, hint="try again in a moment: the same event is the same prediction", retry_s=1)
