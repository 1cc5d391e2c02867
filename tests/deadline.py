"""Wait for a fact instead of for a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 180.0
"""A machine may be four times slower than another, and stand still for seconds. Only what fails takes so long."""


def eventually(ask: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
    """The first truthy answer of ``ask``. Raises AssertionError, with the last answer, after ``timeout_s``."""
    give_up, pause = time.monotonic() + timeout_s, threading.Event()
    while True:
        late = time.monotonic() > give_up  # before it is asked: what has come true meanwhile counts
        if answer := ask():
            return answer
        assert not late, f"not within {timeout_s} s; the last answer was {answer!r}"
        pause.wait(0.02)
