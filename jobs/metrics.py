"""How good a score is: area under the ROC curve, average precision, and precision among the cards that a day's work can check."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["alert_threshold", "average_precision", "card_precision_at_k", "known_compromised", "roc_auc"]

Array = np.ndarray[Any, Any]


def roc_auc(label: Array, score: Array) -> float:
    """Chance that a random fraud outranks a random good row, ties count half (Fawcett 2006); in [0, 1], needs both classes."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, score))


def average_precision(label: Array, score: Array) -> float:
    """Precision at each score, weighted by the recall it adds, not interpolated (scikit-learn's definition); in [0, 1]."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(label, score))


def known_compromised(event_day: Array, card: Array, label: Array, day: int, delay_days: int) -> Array:
    """Cards with a fraud that was known when ``day`` began: its own day lies more than ``delay_days`` before.

    A fraud at any time of day d is known by d + delay_days + 1 at 00:00 (Fraud Detection Handbook, chapter 3,
    "Baseline fraud detection system", ``get_train_test_set``). Returns unique cards.
    """
    return np.unique(card[(label > 0) & (event_day < day - delay_days)])


def card_precision_at_k(day: Array, card: Array, score: Array, label: Array, k: int,
                        known: dict[int, Array] | None = None) -> float:
    """Of the ``k`` cards that score highest on a day, the share that had a fraud that day; the mean over days, in [0, 1].

    A card scores its day's maximum and is a hit if any of its rows that day is a fraud. Cards in ``known[day]`` are no work for
    that day, neither are cards that were hits of an earlier day of this period: they are blocked. The divisor is ``k`` even where
    a day has fewer cards. Of equal scores the smaller card comes first, so the order of rows never matters.

    Source: Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for Credit Card Fraud Detection - Practical
    Handbook" (2022), chapter 4, "Precision top-k metrics", Card Precision top-k.

    Parameters
    ----------
    day, card, score, label
        One entry a transaction, of equal length; ``day`` an integer, ``card`` sortable, ``label`` 0 or 1.
    known
        For a day, the cards known to be compromised when it began (``known_compromised``).

    >>> day, card = np.array([0, 0, 0, 1, 1]), np.array(["a", "a", "b", "a", "b"])
    >>> card_precision_at_k(day, card, np.array([.1, .9, .2, .8, .7]), np.array([1, 0, 0, 1, 1]), k=1)
    1.0
    >>> card_precision_at_k(day, card, np.array([.1, .9, .2, .8, .7]), np.array([1, 0, 0, 1, 0]), k=1)
    0.5
    """
    blocked: Array = card[:0]
    shares = []
    for today in np.unique(day):
        rows = day == today
        seen = np.union1d(blocked, known[int(today)]) if known and int(today) in known else blocked
        rows &= ~np.isin(card, seen)
        cards, index = np.unique(card[rows], return_inverse=True)
        highest = np.full(len(cards), -np.inf)
        np.maximum.at(highest, index, score[rows])
        hit = np.zeros(len(cards), dtype=bool)
        np.logical_or.at(hit, index, label[rows] > 0)
        top = np.argsort(-highest, kind="stable")[:k]
        shares.append(hit[top].sum() / k)
        blocked = np.union1d(blocked, cards[top][hit[top]])
    return float(np.mean(shares))


def alert_threshold(day: Array, card: Array, score: Array, cards_per_day: int) -> float:
    """The score from which, over these days, ``cards_per_day`` cards a day would alert on average; needs no labels.

    With fewer cards than that it is the lowest card's score: everything alerts.
    """
    _, pair = np.unique(np.stack([np.unique(day, return_inverse=True)[1], np.unique(card, return_inverse=True)[1]]),
                        axis=1, return_inverse=True)
    highest = np.full(int(pair.max()) + 1, -np.inf)
    np.maximum.at(highest, pair.ravel(), score)
    wanted = min(cards_per_day * len(np.unique(day)), len(highest))
    return float(np.partition(highest, len(highest) - wanted)[len(highest) - wanted])
