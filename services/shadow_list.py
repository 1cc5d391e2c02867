"""Which versions score beside the champion: those that a release lists, and for a while the one that the champion replaced. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from feature_repo.models import ModelSpec
from schemas.releases import ROLLBACK, Release
from schemas.settings import Settings

__all__ = ["NOBODY", "TAKEN_BACK", "Watched", "evidence_path", "maturity_ms", "trial", "watched"]

TAKEN_BACK = f"{ROLLBACK}reverse-shadow:"
"""So the id of a release begins that a reverse shadow made."""


@dataclass(frozen=True)
class Watched:
    """Who scores what was predicted under one release: ``listed``, and ``previous`` for what arrived by ``until_ms``."""

    listed: tuple[str, ...] = ()
    previous: str | None = None
    until_ms: int = 0

    def versions(self, arrival_ms: int, but: str) -> tuple[str, ...]:
        """In ascending order, each once, without ``but``, the version that made the prediction."""
        found = {*self.listed, self.previous} if self.previous is not None and arrival_ms <= self.until_ms else set(self.listed)
        return tuple(sorted(version for version in found - {but} if version is not None))


NOBODY = Watched()


def maturity_ms(spec: ModelSpec) -> int:
    """The age at which a prediction's label counts as known, as the monitors have it; without them the label delay."""
    return spec.drift.age_ms if spec.drift is not None else spec.label_delay_ms


def evidence_path(settings: Settings, model: str, evidence: str) -> str:
    """Where it lies on what a reverse shadow took a release back; ``evidence`` is the sha256 of the file."""
    return f"{settings.tables}/rollbacks/{model}/{evidence[:16]}.json"


def trial(history: Sequence[Release], epoch: int) -> Release | None:
    """The release that put the champion of ``epoch`` in the place of another version, which is its ``previous``.

    None for the first version of all, and after a rollback: what was taken back is not tried a second time without anybody asking.
    ``history`` is the model's chain, oldest first.
    """
    at = epoch - 1
    while at > 0 and history[at - 1].champion == history[at].champion:  # paused, resumed, another shadow list
        at -= 1
    return None if at == 0 or _taken_back(history[at]) else history[at]


def watched(history: Sequence[Release], epoch: int | None, maturity_ms: int) -> Watched:
    """Follows from the chain up to ``epoch`` alone, so it is the same whenever and by whomever it is asked. None: nothing was released."""
    if epoch is None or not 1 <= epoch <= len(history):
        return NOBODY
    begun = trial(history, epoch)
    listed = tuple(history[epoch - 1].shadows)
    return Watched(listed) if begun is None else Watched(listed, begun.previous, begun.at_ms + maturity_ms)


def _taken_back(release: Release) -> bool:
    return release.release_id.startswith(ROLLBACK) or release.action == "rollback"
