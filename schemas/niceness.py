"""Standing back: a process takes the processor time that others leave, also where the kernel shares it out between sessions first.

Where no control groups are used, Linux puts the processes of a session into one group (``sched_autogroup_enabled``), and groups get equal
shares whatever the niceness of those in them. Each process of `headrace up` and a command in a shell are different sessions.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from schemas.errors import RuntimeFault

__all__ = ["aside", "group_as_nice", "stand_back"]

TURN_S = 0.02
"""Of running and resting: a few milliseconds of running are no longer than what else makes an event wait."""
PR_SET_PDEATHSIG = 1


def stand_back(niceness: int) -> None:
    """Give this process ``niceness`` at least, and its session's group too where it leads one: a shell's is not ours to change."""
    os.nice(max(0, niceness - os.nice(0)))
    if os.getsid(0) == os.getpid():
        group_as_nice(os.getpid())


def group_as_nice(pid: int) -> None:
    """Give the group of ``pid``, which leads its session, the niceness of this process. No group, nothing to do."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(os.nice(0)))


def aside(work: Callable[..., Any], *arguments: Any, share: float = 1.0) -> Any:
    """``work(*arguments)`` in a child that leads a session of its own, whose group is as nice as this process, for ``share`` of the time.

    A nice process that computes all the time costs those beside it nearly as much as any other: it is not interrupted at once, and two
    processors may be one. Rest does help (docs/decisions/0043). The child is interrupted when this process is, and killed when it dies.
    Arguments, result and what ``work`` raises are pickled. Raises RuntimeFault where the child was killed.
    """
    context = get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(tell, os.getpid(), work, arguments), daemon=True)
    child.start()
    tell.close()
    assert child.pid is not None
    try:
        while not told.poll(TURN_S * share if share < 1 else None):
            os.kill(child.pid, signal.SIGSTOP)
            told.poll(TURN_S * (1 - share))
            os.kill(child.pid, signal.SIGCONT)
        done, found = told.recv()
    except EOFError as error:
        child.join()
        raise RuntimeFault(f"the process that {work.__qualname__} ran in ended with exit code {child.exitcode}",
                           hint="-9 may mean that there was too little memory") from error
    except KeyboardInterrupt:
        for each in (signal.SIGCONT, signal.SIGINT):
            os.kill(child.pid, each)
        child.join()
        raise
    child.join()
    if not done:
        raise found
    return found


def _child(tell: Any, parent: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    group_as_nice(os.getpid())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        told = True, work(*arguments)
    except KeyboardInterrupt:
        return
    except Exception as error:
        told = False, error
    tell.send(told)
