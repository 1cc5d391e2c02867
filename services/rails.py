"""One guardrail of a canary: what it tolerates, and the evidence for and against it that entities have told. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streams.detectors.arms import FEWER, MORE, Evidence, drawn, tolerated

__all__ = ["RAILS", "Rail", "Track"]

SPILL = 0.2
"""How much more may be bad because of a step, in all of the traffic: little of it may be much worse and harm nobody."""


@dataclass(frozen=True)
class Rail:
    """``ratio`` of rates, candidate to champion, is tolerated; before the next step it must be shown that ``excluded`` is not reached, or
    what a small step may excuse. ``both``: fewer is harm as well. ``needed``: the canary waits for it."""

    name: str
    ratio: float
    excluded: float
    both: bool = False
    needed: bool = True

    def limit(self, share: float) -> float:
        """Which ratio must not be reached at ``share``.

        >>> [round(RAILS[0].limit(share), 2) for share in (0.01, 0.05, 0.25)]
        [21.0, 5.0, 3.0]
        """
        return self.excluded if self.name == "latency" else max(self.excluded, 1 + SPILL / share)


RAILS = (Rail("errors", 1.0, 3.0), Rail("alerts", 1.5, 3.0, both=True), Rail("losses", 1.0, 1.5, needed=False), Rail("latency", 1.0, 1.0))


@dataclass
class Track:
    """One rail: what was seen of it. ``control`` is entity -> the share at which it was last counted as the champion's."""

    rail: Rail
    shares: tuple[float, ...]
    more: Evidence = field(default_factory=lambda: Evidence.start(MORE))
    fewer: Evidence = field(default_factory=lambda: Evidence.start(FEWER))
    better: Evidence = field(default_factory=lambda: Evidence.start(FEWER))
    control: dict[str, float] = field(default_factory=dict)
    mine: set[str] = field(default_factory=set)
    expected: float = 0.0

    def __post_init__(self) -> None:
        self.not_more = {self.rail.limit(share): Evidence.start(FEWER) for share in self.shares}
        self.not_fewer = {self.rail.limit(share): Evidence.start(MORE) for share in self.shares}

    def count(self, entity: str, mine: bool, share: float) -> None:
        """Something bad came to ``entity``, at a time when the candidate had ``share`` of all."""
        before = self.control.get(entity)
        if entity in self.mine or before == share:
            return  # which arm it is in is known, so that it comes again says nothing
        self.draw(mine, drawn(share, before))
        if mine:
            self.mine.add(entity)
        else:
            self.control[entity] = share

    def draw(self, mine: bool, chance: float) -> None:
        if not 0 < chance < 1:
            return
        ratio = self.rail.ratio
        self.expected += chance
        self.more = self.more.after(mine, tolerated(chance, ratio))
        self.fewer = self.fewer.after(mine, tolerated(chance, 1 / ratio))
        self.better = self.better.after(mine, chance)
        self.not_more = {limit: each.after(mine, tolerated(chance, limit)) for limit, each in self.not_more.items()}
        self.not_fewer = {limit: each.after(mine, tolerated(chance, 1 / limit)) for limit, each in self.not_fewer.items()}

    @property
    def harm(self) -> float:
        """E-value against "no more than tolerated"."""
        return (self.more.value + self.fewer.value) / 2 if self.rail.both else self.more.value

    def safe(self, share: float) -> float:
        """E-value against "as bad as must not be at ``share``"; of two sides the weaker one."""
        limit = self.rail.limit(share)
        more, fewer = self.not_more[limit].value, self.not_fewer[limit].value
        return min(more, fewer) if self.rail.both else more

    def facts(self, share: float) -> dict[str, Any]:
        return {"harm": self.harm, "safe": self.safe(share), "excluded": self.rail.limit(share), "candidate": len(self.mine),
                "champion": len(self.control), "candidate_expected": round(self.expected, 2)}
