"""Who is in a canary: the same entities in every process, whatever path their events take, and for as long as it lasts. Pure.

The bucket of an entity is a hash of it and of the canary's salt. Shares only rise and the salt stays, so who is in stays in; another canary
has another salt, so it is not always the same people who try what is new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from feature_repo.bundle import Model
from schemas.errors import BundleError
from schemas.releases import BUCKETS

__all__ = ["PROBE_EVERY_S", "Probe", "Split", "bucket"]

PROBE_EVERY_S = 1.0


def bucket(salt: str, entity: str) -> int:
    """Of 0 to 9,999.

    >>> bucket("fraud:2:7", "596"), bucket("fraud:3:9", "596")
    (214, 6407)
    """
    return xxh3_64_intdigest(f"{salt}|{entity}".encode()) % BUCKETS


@dataclass
class Probe:
    """Now and then both models score the same row, one after the other: what each takes, told by what is equal but for the model.

    Times of real events would not do: the arms' batches are of different sizes. Which goes first alternates.
    """

    clock: Callable[[], int] = time.perf_counter_ns
    number: int = 0
    next_s: float = field(default=0.0)

    def __call__(self, champion: Model, candidate: Model, row: Any) -> bytes | None:
        """``b"<champion ns>/<candidate ns>"``, None where it is not time yet."""
        now = time.monotonic()
        if now < self.next_s:
            return None
        self.next_s = now + PROBE_EVERY_S
        self.number += 1
        took: dict[int, int] = {}
        for which, model in ((0, champion), (1, candidate)) if self.number % 2 else ((1, candidate), (0, champion)):
            began = self.clock()
            model.score(row)
            took[which] = self.clock() - began
        return b"%d/%d" % (took[0], took[1])


@dataclass(frozen=True)
class Split:
    """A canary as a scorer holds it: entities with a bucket below ``share`` are scored by ``candidate``.

    ``candidate`` None: it could not be loaded here. Then, and where it fails on a batch, the champion scores its events too, which the
    guard sees; nobody waits for an answer because of a canary.
    """

    subject: Callable[[Any], str]
    salt: str
    share: int
    candidate: Model | None
    probe: Probe = field(default_factory=Probe)

    def chosen(self, events: Sequence[Any]) -> list[int]:
        """Which of ``events`` are the candidate's."""
        salt, share, subject, digest = f"{self.salt}|", self.share, self.subject, xxh3_64_intdigest
        return [at for at, event in enumerate(events) if digest(f"{salt}{subject(event)}".encode()) % BUCKETS < share]

    def score(self, matrix: Any) -> list[float] | None:
        """The candidate's scores of ``matrix``, None where it gives none."""
        if self.candidate is None:
            return None
        try:
            scores = self.candidate.score(matrix)
        except BundleError:
            return None
        return scores.tolist() if np.isfinite(scores).all() else None
