"""Busy polling: the event loop does not sleep while requests come so close together that waking it would take longer than the pause.

A core that halts between two requests is woken by the next one, with cold caches; at 1,000 requests a second that is a sixth of what an
answer takes. So while the usual pause between them is shorter than ``within_s``, the loop asks for what is ready again and again. A process
that hears less than that sleeps as ever, and one that hears nothing any more is asleep after ``within_s``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

__all__ = ["BusyPoll"]

SMOOTH = 0.05
LONG_S = 1.0
"""A pause counts as no longer than that, so that a burst after a quiet night is known for one after some twenty requests."""


class BusyPoll:
    """``heard`` is called at each request. ``within_s`` 0: the loop always sleeps. To be made within the event loop."""

    def __init__(self, within_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._loop, self._within_s, self._clock = asyncio.get_running_loop(), within_s, clock
        self._last, self._pause_s = -LONG_S, LONG_S
        self.awake = False

    def heard(self) -> None:
        if not self._within_s:
            return
        now = self._clock()
        self._pause_s += SMOOTH * (min(now - self._last, LONG_S) - self._pause_s)
        self._last = now
        if self._pause_s < self._within_s and not self.awake:
            self.awake = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """One turn of the loop more that does not sleep."""
        if self._clock() - self._last < self._within_s:
            self._loop.call_soon(self._turn)
        else:
            self.awake = False
