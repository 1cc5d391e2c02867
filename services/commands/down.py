"""``headrace down``"""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from schemas.errors import RuntimeFault
from services.commands import add_command, show

if TYPE_CHECKING:
    from services.commands import Subparsers

STOP_S = 90.0


def register(subparsers: Subparsers) -> None:
    add_command(subparsers, "down", run, help="stop what `headrace up` started in this home folder; the data stays",
                example="headrace down")


def run(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings
    from services.runtime.home import holder

    home = read_settings().home.resolve()
    pid, began = holder(home), time.monotonic()
    if pid is None:
        return show(arguments, {"stopped": None}, f"headrace does not run in {home}")
    os.kill(pid, signal.SIGTERM)
    pause = threading.Event()
    while holder(home) == pid:
        if time.monotonic() - began > STOP_S:
            raise RuntimeFault(f"process {pid} did not stop within {STOP_S:.0f} s", hint=f"kill -9 {pid}: its children die with it")
        pause.wait(0.05)
    seconds = time.monotonic() - began
    show(arguments, {"stopped": pid, "seconds": round(seconds, 2)}, f"stopped in {seconds:.1f} s")
