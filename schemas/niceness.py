"""Standing back: a process takes the processor time that others leave, also where the kernel shares it out between sessions first.

Where no control groups are used, Linux puts the processes of a session into one group (``sched_autogroup_enabled``), and groups get equal
shares whatever the niceness of those in them. Each process of `headrace up` and a command in a shell are different sessions.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["group_as_nice", "stand_back"]


def stand_back(niceness: int) -> None:
    """Give this process ``niceness`` at least, and its session's group too where it leads one: a shell's is not ours to change."""
    os.nice(max(0, niceness - os.nice(0)))
    if os.getsid(0) == os.getpid():
        group_as_nice(os.getpid())


def group_as_nice(pid: int) -> None:
    """Give the group of ``pid``, which leads its session, the niceness of this process. No group, nothing to do."""
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(os.nice(0)))
