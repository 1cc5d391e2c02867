"""Worlds of cards in which two versions decide on the same events: how often, and how soon, would the live one be rolled back?

``python -m tests.shadow_simulation`` prints the table of docs/shadow.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.views import DAY_MS, HOUR_MS
from services.paired import ALPHA, Decided, losses, should_roll_back

DAYS, CARDS = 8, 3_000


@dataclass(frozen=True)
class Setting:
    """``worse``: how much more noise the second version's scores have (1: as much). ``flips``: labels that are wrong. ``season``: by
    night the second is better, by day worse, equal in all. ``stuck``: how much of a version's error belongs to the card and stays.
    ``threshold``: who alerts from there on, of scores that are probabilities."""

    name: str
    worse: float = 1.0
    flips: float = 0.0
    season: float = 0.0
    stuck: float = 0.8
    threshold: float = 0.4


NULLS = (Setting("equal"), Setting("2 % of labels wrong", flips=0.02), Setting("10 % of labels wrong", flips=0.1),
         Setting("better by night, worse by day", season=0.8), Setting("errors stay with the card", stuck=1.0),
         Setting("a miss costs nine false alarms", threshold=0.1))
PLANTED = (Setting("noise x1.2", 1.2), Setting("noise x1.5", 1.5), Setting("noise x2", 2.0), Setting("noise x3", 3.0),
           Setting("noise x2, 2 % of labels wrong", 2.0, 0.02))


def world(setting: Setting, seed: int) -> list[Decided]:
    """The disagreements of eight days; 4 % of cards are robbed, in bursts of up to eight events within hours."""
    r = np.random.default_rng(seed)
    events = r.poisson(DAYS * r.gamma(1.5, 0.7, CARDS))
    card = np.repeat(np.arange(CARDS), events)
    at_ms = r.integers(0, DAYS * DAY_MS, len(card))
    robbed = np.flatnonzero(r.random(CARDS) < 0.04)
    burst = r.integers(1, 9, len(robbed))
    start = np.repeat(r.integers(0, DAYS * DAY_MS - 8 * HOUR_MS, len(robbed)), burst)
    card = np.append(card, np.repeat(robbed, burst))
    at_ms = np.append(at_ms, start + r.integers(0, 6 * HOUR_MS, burst.sum()))
    fraud = np.arange(len(card)) >= len(card) - burst.sum()
    night = at_ms % DAY_MS < 12 * HOUR_MS
    margin = np.where(fraud, 2.0, -3.5) + 0.5 * r.normal(size=CARDS)[card]  # what both see alike
    noise = np.stack([np.ones(len(card)), np.where(night, 1 - setting.season / 2, 1 + setting.season / 2) * setting.worse])
    if setting.season:
        noise[0] = np.where(night, 1 + setting.season / 2, 1 - setting.season / 2)
    errors = np.sqrt(setting.stuck) * r.normal(size=(2, CARDS))[:, card] + np.sqrt(1 - setting.stuck) * r.normal(size=(2, len(card)))
    alert = margin + noise * errors >= np.log(setting.threshold / (1 - setting.threshold))
    label = fraud ^ (r.random(len(card)) < setting.flips)
    return [Decided(f"{i:06d}", f"c{card[i]}", int(at_ms[i]), bool(alert[0, i]), bool(alert[1, i]), bool(label[i]))
            for i in np.flatnonzero(alert[0] != alert[1])]


def naive(disagreements: list[Decided], threshold: float, alpha: float = ALPHA) -> bool:
    """What is not done: each disagreement counts, and the sign of the mean is tested after every label as if it were the only look."""
    found = sorted(disagreements, key=lambda each: each.at_ms)
    values = np.array([second - first for first, second in (losses(each, threshold) for each in found)])
    n = np.arange(1, len(values) + 1)
    z = np.cumsum(values) / np.sqrt(np.maximum(np.cumsum(values**2), 1e-9))
    return bool(((z > 2.326) & (n >= 20)).any()) if alpha == ALPHA else False


def rates(setting: Setting, worlds: int, seed: int = 0) -> dict[str, Any]:
    """Shares of ``worlds`` in which the second is rolled back, also by ``naive``; days of events and cards that it took, in the middle."""
    found, wrong, days, cards = 0, 0, [], []
    for n in range(worlds):
        disagreements = world(setting, seed + n)
        trial = should_roll_back(disagreements, setting.threshold)
        wrong += naive(disagreements, setting.threshold)
        if trial.worse:
            assert trial.last_ms is not None
            found += 1
            days.append(trial.last_ms / DAY_MS)
            cards.append(len(trial.ids))
    return {"rolled_back": found / worlds, "naive": wrong / worlds, "days": float(np.median(days)) if days else None,
            "cards": float(np.median(cards)) if cards else None}


def main() -> None:
    print("| world | worlds | rolled back | by the naive test | hours of events, median | cards, median |\n|---|---|---|---|---|---|")
    for setting, worlds in [*((each, 2_000) for each in NULLS), *((each, 200) for each in PLANTED)]:
        told = rates(setting, worlds)
        took = "| " if told["days"] is None else f"{24 * told['days']:.0f} | {told['cards']:.0f}"
        print(f"| {setting.name} | {worlds} | {told['rolled_back']:.2%} | {told['naive']:.1%} | {took} |", flush=True)


if __name__ == "__main__":
    main()
