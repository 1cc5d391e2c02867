"""How a process of ours that works until it is told to stop is set up: arguments, settings, log lines, signals, the word that it works."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from schemas.settings import Settings, read_settings
from services.runtime.endpoints import kafka_endpoint

__all__ = ["Worker", "log_to_stderr", "run_until_stopped", "say_ready", "set_by_signals"]


class Worker(Protocol):
    """``run`` returns soon after ``stopping`` is set, and has closed what it held."""

    stopping: threading.Event

    def run(self) -> None: ...


def run_until_stopped(parser: argparse.ArgumentParser, make: Callable[[Settings, argparse.Namespace], Worker], *,
                      at_once: bool = False) -> int:
    """Run what is made of the settings and the command line until SIGTERM or SIGINT; the process's exit code.

    Kafka is that of ``headrace up`` where the settings name none. ``at_once``: as ``set_by_signals`` has it.
    """
    log_to_stderr()
    settings, arguments = read_settings(), parser.parse_args()
    worker = make(settings.model_copy(update={"kafka": kafka_endpoint(settings)}), arguments)
    set_by_signals(worker.stopping, at_once)
    worker.run()
    return 0


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)


def set_by_signals(stopping: threading.Event, at_once: bool = False) -> None:
    """SIGTERM and SIGINT set ``stopping``. With ``at_once`` they end the process where it is: for work that takes minutes, may be killed at
    any point, and is taken up again by whoever comes back. (An exception would come up within Spark's client.)"""
    def stop(*_: object) -> None:
        stopping.set()
        if at_once:
            os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def say_ready(settings: Settings) -> None:
    """Tell the supervisor, if there is one, that this process works."""
    if settings.ready_file is not None:
        settings.ready_file.parent.mkdir(parents=True, exist_ok=True)
        settings.ready_file.write_text(str(os.getpid()))
