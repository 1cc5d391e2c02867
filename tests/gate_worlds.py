"""Worlds of judged rows where the truth is known, and how often each gate is wrong on them.

    python -m tests.gate_worlds [WORLDS]     prints the table of docs/gates.md
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from feature_repo.bundle import Scorer
from feature_repo.fraud import FRAUD
from feature_repo.models import Bands, Fairness
from jobs import gates
from jobs.bootstrap import Interval, paired_bootstrap
from jobs.calibration import calibration
from jobs.cost import median_bounds, time_ratios
from jobs.gates import GateRules
from jobs.groups import Judged, slices
from tests.small_model import small_result

GROUPS = (Bands("amount", (20, 100)), Bands("card_count_30d", (15,), Fairness()))
SPEC = replace(FRAUD, groups=GROUPS)
AMOUNT, HISTORY = (FRAUD.service.feature_names.index(bands.feature) for bands in GROUPS)


@dataclass(frozen=True)
class World:
    """``lift``: how much better the candidate sees frauds; ``of_low``: how much of that it loses where the amount is below 20.
    ``blind``: what share of a fresh card's frauds it does not see; ``eager``: by what it scores a fresh card's events higher.
    ``slope``, ``shift``: its log-odds are the true ones times and plus so much. With ``both`` all of it is the champion's, too."""

    lift: float = 0.0
    of_low: float = 0.0
    blind: float = 0.0
    eager: float = 0.0
    slope: float = 1.0
    shift: float = 0.0
    both: bool = False
    cards: int = 1_500


def world(seed: int, told: World) -> Judged:
    """Cards of ten rows; some cards are bad and have frauds in a burst. Candidate and champion err about a card each in its own way, and
    by default equally often. Scores are true probabilities but for what ``told`` spoils."""
    r = np.random.default_rng(seed)
    card = np.repeat(np.arange(told.cards), 10)
    x = np.full((len(card), len(FRAUD.service.feature_names)), np.nan, np.float32)
    x[:, AMOUNT], fresh = r.lognormal(3.7, 0.9, len(card)), r.random(told.cards) < 0.3
    x[:, HISTORY] = np.where(fresh, 5, 60)[card]
    label = (np.arange(len(card)) % 10 < 4 * (r.random(told.cards) < 0.2)[card]).astype(float)
    prior = np.log(0.08 / 0.92)

    def score(lift: Any, slope: float, shift: Any, blind: float) -> Any:
        """Of a normal evidence of strength d, N(0, 1) or N(d, 1), the log-odds are d * evidence - d * d / 2 and the prior's."""
        d = 2.0 + lift
        seen = label * ~((r.random(len(card)) < blind) & fresh[card])
        evidence = d * seen + 0.7 * r.normal(0, 1, told.cards)[card] + np.sqrt(1 - 0.49) * r.normal(0, 1, len(card))
        return 1 / (1 + np.exp(-(slope * (d * evidence - d * d / 2 + prior) + shift)))

    spoilt = (told.lift - told.of_low * (x[:, AMOUNT] < 20), told.slope, told.shift + told.eager * fresh[card], told.blind)
    candidate, champion = score(*spoilt), score(*(spoilt if told.both else (0.0, 1.0, 0.0, 0.0)))
    thresholds = (float(np.quantile(candidate, 0.93)), float(np.quantile(champion, 0.93)))
    return Judged(label, card, x, (candidate, champion), thresholds)


@dataclass(frozen=True)
class Case:
    name: str
    truth: str
    judge: Callable[[int], str]


def cases() -> list[Case]:
    rules = GateRules()

    def of_slices(name: str, truth: str, told: World, asked: GateRules = rules, groups: Any = GROUPS) -> Case:
        spec = replace(SPEC, groups=groups)
        return Case(f"slices: {name}", truth, lambda seed: slices(spec, world(seed, told), asked).outcome)

    def of_calibration(name: str, truth: str, told: World, asked: GateRules = rules) -> Case:
        return Case(f"calibration: {name}", truth, lambda seed: calibration(world(seed, told), asked).outcome)

    no_margin, by_itself = replace(rules, slice_margin=0.0), replace(rules, miscalibration=np.inf)
    only_quality = tuple(replace(bands, fairness=None) for bands in GROUPS)
    small, none_allowed = World(cards=300), replace(rules, margin=0.0)
    return [
        Case("quality: equal candidate", "unsure", lambda seed: gates.non_inferiority(compared(seed, small), rules).outcome),
        Case("quality: equal, no margin allowed", "limit", lambda seed: gates.non_inferiority(compared(seed, small), none_allowed).outcome),
        Case("quality: much worse", "bad", lambda seed: gates.non_inferiority(compared(seed, replace(small, lift=-1.0)), rules).outcome),
        Case("cure: equal candidate", "limit", lambda seed: gates.cure(compared(seed, small), rules).outcome),
        of_slices("equal candidate", "good", World()),
        of_slices("equal, a fifth of the cards", "good", World(cards=300)),
        of_slices("equal, no margin allowed", "limit", World(), no_margin, only_quality),
        of_slices("as blind and eager as the champion", "limit", World(blind=0.5, eager=1.5, both=True)),
        of_slices("much worse on low amounts", "bad", World(of_low=1.5)),
        of_slices("blind to half the frauds of fresh cards", "bad", World(blind=0.5)),
        of_slices("four times as eager on fresh cards", "bad", World(eager=1.5)),
        of_calibration("calibrated candidate", "good", World()),
        of_calibration("calibrated, a fifth of the cards", "good", World(cards=300)),
        of_calibration("slope at the upper limit", "limit", World(slope=0.5, both=True), by_itself),
        of_calibration("slope at the lower limit", "limit", World(slope=2.0, both=True), by_itself),
        of_calibration("log-odds twice too extreme", "bad", World(slope=2.5)),
        of_calibration("scores three times too high", "bad", World(shift=1.5)),
        Case("cost: a model against itself", "good", lambda seed: of_cost(seed, 1, rules)),
        Case("cost: against itself, no more time allowed", "limit", lambda seed: of_cost(seed, 1, replace(rules, time_ratio=1.0))),
        Case("cost: five times the work", "bad", lambda seed: of_cost(seed, 5, rules)),
    ]


def compared(seed: int, told: World) -> Interval:
    judged = world(seed, told)
    return paired_bootstrap(judged.label, judged.member, *judged.scores, draws=200, seed=seed)


@cache
def scorer() -> Scorer:
    return Scorer(small_result(FRAUD.service).onnx)


def of_cost(seed: int, times: int, rules: GateRules) -> str:
    """As ``jobs.cost.cost`` judges processor time."""
    rows, model = np.random.default_rng(seed).normal(10, 10, (50, scorer().width)), scorer()

    def scored(row: Any, times: int = 1) -> None:
        for _ in range(times):
            model(row)

    low, high = median_bounds(time_ratios(lambda row: scored(row, times), lambda row: scored(row, 1), rows), rules.error)
    return "FAIL" if low > rules.time_ratio else "INCONCLUSIVE" if high > rules.time_ratio else "PASS"


def counts(case: Case, worlds: int, first: int = 0) -> dict[str, int]:
    """Outcome -> how often."""
    found = [case.judge(first + seed) for seed in range(worlds)]
    return {outcome: found.count(outcome) for outcome in ("PASS", "FAIL", "INCONCLUSIVE")}


def main(worlds: int) -> None:
    print(f"| gate and world ({worlds:,} each) | truth | PASS | FAIL | INCONCLUSIVE |\n|---|---|---|---|---|")
    for case in cases():
        found = counts(case, worlds)
        print(f"| {case.name} | {case.truth} | " + " | ".join(f"{n / worlds:.1%}" for n in found.values()) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
