"""Standing back: a process takes the processor time that others leave, also where the kernel shares it out between sessions first.

Where no control groups are used, Linux puts the processes of a session into one group (``sched_autogroup_enabled``), and groups get equal
shares whatever the niceness of those in them. Each process of `headrace up` and a command in a shell are different sessions.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import HeadraceError, RuntimeFault

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

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

    A nice process that computes all the time costs those beside it nearly as much as any other; rest does help (docs/decisions/0043).
    The child is interrupted when this process is, and killed when it dies. Where no kernel sees to that it does not rest: stopped, it
    would stay. Arguments, result and what ``work`` raises are pickled. Raises RuntimeFault where the child was killed.
    """
    context = get_context("spawn")
    mine, its = context.Pipe()
    child = context.Process(target=_child, args=(its, os.getpid(), work, arguments), daemon=True)
    child.start()
    its.close()
    assert child.pid is not None
    resting = sys.platform == "linux" and share < 1
    try:
        mine.recv()  # it dies with us from now on, also where it is stopped
        while not mine.poll(TURN_S * share if resting else None):
            _rest(child.pid, mine, TURN_S * (1 - share))
        done, found = mine.recv()
    except EOFError as error:
        child.join()
        raise RuntimeFault(f"the process that {work.__qualname__} ran in ended with exit code {child.exitcode}",
                           hint="-9 may mean that there was too little memory" if child.exitcode == -9 else "") from error
    except KeyboardInterrupt:
        with suppress(OSError):
            mine.send(None)
        child.join()
        raise
    child.join()
    if not done:
        raise found
    return found


def _rest(pid: int, mine: Connection, seconds: float) -> None:
    try:
        os.kill(pid, signal.SIGSTOP)
        mine.poll(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


def _child(its: Connection, parent: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    os.setsid()
    group_as_nice(os.getpid())
    its.send(None)
    threading.Thread(target=_listen, args=(its,), daemon=True).start()
    try:
        told = True, work(*arguments)
    except KeyboardInterrupt:
        return
    except Exception as error:
        told = False, _portable(error)
    its.send(told)


def _listen(its: Connection) -> None:
    """Interrupt the main thread, whichever call it waits in, when the parent says so; end when there is no parent."""
    try:
        its.recv()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    except EOFError:
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """``error``, or what can be told of it, with where it came from unless it is one of ours."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeFault(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
    if not isinstance(error, HeadraceError) or isinstance(error, RuntimeFault):
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
    return error
