"""Commits to a table that others write too: the later one of two that conflict does its work again, on what the table holds by then."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from schemas.errors import JobError

__all__ = ["ATTEMPTS", "retry_conflicts"]

T = TypeVar("T")
ATTEMPTS = 40
"""A deletion that takes longer than an archive's pause loses more often than not: twelve in a row were seen."""
FIRST_S, LAST_S = 0.1, 5.0


def retry_conflicts(attempt: Callable[[], T], conflicts: Counter[str], attempts: int = ATTEMPTS) -> T:
    """What ``attempt`` returns; it is called again, after a growing pause, when another writer's commit came before its own.

    ``attempt`` reads the table anew each time (DELETE, OPTIMIZE, MERGE do); a conflict leaves nothing of it in the table.
    ``conflicts`` counts what was met, by the name of Delta's exception: say it in the output. Raises JobError after ``attempts``.
    """
    from delta import exceptions  # its import also makes Spark raise these

    conflict = (exceptions.ConcurrentAppendException, exceptions.ConcurrentDeleteReadException, exceptions.ConcurrentDeleteDeleteException,
                exceptions.ConcurrentTransactionException, exceptions.ConcurrentWriteException, exceptions.MetadataChangedException,
                exceptions.ProtocolChangedException, exceptions.DeltaConcurrentModificationException)
    wait_s = FIRST_S
    for number in range(1, attempts + 1):
        try:
            return attempt()
        except conflict as error:
            conflicts[type(error).__name__] += 1
            if number == attempts:
                raise JobError(f"other writers' commits came first {attempts} times, last with {type(error).__name__}",
                               hint="run it again when fewer jobs write to this table") from error
        threading.Event().wait(wait_s * (0.5 + random.random()))  # two that wait alike would meet again
        wait_s = min(2 * wait_s, LAST_S)
    raise AssertionError
