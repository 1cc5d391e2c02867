"""What a prediction is worth on a stream whose labels hang together in time: accuracy, beside what needs no learning at all. Pure.

Where the next label is mostly the last one, a high accuracy says nothing: the no-change forecast has it, too. Source: Zliobaite, Bifet,
Read, Pfahringer and Holmes, "Evaluation methods and decision theory for classification of streaming data with temporal dependence",
Machine Learning 98 (2015), sections 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Skill", "kappa", "kappa_temporal", "majority", "no_change", "skill"]


@dataclass(frozen=True, slots=True)
class Skill:
    """``kappa``: above chance. ``kappa_temporal``: above the no-change forecast; below 0 where that was better. None: undefined."""

    accuracy: float
    kappa: float | None
    kappa_temporal: float | None


def no_change(labels: Any, delay: int = 1) -> Any:
    """bool[n]: the last label that is known when a row is predicted, ``delay`` rows before it; False where there is none.

    >>> no_change(np.array([True, True, False, True])).tolist()
    [False, True, True, False]
    """
    labels = np.asarray(labels, bool)
    return np.concatenate([np.zeros(min(delay, len(labels)), bool), labels[:-delay]])


def majority(labels: Any, delay: int = 1) -> Any:
    """bool[n]: the more frequent of all labels that are known; False where they are as many.

    >>> majority(np.array([True, True, False, True])).tolist()
    [False, True, True, True]
    """
    return no_change(np.cumsum(np.where(labels, 1, -1)) > 0, delay)


def kappa(labels: Any, predicted: Any) -> float | None:
    """(p0 - pe) / (1 - pe) with pe the accuracy by chance at the same shares of classes (Cohen 1960).

    >>> kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.5
    """
    said, true = float(np.mean(predicted)), float(np.mean(labels))
    return _above(_accuracy(labels, predicted), said * true + (1 - said) * (1 - true))


def kappa_temporal(labels: Any, predicted: Any, unchanged: Any) -> float | None:
    """(p0 - p') / (1 - p') with p' the accuracy of the no-change forecast ``unchanged``.

    >>> labels = np.array([True, True, False, False])
    >>> kappa_temporal(labels, labels, no_change(labels)), kappa_temporal(labels, no_change(labels), no_change(labels))
    (1.0, 0.0)
    """
    return _above(_accuracy(labels, predicted), _accuracy(labels, unchanged))


def skill(labels: Any, predicted: Any, unchanged: Any) -> Skill:
    """All of them bool[n], n > 0, of the same rows."""
    return Skill(_accuracy(labels, predicted), kappa(labels, predicted), kappa_temporal(labels, predicted, unchanged))


def _accuracy(labels: Any, predicted: Any) -> float:
    return float(np.mean(np.asarray(labels, bool) == np.asarray(predicted, bool)))


def _above(accuracy: float, without: float) -> float | None:
    return (accuracy - without) / (1 - without) if without < 1 else None
