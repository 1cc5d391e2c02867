"""The home folder: who runs in it (a lock) and what runs in it (``runtime.json``)."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from schemas.errors import RuntimeFault

__all__ = ["ProcessState", "RuntimeState", "claim", "holder", "read_state", "running", "write_state"]

CLAIM_S = 0.5


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One child. ``state`` is starting, healthy, stopping, waiting (for its next start) or stopped."""

    name: str
    pid: int | None
    state: str
    restarts: int
    log: str


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """What ``runtime.json`` says: ``kafka``, ``redis`` and ``api`` are those that run here, None when they are external, or not run."""

    pid: int
    state: Literal["starting", "up", "stopping"]
    kafka: str | None
    redis: str | None
    processes: tuple[ProcessState, ...]
    api: str | None = None


@contextmanager
def claim(home: Path) -> Iterator[None]:
    """Hold ``home`` for this process. Raises RuntimeFault, naming the holder, when another one does."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        give_up = time.monotonic() + CLAIM_S  # `holder` takes the lock for an instant
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise RuntimeFault(f"headrace runs in {home} already, as process {lock.read().strip() or 'unknown'}",
                                       hint="`headrace down` stops it; HEADRACE_HOME names another folder") from None
                time.sleep(0.02)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)


def holder(home: Path) -> int | None:
    """The pid of the runtime that holds ``home``; None when none does, whatever ``runtime.json`` says."""
    try:
        with (home / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


def write_state(home: Path, state: RuntimeState) -> None:
    """Replace ``runtime.json`` in one step."""
    draft = home / "runtime.json.draft"
    draft.write_text(json.dumps(asdict(state), indent=1))
    draft.replace(home / "runtime.json")


def running(home: Path) -> RuntimeState | None:
    """The state of the runtime that holds ``home`` now; None when none does, or it has only just begun."""
    pid, state = holder(home), read_state(home)
    return state if state and state.pid == pid else None  # a killed one leaves its state behind


def read_state(home: Path) -> RuntimeState | None:
    """The last state written; ``running`` says whether it is still true."""
    try:
        told = json.loads((home / "runtime.json").read_text())
    except FileNotFoundError:
        return None
    return RuntimeState(**{**told, "processes": tuple(ProcessState(**process) for process in told["processes"])})
