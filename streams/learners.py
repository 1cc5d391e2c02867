"""Online classifiers of two classes, river's, behind two words: learn and predict.

A prediction changes nothing (river's scaler learns with ``learn_one`` only), so a learner that is not taught is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from river.linear_model import LogisticRegression
from river.preprocessing import StandardScaler
from river.tree import HoeffdingAdaptiveTreeClassifier

from schemas.errors import DefinitionError

__all__ = ["KINDS", "Learner", "Row"]

Row = dict[str, float]
SEED = 1
"""Of the adaptive tree, which draws how often its leaves see a row (Bifet and Gavalda 2009)."""
KINDS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: StandardScaler() | LogisticRegression(),
    "tree": lambda: HoeffdingAdaptiveTreeClassifier(seed=SEED),
}


class Learner:
    """An untaught learner of one of ``KINDS``. Raises DefinitionError for another."""

    def __init__(self, kind: str) -> None:
        if kind not in KINDS:
            raise DefinitionError(f"there is no learner {kind!r}", hint=f"take one of {', '.join(KINDS)}")
        self._model = KINDS[kind]()

    def learn(self, rows: Iterable[Row], labels: Iterable[bool]) -> None:
        """One pass, in order."""
        for row, label in zip(rows, labels, strict=True):
            self._model.learn_one(row, bool(label))

    def predict(self, rows: Sequence[Row]) -> Any:
        """bool[n]; False where it was never taught."""
        return np.fromiter((bool(self._model.predict_one(row)) for row in rows), bool, len(rows))
