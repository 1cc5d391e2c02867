"""What may follow what in the release of a model. Pure: the chain and what is asked in, the record to write or a refusal out.

    champion    makes a version live at once                        not beside a canary
    canary      begins one                                          not beside another
    advance     its next step; after the last it is the champion    needs a canary
    rollback    ends the canary, or brings back what was live before
    pause       only people release; automatic rollbacks go on
    resume      ends that; a canary's step begins anew
    shadow      which versions score along without deciding

What is automatic (``by`` guard or runner) goes by more rules than a person: nothing but a rollback while releases are paused, and nothing
on a state that is not live any more. What is so already is not said again: the answer is then the record that is live.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from msgspec.structs import replace

from schemas.releases import BUCKETS, Action, Canary, Chain, Release
from services.words import duration

__all__ = ["AUTOMATIC", "DAY_MS", "STEPS", "Move", "Refusal", "next_release", "whole_steps"]

AUTOMATIC = frozenset({"guard", "runner"})
DAY_MS = 86_400_000
STEPS = (100, 500, 2500, 5000, BUCKETS)


@dataclass(frozen=True)
class Refusal:
    """Why an action is not allowed now, and what is instead."""

    fact: str
    hint: str


@dataclass(frozen=True)
class Move:
    """An action on ``model``. ``epoch`` is the one that it was decided on (None: whatever is live), ``instead_of`` the champion that a
    version was judged against; ``steps``, ``hold_ms``, ``deadline_ms``, ``alpha`` and ``rule`` are those of a canary."""

    action: Action
    release_id: str
    model: str
    by: str
    at_ms: int
    why: str
    version: str = ""
    shadows: tuple[str, ...] = ()
    steps: tuple[int, ...] = STEPS
    hold_ms: int = DAY_MS
    deadline_ms: int = 7 * DAY_MS
    alpha: float = 0.05
    rule: Literal["guardrails", "losses", "person"] = "guardrails"
    epoch: int | None = None
    instead_of: str | None = None
    evidence: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def automatic(self) -> bool:
        return self.by in AUTOMATIC


def next_release(chain: Chain, asked: Move) -> Release | Refusal:
    """The record that carries ``asked`` out, or the one that is live where nothing would change."""
    live = chain.current(asked.model)
    if (refusal := _refused(live, asked)) is not None:
        return refusal
    if live is None:
        return _record(chain, asked, asked.version)
    match asked.action:
        case "champion":
            if asked.version == live.champion:
                return live
            return _record(chain, asked, asked.version, shadows=_without(live.shadows, asked.version))
        case "canary":
            return _begun(chain, live, asked)
        case "advance":
            return _advanced(chain, live, asked)
        case "rollback":
            return _rolled_back(chain, live, asked)
        case "pause":
            return live if live.paused else _record(chain, asked, live.champion, paused=True)
        case "resume":
            since = replace(live.canary, since_ms=max(asked.at_ms, live.at_ms)) if live.canary is not None else None
            return _record(chain, asked, live.champion, paused=False, canary=since) if live.paused else live
        case "shadow":
            return live if [*asked.shadows] == live.shadows else _record(chain, asked, live.champion, shadows=[*asked.shadows])


def whole_steps(steps: tuple[int, ...]) -> tuple[int, ...] | Refusal:
    """Shares that a canary stops at. All of the traffic is no step where others come before it: then the candidate is the champion."""
    if not steps or any(not 1 <= share <= BUCKETS for share in steps) or any(b <= a for a, b in pairwise(steps)):
        return Refusal(f"steps {', '.join(f'{share / 100:g} %' for share in steps) or 'none'} do not rise from above 0 to 100 %",
                       "as in 1,5,25,50,100")
    return steps[:-1] if len(steps) > 1 and steps[-1] == BUCKETS else steps


def _refused(live: Release | None, asked: Move) -> Refusal | None:
    if live is None:
        return None if asked.action == "champion" else Refusal(
            f"nothing was released of {asked.model} yet", "`headrace train` makes a first model, `headrace release champion` any")
    if asked.epoch is not None and asked.epoch != live.epoch:
        return Refusal(f"epoch {live.epoch} of {live.model} is live, this was decided on epoch {asked.epoch}", "`headrace live --history`")
    if asked.automatic and live.paused and asked.action != "rollback":
        return Refusal(f"releases of {live.model} are paused: {live.why}", "`headrace release resume` lets them go on")
    if asked.instead_of is not None and asked.instead_of != live.champion:
        return Refusal(f"version {live.champion} of {live.model} is live, this was judged against {asked.instead_of}", "judge it anew")
    canary = live.canary
    if asked.action in ("champion", "canary") and canary is not None:
        return Refusal(f"version {canary.version} of {live.model} is in canary at {canary.share / 100:g} %",
                       "`headrace release advance` or `rollback` first")
    if asked.action == "canary" and asked.version == live.champion:
        return Refusal(f"version {asked.version} of {live.model} is the champion", "a canary is of another version")
    if asked.action == "advance" and canary is None:
        return Refusal(f"no version of {live.model} is in canary", "`headrace release canary` begins one")
    if asked.action == "advance" and asked.automatic and canary is not None and canary.rule == "person":
        return Refusal("this canary is decided by a person", "`headrace release advance` or `rollback`")
    if asked.action == "shadow":
        deciding = {live.champion, *((canary.version,) if canary is not None else ())}
        if both := sorted(deciding & set(asked.shadows)):
            return Refusal(f"version {both[0]} of {live.model} decides", "a shadow is a version that does not")
        if len(set(asked.shadows)) < len(asked.shadows):
            return Refusal("a version is named twice", "name each once")
    return None


def _begun(chain: Chain, live: Release, asked: Move) -> Release | Refusal:
    steps = whole_steps(asked.steps)
    if isinstance(steps, Refusal):
        return steps
    if asked.rule == "losses" and (len(steps) > 1 or steps[0] == BUCKETS):
        return Refusal("an A/B test is held at one share below 100 %", "as in --hold-at 50")
    if asked.deadline_ms < asked.hold_ms:
        return Refusal(f"a step held for {duration(asked.hold_ms)} has its deadline after {duration(asked.deadline_ms)}",
                       "--deadline is not shorter than --hold")
    at_ms = max(asked.at_ms, live.at_ms)
    canary = Canary(asked.version, steps, 0, f"{asked.model}:{asked.version}:{live.epoch + 1}", at_ms, at_ms, live.epoch + 1, asked.hold_ms,
                    asked.deadline_ms, asked.alpha, asked.rule)
    return _record(chain, asked, live.champion, canary=canary, shadows=_without(live.shadows, asked.version))


def _advanced(chain: Chain, live: Release, asked: Move) -> Release:
    canary = live.canary
    assert canary is not None
    paused = False if _asks(live) else None
    if canary.step + 1 < len(canary.steps):
        after = replace(canary, step=canary.step + 1, since_ms=max(asked.at_ms, live.at_ms))
        return _record(chain, asked, live.champion, paused=paused, canary=after)
    shadows = [live.champion, *_without(live.shadows, live.champion, canary.version)]  # it goes on scoring, to be compared with
    return _record(chain, asked, canary.version, paused=paused, canary=None, shadows=shadows)


def _rolled_back(chain: Chain, live: Release, asked: Move) -> Release | Refusal:
    if live.canary is not None:
        return _record(chain, asked, live.champion, paused=False if _asks(live) else None, canary=None)
    before = chain.before(live.model)
    if before is None:
        return Refusal(f"nothing was live of {live.model} before version {live.champion}", "`headrace live --history`")
    return _record(chain, asked, before, shadows=_without(live.shadows, before))


def _asks(live: Release) -> bool:
    """Whether the guard has stopped a canary and waits for a person, who answers by advancing or ending it."""
    return live.action == "pause" and live.by == "guard"


def _without(shadows: list[str], *versions: str) -> list[str]:
    return [each for each in shadows if each not in versions]


def _record(chain: Chain, asked: Move, champion: str, *, paused: bool | None = None, **told: Any) -> Release:
    return chain.following(asked.release_id, asked.model, champion, asked.at_ms, asked.why, asked.by, asked.evidence, paused,
                           action=asked.action, facts=asked.facts, **told)
