"""What must hold of a training set before a model is fitted to it: rules that follow from the declarations, and those declared beside
the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from feature_repo.models import ModelSpec
    from feature_repo.views import Feature

__all__ = ["DRIFT_AT_MOST", "Profile", "Rule", "broken_rows", "drift", "profile", "rules_of"]

DRIFT_AT_MOST = 0.25
"""Population stability index from which a feature counts as another one (Siddiqi, Credit Risk Scorecards, 2006, chapter 6)."""
BINS = 10
LEAST_SHARE = 1e-4
"""An empty bin counts as this, so that the index stays finite."""
NEVER_NULL = ("count", "sum", "count_distinct", "count_same")
NEVER_NEGATIVE = ("count", "count_distinct", "count_same", "std", "time_since_last")


@dataclass(frozen=True)
class Rule:
    """Of every row: ``least`` <= ``column`` <= ``most``, and a value where not ``nullable``."""

    column: str
    least: float = -inf
    most: float = inf
    nullable: bool = True

    def __str__(self) -> str:
        bounds = f"{self.least:g} <= {self.column} <= {self.most:g}" if (self.least, self.most) != (-inf, inf) else self.column
        return bounds + ("" if self.nullable else ", never null")


@dataclass(frozen=True)
class Profile:
    """How a feature is distributed: inner ``edges`` of its bins, and the ``shares`` of nulls and of each bin."""

    edges: tuple[float, ...]
    shares: tuple[float, ...]


def rules_of(spec: ModelSpec) -> tuple[Rule, ...]:
    """One rule a feature, and one for the label; where the model declares one itself, that one."""
    declared = {rule.column: rule for rule in spec.rules}
    windowed = [_of_feature(feature) for view in spec.service.views for feature in view.features]
    others = [Rule("label", 0, 1), *(Rule(feature.name) for feature in spec.service.request)]
    return tuple(declared.get(rule.column, rule) for rule in (*others, *windowed))


def _of_feature(feature: Feature) -> Rule:
    least = 0.0 if feature.function in NEVER_NEGATIVE else -inf
    return Rule(feature.name, least, nullable=feature.function not in NEVER_NULL)


def broken_rows(rule: Rule, values: Any) -> Any:
    """bool[n]: where float64 ``values`` (NaN is null) break the rule. Infinity is within no bounds."""
    null = np.isnan(values)
    return np.isinf(values) | (~null & ((values < rule.least) | (values > rule.most))) | (null & (not rule.nullable))


def profile(values: Any) -> Profile:
    """Of float64 ``values``, NaN is null: bins of as many values each, as far as they differ."""
    there = values[~np.isnan(values)]
    edges = np.unique(np.quantile(there, np.linspace(0, 1, BINS + 1)[1:-1])) if len(there) else np.empty(0)
    return Profile(tuple(edges.tolist()), _shares(edges, values))


def drift(before: Mapping[str, Profile], now: Mapping[str, Any]) -> dict[str, float]:
    """The population stability index of each feature that both have: Σ (p - q) ln(p / q) over nulls and the bins of ``before``."""
    found = {}
    for name, values in now.items():
        if name in before:
            p, q = (np.maximum(shares, LEAST_SHARE) for shares in (before[name].shares, _shares(before[name].edges, values)))
            found[name] = float(np.sum((q - p) * np.log(q / p)))
    return found


def _shares(edges: Any, values: Any) -> tuple[float, ...]:
    null = np.isnan(values)
    counts = np.bincount(np.searchsorted(np.asarray(edges), values[~null], side="left"), minlength=len(edges) + 1)
    return tuple((np.concatenate(([null.sum()], counts)) / max(len(values), 1)).tolist())
