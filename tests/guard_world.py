"""Simulated canaries for guardrails: entities of very different activity, days and weeks, bad things that come in bursts, late labels.

Everything comes from one seed. A candidate may be given more errors, alerts or wrong decisions, or be slower; without, its arm differs
from the champion's by the draw of entities alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from schemas.evaluations import Evaluation
from schemas.releases import Canary, Release
from services.canary import bucket
from services.guardrails import Guardrails, Predicted, Verdict

HOUR, DAY = 3_600_000, 86_400_000
START = 1_600_000_000_000


@dataclass(frozen=True)
class World:
    """Rates are per event; ``errors``, ``alerts``, ``losses`` multiply the candidate's, ``slow`` its time for a row."""

    errors: float = 1.0
    alerts: float = 1.0
    losses: float = 1.0
    slow: float = 1.0
    cards: int = 20_000
    per_day: int = 6_000
    error_rate: float = 0.002
    alert_rate: float = 0.02
    loss_rate: float = 0.01
    label_ms: int = 2 * DAY
    burst: float = 0.7


@dataclass
class Ended:
    """How a canary ended: what was said last, on which day, at which share; ``naive``: a test of rates that is looked at each day fired."""

    action: str
    day: float
    share: int
    rail: str
    naive: bool


def run(world: World, seed: int, *, steps: tuple[int, ...] = (100, 500, 2500, 5000), alpha: float = 0.05, days: int = 21,
        rule: Any = "guardrails") -> Ended:
    """One canary from its first step until it is released, taken back, or stops and asks."""
    rng = np.random.default_rng(seed)
    salt = f"sim:{seed}"
    canary = Canary("2", steps, 0, salt, START, START, 2, DAY, 7 * DAY, alpha, rule)
    live = Release("r", "m", 2, 0, "1", "1", "", "", START, canary=canary)
    rails = Guardrails(canary, "1", world.label_ms)
    rails.step(live)
    buckets = np.array([bucket(salt, f"c{i}") for i in range(world.cards)])
    weights = rng.lognormal(0, 1.2, world.cards)
    weights /= weights.sum()
    naive, seen = False, np.zeros((2, 2))
    wrong: list[tuple[int, Evaluation]] = []
    for hour in range(days * 24):
        now = START + hour * HOUR
        rate = world.per_day / 24 * (1 + 0.8 * np.sin(2 * np.pi * hour / 24)) * (1.3 if hour // 24 % 7 < 5 else 0.5)
        who = rng.choice(world.cards, rng.poisson(rate), p=weights)
        share = live.canary.share if live.canary is not None else 0
        mine = buckets[who] < share
        season = 1 + 0.9 * np.sin(2 * np.pi * hour / 24 + 2)  # bad things have their own hours
        storm = 10.0 if hour % 97 == 5 else 1.0  # and the store its bad ones
        for number, card in enumerate(who):
            own = bool(mine[number])
            error = rng.random() < world.error_rate * storm * (world.errors if own else 1)
            alert = rng.random() < world.alert_rate * season * (world.alerts if own else 1)
            at = now + number
            repeat = 1 + (rng.geometric(1 - world.burst) if alert or error else 0)
            for _ in range(int(repeat)):  # the same card again and again
                rails.predicted(Predicted(f"c{card}", "2" if own else "1", 0.5, alert, error, at, live.epoch))
                seen[int(own)] += (alert, 1)
            if rng.random() < world.loss_rate * season * (world.losses if own else 1):
                names = [f"{hour}-{number}-{n}" for n in range(int(rng.geometric(0.4)))]
                wrong += [(at + world.label_ms, _wrong(f"c{card}", own, at, name)) for name in names]
        for _ in range(20):
            took = rng.lognormal(0, 0.5, 2)
            rails.probed(live.epoch, int(1000 * took[0]), int(1000 * took[1] * world.slow))
        due = [one for at, one in wrong if at <= now]
        wrong = [(at, one) for at, one in wrong if at > now]
        for one in due:
            rails.evaluated(one)
        naive |= hour % 24 == 23 and _differ(seen)
        verdict = rails.judge(live)
        if verdict.action == "advance" and live.canary is not None and live.canary.step + 1 < len(steps):
            live = _advanced(live, verdict)
            rails.step(live)
        elif verdict.action is not None:
            return _ended(verdict, hour, share, naive)
    return Ended("none", days, live.canary.share if live.canary is not None else 0, "", naive)


def _ended(verdict: Verdict, hour: int, share: int, naive: bool) -> Ended:
    rail = verdict.why.partition(":")[0] if verdict.action == "rollback" else ""
    return Ended(str(verdict.action), hour / 24, share, rail, naive)


def _advanced(live: Release, verdict: Verdict) -> Release:
    from msgspec.structs import replace

    assert live.canary is not None
    at_ms = verdict.facts["at_ms"]
    return replace(live, epoch=live.epoch + 1, at_ms=at_ms, canary=replace(live.canary, step=live.canary.step + 1, since_ms=at_ms))


def _wrong(card: str, own: bool, at: int, name: str) -> Evaluation:
    return Evaluation(name, name, name, at, card, "m", "2" if own else "1", 0.5, 0.5, True, False, False, None, 0, at, at + DAY, at + DAY)


def _differ(seen: Any) -> bool:
    """The usual test of two rates at 5 %, as if events were independent."""
    (a, n), (b, m) = seen
    if not n or not m:
        return False
    pooled = (a + b) / (n + m)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    return bool(spread > 0 and abs(a / n - b / m) > 1.96 * spread)
