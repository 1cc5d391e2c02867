"""One process at work on a backlog, seen from outside: how far, how fast, at what cost, how large."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from services.runtime.embedded import Runtime

__all__ = ["Course", "Moment", "release_and_watch"]

EVERY_S = 0.01
PATIENCE_S = 120.0
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Moment:
    done: int
    at_s: float
    cpu_s: float
    rss_mb: float


@dataclass(frozen=True)
class Course:
    """``moments[share]`` is when that share of the backlog was first seen done. Rates are those from 10 % to the end."""

    moments: dict[float, Moment]

    @property
    def events_per_s(self) -> float:
        first, last = self.moments[SHARES[0]], self.moments[1.0]
        return (last.done - first.done) / (last.at_s - first.at_s)

    @property
    def cpu_us(self) -> float:
        """CPU of this process an event, all its threads."""
        first, last = self.moments[SHARES[0]], self.moments[1.0]
        return (last.cpu_s - first.cpu_s) / (last.done - first.done) * 1e6


def release_and_watch(runtime: Runtime, name: str, done: Callable[[], int], total: int) -> Course:
    """Let the held child ``name`` go and watch it until ``done()`` is ``total``. Raises TimeoutError when it gets no further."""
    before = done()
    moments: dict[float, Moment] = {}
    starting = threading.Thread(target=runtime.release, args=(name,), name=f"release-{name}")
    starting.start()
    try:
        reached, moved = before, time.monotonic()
        while reached < total:
            time.sleep(EVERY_S)
            reached, known = done(), reached
            now = time.monotonic()
            if reached > known:
                moved = now
                share = (reached - before) / (total - before)
                due = [each for each in SHARES if each <= share and each not in moments]
                if due:
                    seen = _look(runtime.pid(name), reached, now)
                    moments.update(dict.fromkeys(due, seen))
            if now - moved > PATIENCE_S:
                raise TimeoutError(f"{name} stopped at {reached} of {total}")
    finally:
        starting.join()
    if moments[SHARES[0]].done == total:
        raise TimeoutError(f"{total - before} events were done before anybody looked; measure more of them")
    return Course(moments)


def _look(pid: int | None, done: int, now: float) -> Moment:
    process = psutil.Process(pid)
    with process.oneshot():
        cpu = process.cpu_times()
        return Moment(done, now, cpu.user + cpu.system, process.memory_info().rss / 2**20)
