"""Children started in stages, watched, started again with back-off, stopped in reverse; none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from schemas.errors import RuntimeFault
from services.runtime import backoff, tether
from services.runtime.home import ProcessState

__all__ = ["Process", "Supervisor"]

TICK_S = 0.05
FAILURES_AT_START = 3
LAST_BYTES = 600


@dataclass(frozen=True, slots=True)
class Process:
    """What to run. ``healthy(pid)`` asks the thing itself, within a second or so, and says False when it does not answer."""

    name: str
    argv: tuple[str, ...]
    healthy: Callable[[int], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 30.0
    stop_s: float = 10.0


@dataclass(slots=True)
class Child:
    process: Process
    log: Path
    wanted: bool = True
    popen: subprocess.Popen[bytes] | None = None
    state: str = "waiting"
    since: float = 0.0
    not_before: float = 0.0
    failures: int = 0
    starts: int = 0

    def told(self) -> ProcessState:
        pid = self.popen.pid if self.popen else None
        return ProcessState(self.process.name, pid, self.state, max(0, self.starts - 1), str(self.log))


class Supervisor:
    """Every child is forked, watched and stopped by one thread that lives as long as they do.

    That is no matter of taste: the kernel sends a parent-death signal when the *thread* that forked ends, not its process.
    A child that runs but does not answer is left alone once it was healthy: stalling is not ours to cure by killing.

    ``changed`` is called, in that thread, with the state of all children whenever one changes.
    """

    def __init__(self, logs: Path, changed: Callable[[tuple[ProcessState, ...]], None]) -> None:
        self._logs = logs
        self._report = changed
        self._stages: list[list[Child]] = []
        self._news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self, stage: Sequence[Process]) -> None:
        """Start the processes of one stage together; return when all are healthy.

        Raises RuntimeFault with the end of its log when one fails three times: it ended, or did not answer in ``start_s``.
        """
        children = [Child(process, self._logs / f"{process.name}.log") for process in stage]
        self._stages.append(children)
        if not self._thread.is_alive():
            self._logs.mkdir(parents=True, exist_ok=True)
            self._thread.start()
        self._await_health(children)

    def states(self) -> tuple[ProcessState, ...]:
        return tuple(child.told() for stage in self._stages for child in stage)

    def hold(self, name: str) -> None:
        """Stop one child and leave it stopped until ``release``."""
        child = self._child(name)
        child.wanted = False
        self._wait(lambda: child.state == "stopped")

    def release(self, name: str) -> None:
        """Start a held child again; return when it is healthy."""
        child = self._child(name)
        child.not_before, child.failures, child.wanted = 0.0, 0, True
        self._await_health([child])

    def stop(self) -> None:
        """Stop stage after stage, the last one first, each child with SIGTERM and after its bound with SIGKILL."""
        try:
            for stage in reversed(self._stages):
                for child in stage:
                    child.wanted = False
                self._wait(lambda stage=stage: all(child.state == "stopped" for child in stage))  # type: ignore[misc]
        finally:
            self._ended = True
            if self._thread.is_alive():
                self._thread.join()

    def wait(self) -> None:
        """Block while the supervisor works; RuntimeFault when it does no more."""
        # Not Thread.join: Python 3.11 takes a thread whose join a signal's exception interrupts for ended (bpo-45274).
        self._wait(lambda: False)

    def _child(self, name: str) -> Child:
        return next(child for stage in self._stages for child in stage if child.process.name == name)

    def _await_health(self, children: Sequence[Child]) -> None:
        self._wait(lambda: all(child.state == "healthy" for child in children) or any(map(_hopeless, children)))
        for child in filter(_hopeless, children):
            raise RuntimeFault(f"{child.process.name} does not start; its log ends with: {_tail(child.log)}",
                               hint=f"less {child.log}")

    def _wait(self, satisfied: Callable[[], bool]) -> None:
        with self._news:
            while not self._news.wait_for(satisfied, timeout=1.0):
                if not self._thread.is_alive():
                    raise RuntimeFault("the supervisor ended, and with it every child", hint="its traceback is on stderr")

    def _supervise(self) -> None:
        pause = threading.Event()
        while not self._ended:
            for stage in self._stages:
                for child in stage:
                    self._step(child, time.monotonic())
            pause.wait(TICK_S)

    def _step(self, child: Child, now: float) -> None:
        if child.popen is None:
            if not child.wanted:
                self._settle(child, "stopped", now)
            elif now >= child.not_before:
                self._spawn(child, now)
        elif child.popen.poll() is not None:
            self._bury(child, now)
        elif not child.wanted:
            if child.state != "stopping":
                child.popen.terminate()
                self._settle(child, "stopping", now)
            elif now - child.since > child.process.stop_s:
                os.killpg(child.popen.pid, signal.SIGKILL)
        elif child.state == "starting":
            if child.process.healthy(child.popen.pid):
                self._settle(child, "healthy", now)
            elif now - child.since > child.process.start_s:
                os.killpg(child.popen.pid, signal.SIGKILL)

    def _spawn(self, child: Child, now: float) -> None:
        command = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *child.process.argv]
        with child.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for us, who stop the children in order.
            child.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                           env={**os.environ, **child.process.env})
        child.starts += 1
        self._note(child, f"started as process {child.popen.pid}")
        self._settle(child, "starting", now)

    def _bury(self, child: Child, now: float) -> None:
        assert child.popen is not None
        code, child.popen = child.popen.returncode, None
        self._note(child, f"ended with {code}")
        if not child.wanted:
            return self._settle(child, "stopped", now)
        child.failures = backoff.failures_after(child.failures, now - child.since if child.state == "healthy" else 0.0)
        child.not_before = now + backoff.delay_s(child.failures)
        self._settle(child, "waiting", now)

    def _settle(self, child: Child, state: str, now: float) -> None:
        if child.state == state:
            return
        with self._news:
            child.state, child.since = state, now
            self._news.notify_all()
        self._report(self.states())

    def _note(self, child: Child, event: str) -> None:
        with child.log.open("a") as log:
            log.write(f"--- {time.strftime('%Y-%m-%dT%H:%M:%S')} headrace: {child.process.name} {event}\n")


def _hopeless(child: Child) -> bool:
    return child.state == "waiting" and child.failures >= FAILURES_AT_START


def _tail(log: Path) -> str:
    said = log.read_bytes()[-LAST_BYTES:].decode(errors="replace") if log.exists() else ""
    return " | ".join(line.strip() for line in said.splitlines() if line.strip() and not line.startswith("--- "))
