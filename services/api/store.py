"""Reads of the online store from an event loop: one under way at a time, none waits longer than its timeout, no thread in between.

What is asked is sent at once; the loop does other things until the reply is there. After a fault the store counts as down: nobody waits
for it until a probe, in a thread, has had an answer.
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
        self._asked: tuple[Asked, int, Callable[[Reading | None], None]] | None = None
        self._timer: asyncio.TimerHandle | None = None
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
        place = self._reader.fileno
        assert place is not None
        self._asked = asked, place, answered
        self._loop.add_reader(place, self._readable)
        self._timer = self._loop.call_later(self._timeout_s, self._expired)

    async def close(self) -> None:
        self._closed = True
        if self._probing is not None:
            self._probing.cancel()
        if self._asked is None:
            self._reader.close()

    def _take(self) -> tuple[Asked, Callable[[Reading | None], None]]:
        assert self._asked is not None
        assert self._timer is not None
        asked, place, answered = self._asked
        self._asked = None
        self._timer.cancel()
        self._loop.remove_reader(place)
        return asked, answered

    def _readable(self) -> None:
        asked, answered = self._take()
        try:
            reading = self._reader.answer(asked)  # its first bytes are there; what is not yet is waited for as long as a read may take
        except StoreError as error:
            self._down(error)
            return answered(None)
        answered(reading)

    def _expired(self) -> None:
        _, answered = self._take()
        self._reader.close()
        self._down(StoreError(f"the online store did not answer in {self._timeout_s * 1000:.0f} ms"))
        answered(None)

    def _down(self, error: StoreError) -> None:
        if self.up:
            log.warning("scoring without the online store: %s", error)
        self.up = False
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
