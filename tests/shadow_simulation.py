"""Worlds of cards in which two versions decide on the same events: how often, and how soon, would the live one be rolled back?

``python -m tests.shadow_simulation`` prints the table of docs/shadow.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.views import DAY_MS, HOUR_MS
from services.paired import ALPHA, BETS, Decided, first_of_subjects, losses, should_roll_back

DAYS, CARDS = 8, 3_000


@dataclass(frozen=True)
class Setting:
    """``worse``: how much more noise the second version's scores have (1: as much). ``flips``: labels that are wrong. ``season``: by
    night the second is better, by day worse, equal in all. ``stuck``: how much of a version's error belongs to the card and stays.
    ``threshold``: who alerts from there on, of scores that are probabilities. ``waves`` of one fraud each, as many on average, hit 50 to
    300 cards within ``wave_ms``; what a version makes of a wave is mostly the same on all of its cards."""

    name: str
    worse: float = 1.0
    flips: float = 0.0
    season: float = 0.0
    stuck: float = 0.8
    threshold: float = 0.4
    waves: float = 0.0
    wave_ms: int = 6 * HOUR_MS


NULLS = (Setting("equal"), Setting("2 % of labels wrong", flips=0.02), Setting("10 % of labels wrong", flips=0.1),
         Setting("better by night, worse by day", season=0.8), Setting("errors stay with the card", stuck=1.0),
         Setting("a miss costs nine false alarms", threshold=0.1))
WAVES = (Setting("one wave", waves=1), Setting("two waves", waves=2), Setting("four waves", waves=4), Setting("eight waves", waves=8),
         Setting("eight waves of one hour", waves=8, wave_ms=HOUR_MS), Setting("four waves of half a day", waves=4, wave_ms=12 * HOUR_MS),
         Setting("four waves of a day", waves=4, wave_ms=24 * HOUR_MS), Setting("a miss costs nine, four waves", threshold=0.1, waves=4))
PLANTED = (Setting("noise x1.2", 1.2), Setting("noise x1.5", 1.5), Setting("noise x2", 2.0), Setting("noise x3", 3.0),
           Setting("noise x2, 2 % of labels wrong", 2.0, 0.02), Setting("noise x1.5, two waves", 1.5, waves=2),
           Setting("noise x2, two waves", 2.0, waves=2))


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
    found = [Decided(f"{i:06d}", f"c{card[i]}", int(at_ms[i]), bool(alert[0, i]), bool(alert[1, i]), bool(label[i]))
             for i in np.flatnonzero(alert[0] != alert[1])]
    return found + [each for n in range(r.poisson(setting.waves)) for each in wave(setting, r, n)]


def wave(setting: Setting, r: np.random.Generator, number: int) -> list[Decided]:
    """The disagreements on one fraud that hits many cards: a version sees most of it or misses most of it, by chance."""
    n = int(r.integers(50, 301))
    card = r.choice(CARDS, n, replace=False)
    at_ms = r.integers(0, DAYS * DAY_MS - setting.wave_ms) + r.integers(0, setting.wave_ms, n)
    seen = 3 * r.normal(size=(2, 1)) - [[0.0], [np.log(setting.worse)]]  # who is noisier also sees less of what is new
    alert = 0.5 + seen + r.normal(size=(2, n)) >= np.log(setting.threshold / (1 - setting.threshold))
    return [Decided(f"w{number}-{i:03d}", f"c{card[i]}", int(at_ms[i]), bool(alert[0, i]), bool(alert[1, i]), True)
            for i in np.flatnonzero(alert[0] != alert[1])]


def by_card(disagreements: list[Decided], threshold: float, alpha: float = ALPHA) -> bool:
    """What was done before: as many bets as cards, as if no two of them met the same thing."""
    values = np.array([second - first for first, second in (losses(each, threshold) for each in first_of_subjects(disagreements))])
    gained = np.log1p(np.outer(BETS, values)).cumsum(1)
    return bool((np.exp(gained).mean(0) >= 1 / alpha).any())


def naive(disagreements: list[Decided], threshold: float, alpha: float = ALPHA) -> bool:
    """What is not done: each disagreement counts, and the sign of the mean is tested after every label as if it were the only look."""
    found = sorted(disagreements, key=lambda each: each.at_ms)
    values = np.array([second - first for first, second in (losses(each, threshold) for each in found)])
    n = np.arange(1, len(values) + 1)
    z = np.cumsum(values) / np.sqrt(np.maximum(np.cumsum(values**2), 1e-9))
    return bool(((z > 2.326) & (n >= 20)).any()) if alpha == ALPHA else False


def rates(setting: Setting, worlds: int, seed: int = 0) -> dict[str, Any]:
    """Shares of ``worlds`` in which the second is rolled back, also ``by_card`` and by ``naive``; half days of events and cards that it
    took, in the middle."""
    found, each_card, wrong, blocks, cards = 0, 0, 0, [], []
    for n in range(worlds):
        disagreements = world(setting, seed + n)
        trial = should_roll_back(disagreements, setting.threshold, DAYS * DAY_MS)
        each_card += by_card(disagreements, setting.threshold)
        wrong += naive(disagreements, setting.threshold)
        if trial.worse:
            found += 1
            blocks.append(trial.blocks)
            cards.append(len(trial.ids))
    return {"rolled_back": found / worlds, "by_card": each_card / worlds, "naive": wrong / worlds,
            "days": float(np.median(blocks)) / 2 if blocks else None, "cards": float(np.median(cards)) if cards else None}


def main() -> None:
    print("| world | worlds | rolled back | by cards as bets | by the naive test | days of events, median | cards, median |\n"
          "|---|---|---|---|---|---|---|")
    for setting, worlds in [*((each, 1_000) for each in (*NULLS, *WAVES)), *((each, 200) for each in PLANTED)]:
        told = rates(setting, worlds)
        took = "| " if told["days"] is None else f"{told['days']:.1f} | {told['cards']:.0f}"
        shares = f"{told['rolled_back']:.2%} | {told['by_card']:.1%} | {told['naive']:.1%}"
        print(f"| {setting.name} | {worlds} | {shares} | {took} |", flush=True)


if __name__ == "__main__":
    main()
