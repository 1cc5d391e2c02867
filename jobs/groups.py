"""Slices and fairness: no group of events may be served worse than by the champion, nor be treated unlike the others. Pure.

Many groups are looked at, so each bound is missed with probability ``GateRules.error`` over the number of questions (Bonferroni): a
candidate that is worse nowhere fails with that probability at most, whatever the number of groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feature_repo.models import Bands, Fairness, ModelSpec
from jobs.gates import Evidence, GateRules
from jobs.linearised import Estimate, average_precision, clustered

__all__ = ["Judged", "slices"]

Array = np.ndarray[Any, Any]
Facts = dict[str, Any]
NO_DATA = "insufficient data"


@dataclass(frozen=True)
class Judged:
    """The rows that both are judged on. ``member`` numbers the cluster of each row from 0; ``x`` float32[n, F] in service order; scores of
    the candidate and of the champion, and from where on each alerts."""

    label: Array
    member: Array
    x: Array
    scores: tuple[Array, Array]
    thresholds: tuple[float, float]

    def where(self, rows: Array) -> Judged:
        first, second = self.scores
        return Judged(self.label[rows], self.member[rows], self.x[rows], (first[rows], second[rows]), self.thresholds)

    @property
    def alerts(self) -> tuple[Array, Array]:
        (first, second), (one, other) = self.scores, self.thresholds
        return first >= one, second >= other


def slices(spec: ModelSpec, judged: Judged, rules: GateRules) -> Evidence:
    """Is the candidate shown to be worse than the champion in a group, or to treat one unlike others, and more so?

    What too few clusters tell of is "insufficient data", and no reason to fail. ``rules.every_slice`` says whether it is enough that
    nothing is shown to be worse (False), or each group must be shown to be no worse.
    """
    asked = [question for bands in spec.groups for question in _questions(spec, bands, judged, rules)]
    tests = sum(question.estimate is not None and question.limit is not None for question in asked)
    told = [question.answer(rules.error / max(tests, 1)) for question in asked]
    facts = {"tests": tests, "error": rules.error, "margin": rules.slice_margin, "questions": told}
    failed = [each for each in told if each["verdict"] == "FAIL"]
    if failed:
        return Evidence("slices", "FAIL", "; ".join(map(_words, failed)), facts)
    missing, unsure = ([each["group"] for each in told if each["verdict"] == verdict] for verdict in (NO_DATA, "INCONCLUSIVE"))
    why = f"worse in none of {tests} questions" + "".join(
        f"; {what}: {', '.join(dict.fromkeys(groups))}" for what, groups in ((NO_DATA, missing), ("not shown", unsure)) if groups)
    if rules.every_slice and (missing or unsure):
        return Evidence("slices", "INCONCLUSIVE", why, facts)
    return Evidence("slices", "PASS", why, facts)


def members(bands: Bands, column: Array) -> Iterator[tuple[str, Array]]:
    """The name and the rows of each group that has any."""
    group = np.where(np.isnan(column), len(bands.edges) + 1, np.searchsorted(bands.edges, column, side="right"))
    for number, name in enumerate(bands.names):
        if (rows := group == number).any():
            yield name, rows


@dataclass(frozen=True)
class _Question:
    """``estimate`` (None: too few clusters) of a figure that must not be shown to lie above ``limit`` (None: it is only told), and with
    ``worse`` (the same figure less the champion's) not shown to be above the champion's either. ``facts`` is what is told beside."""

    facts: Facts
    estimate: Estimate | None
    limit: float | None = None
    worse: Estimate | None = None

    def answer(self, miss: float) -> Facts:
        if self.estimate is None:
            return {**self.facts, "verdict": NO_DATA}
        low, high = self.estimate.bounds(miss)
        if self.limit is None:
            return {**self.facts, "low": low, "high": high, "verdict": "TOLD"}
        further = self.worse is None or self.worse.bounds(miss)[0] > 0
        verdict = "PASS" if high <= self.limit else "FAIL" if low > self.limit and further else "INCONCLUSIVE"
        return {**self.facts, "low": low, "high": high, "limit": self.limit, "verdict": verdict}


def _questions(spec: ModelSpec, bands: Bands, judged: Judged, rules: GateRules) -> Iterator[_Question]:
    column = judged.x[:, spec.service.feature_names.index(bands.feature)]
    groups = list(members(bands, column))
    for name, rows in groups:
        yield _quality(name, judged.where(rows), rules)
    if bands.fairness is not None and len(groups) > 1:
        for name, rows in groups[:1] if len(groups) == 2 else groups:  # of two, each is the other's "others"
            yield _tpr(name, rows, judged, bands.fairness, rules)
            yield _parity(name, rows, judged, bands.fairness, rules)


def _quality(name: str, group: Judged, rules: GateRules) -> _Question:
    """How much of average precision is lost: champion - candidate."""
    positives = _clusters(group.member, group.label > 0)
    facts: Facts = {"group": name, "of": "average precision", "rows": len(group.label), "positive_clusters": positives}
    if positives < rules.positives or group.label.all():
        return _Question(facts, None)
    (candidate, gained), (champion, lost) = (average_precision(group.label, score) for score in group.scores)
    estimate = clustered(champion - candidate, lost - gained, group.member, positives)
    return _Question({**facts, "candidate": candidate, "champion": champion}, estimate, rules.slice_margin * champion)


def _tpr(name: str, rows: Array, judged: Judged, policy: Fairness, rules: GateRules) -> _Question:
    """The gap between the shares of true ones that are found, in the group and among the others."""
    true = judged.label > 0
    cells = [(true & part, _clusters(judged.member, true & part)) for part in (rows, ~rows)]
    fewest = min(clusters for _, clusters in cells)
    facts: Facts = {"group": name, "of": "tpr gap", "positive_clusters": fewest}
    if fewest < rules.positives:
        return _Question(facts, None)
    gaps, influences, floor = [], [], 0.0
    for alert in judged.alerts:
        shares = [float(alert[cell].mean()) for cell, _ in cells]
        gap = shares[0] - shares[1]
        sign = 1 if gap >= 0 else -1
        influences.append(sign * sum(s * cell * (alert - share) / cell.sum()
                                     for s, (cell, _), share in zip((1, -1), cells, shares, strict=True)))
        gaps.append(abs(gap))
        floor = max(floor, math.sqrt(sum(_plain(share, clusters) for (_, clusters), share in zip(cells, shares, strict=True))))
    return _compared({**facts, "candidate": gaps[0], "champion": gaps[1]}, gaps, influences, judged.member, fewest, floor, policy.tpr_gap)


def _parity(name: str, rows: Array, judged: Judged, policy: Fairness, rules: GateRules) -> _Question:
    """The distance of the ratio of alert shares from 1, as a logarithm, with half an alert added to each count."""
    parts = (rows, ~rows)
    enough = min(_clusters(judged.member, judged.alerts[0] & ~rows) * rows.sum() / max((~rows).sum(), 1),
                 _clusters(judged.member, judged.alerts[0] & ~rows))  # as many as would alert in the group, were it like the others
    facts: Facts = {"group": name, "of": "demographic parity ratio", "expected_clusters": float(enough)}
    if enough < rules.positives:
        return _Question(facts, None)
    distances, influences, ratios, empty = [], [], [], 0
    for alert in judged.alerts:
        shares = [(float(alert[part].sum()) + 0.5) / (float(part.sum()) + 1) for part in parts]
        empty += sum(not alert[part].any() for part in parts)
        ratio = shares[0] / shares[1]
        sign = 1 if ratio >= 1 else -1
        influences.append(sign * sum(s * part * (alert - share) / (part.sum() * share)
                                     for s, part, share in zip((1, -1), parts, shares, strict=True)))
        distances.append(abs(math.log(ratio)))
        ratios.append(ratio)
    limit = None if policy.parity_ratio is None else -math.log(policy.parity_ratio)
    return _compared({**facts, "candidate": ratios[0], "champion": ratios[1]}, distances, influences, judged.member, int(enough),
                     math.sqrt(2.0 * empty), limit)


def _compared(facts: Facts, figures: Sequence[float], influences: Sequence[Array], member: Array, telling: int, floor: float,
              limit: float | None) -> _Question:
    """``floor`` is the least error: where nobody, or everybody, of a group is found, the rows vary in nothing and yet are a sample."""
    def estimate(value: float, influence: Array) -> Estimate:
        found = clustered(value, influence, member, telling)
        return Estimate(found.value, max(found.error, floor), telling)

    candidate, worse = estimate(figures[0], influences[0]), estimate(figures[0] - figures[1], influences[0] - influences[1])
    return _Question(facts, candidate, limit, worse)


def _clusters(member: Array, rows: Array) -> int:
    return len(np.unique(member[rows]))


def _plain(share: float, clusters: int) -> float:
    """The variance of a share over so many clusters, were they alike: with one hit and one miss added it is never 0."""
    near = (share * clusters + 1) / (clusters + 2)
    return near * (1 - near) / clusters


def _words(told: Facts) -> str:
    return f"{told['group']}: {told['of']} {told['candidate']:.4f} against {told['champion']:.4f} of the champion"
