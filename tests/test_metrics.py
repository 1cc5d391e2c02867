from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.metrics import alert_threshold, average_precision, card_precision_at_k, known_compromised, roc_auc

ROW = st.tuples(st.integers(0, 3), st.sampled_from("abcdef"), st.integers(0, 5), st.booleans())
ROWS = st.lists(ROW, min_size=1, max_size=40)


def arrays(rows):
    day, card, score, label = zip(*rows, strict=True)
    return np.array(day), np.array(card), np.array(score) / 5, np.array(label, dtype=int)


def handbook_precision(rows, k, known):
    """The handbook's words, one step at a time, with dicts and lists."""
    caught, shares = set(), []
    for today in sorted({row[0] for row in rows}):
        best, fraud = {}, {}
        for day, card, score, label in rows:
            if day == today and card not in caught and card not in known.get(today, ()):
                best[card] = max(best.get(card, -1), score)
                fraud[card] = fraud.get(card, False) or label
        top = sorted(best, key=lambda card: (-best[card], card))[:k]
        hits = [card for card in top if fraud[card]]
        shares.append(len(hits) / k)
        caught.update(hits)
    return sum(shares) / len(shares)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.integers(1, 4), st.dictionaries(st.integers(0, 3), st.sets(st.sampled_from("abcdef"), min_size=1), max_size=3))
def test_card_precision_is_what_the_handbook_says(rows, k, known):
    sets = {day: np.array(sorted(cards)) for day, cards in known.items()}
    assert card_precision_at_k(*arrays(rows), k, sets) == pytest.approx(handbook_precision(rows, k, known))


@settings(max_examples=100, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_card_precision_does_not_depend_on_the_order_of_rows(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert card_precision_at_k(*arrays(rows), 2) == card_precision_at_k(*arrays(shuffled), 2)


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_auc_is_the_share_of_pairs_in_order(rows):
    _, _, score, label = arrays(rows)
    bad, good = score[label == 1], score[label == 0]
    if not len(bad) or not len(good):
        return
    pairs = [(b > g) + 0.5 * (b == g) for b in bad for g in good]
    assert roc_auc(label, score) == pytest.approx(float(np.mean(pairs)))


@settings(max_examples=200, deadline=None)
@given(ROWS)
def test_average_precision_is_precision_weighted_by_the_recall_it_adds(rows):
    _, _, score, label = arrays(rows)
    if not label.any():
        return
    steps = [(0.0, 0.0)]
    for cut in sorted(set(score), reverse=True):
        above = label[score >= cut]
        steps.append((above.sum() / label.sum(), above.mean()))
    expected = sum((recall - before) * precision for (before, _), (recall, precision) in pairwise(steps))
    assert average_precision(label, score) == pytest.approx(expected)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(1, 4))
def test_the_threshold_alerts_as_many_cards_as_asked_and_no_higher_one_does(rows, cards_per_day):
    day, card, score, _ = arrays(rows)
    threshold = alert_threshold(day, card, score, cards_per_day)
    best = {}
    for row_day, row_card, row_score in zip(day, card, score, strict=True):
        best[row_day, row_card] = max(best.get((row_day, row_card), -1.0), row_score)
    wanted = min(cards_per_day * len(set(day)), len(best))
    assert sum(value >= threshold for value in best.values()) >= wanted
    assert sum(value > threshold for value in best.values()) < wanted


def test_a_fraud_is_known_when_its_whole_day_is_older_than_the_label_delay():
    day, card = np.array([10, 11, 11, 12]), np.array(["a", "b", "c", "d"])
    label = np.array([1, 1, 0, 1])
    assert known_compromised(day, card, label, 19, 7).tolist() == ["a", "b"]
    assert known_compromised(day, card, label, 18, 7).tolist() == ["a"]
    assert known_compromised(day, card, label, 17, 7).tolist() == []
