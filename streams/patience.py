"""A store or a broker that does not answer is asked again, for as long as the worker is not told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from schemas.errors import LogError, StoreError

__all__ = ["patiently"]

log = logging.getLogger(__name__)
RETRY_FIRST_S, RETRY_LAST_S = 0.05, 2.0
Answer = TypeVar("Answer")


def patiently(stopping: threading.Event, attempt: Callable[[], Answer]) -> Answer:
    """What ``attempt`` returns in the end. Raises its StoreError or LogError when the worker is stopping."""
    wait_s = RETRY_FIRST_S
    while True:
        try:
            return attempt()
        except (StoreError, LogError) as error:
            log.warning("trying again in %.2f s: %s", wait_s, error)
            if stopping.wait(wait_s):
                raise
            wait_s = min(2 * wait_s, RETRY_LAST_S)
