"""Run a command that dies with its parent: ``python tether.py PARENT_PID COMMAND [ARGUMENT ...]``.

Run by its path and without site packages, so that it costs 10 ms. An exec wrapper and not a ``preexec_fn``: that would run
Python between fork and exec of a process with threads, where any lock may be held for ever.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        # SIGKILL: a child that ignores SIGTERM would stay. Logs and AOF survive it, the page cache is not the process's.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            sys.exit("the parent is gone")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec would pass that on
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
