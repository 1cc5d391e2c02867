"""Contributions: they add up, they are those of XGBoost's own TreeSHAP, and they are read from what a bundle holds."""

from __future__ import annotations

import doctest
import math
import random
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo import contributions as module
from feature_repo.bundle import Scorer
from feature_repo.contributions import Leaf, Split, Trees, contributions, margin
from feature_repo.fraud import FRAUD
from feature_repo.trees import read_trees
from jobs.fit import fit_local, to_onnx
from schemas.errors import BundleError

WIDTH = 5
numbers = st.one_of(st.just(math.nan), st.floats(-3, 3, width=32), st.integers(-2, 2).map(float))


def random_trees(seed: int) -> Trees:
    """A few trees of any shape over few features, so that a path asks for one of them again and again."""
    r = random.Random(seed)

    def grow(path: tuple[Split, ...]) -> list[Leaf]:
        if len(path) == 6 or (path and r.random() < 0.2):
            return [Leaf(r.gauss(0, 1), path)]
        feature, threshold, missing, share = r.randrange(WIDTH), np.float32(r.choice([0, 1, r.gauss(0, 1)])), r.random() < 0.5, r.random()
        mode = r.choice(["BRANCH_LT", "BRANCH_LEQ", "BRANCH_GT", "BRANCH_GTE"])
        return [leaf for holds in (True, False) for leaf in
                grow((*path, Split(feature, mode, float(threshold), holds, missing, share if holds else 1 - share)))]

    return Trees(tuple(leaf for _ in range(r.randrange(1, 4)) for leaf in grow(())), r.gauss(0, 1), WIDTH, True)


def by_definition(trees: Trees, x: Any) -> tuple[float, list[float]]:
    """Shapley's own words: what each feature adds when it joins, over all orders of joining."""
    def expected(known: frozenset[int]) -> float:
        return trees.base + sum(leaf.value * math.prod(
            float(split.passes(x)) if split.feature in known else split.share for split in leaf.path) for leaf in trees.leaves)

    parts = [0.0] * WIDTH
    orders = list(permutations(range(WIDTH)))
    for order in orders:
        for place, feature in enumerate(order):
            parts[feature] += expected(frozenset(order[:place + 1])) - expected(frozenset(order[:place]))
    return expected(frozenset()), [part / len(orders) for part in parts]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.lists(numbers, min_size=WIDTH, max_size=WIDTH))
def test_contributions_add_up_to_the_margin(seed: int, vector: list[float]) -> None:
    trees = random_trees(seed)
    base, parts = contributions(trees, vector)
    assert base + parts.sum() == pytest.approx(margin(trees, vector), abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9), st.lists(numbers, min_size=WIDTH, max_size=WIDTH))
def test_contributions_are_the_shapley_values(seed: int, vector: list[float]) -> None:
    trees, x = random_trees(seed), np.array(vector, np.float32)
    base, parts = contributions(trees, x)
    expected_base, expected = by_definition(trees, x)
    assert base == pytest.approx(expected_base, abs=1e-9)
    assert parts.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def fitted() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1500, 29)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    label = (np.nan_to_num(x[:, 0]) + np.nan_to_num(x[:, 3]) * np.nan_to_num(x[:, 5]) > 0.7).astype(int)
    return fit_local(FRAUD, x, label), x


def test_a_bundles_trees_give_its_score_and_xgboosts_own_contributions(fitted: tuple[Any, Any]) -> None:
    import xgboost

    model, x = fitted
    rows = np.concatenate([x[:20], np.full((1, 29), np.nan, np.float32)])
    onnx = to_onnx(model, 29, "fraud")
    trees, scores = read_trees(onnx), Scorer(onnx)(rows)
    assert trees.counted
    theirs = model.get_booster().predict(xgboost.DMatrix(rows), pred_contribs=True)
    for row, score, told in zip(rows, scores, theirs, strict=True):
        base, parts = contributions(trees, row)
        assert base + parts.sum() == pytest.approx(margin(trees, row), abs=1e-9)
        assert 1 / (1 + math.exp(-margin(trees, row))) == pytest.approx(score, abs=1e-6)
        assert [*parts, base] == pytest.approx(told.tolist(), abs=2e-4)  # theirs are summed in float32


def test_a_file_without_counts_is_said_to_have_none_and_still_adds_up(fitted: tuple[Any, Any]) -> None:
    import onnx

    model, x = fitted
    plain = onnx.load_model_from_string(to_onnx(model, 29, "fraud"))
    attributes = plain.graph.node[0].attribute
    attributes.remove(next(a for a in attributes if a.name == "nodes_hitrates"))
    trees = read_trees(plain.SerializeToString())
    assert not trees.counted
    base, parts = contributions(trees, x[0])
    assert base + parts.sum() == pytest.approx(margin(trees, x[0]), abs=1e-9)


def test_what_is_no_classifier_of_trees_is_refused(fitted: tuple[Any, Any]) -> None:
    import onnx

    other = onnx.load_model_from_string(to_onnx(fitted[0], 29, "fraud"))
    next(a for a in other.graph.node[0].attribute if a.name == "post_transform").s = b"SOFTMAX"
    for data in (other.SerializeToString(), b"", b"pickle"):
        with pytest.raises(BundleError, match="not a file of decision trees"):
            read_trees(data)


def test_the_example_of_contributions_runs() -> None:
    assert doctest.testmod(module) == (0, 4)
