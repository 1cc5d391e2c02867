"""Reads of the online store from an event loop: one under way at a time, none waits longer than its timeout, no thread in between.

What is asked is sent at once; the loop does other things until the reply is there. After a fault the store counts as down: nobody waits
for it until a probe, in a thread, has had an answer. The loop watches one socket for as long as it lives, with one timer: watching it and
setting a timer anew for each read took longer than the read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from feature_repo.online import Asked, Reading, SetReader
from feature_repo.views import FeatureView
from schemas.errors import StoreError

__all__ = ["EventStore"]

log = logging.getLogger("api")
PROBE_EVERY_S = 0.2
Wanted = Sequence[tuple[FeatureView, Sequence[str]]]


class EventStore:
    """``views`` are those that a probe reads; ``timeout_s`` is how long a read may take."""

    def __init__(self, reader: SetReader, views: Callable[[], Sequence[FeatureView]], timeout_s: float, executor: Executor) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader, self._views, self._timeout_s, self._executor = reader, views, timeout_s, executor
        self._asked: tuple[Asked, Callable[[Reading | None], None]] | None = None
        self._watched: int | None = None
        self._deadline = 0.0
        self._timing = False
        self._probing: asyncio.Task[None] | None = None
        self.up = False
        self._closed = False

    async def connect(self) -> bool:
        """Whether the store answers."""
        try:
            await self._loop.run_in_executor(self._executor, self._probe)
            self.up = True
        except StoreError as error:
            self._down(error)
        return self.up

    def ask(self, wanted: Wanted, answered: Callable[[Reading | None], None]) -> None:
        """``answered`` hears what the store said, or None: at once where it is down, else when ``timeout_s`` is over."""
        assert self._asked is None
        if not self.up:
            return answered(None)
        try:
            asked = self._reader.ask(wanted)
        except StoreError as error:
            self._down(error)
            return answered(None)
        self._asked = asked, answered
        if self._watched is None:
            self._watched = self._reader.fileno
            assert self._watched is not None
            self._loop.add_reader(self._watched, self._readable)
        self._deadline = self._loop.time() + self._timeout_s
        if not self._timing:
            self._time_out_at(self._deadline)

    async def close(self) -> None:
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
        if self._asked is None:
            self._unwatch()
            self._reader.close()

    def _readable(self) -> None:
        if self._asked is None:
            return self._unwatch()  # nobody asked: it is being closed, as the next read will find
        (asked, answered), self._asked = self._asked, None
        try:
            reading = self._reader.answer(asked)  # its first bytes are there; what is not yet is waited for as long as a read may take
        except StoreError as error:
            self._down(error)
            return answered(None)
        answered(reading)

    def _time_out_at(self, at: float) -> None:
        self._timing = True
        self._loop.call_at(at, self._timed_out)

    def _timed_out(self) -> None:
        """Of the read that the timer was set for, or of a later one: then it is set again."""
        self._timing = False
        if self._asked is None:
            return
        if self._loop.time() < self._deadline:
            return self._time_out_at(self._deadline)
        (_, answered), self._asked = self._asked, None
        self._unwatch()
        self._reader.close()
        self._down(StoreError(f"the online store did not answer in {self._timeout_s * 1000:.0f} ms"))
        answered(None)

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._loop.remove_reader(self._watched)
            self._watched = None

    def _down(self, error: StoreError) -> None:
        if self.up:
            log.warning("scoring without the online store: %s", error)
        self.up = False
        self._unwatch()
        if self._probing is None and not self._closed:
            self._probing = self._loop.create_task(self._probe_until_up())

    async def _probe_until_up(self) -> None:
        """Nobody else uses the reader meanwhile."""
        while not self._closed:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                await self._loop.run_in_executor(self._executor, self._probe)
            except StoreError:
                continue
            log.warning("the online store answers again")
            self.up, self._probing = True, None
            return

    def _probe(self) -> None:
        self._reader.read([(view, ["-"]) for view in self._views()])
