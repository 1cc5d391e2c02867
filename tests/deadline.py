"""Wait for a fact instead of for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(ask: Callable[[], T], timeout_s: float = 30.0) -> T:
    """The first truthy answer of ``ask``. Raises AssertionError, with the last answer, after ``timeout_s``."""
    give_up, pause = time.monotonic() + timeout_s, threading.Event()
    while not (answer := ask()):
        assert time.monotonic() < give_up, f"not within {timeout_s} s; the last answer was {answer!r}"
        pause.wait(0.02)
    return answer
