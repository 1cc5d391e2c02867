"""Two arms under continuous looking: do bad things come to the candidate's entities more often than its share of entities explains?

Entities are put into arms by a hash, so of all that meet something bad the candidate's are a known share p, whatever the hour, the
season or the fault of the day; and each entity counts once, however many bad things come to it together. If the candidate harms nobody,
whether the next entity is its own is a coin that shows "mine" with probability u = p, given all before. For such a coin x

    e = (1 + (m - 1) x) / (1 + (m - 1) u)

has mean at most 1: with m > 1 if x is mine with probability at most u, with m < 1 if at least u (the e-value of ``losses``). The
product over entities, mixed over several m, is a test martingale: it ever reaches 1/alpha with probability at most alpha (Ville 1939),
so it may be looked at after every event. A tolerated ratio r of rates moves u to p r / (1 - p + p r).

Sources: Ramdas, Gruenwald, Vovk and Shafer, "Game-theoretic statistics and safe anytime-valid inference" (2023), sections 2 and 3; that
the draw of the arms itself is what a test can stand on: Fisher, "The design of experiments" (1935), chapter 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["FEWER", "MORE", "Evidence", "drawn", "tolerated"]

MORE = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
FEWER = tuple(1 / m for m in MORE)
LARGEST = 690.0
"""exp of more is no float."""


def tolerated(share: float, ratio: float) -> float:
    """The candidate's share of bad entities where its rate is ``ratio`` times the champion's.

    >>> round(tolerated(0.01, 2), 4), tolerated(0.5, 1)
    (0.0198, 0.5)
    """
    return share * ratio / (1 - share + share * ratio)


def drawn(share: float, before: float | None) -> float:
    """With which probability an entity is the candidate's at ``share``, if at the lower share ``before`` it was not (None: not known).

    >>> drawn(0.05, None), round(drawn(0.05, 0.01), 4)
    (0.05, 0.0404)
    """
    return share if before is None else (share - before) / (1 - before)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Against "mine with probability at most u" (``odds`` above 1) or "at least u" (below 1): logarithms of the products, by odds."""

    odds: tuple[float, ...]
    logs: tuple[float, ...]

    @classmethod
    def start(cls, odds: tuple[float, ...]) -> Evidence:
        return cls(odds, (0.0,) * len(odds))

    def after(self, mine: bool, u: float) -> Evidence:
        return Evidence(self.odds, tuple(
            log + (math.log(m) if mine else 0.0) - math.log1p((m - 1) * u) for m, log in zip(self.odds, self.logs, strict=True)))

    @property
    def value(self) -> float:
        """The e-value: 1 at the start; at least 1/alpha is evidence at level alpha, whenever it is looked at.

        >>> even = Evidence.start(MORE)
        >>> even.value, round(even.after(True, 0.01).value, 1), round(even.after(False, 0.01).value, 3)
        (1.0, 11.6, 0.891)
        """
        return math.fsum(math.exp(min(log, LARGEST)) for log in self.logs) / len(self.logs)
