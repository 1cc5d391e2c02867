"""Which version of a model is live: a chain of records on one partition, kept for ever.

Kafka has no compare-and-set. So each record names the offset of the one that it follows, and readers ignore one whose predecessor is not
the last that counted: of two writers that saw the same state the first wins, for everybody, and the other can see that it lost.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from schemas.contracts import Contract
from schemas.records import Id, TimeMs

__all__ = ["BUCKETS", "RELEASE", "RELEASES", "ROLLBACK", "Action", "Canary", "Chain", "Release"]

RELEASES = "model-releases"
NOTHING = -1
ROLLBACK = "rollback:"
"""So the id of a release begins that takes back the one before it."""
BUCKETS = 10_000
"""A share of traffic is a number of these."""

Action = Literal["champion", "canary", "advance", "rollback", "pause", "resume", "shadow"]
Share = Annotated[int, Meta(ge=1, le=BUCKETS)]
Duration = Annotated[int, Meta(ge=0)]


class Canary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Entities whose bucket lies below ``share`` are scored by ``version``; all others by the champion.

    ``steps`` are shares of 10,000, rising; ``step`` counts from 0. ``salt`` stays the same, so that who is in stays in. Stream time:
    ``began_ms`` of the first step, ``since_ms`` of this one; a step is held for ``hold_ms``, and at ``deadline_ms`` without enough
    evidence a person is asked. ``began_epoch`` is that of the first step. ``alpha`` bounds the probability that guardrails take back a
    candidate that is no worse. ``rule`` says what decides: the guardrails step by step, which version has fewer wrong decisions (an A/B
    test), or a person.
    """

    version: Id
    steps: Annotated[tuple[Share, ...], Meta(min_length=1, max_length=32)]
    step: Annotated[int, Meta(ge=0)]
    salt: Id
    began_ms: TimeMs
    since_ms: TimeMs
    began_epoch: Annotated[int, Meta(ge=1)]
    hold_ms: Duration
    deadline_ms: Duration
    alpha: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    rule: Literal["guardrails", "losses", "person"] = "guardrails"

    @property
    def share(self) -> int:
        return self.steps[self.step]


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From here on ``champion`` decides; ``previous`` did before, and stays loaded so that going back takes no time.

    Each record is the whole state after its ``action``: ``canary`` is the one under way, ``shadows`` are the versions that score along
    without deciding. ``facts`` is what an automatic decision was made on, ``evidence`` then the hash of it.

    ``release_id`` is derived from what caused it, so that a writer that died knows its own record again. ``follows`` is the offset of
    the model's last record that counted, -1 for the first; ``evidence`` the hash of what its gates saw (null: a person decided);
    ``at_ms`` stream time. While ``paused`` only a person releases.
    """

    release_id: Id
    model: Id
    epoch: Annotated[int, Meta(ge=1)]
    follows: Annotated[int, Meta(ge=-1)]
    champion: Id
    previous: str | None
    why: str
    by: str
    at_ms: TimeMs
    evidence: str | None = None
    paused: bool = False
    action: Action = "champion"
    canary: Canary | None = None
    shadows: list[Id] = []
    facts: dict[str, Any] = {}


RELEASE = Contract("release", 1, Release, "headrace", "model", "full", frozenset(), "A model's champion from an epoch on.")


class Chain:
    """Of each model the records that counted, oldest first, as (offset, release). ``take`` must see every record, in order."""

    def __init__(self) -> None:
        self._counted: dict[str, list[tuple[int, Release]]] = {}

    def take(self, offset: int, release: Release) -> bool:
        """Whether ``release`` counts. A record that was taken before changes nothing."""
        history = self._counted.setdefault(release.model, [])
        at, epoch = (history[-1][0], history[-1][1].epoch) if history else (NOTHING, 0)
        known = any(release.release_id == before.release_id for _, before in history)
        if offset <= at or known or (release.follows, release.epoch) != (at, epoch + 1):
            return False
        history.append((offset, release))
        return True

    def current(self, model: str) -> Release | None:
        history = self._counted.get(model)
        return history[-1][1] if history else None

    def models(self) -> list[str]:
        return list(self._counted)

    def history(self, model: str) -> list[Release]:
        """Oldest first."""
        return [release for _, release in self._counted.get(model, ())]

    def live_at(self, model: str, at_ms: int) -> Release | None:
        """What was in production at this stream time: the last release that was made by then."""
        return next((release for release in reversed(self.history(model)) if release.at_ms <= at_ms), None)

    def before(self, model: str) -> str | None:
        """The version that a rollback goes to: what was live before the current one was released; None where there is none.

        Rolling back again goes one further, not forward again.
        """
        live: list[str] = []
        for release in self.history(model):
            if live and live[-1] != release.champion and (release.action == "rollback" or release.release_id.startswith(ROLLBACK)):
                live.pop()
            if live[-1:] != [release.champion]:
                live.append(release.champion)
        return live[-2] if len(live) > 1 else None

    def last(self, model: str) -> tuple[int, Release] | None:
        """(offset, release) of the last record that counted."""
        history = self._counted.get(model)
        return history[-1] if history else None

    def following(self, release_id: str, model: str, champion: str, at_ms: int, why: str, by: str, evidence: str | None = None,
                  paused: bool | None = None, *, action: Action = "champion", **told: Any) -> Release:
        """The record that makes ``champion`` live next. Time never runs back along the chain; ``paused`` None: as before.

        ``told`` are further fields; what it leaves out of canary and shadows stays as it was, but for a champion's own record.
        """
        last = self.last(model)
        if last is None:
            return Release(release_id, model, 1, NOTHING, champion, None, why, by, at_ms, evidence, bool(paused), action, **told)
        offset, before = last
        kept = {"shadows": before.shadows, "canary": before.canary if champion == before.champion else None} | told
        return Release(release_id, model, before.epoch + 1, offset, champion, before.champion, why, by, max(at_ms, before.at_ms), evidence,
                       before.paused if paused is None else paused, action, **kept)
