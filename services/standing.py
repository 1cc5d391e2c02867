"""What each version of a model is by now: who decides, who scores along, what a rollback goes to, what waits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.releases import BUCKETS, Chain
from services.shadow_list import NOBODY, watched
from services.words import iso

__all__ = ["Standing", "standings"]


@dataclass(frozen=True)
class Standing:
    """``share`` of all entities, in [0, 1], that a canary has; a shadow scores what arrives before ``shadow_until_ms``, without one all.

    ``previous`` is what a rollback of the champion goes to, ``challenger`` the newest version, where it never was the champion.
    """

    champion: bool = False
    previous: bool = False
    share: float | None = None
    shadow: bool = False
    shadow_until_ms: int | None = None
    challenger: bool = False

    def __str__(self) -> str:
        until = "" if self.shadow_until_ms is None else f" until {iso(self.shadow_until_ms)}"
        told = {"champion": self.champion, "previous": self.previous, f"canary {100 * (self.share or 0):g} %": self.share is not None,
                f"shadow{until}": self.shadow, "challenger": self.challenger}
        return ", ".join(name for name, holds in told.items() if holds)


def standings(chain: Chain, model: str, versions: Sequence[str], champion: str | None, maturity_ms: int) -> dict[str, Standing]:
    """Of each of ``versions``, which are in ascending order; ``champion`` is live, by the chain or, where that is empty, the pointer.

    A reverse shadow scores along for ``maturity_ms`` after a release.
    """
    history = chain.history(model)
    live = history[-1] if history else None
    canary = live.canary if live is not None else None
    beside = watched(history, live.epoch, maturity_ms) if live is not None else NOBODY
    decided = {champion, *(release.champion for release in history)}
    return {version: Standing(
        champion=version == champion,
        previous=version == chain.before(model),
        share=canary.share / BUCKETS if canary is not None and canary.version == version else None,
        shadow=version in beside.listed or version == beside.previous,
        shadow_until_ms=beside.until_ms if version == beside.previous and version not in beside.listed else None,
        challenger=version == versions[-1] and version not in decided) for version in versions}
