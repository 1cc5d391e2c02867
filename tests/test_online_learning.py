"""An online learner behind the loop: laws of its skill, a change that is cured, none that is invented, and Elec2 as it is."""

from __future__ import annotations

import doctest
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from feature_repo.models import DriftPolicy
from feature_repo.views import DAY_MS
from schemas.errors import DefinitionError, SettingsError
from services.cli import main, parser
from services.labelled_rows import LabelledRows, read_labelled
from services.learning_report import compare, with_last_label
from services.online_learning import Governed, governed, make_plan, updating
from streams import skill
from streams.learners import KINDS, Learner
from streams.skill import kappa, kappa_temporal, majority, no_change

STEP_MS = 1_800_000
PLAN = make_plan(STEP_MS, 1)
POLICY = DriftPolicy(STEP_MS, labelled_ms=28 * DAY_MS, cooldown_ms=7 * DAY_MS, labels=PLAN.judge)
LABELS = arrays(bool, st.integers(3, 60))
ELEC2 = Path(os.environ.get("HEADRACE_DATA", "")) / "elec2_capymoa.parquet"


def world(days: int, change_day: int | None = None, seed: int = 0) -> LabelledRows:
    """Rows of two features; the label follows the first, and from ``change_day`` on its opposite. One label in ten is wrong."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(days * PLAN.window, 2))
    labels = (features[:, 0] > 0) ^ (random.random(len(features)) < 0.1)
    if change_day is not None:
        labels[change_day * PLAN.window:] ^= True
    return LabelledRows([{"a": a, "b": b} for a, b in features.tolist()], labels)


def run(stream: LabelledRows, policy: DriftPolicy = POLICY, kind: str = "logistic") -> Governed:
    return governed(stream, PLAN, policy, lambda: Learner(kind))


def accuracy(stream: LabelledRows, found: Governed, first_day: int, last_day: int) -> float:
    rows = slice(first_day * PLAN.window, last_day * PLAN.window)
    return float(np.mean(found.predicted[rows.start - PLAN.start:rows.stop - PLAN.start] == stream.labels[rows]))


def test_examples_run() -> None:
    assert doctest.testmod(skill).failed == 0
    assert doctest.testmod(skill).attempted >= 4


@given(LABELS)
def test_no_change_scores_0_and_the_truth_1(labels: Any) -> None:
    unchanged = no_change(labels)
    constant = bool((unchanged == labels).all())
    assert kappa_temporal(labels, unchanged, unchanged) == (None if constant else 0)
    assert kappa_temporal(labels, labels, unchanged) == (None if constant else 1)
    assert kappa(labels, labels) == (None if labels.all() or not labels.any() else 1)
    if labels.any() and not labels.all():
        assert kappa(labels, np.ones_like(labels)) == pytest.approx(0)


@given(LABELS, st.integers(1, 70))
def test_nothing_uses_a_label_before_it_is_known(labels: Any, delay: int) -> None:
    for forecast in (no_change, majority):
        told = forecast(labels, delay)
        for row in range(len(labels)):
            later = labels.copy()
            later[max(row - delay + 1, 0):] ^= True
            assert forecast(later, delay)[row] == told[row]


@pytest.mark.parametrize("delay", [1, 5])
def test_learners_see_a_label_when_it_is_known_and_not_before(delay: int) -> None:
    """A learner that remembers: what it was taught when it had to predict is what the plan calls known."""
    class Memory:
        def __init__(self) -> None:
            self.taught = 0

        def learn(self, rows: Any, labels: Any) -> None:
            self.taught += len(labels)

        def predict(self, rows: Any) -> Any:
            seen.append(self.taught)
            return np.zeros(len(rows), bool)

    seen: list[int] = []
    plan = make_plan(STEP_MS, delay)
    updating(world(50), plan, Memory)
    assert seen == [row - delay + 1 for row in range(plan.start, 50 * plan.window)]


def test_one_change_is_one_retrain_and_it_cures() -> None:
    stream = world(220, change_day=120)
    found = run(stream)
    (retrain,) = found.retrains
    assert retrain.released
    assert 120 < retrain.row / PLAN.window < 160
    assert retrain.new > 0.8 > 0.2 > retrain.old
    assert accuracy(stream, found, 60, 120) > 0.8
    assert accuracy(stream, found, 160, 220) > 0.8
    assert [one.what for one in found.said if one.by == "governor"][:4] == ["requested", "started", "evaluating", "promoted"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_does_not_change_is_left_alone(kind: str) -> None:
    """With one false alarm in 900 days allowed: 108 days alarm with probability .12 at most. With ten times as many, a false alarm may ask
    for a retrain; what is released then is no worse."""
    strict = [run(world(150, seed=seed), replace(POLICY, days=900), kind) for seed in range(3)]
    assert [(each.retrains, [one.what for one in each.said]) for each in strict] == [([], ["reference"])] * 3
    usual = [run(world(150, seed=seed), kind=kind) for seed in range(3)]
    assert all(one.new > one.old - 0.02 for each in usual for one in each.retrains if one.released)


def test_a_candidate_that_does_not_pass_is_refused_with_its_reason_and_seldom_tried_again() -> None:
    """After the change labels are noise: no candidate can be better, whatever it learns from. One that could not be told from its champion
    is tried again with twice the labels, one that is worse never."""
    stream = world(220)
    noise = np.random.default_rng(5).random(len(stream.labels)) < 0.5
    stream = LabelledRows(stream.rows, np.where(np.arange(len(noise)) < 100 * PLAN.window, stream.labels, noise))
    found = run(stream)
    assert 1 <= len(found.retrains) <= 4, "of the 120 days since, each time twice as many"
    assert not any(retrain.released for retrain in found.retrains)
    assert all(retrain.evidence[-1].outcome != "PASS" and "accuracy" in retrain.evidence[-1].why for retrain in found.retrains)
    assert {one.version for one in found.said} == {"1"}
    assert any("inconclusive; waits for" in one.reason or one.reason == "this cause has had its retrain" for one in found.said)


def test_the_calendar_asks_by_the_same_path() -> None:
    found = run(world(100, seed=1), DriftPolicy(STEP_MS, labelled_ms=28 * DAY_MS, cooldown_ms=7 * DAY_MS, labels=PLAN.judge,
                                                calendar_ms=30 * DAY_MS))
    assert [(each.row // PLAN.window, each.episode) for each in found.retrains] == [(60, "calendar:2"), (90, "calendar:3")]
    assert all(len(each.evidence) == 1 for each in found.retrains), "cure is asked of drifts only"


def test_a_short_stream_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="first fit"):
        compare(world(42), PLAN, POLICY, "logistic", lambda way, row: None)
    with pytest.raises(SettingsError, match="steps of"):
        make_plan(7 * 60_000 + 1, 1)
    with pytest.raises(DefinitionError, match="no learner"):
        Learner("oracle")
    path = tmp_path / "rows.parquet"
    for column, match in (({"a": [1.0, None], "class": [0, 1]}, "a of row 1"), ({"a": [1.0, 2.0], "class": [0, 2]}, "class of row 1"),
                          ({"a": ["x", "1"], "class": [0, 1]}, "a of row 0"), ({"a": [1.0, 2.0]}, "no column 'class'")):
        pq.write_table(pa.table(column), path)
        with pytest.raises(SettingsError, match=match):
            read_labelled(path, "class")


def test_the_command_says_the_same_of_csv_and_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = with_last_label(world(44), 1)
    table = pa.table({"a": [row["a"] for row in stream.rows], "last": [row["last label"] for row in stream.rows],
                      "class": stream.labels.astype(np.int8)})
    pq.write_table(table, tmp_path / "rows.parquet")
    pa.csv.write_csv(table, tmp_path / "rows.csv")
    said = []
    for name in ("rows.parquet", "rows.csv"):
        assert main(["drift", "learn", str(tmp_path / name), "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
    assert set(said[0]["scores"]) == {"no-change", "majority", "frozen", "governed", "updating"}
    assert main(["drift", "learn", str(tmp_path / "rows.csv"), "--delay", "3"]) == 0
    assert "kappa-temporal" in capsys.readouterr().out
    assert main(["drift", "learn", str(tmp_path / "rows.csv"), "--label", "last"]) == 0
    for wrong in ("0 per 90 days", "once"):
        with pytest.raises(SystemExit):
            parser().parse_args(["drift", "learn", "x.csv", "--budget", wrong])


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("HEADRACE_DATA"), reason="set HEADRACE_DATA to the folder of the real input")
@pytest.mark.parametrize("kind", KINDS)
def test_elec2_beside_the_no_change_forecast(kind: str) -> None:
    stream = read_labelled(ELEC2, "class")
    found = compare(stream, PLAN, POLICY, kind, lambda way, row: None)
    print(json.dumps(found["scores"], indent=1))
    assert found["rows"] == 45_312
    assert round(found["no_change_of_all_rows"], 3) == 0.853
    assert found["scores"]["no-change"]["kappa_temporal"] == 0
    for one in found["scores"].values():
        assert (one["accuracy"] > found["scores"]["no-change"]["accuracy"]) == (one["kappa_temporal"] > 0)
    assert found["scores"]["updating"]["accuracy"] > found["scores"]["frozen"]["accuracy"] > found["scores"]["majority"]["accuracy"]
    loop = found["loop"]
    assert loop["requests"] == len(loop["retrains"]) >= loop["released"]
    for one in loop["retrains"]:
        assert one["released"] == all(each["outcome"] == "PASS" for each in one["evidence"])
        assert 0 <= one["rows"] <= PLAN.follow
