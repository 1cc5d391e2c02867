"""Calibration: does a score of 0.3 mean three in ten? Judged on the newest matured rows, against the champion on the same rows. Pure.

Two figures of Cox (1958): the slope of the true log-odds over the score's, 1 where it is calibrated, below 1 where scores are too extreme;
and the share of true labels over the mean score. Their errors are clustered (sandwich: Liang and Zeger 1986). What miscalibration costs is
log loss before less log loss after the best line through the log-odds: how much of its loss a model could be rid of without learning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.gates import Evidence, GateRules
from jobs.groups import Judged
from jobs.linearised import Estimate, clustered
from schemas.errors import FindingError

__all__ = ["Calibration", "calibration", "line"]

Array = np.ndarray[Any, Any]
LEAST = 1e-7
"""Scores nearer to 0 or 1 count as this near: a float32 knows no difference."""
STEPS = 50
RIDGE = 1e-3
"""Holds the slope where labels are told apart without a miss, and no slope is steep enough; no weight beside thirty positives."""
QUESTIONS = 3


@dataclass(frozen=True)
class Calibration:
    """``slope`` and ``ratio`` (the logarithm of observed over expected), with errors; ``intercept`` of the line; ``loss`` and ``cost``, log
    loss of each row, and what of it is miscalibration."""

    slope: Estimate
    intercept: float
    ratio: Estimate
    loss: Array
    cost: Array


def calibration(judged: Judged, rules: GateRules) -> Evidence:
    """FAIL: shown to cost more log loss by its calibration than the champion does, or shown to be outside of what is allowed and not shown
    to be better calibrated than the champion. PASS: shown to be inside, or to be no worse calibrated than the champion."""
    positives = len(np.unique(judged.member[judged.label > 0]))
    facts: dict[str, Any] = {"rows": len(judged.label), "positive_clusters": positives, "error": rules.error}
    if positives < rules.positives:
        return Evidence("calibration", "INCONCLUSIVE", f"{positives} clusters with a positive row, {rules.positives} are needed", facts)
    candidate, champion = (line(judged.label, score, judged.member, positives) for score in judged.scores)
    gained = candidate.cost - champion.cost
    dearer = clustered(gained.mean(), (gained - gained.mean()) / len(gained), judged.member, positives)
    miss = rules.error / QUESTIONS
    slope, ratio, cost = candidate.slope.bounds(miss), candidate.ratio.bounds(miss), dearer.bounds(miss)
    steep, off = (1 / rules.slope, rules.slope), (-math.log(rules.observed_to_expected), math.log(rules.observed_to_expected))
    allowed = rules.miscalibration * float(champion.loss.mean())
    facts |= {"slope": [candidate.slope.value, *slope], "intercept": candidate.intercept,
              "observed_to_expected": [math.exp(candidate.ratio.value), *map(math.exp, ratio)],
              "champion": {"slope": champion.slope.value, "observed_to_expected": math.exp(champion.ratio.value),
                           "cost": float(champion.cost.mean()), "log_loss": float(champion.loss.mean())},
              "cost": float(candidate.cost.mean()), "log_loss": float(candidate.loss.mean()), "dearer": [dearer.value, *cost],
              "allowed": allowed,
              "slope_limits": [rules.slope, 1 / rules.slope], "ratio_limits": [rules.observed_to_expected, 1 / rules.observed_to_expected]}
    outside = any(low > most or high < least for (low, high), (most, least) in ((slope, steep), (ratio, off)))
    inside = all(least <= low and high <= most for (low, high), (most, least) in ((slope, steep), (ratio, off)))
    words = (f"slope {candidate.slope.value:.2f} [{slope[0]:.2f}, {slope[1]:.2f}], observed over expected "
             f"{math.exp(candidate.ratio.value):.2f} [{math.exp(ratio[0]):.2f}, {math.exp(ratio[1]):.2f}]")
    if cost[0] > allowed:
        return Evidence("calibration", "FAIL", f"{words}: costs {dearer.value:.4f} of log loss more than the champion does", facts)
    if cost[1] < 0:
        return Evidence("calibration", "PASS", f"{words}: better calibrated than the champion", facts)
    if outside:
        return Evidence("calibration", "FAIL", f"{words}: outside what is allowed, and not shown to be better than the champion", facts)
    if not inside and cost[1] > allowed:
        return Evidence("calibration", "INCONCLUSIVE", f"{words}: may be outside what is allowed", facts)
    return Evidence("calibration", "PASS", words + ("" if inside else ": no worse than the champion"), facts)


def line(label: Array, score: Array, member: Array, telling: int) -> Calibration:
    """The line through the log-odds of ``score`` that fits ``label`` best. Raises FindingError where none is found."""
    p = np.clip(np.asarray(score, np.float64), LEAST, 1 - LEAST)
    odds = np.log(p) - np.log1p(-p)
    design = np.stack((np.ones(len(p)), odds), axis=1)
    at, pull = np.array([0.0, 1.0]), np.array([0.0, RIDGE])
    for _ in range(STEPS):
        fitted = _share(design @ at)
        bend = design.T @ (design * (fitted * (1 - fitted))[:, None]) + np.diag(pull + 1e-9)
        step = np.linalg.solve(bend, design.T @ (label - fitted) - pull * (at - [0.0, 1.0]))
        at = at + step * min(1.0, 2.0 / float(np.abs(step).max() + 1e-300))  # no leap: far from the optimum the curve is flat
        if float(np.abs(step).max()) < 1e-9:
            break
    else:
        raise FindingError("no line fits the scores' log-odds", hint="are all scores alike?")
    inverse = np.linalg.inv(bend)
    slope = clustered(at[1], (design @ inverse[1]) * (label - _share(design @ at)), member, telling)
    ratio = clustered(math.log(label.sum() / p.sum()), label / label.sum() - p / p.sum(), member, telling)
    loss = _loss(label, p)
    return Calibration(slope, float(at[0]), ratio, loss, loss - _loss(label, np.clip(_share(design @ at), LEAST, 1 - LEAST)))


def _share(odds: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(odds, -40, 40))))


def _loss(label: Array, p: Array) -> Array:
    return np.asarray(-(label * np.log(p) + (1 - label) * np.log1p(-p)))
