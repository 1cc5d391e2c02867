"""Gates and the interval they stand on: laws, an oracle, and how often they are wrong on worlds where the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from jobs import gates
from jobs.bootstrap import Interval, Ranking, paired_bootstrap
from jobs.gates import Evidence, GateRules
from schemas.errors import BundleError, FindingError, JobError, LogError, StoreError

RULES = GateRules()


def world(seed: int, lift: float = 0.0, cards: int = 400, burst: int = 8) -> tuple[Any, Any, Any, Any]:
    """Rows of cards; some cards are bad, with ``burst`` frauds each. Each score is wrong about a card in its own way, and the first sees
    frauds ``lift`` better: without it neither is better than the other."""
    r = np.random.default_rng(seed)
    card = np.repeat(np.arange(cards), 10)
    label = (np.arange(len(card)) % 10 < burst * (r.random(cards) < 0.15)[card]).astype(float)
    moods = r.normal(0, 1, (2, cards))[:, card] + r.normal(0, 0.7, (2, len(card)))
    return label, card, label * (1.5 + lift) + moods[0], label * 1.5 + moods[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 60), st.booleans())
def test_weighted_average_precision_is_that_of_scikit_learn(seed: int, n: int, ties: bool) -> None:
    r = np.random.default_rng(seed)
    label, weights = (r.random(n) < 0.4).astype(float), r.integers(0, 4, n).astype(float)
    score = r.integers(0, 5, n).astype(float) if ties else r.random(n)
    found = Ranking(label, score).average_precision(weights)
    if not (weights * label).sum():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(average_precision_score(label, score, sample_weight=weights))


def test_order_of_rows_and_names_of_clusters_change_nothing() -> None:
    label, card, first, second = world(1)
    shuffled = np.random.default_rng(2).permutation(len(label))
    assert paired_bootstrap(label, card, first, second, 50) == paired_bootstrap(*(each[shuffled] for each in world(1)), 50)
    swapped = paired_bootstrap(label, card, second, first, 50)
    found = paired_bootstrap(label, card, first, second, 50)
    assert swapped.difference == -found.difference
    assert swapped.low == pytest.approx(-found.high, abs=0.02)


def test_a_score_against_itself_differs_by_nothing() -> None:
    label, card, first, _ = world(3)
    found = paired_bootstrap(label, card, first, first, 50)
    assert (found.low, found.high, found.difference) == (0, 0, 0)
    with pytest.raises(FindingError, match="are positive"):
        paired_bootstrap(np.zeros(10), np.arange(10), np.zeros(10), np.zeros(10))


def test_a_candidate_that_is_no_better_is_seldom_called_better() -> None:
    """Nominally 5 % of equal candidates. The control: rows drawn one by one, as if those of a card did not come together."""
    wrong = control = 0
    for seed in range(120):
        label, card, first, second = world(seed)
        wrong += gates.cure(paired_bootstrap(label, card, first, second, 200, seed), RULES).outcome == "PASS"
        control += gates.cure(paired_bootstrap(label, np.arange(len(card)), first, second, 200, seed), RULES).outcome == "PASS"
    assert wrong <= 13, "the 99.5 % quantile of 120 at 5 %"
    assert control > 24, "20 % and more are called better"


def test_a_better_candidate_passes_and_a_worse_one_does_not() -> None:
    better = [paired_bootstrap(*world(seed, lift=1.2), 200, seed) for seed in range(20)]
    worse = [paired_bootstrap(*world(seed, lift=-1.2), 200, seed) for seed in range(20)]
    assert all(gates.cure(found, RULES).outcome == "PASS" == gates.non_inferiority(found, RULES).outcome for found in better)
    assert all(gates.cure(found, RULES).outcome == "FAIL" == gates.non_inferiority(found, RULES).outcome for found in worse)


@pytest.mark.parametrize(("interval", "quality", "cured"), [
    (Interval(.50, .50, -.005, .005, 100, 1000), "PASS", "INCONCLUSIVE"),
    (Interval(.50, .50, -.010, .010, 100, 1000), "PASS", "INCONCLUSIVE"),
    (Interval(.50, .50, -.011, .010, 100, 1000), "INCONCLUSIVE", "INCONCLUSIVE"),
    (Interval(.55, .50, .001, .100, 100, 1000), "PASS", "PASS"),
    (Interval(.55, .50, .000, .100, 100, 1000), "PASS", "INCONCLUSIVE"),
    (Interval(.55, .50, .001, .100, 29, 1000), "INCONCLUSIVE", "INCONCLUSIVE"),
    (Interval(.40, .50, -.200, -.020, 100, 1000), "FAIL", "FAIL"),
    (Interval(.49, .50, -.020, .000, 100, 1000), "INCONCLUSIVE", "FAIL"),
    (Interval(.55, .50, -np.inf, np.inf, 100, 0), "INCONCLUSIVE", "INCONCLUSIVE"),
])
def test_bounds_decide(interval: Interval, quality: str, cured: str) -> None:
    assert gates.non_inferiority(interval, RULES).outcome == quality
    assert gates.cure(interval, RULES).outcome == cured


def test_the_walk_ends_at_the_first_gate_that_is_not_passed() -> None:
    reached = []

    def gate(name: str, outcome: Any) -> Any:
        def judge() -> Evidence:
            reached.append(name)
            if not isinstance(outcome, str):
                raise outcome
            return Evidence(name, outcome, "")
        return name, judge

    for last in ("FAIL", "INCONCLUSIVE", FindingError("no row has a label")):
        reached.clear()
        seen = list(gates.walk([gate("a", "PASS"), gate("b", last), gate("c", "PASS")]))
        assert reached == ["a", "b"]
        assert [each.outcome for each in seen] == ["PASS", last if isinstance(last, str) else "INCONCLUSIVE"]
    assert "no row has a label" in seen[-1].why
    for error in (JobError("MLflow refused"), LogError("is Kafka up?"), StoreError("no answer"), BundleError("the champion is damaged")):
        with pytest.raises(type(error)):  # a machine that is down says nothing of a candidate
            list(gates.walk([gate("a", "PASS"), gate("b", error)]))


def test_the_hash_of_the_evidence_covers_all_of_it() -> None:
    seen = [gates.parity(10, 0), gates.data(100, 0.0, 40, RULES, {})]
    assert gates.evidence_hash(seen) == gates.evidence_hash(list(seen))
    others = [seen[::-1], seen[:1], [gates.parity(11, 0), seen[1]]]
    assert len({gates.evidence_hash(each) for each in (seen, *others)}) == 4


def test_no_predictions_broken_rules_and_few_positives_do_not_pass() -> None:
    assert gates.parity(0, 0).outcome == "INCONCLUSIVE"
    assert gates.parity(10, 1).outcome == "FAIL"
    assert gates.data(100, 0.0, 40, RULES, {"null": 3}).outcome == "FAIL"
    assert gates.data(100, 0.0, 29, RULES, {}).outcome == "INCONCLUSIVE"
