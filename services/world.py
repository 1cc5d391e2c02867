"""A seeded world of cards and terminals in a plane, with honest habits and three kinds of fraud. Pure: no clock, no I/O.

Every card has a home and pays at the terminals around it. Every day is drawn from (seed, day) alone, so day 17 is the same whether
or not the days before it were asked for. What was compromised before the first day still is, so the share of fraud is level from
the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["CARD_DAYS", "TERMINAL_DAYS", "World"]

DAY_MS = 86_400_000
TERMINAL_DAYS, CARD_DAYS = 28, 14
TERMINALS_IN_REACH = 12.0  # of a card with the mean radius
TERMINAL_SHARE, CARD_SHARE, LARGE_SHARE = 0.005, 0.008, 0.0015  # compromised at any time; of transactions
STOLEN_USE, STOLEN_FACTOR = 1 / 3, 5  # which part of a compromised card's transactions is the thief's, and how much larger they are
LARGE_MINOR = (25_000, 90_000)
MAX_MINOR = 2_000_000
BEFORE = 1_000  # days before the first one that can be drawn
PATTERNS = np.array(["", "large", "terminal", "card"])
HOME, DAY, TERMINALS, CARDS = range(4)  # one stream of random numbers for each

Ints = np.ndarray[Any, np.dtype[np.int64]]


class World:
    """Cards that pay at terminals, day after day.

    Parameters
    ----------
    cards, terminals
        How many there are; a card makes two transactions a day in the mean.
    start_ms
        Midnight of day 0, UTC.

    >>> world = World(seed=7, cards=100, terminals=50, start_ms=0)
    >>> world.day(3).equals(World(seed=7, cards=100, terminals=50, start_ms=0).day(3))
    True
    """

    def __init__(self, seed: int, cards: int = 2_500, terminals: int = 1_000, start_ms: int = 0) -> None:
        self.seed, self.cards, self.terminals, self.start_ms = seed, cards, terminals, start_ms
        draw = self._random(HOME, 0)
        side = np.sqrt(terminals)
        self._places, self._homes = draw.uniform(0, side, (terminals, 2)), draw.uniform(0, side, (cards, 2))
        self._radius = np.sqrt(TERMINALS_IN_REACH / np.pi) * draw.uniform(0.6, 1.4, cards)
        self._mean = draw.uniform(500, 10_000, cards)  # minor units
        self._spread = self._mean * draw.uniform(0.3, 0.7, cards)
        self._per_day = draw.gamma(4.0, 0.5, cards)
        self._hour, self._hours = draw.normal(14.0, 3.0, cards), draw.uniform(2.0, 6.0, cards)
        self._card_ids = np.array([f"card-{number:06d}" for number in range(cards)])
        self._terminal_ids = np.array([f"terminal-{number:06d}" for number in range(terminals)])

    def days(self, count: int, first: int = 0) -> Iterator[pa.RecordBatch]:
        """Day ``first`` and those after it, ``count`` in all."""
        return (self.day(number) for number in range(first, first + count))

    def day(self, number: int) -> pa.RecordBatch:
        """The transactions of one day in order of time.

        ``event_id`` (text), ``event_time`` (ms), ``card_id``, ``terminal_id``, ``amount_minor``, ``fraud`` and ``pattern``: what kind
        of fraud it is, empty for honest ones; nobody in the world is told.
        """
        draw = self._random(DAY, number)
        card = np.repeat(np.arange(self.cards), draw.poisson(self._per_day))
        hour = draw.normal(self._hour[card], self._hours[card]) % 24.0
        time = np.minimum((hour * (DAY_MS / 24)).astype(np.int64), DAY_MS - 1)
        shape = (self._mean[card] / self._spread[card]) ** 2
        amount = draw.gamma(shape, self._mean[card] / shape)
        terminal = self._choose(card, draw.random(len(card)))

        stolen = np.isin(card, self.compromised_cards(number)) & (draw.random(len(card)) < STOLEN_USE)
        large = draw.random(len(card)) < LARGE_SHARE
        amount = np.where(stolen, amount * STOLEN_FACTOR, amount)
        amount = np.where(large, draw.uniform(*LARGE_MINOR, len(card)), amount)
        tapped = np.isin(terminal, self.compromised_terminals(number))
        pattern = np.select([large, tapped, stolen], [1, 2, 3], 0)

        order = np.argsort(time, kind="stable")
        minor = np.clip(np.rint(amount), 1, MAX_MINOR).astype(np.int64)
        ids = [f"s{self.seed}-{number}-{place}" for place in range(len(card))]
        columns = {"event_id": ids, "event_time": self.start_ms + number * DAY_MS + time[order], "card_id": self._card_ids[card[order]],
                   "terminal_id": self._terminal_ids[terminal[order]], "amount_minor": minor[order], "fraud": pattern[order] > 0,
                   "pattern": PATTERNS[pattern[order]]}
        return pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})

    def compromised_terminals(self, number: int) -> Ints:
        """Indices of terminals that are compromised on day ``number``."""
        return self._compromised(TERMINALS, self.terminals, TERMINAL_SHARE, TERMINAL_DAYS, number)

    def compromised_cards(self, number: int) -> Ints:
        """Indices of cards that are compromised on day ``number``."""
        return self._compromised(CARDS, self.cards, CARD_SHARE, CARD_DAYS, number)

    def _compromised(self, stream: int, population: int, share: float, days: int, number: int) -> Ints:
        """Those that were taken on one of the ``days`` days that end with ``number``."""
        rate = population * share / days

        def taken(day: int) -> Ints:
            how_many = int(np.floor((day + 1) * rate) - np.floor(day * rate))  # even over the days, so that the share is
            return self._random(stream, day).choice(population, how_many, replace=False)

        return np.unique(np.concatenate([taken(day) for day in range(number - days + 1, number + 1)]))

    def _choose(self, card: Ints, chance: np.ndarray[Any, Any]) -> Ints:
        """For each card one of its terminals, all alike; ``chance`` is in [0, 1)."""
        first, terminals = self._reach
        chosen: Ints = terminals[first[card] + (chance * (first[card + 1] - first[card])).astype(np.int64)]
        return chosen

    @cached_property
    def _reach(self) -> tuple[Ints, Ints]:
        """The terminals within each card's radius, at least the nearest: those of card c lie at ``first[c]`` to ``first[c + 1]``."""
        near: list[Ints] = []
        for home, radius in zip(self._homes, self._radius, strict=True):
            distance = np.hypot(*(self._places - home).T)
            near.append(np.flatnonzero(distance <= max(radius, distance.min())))
        first = np.concatenate([[0], np.cumsum([len(terminals) for terminals in near])])
        return first, np.concatenate(near)

    def _random(self, stream: int, day: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, day + BEFORE])
