"""Slices, fairness, calibration and cost of a candidate: laws, oracles, and how often the gates are wrong where the truth is known."""

from __future__ import annotations

import doctest
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from feature_repo.archive_table import bronze_path
from feature_repo.delta_files import append_once
from feature_repo.fraud import FRAUD
from feature_repo.models import Bands, Fairness
from jobs import cost, gates, linearised
from jobs.bootstrap import paired_bootstrap
from jobs.calibration import calibration, line
from jobs.gates import GateRules
from jobs.groups import Judged, members, slices
from jobs.linearised import Estimate, average_precision, clustered
from schemas.settings import Settings
from tests.gate_worlds import GROUPS, SPEC, World, cases, counts, world
from tests.log_world import hostile_world, serve
from tests.small_model import promote_small_model

RULES = GateRules()
WORLDS = 60
"""At 5 % the 99.9 % quantile of as many is 9."""


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.booleans())
def test_average_precision_and_its_derivative_are_those_of_scikit_learn(seed: int, n: int, ties: bool) -> None:
    r = np.random.default_rng(seed)
    label = (r.random(n) < 0.4).astype(float)
    label[0] = 1
    score = r.integers(0, 4, n).astype(float) if ties else r.random(n)
    value, influence = average_precision(label, score)
    assert value == pytest.approx(average_precision_score(label, score))
    assert influence.sum() == pytest.approx(0, abs=1e-9), "all weights doubled change nothing"
    row, step = int(r.integers(n)), 1e-5
    weights = np.ones(n)
    weights[row] += step
    moved = average_precision_score(label, score, sample_weight=weights)
    assert influence[row] == pytest.approx((moved - value) / step, abs=1e-3)


def test_the_interval_is_that_of_the_bootstrap_over_clusters() -> None:
    judged = world(1, World())
    (first, gained), (second, lost) = (average_precision(judged.label, score) for score in judged.scores)
    drawn = paired_bootstrap(judged.label, judged.member, *judged.scores, draws=400)
    low, high = clustered(first - second, gained - lost, judged.member, drawn.positives).bounds(0.05)
    assert first - second == pytest.approx(drawn.difference)
    assert (low, high) == pytest.approx((drawn.low, drawn.high), abs=0.15 * (drawn.high - drawn.low))
    assert Estimate(0.0, 1.0, 1).bounds(0.05) == (-math.inf, math.inf)


def test_the_example_of_the_quantile_runs() -> None:
    assert doctest.testmod(linearised) == (0, 1)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_gate_is_seldom_wrong(case: Any) -> None:
    found = counts(case, WORLDS, first=10_000)
    if case.truth == "bad":
        assert found["FAIL"] >= 0.8 * WORLDS
    else:
        assert found["FAIL"] <= 9
    if case.truth == "good":
        assert found["PASS"] >= 0.9 * WORLDS


def test_each_question_by_itself_fails_more_often_than_all_together_may() -> None:
    """The control: twelve groups of equal candidates, each asked as if it were the only one."""
    many = replace(SPEC, groups=(Bands("amount", tuple(float(q) for q in np.quantile(world(0, World()).x[:, _at("amount")],
                                                                                    np.linspace(0, 1, 13)[1:-1]))),))
    strict = replace(RULES, slice_margin=0.0, positives=15)
    together = alone = 0
    for seed in range(WORLDS):
        judged = world(20_000 + seed, World())
        told = slices(many, judged, strict)
        together += told.outcome == "FAIL"
        tests = told.facts["tests"]
        assert tests == 12
        alone += slices(many, judged, replace(strict, error=0.05 * tests)).outcome == "FAIL"
    assert together <= 9
    assert alone > 15


def test_what_too_few_cards_tell_of_is_insufficient_data_and_no_failure() -> None:
    judged = world(3, World(of_low=3.0))
    low = judged.x[:, _at("amount")] < 20
    few = np.flatnonzero(judged.label * low > 0)[20:]  # of twenty frauds at low amounts at most twenty cards remain
    keep = np.ones(len(low), bool)
    keep[few] = False
    told = slices(replace(SPEC, groups=GROUPS[:1]), judged.where(keep), RULES)
    first = next(each for each in told.facts["questions"] if each["group"] == "amount below 20")
    assert (told.outcome, first["verdict"]) == ("PASS", "insufficient data")
    assert "insufficient data: amount below 20" in told.why
    assert slices(replace(SPEC, groups=GROUPS[:1]), judged, RULES).outcome == "FAIL", "the control: with all of them it shows"
    strict = slices(replace(SPEC, groups=GROUPS[:1]), judged.where(keep), replace(RULES, every_slice=True))
    assert strict.outcome == "INCONCLUSIVE"


def test_a_group_that_never_alerts_is_seen_though_it_has_no_alert_to_count() -> None:
    judged = world(4, World())
    fresh = judged.x[:, _at("card_count_30d")] < 15
    mute = np.where(fresh, 0.0, judged.scores[0])
    told = slices(replace(SPEC, groups=GROUPS[1:]), replace(judged, scores=(mute, judged.scores[1])), RULES)
    failed = {each["of"] for each in told.facts["questions"] if each["verdict"] == "FAIL"}
    assert failed >= {"demographic parity ratio", "tpr gap"}


def test_an_unfairness_that_the_champion_has_too_is_told_and_does_not_keep_it() -> None:
    judged = world(5, World(eager=2.0))
    same = replace(judged, scores=(judged.scores[0], judged.scores[0]), thresholds=(judged.thresholds[0],) * 2)
    told = slices(SPEC, same, RULES)
    parity = next(each for each in told.facts["questions"] if each["of"] == "demographic parity ratio")
    assert parity["candidate"] == parity["champion"] > 1.25
    assert parity["low"] > parity["limit"]
    assert (told.outcome, parity["verdict"]) == ("PASS", "INCONCLUSIVE")
    assert slices(SPEC, judged, RULES).outcome == "FAIL", "the control: a champion that was fair"
    only_told = replace(SPEC, groups=(Bands("card_count_30d", (15,), Fairness(parity_ratio=None, tpr_gap=None)),))
    verdicts = {each["of"]: each["verdict"] for each in slices(only_told, judged, RULES).facts["questions"]}
    assert verdicts["demographic parity ratio"] == verdicts["tpr gap"] == "TOLD"


def test_every_row_is_in_one_group() -> None:
    column = np.array([19.9, 20, 99.9, 100, np.nan, -5, np.inf], np.float32)
    found = {name: np.flatnonzero(rows).tolist() for name, rows in members(Bands("amount", (20, 100)), column)}
    assert found == {"amount below 20": [0, 5], "amount 20 to 100": [1, 2], "amount from 100": [3, 6], "amount unknown": [4]}
    assert slices(replace(SPEC, groups=()), world(1, World()), RULES).outcome == "PASS"


@pytest.mark.parametrize("spec", ["fraud", "churn"])
def test_declared_groups_are_of_features(spec: str) -> None:
    from feature_repo.churn import CHURN

    model = {"fraud": FRAUD, "churn": CHURN}[spec]
    assert model.groups
    assert {bands.feature for bands in model.groups} <= set(model.service.feature_names)
    assert all(list(bands.edges) == sorted(set(bands.edges)) for bands in model.groups)


def test_the_calibration_line_is_that_of_scikit_learn() -> None:
    judged = world(6, World(slope=1.7, shift=-0.4))
    score = judged.scores[0]
    odds = np.log(score / (1 - score))
    theirs = LogisticRegression(C=1e9, tol=1e-10).fit(odds[:, None], judged.label)
    found = line(judged.label, score, judged.member, 100)
    assert (found.intercept, found.slope.value) == pytest.approx((theirs.intercept_[0], theirs.coef_[0, 0]), abs=1e-3)
    assert found.cost.mean() >= 0
    assert math.exp(found.ratio.value) == pytest.approx(judged.label.mean() / score.mean())


def test_scores_that_tell_labels_apart_or_nothing_at_all_have_a_calibration_too() -> None:
    label = np.repeat([0.0, 1.0], 50)
    for score in (label, 1 - label, np.full(100, 0.5), np.clip(label, 0.1, 0.9)):
        found = line(label, score, np.arange(100), 50)
        assert np.isfinite([found.intercept, found.slope.value, found.slope.error, found.ratio.value]).all()


def test_a_miscalibrated_champion_may_be_followed_by_a_better_one_but_not_by_its_like() -> None:
    judged = world(7, World(slope=2.5))
    assert calibration(judged, RULES).outcome == "FAIL"
    swapped = replace(judged, scores=judged.scores[::-1])
    assert calibration(swapped, RULES).outcome == "PASS"
    twice = replace(judged, scores=(judged.scores[0], judged.scores[0]))
    assert calibration(twice, RULES).outcome == "FAIL"
    assert calibration(world(7, World(cards=90)), RULES).outcome == "INCONCLUSIVE", "too few"


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Any]:
    home, log = tmp_path_factory.mktemp("home"), hostile_world(5)
    model = promote_small_model(Settings(home=home).models)
    serve(log, 5, model=model)
    deltalake.write_deltalake(bronze_path(Settings(home=home)), log.bronze(), partition_by=["topic"])
    return Settings(home=home), model


def test_recorded_requests_are_the_vectors_that_were_served(archived: tuple[Settings, Any]) -> None:
    home, model = archived
    rows = cost.recorded(home, FRAUD, 50)
    assert rows.shape == (50, len(FRAUD.service.feature_names))
    assert np.isnan(rows).any()
    assert np.isfinite(model.score(rows)).all()
    assert len(cost.recorded(home, FRAUD, 10**6)) > 200
    other = replace(FRAUD, service=replace(FRAUD.service, event_columns=("event_time",)))
    assert len(cost.recorded(home, other)) == 0, "vectors of other definitions are not asked with"


def test_a_slow_candidate_and_a_large_one_fail_and_an_equal_one_passes(archived: tuple[Settings, Any], tmp_path: Path) -> None:
    home, model = archived
    rows, folder = cost.recorded(home, FRAUD, 100), home.models / "fraud" / "1"
    assert cost.cost(model, model, (folder, folder), rows, RULES).outcome == "PASS"

    class Slow:
        def score(self, matrix: Any) -> None:
            for _ in range(6):
                model.score(matrix)

    slow: Any = Slow()
    told = cost.cost(slow, model, (folder, folder), rows, RULES)
    assert (told.outcome, told.facts["time_low"] > 3) == ("FAIL", True)
    (tmp_path / "model.onnx").write_bytes(b"x" * 4 * cost.bundle_bytes(folder))
    assert cost.cost(model, model, (tmp_path, folder), rows, RULES).outcome == "FAIL"
    assert cost.cost(model, model, (folder, folder), rows[:0], RULES).outcome == "INCONCLUSIVE"


def test_time_that_is_slept_is_no_cost() -> None:
    """The control of measuring processor time: a busy machine makes wall clocks say anything."""
    def work(rows: Any) -> None:
        sum(range(100_000))

    def interrupted(rows: Any) -> None:
        work(rows)
        time.sleep(0.03)

    assert np.median(cost.time_ratios(interrupted, work, np.zeros((5, 1)), 9)) < 2


def test_the_median_lies_within_its_bounds_as_often_as_is_said() -> None:
    r = np.random.default_rng(1)
    missed = [(low > 0, high < 0) for low, high in (cost.median_bounds(r.normal(0, 1, 25).tolist(), 0.05) for _ in range(2_000))]
    assert max(np.mean(missed, axis=0)) < 0.065


def test_a_policy_says_who_decides() -> None:
    assert gates.approval("automatic").outcome == "PASS"
    assert gates.approval("person").outcome == "NEEDS_APPROVAL"


def test_rows_are_appended_once_under_a_name(tmp_path: Path) -> None:
    import pyarrow as pa

    path, rows = str(tmp_path / "table"), pa.table({"x": [1, 2]})
    assert append_once(path, rows, "a")
    assert not append_once(path, rows, "a")
    assert append_once(path, rows, "b")
    assert deltalake.DeltaTable(path).to_pyarrow_table().num_rows == 4


def _at(name: str) -> int:
    return FRAUD.service.feature_names.index(name)


def test_the_gates_take_seconds_of_a_processor_on_a_large_retrain() -> None:
    """It is printed, not judged: 0.6 s of processor time for 300,000 rows where this was written."""
    judged = world(8, World(cards=30_000))
    began = time.process_time()
    assert slices(FRAUD, judged, RULES).outcome == "PASS"
    assert calibration(judged, RULES).outcome == "PASS"
    spent = time.process_time() - began
    print(f"slices and calibration of {len(judged.label):,} rows: {spent:.2f} s of processor time")


def test_judged_rows_are_cut_together() -> None:
    judged = world(9, World())
    cut: Judged = judged.where(judged.label > 0)
    assert len(cut.label) == len(cut.member) == len(cut.x) == len(cut.scores[0]) == len(cut.scores[1]) == int(judged.label.sum())
