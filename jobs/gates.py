"""Gates between a candidate and its release, cheap ones first; each leaves evidence. Pure: what they judge comes in as values.

A gate says PASS, FAIL or INCONCLUSIVE. Only PASS lets a candidate on: what cannot be shown is not released. The last one, approval, says
PASS or NEEDS_APPROVAL: a person is to look at what all others saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from jobs.bootstrap import Interval
from schemas.errors import FindingError

__all__ = ["Evidence", "GateRules", "Outcome", "approval", "artifact", "cure", "data", "evidence_hash", "non_inferiority", "parity", "walk"]

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "NEEDS_APPROVAL"]


class Evidence(msgspec.Struct, frozen=True):
    """What one gate saw. ``facts`` are plain values: they are hashed, archived and shown on the model's card."""

    gate: str
    outcome: Outcome
    why: str
    facts: dict[str, Any] = {}


@dataclass(frozen=True)
class GateRules:
    """What each gate asks for. Bounds are missed with probability ``error``, over all questions of a gate together.

    Parameters
    ----------
    margin
        How much of the champion's metric a candidate may lose and still be called no worse.
    positives
        Clusters (cards) that tell something (``Interval.telling``) below which an interval is not believed.
    slice_margin
        As ``margin``, within one group.
    every_slice
        True: each group must be shown to be no worse; False: none may be shown to be worse.
    slope, observed_to_expected
        Calibration: the slope of the log-odds, and the share of true labels over the mean score, lie between this and its inverse.
    miscalibration
        How much of the champion's log loss a candidate may lose, more than the champion does, by being miscalibrated.
    size_ratio, time_ratio
        The bundle's bytes and the processor time of a recorded request, over the champion's.
    """

    margin: float = 0.02
    positives: int = 30
    error: float = 0.05
    slice_margin: float = 0.10
    every_slice: bool = False
    slope: float = 0.5
    observed_to_expected: float = 0.5
    miscalibration: float = 0.05
    size_ratio: float = 3.0
    time_ratio: float = 3.0


def walk(gates: Iterable[tuple[str, Callable[[], Evidence]]]) -> Iterator[Evidence]:
    """The evidence of each gate up to the first that is not passed. What data do not suffice for is not shown.

    Any other error goes through: that a machine is down says nothing of a candidate.
    """
    for name, gate in gates:
        try:
            evidence = gate()
        except FindingError as error:
            evidence = Evidence(name, "INCONCLUSIVE", str(error))
        yield evidence
        if evidence.outcome != "PASS":
            return


def evidence_hash(evidence: Iterable[Evidence]) -> str:
    """sha256 in hex over all of it, in order: what an approval is bound to."""
    return hashlib.sha256(msgspec.json.encode(list(evidence), order="deterministic")).hexdigest()


def artifact(version: str, files: Mapping[str, str]) -> Evidence:
    """Called once the bundle was loaded from disk as a scorer loads it: hashes, contents, golden rows."""
    return Evidence("artifact", "PASS", f"version {version} loads, and its golden rows score as they did", {"files": dict(files)})


def data(rows: int, unlabelled: float, positives: int, rules: GateRules, broken: Mapping[str, int]) -> Evidence:
    """``broken``: rules of the data check and how many rows broke them; ``unlabelled``: share of rows whose label is not known."""
    facts = {"rows": rows, "unlabelled": unlabelled, "positive_clusters": positives, "broken": dict(broken)}
    if broken:
        return Evidence("data", "FAIL", "data rules are broken: " + ", ".join(f"{name} ({n} rows)" for name, n in broken.items()), facts)
    if positives < rules.positives:
        return Evidence("data", "INCONCLUSIVE", f"{positives} clusters with a positive label, {rules.positives} are needed", facts)
    return Evidence("data", "PASS", f"{rows:,} rows, {unlabelled:.2%} without a label", facts)


def parity(predictions: int, unexplained: int) -> Evidence:
    facts = {"predictions": predictions, "unexplained": unexplained}
    if not predictions:
        return Evidence("parity", "INCONCLUSIVE", "no prediction is archived", facts)
    if unexplained:
        return Evidence("parity", "FAIL", f"{unexplained} of {predictions:,} predictions cannot be explained from the log", facts)
    return Evidence("parity", "PASS", f"all of {predictions:,} predictions are explained", facts)


def non_inferiority(found: Interval, rules: GateRules) -> Evidence:
    """Is the candidate no worse than the champion by more than the margin, on rows that neither was trained on?"""
    allowed = -rules.margin * found.second
    facts = _facts(found) | {"allowed": allowed}
    if found.positives < rules.positives:
        return Evidence("quality", "INCONCLUSIVE", f"{found.positives} clusters with {found.telling}, {rules.positives} are needed", facts)
    if found.low >= allowed:
        return Evidence("quality", "PASS", f"{_words(found)}; at least {allowed:+.4f} was asked", facts)
    if found.high < allowed:
        return Evidence("quality", "FAIL", f"{_words(found)}: worse than the {allowed:+.4f} allowed", facts)
    return Evidence("quality", "INCONCLUSIVE", f"{_words(found)}: may be worse than the {allowed:+.4f} allowed", facts)


def cure(found: Interval, rules: GateRules) -> Evidence:
    """Is a candidate that is to cure a drift better on the slice since then? Not worse is not enough."""
    facts = _facts(found)
    if found.positives < rules.positives:
        return Evidence("cure", "INCONCLUSIVE", f"{found.positives} clusters with {found.telling}, {rules.positives} are needed", facts)
    if found.low > 0:
        return Evidence("cure", "PASS", f"{_words(found)}: better", facts)
    if found.high <= 0:
        return Evidence("cure", "FAIL", f"{_words(found)}: not better", facts)
    return Evidence("cure", "INCONCLUSIVE", f"{_words(found)}: not shown to be better", facts)


def approval(risk_class: Literal["automatic", "person"]) -> Evidence:
    """What the policy says once all other gates are passed. An approval is bound to the hash of all evidence, this included."""
    facts = {"risk_class": risk_class}
    if risk_class == "automatic":
        return Evidence("approval", "PASS", "risk class automatic: the gates decide", facts)
    return Evidence("approval", "NEEDS_APPROVAL", f"risk class {risk_class}: somebody has to approve what the gates saw", facts)


def _facts(found: Interval) -> dict[str, Any]:
    return {"metric": found.metric.replace(" ", "_"), "candidate": found.first, "champion": found.second, "low": found.low,
            "high": found.high, "positive_clusters": found.positives, "draws": found.draws}


def _words(found: Interval) -> str:
    return (f"{found.metric} {found.first:.4f} against {found.second:.4f}, "
            f"difference {found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]")
