"""``headrace up`` and, once it is up, everything until Ctrl-C, SIGTERM or ``headrace down``."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from schemas.errors import RuntimeFault
from services.commands import add_command, show
from services.words import whole

if TYPE_CHECKING:
    from schemas.settings import Settings
    from services.commands import Subparsers
    from services.runtime.home import RuntimeState

DETACHED_S = 300.0


class Stopped(BaseException):
    """A signal asked us to stop."""


def register(subparsers: Subparsers) -> None:
    parser = add_command(subparsers, "up", run, help="start Kafka, Redis, workers, scorers, loop, runner, guard and HTTP API",
                         example="headrace up --workers 2")
    parser.add_argument("--workers", type=whole(1), metavar="N", help="feature workers (setting HEADRACE_WORKERS)")
    parser.add_argument("--detach", action="store_true", help="return once everything is up; `headrace down` stops it")
    parser.add_argument("--engines-only", action="store_true", help="Kafka, Redis and the topics; none of our own processes")


def run(arguments: argparse.Namespace) -> None:
    from schemas.settings import read_settings

    settings = read_settings(workers=arguments.workers)
    began = time.monotonic()
    if arguments.detach:
        return _show(arguments, settings, _detached(settings, arguments), time.monotonic() - began)
    from services.runtime.embedded import Runtime
    from services.runtime.processes import ROLES

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        with Runtime(settings, () if arguments.engines_only else ROLES, lambda line: print(line, file=sys.stderr)) as runtime:
            _show(arguments, settings, runtime.state, time.monotonic() - began)
            runtime.wait()
    except Stopped:
        print("stopped", file=sys.stderr)


def _stop(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # stopping is bounded; a second signal would only leave it half done
    raise Stopped


def _show(arguments: argparse.Namespace, settings: Settings, state: RuntimeState, seconds: float) -> None:
    ends = "stop it with `headrace down`" + ("" if arguments.detach else " or Ctrl-C")
    facts, text = {**asdict(state), "seconds": round(seconds, 2)}, f"up in {seconds:.1f} s; {ends}"
    if state.api is not None:
        facts["api_key_file"] = str(key := settings.api / "admin.key")
        text += f"\nHTTP API at {state.api}, the first key is in {key}"
    show(arguments, facts, text)


def _detached(settings: Settings, arguments: argparse.Namespace) -> RuntimeState:
    """Run the same command in a session of its own; return its state once it is up."""
    from services.runtime.home import claim, running

    home = settings.home.resolve()
    log = home / "logs" / "up.log"
    with claim(home):  # refused here, before the log of the one that runs is touched
        log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "services.cli", "up", *(["--engines-only"] if arguments.engines_only else [])]
    environment = {**os.environ, "HEADRACE_WORKERS": str(settings.workers)}
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                                 env=environment)
    give_up, pause = time.monotonic() + DETACHED_S, threading.Event()
    while child.poll() is None and time.monotonic() < give_up:
        state = running(home)
        if state is not None and state.pid == child.pid and state.state == "up":
            return state
        pause.wait(0.05)
    child.terminate()
    raise RuntimeFault(f"headrace did not come up: {_last_line(log)}", hint=f"less {log}")


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("error: ")]
    return (told or lines or ["it said nothing"])[-1].removeprefix("error: ")
