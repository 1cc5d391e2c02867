"""A training set that breaks a rule stops the job, with the rows that broke it; one that breaks none is remembered for the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pytest

from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.rules import Rule, drift, profile, rules_of
from jobs.checks import check_training_set
from schemas.errors import CheckError
from schemas.settings import Settings

ROWS = 3000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def drawn(seed: int = 0, **changed: Any) -> pa.Table:
    """Rows as they should be, but for ``changed``: column -> a function of its values."""
    r = np.random.default_rng(seed)
    columns: dict[str, Any] = {"event_id": [f"e{i}" for i in range(ROWS)], "event_time": np.arange(ROWS) * 1000,
                               "card_id": [f"c{i % 50}" for i in range(ROWS)], "label": (r.random(ROWS) < 0.1).astype(np.int64)}
    for name in SERVICE.feature_names:
        values = r.gamma(2.0, 3.0, ROWS)
        columns[name] = np.floor(values) % 2 if name in ("weekend", "night", "new_terminal") or "ratio" in name else values
    columns |= {name: change(columns[name]) for name, change in changed.items()}
    return pa.table({name: pa.array(values, from_pandas=name in SERVICE.feature_names) for name, values in columns.items()})


def at(rows: slice, value: Any) -> Any:
    def change(values: Any) -> Any:
        values = np.array(values)
        values[rows] = value
        return values

    return change


def test_a_set_that_keeps_its_rules_is_remembered(settings: Settings) -> None:
    first = check_training_set(drawn(0), FRAUD, settings)
    assert (first.rows, first.broken, first.before, first.faults, first.drift) == (ROWS, [], None, None, {})
    second = check_training_set(drawn(1), FRAUD, settings)
    assert second.before is not None
    assert set(second.drift) == set(SERVICE.feature_names)
    assert max(second.drift.values()) < 0.1


@pytest.mark.parametrize(("column", "rows", "value", "kind"), [
    ("card_count_7d", slice(5, 12), np.nan, "null"), ("card_count_7d", slice(3, 4), -1.0, "range"),
    ("terminal_fraud_ratio_7d", slice(0, 30), 1.5, "range"), ("amount", slice(2), np.inf, "range"), ("label", slice(1), 2, "range"),
    ("event_id", slice(10, 12), "e3", None)])
def test_a_broken_rule_stops_the_job_with_its_rows(settings: Settings, column: str, rows: slice, value: Any, kind: str | None) -> None:
    table = drawn(0, **{column: at(rows, value)})
    if kind is None:  # an identity is id and time
        assert check_training_set(table, FRAUD, settings).broken == []
        return
    with pytest.raises(CheckError, match=column) as caught:
        check_training_set(table, FRAUD, settings)
    assert caught.value.exit_code == 8
    (broken,) = caught.value.checked.broken
    n = len(range(*rows.indices(ROWS)))
    assert (broken.kind, broken.rows) == (kind, n)
    assert [example["event_id"] for example in broken.examples] == [f"e{i}" for i in range(*rows.indices(ROWS))][:5]
    told = deltalake.DeltaTable(caught.value.checked.faults).to_pyarrow_table()
    assert sorted(told["event_id"].to_pylist()) == sorted(f"e{i}" for i in range(*rows.indices(ROWS)))
    assert check_training_set(drawn(0), FRAUD, settings).before is None, "a set that broke a rule is not remembered"
    assert check_training_set(table, FRAUD, settings, accept=[kind]).broken == [broken]


def test_degraded_vectors_are_as_they_are(settings: Settings) -> None:
    table = drawn(0, card_count_7d=at(slice(4), np.nan))
    degraded = pa.array([i < 4 for i in range(ROWS)])
    assert check_training_set(table.append_column("degraded", degraded), FRAUD, settings).broken == []
    with pytest.raises(CheckError, match="null"):
        check_training_set(table.append_column("degraded", pa.array([i < 3 for i in range(ROWS)])), FRAUD, settings)


def test_rows_told_twice_are_found(settings: Settings) -> None:
    table = drawn(0)
    with pytest.raises(CheckError, match="one row an event") as caught:
        check_training_set(pa.concat_tables([table, table.slice(7, 3)]), FRAUD, settings)
    (broken,) = caught.value.checked.broken
    assert (broken.kind, broken.rows) == ("duplicate", 6)
    assert {example["event_time"] for example in broken.examples} == {7000, 8000, 9000}


def test_columns_of_another_kind_are_found(settings: Settings) -> None:
    table = drawn(0)
    table = table.set_column(1, "event_time", table["event_time"].cast(pa.string()))
    with pytest.raises(CheckError, match="event_time is string"):
        check_training_set(table, FRAUD, settings)


def test_drift_stops_the_job_unless_it_is_accepted(settings: Settings) -> None:
    check_training_set(drawn(0), FRAUD, settings)
    moved = drawn(1, card_amount_mean_7d=lambda x: x * 2, terminal_count_7d=lambda x: np.where(np.arange(ROWS) % 3 == 0, 0, x))
    with pytest.raises(CheckError, match="drift") as caught:
        check_training_set(moved, FRAUD, settings)
    assert {broken.rule.split()[2] for broken in caught.value.checked.broken} == {"card_amount_mean_7d", "terminal_count_7d"}
    assert len(check_training_set(moved, FRAUD, settings, accept=["drift"]).broken) == 2
    assert check_training_set(moved, FRAUD, settings).broken == [], "what was accepted is what the next is held to"


def test_the_index_is_its_formula() -> None:
    before = {"x": profile(np.array([1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]))}
    assert before["x"].shares == (0.0, *[0.1] * 10)
    now = np.array([1.0, 1, 1, 1, 1, 1, 7, 8, 9, 10])
    q, p = np.array([1e-4, 0.6, *[1e-4] * 5, *[0.1] * 4]), np.array([1e-4, *[0.1] * 10])
    assert drift(before, {"x": now, "other": now}) == {"x": pytest.approx(float(np.sum((q - p) * np.log(q / p))))}


def test_rules_follow_from_the_views_and_from_what_the_model_declares() -> None:
    rules = {rule.column: rule for rule in rules_of(FRAUD)}
    assert set(rules) == {"label", *SERVICE.feature_names}
    assert rules["card_count_7d"] == Rule("card_count_7d", 0, nullable=False)
    assert rules["card_amount_mean_7d"].nullable
    assert rules["terminal_fraud_ratio_7d"].most == 1
