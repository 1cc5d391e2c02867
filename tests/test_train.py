from __future__ import annotations

import dataclasses
import json
from datetime import date

import deltalake
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from feature_repo.bins import count_columns
from feature_repo.bundle import champion, load_bundle
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.reference import read_reference
from feature_repo.views import DAY_MS
from jobs import train as train_module
from jobs.fit import fit_local
from jobs.registry import register, tracking_client
from jobs.train import check_export, train
from jobs.training_rows import Period, check_gap, open_training_set, parse_period, read_rows
from schemas.errors import JobError, SettingsError
from schemas.settings import Settings

FIRST = date(2018, 7, 25)
TRAIN, TEST = parse_period("2018-07-25..2018-07-31"), parse_period("2018-08-08..2018-08-14")
SPEC = dataclasses.replace(FRAUD, trees=20, depth=3, alerts_per_day=5)
PER_DAY = 200
NO_SETTINGS = Settings(lineage="off")  # nothing else asks for any


@pytest.fixture(scope="module")
def frame():
    """21 days of noise in which one feature, often null, tells fraud from the rest."""
    rng = np.random.default_rng(11)
    n = 21 * PER_DAY
    columns = {name: rng.normal(size=n) for name in SERVICE.feature_names}
    label = rng.random(n) < 0.03
    columns["terminal_fraud_ratio_7d"] = np.where(rng.random(n) < 0.2, np.nan, label * 2.0 + rng.normal(size=n) * 0.5)
    time = TRAIN.start_ms + np.sort(rng.integers(0, 21 * DAY_MS, n))
    ids = {"event_id": [f"e{i}" for i in range(n)], "event_time": time,
           "card_id": rng.integers(0, 400, n).astype(str), "terminal_id": rng.integers(0, 50, n).astype(str)}
    return pd.DataFrame({**ids, "label": label, **columns})


@pytest.fixture(scope="module")
def result(frame):
    return train(frame, SPEC, TRAIN, TEST, NO_SETTINGS, data={"mode": "known"})


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


def test_the_model_beats_both_baselines_on_the_same_rows(result):
    metrics = result.manifest.metrics
    assert {values["rows"] for values in metrics.values()} == {metrics["model"]["rows"]}
    assert metrics["model"]["auc"] > 0.85
    assert abs(metrics["only_amount"]["auc"] - 0.5) < 0.15
    assert metrics["dummy"]["auc"] == 0.5
    assert metrics["model"]["card_precision_5"] > 2 * metrics["dummy"]["card_precision_5"]


def test_the_manifest_says_what_the_model_was_made_from(result, frame):
    manifest = result.manifest
    train_rows = frame[frame.event_time < TRAIN.end_ms]
    assert manifest.data == {"mode": "known", "train_rows": len(train_rows), "train_positives": int(train_rows.label.sum()),
                             "fitted_by": "local"}
    assert manifest.inputs == list(SERVICE.feature_names)
    assert (manifest.service_hash, manifest.train, manifest.test) == (SERVICE.definition_hash, ("2018-07-25", "2018-07-31"),
                                                                      ("2018-08-08", "2018-08-14"))
    assert manifest.parameters["base_score"] == 0.5
    assert set(manifest.frameworks) >= {"xgboost-cpu", "onnxruntime", "headrace"}


def test_the_threshold_alerts_the_budget_of_cards_in_the_days_nobody_trained_on(result, frame, settings):
    model = load_bundle(register(settings, result).folder, SERVICE, settings.key_folder)
    gap = frame[(frame.event_time >= TRAIN.end_ms) & (frame.event_time < TEST.start_ms)]
    alerts = gap[model.score(gap[list(SERVICE.feature_names)].to_numpy()) >= model.threshold]
    cards = len({(day, card) for day, card in zip(alerts.event_time // DAY_MS, alerts.card_id, strict=True)})
    assert SPEC.alerts_per_day * 7 <= cards <= SPEC.alerts_per_day * 7 + 3  # equal scores alert together


def test_the_order_of_rows_changes_nothing(result, frame):
    again = train(frame.sample(frac=1.0, random_state=3), SPEC, TRAIN, TEST, NO_SETTINGS, data={"mode": "known"})
    assert again.onnx == result.onnx
    assert again.manifest == result.manifest
    assert again.golden == result.golden


def test_labels_after_the_training_days_never_reach_the_trees(result, frame):
    turned = frame.assign(label=np.where(frame.event_time >= TRAIN.end_ms, ~frame.label, frame.label))
    assert train(turned, SPEC, TRAIN, TEST, NO_SETTINGS).onnx == result.onnx


def test_golden_rows_have_holes_and_one_has_nothing_else(result):
    holes = np.array([[value is None for value in row] for row in result.golden.inputs])
    assert holes.shape == (32, len(SERVICE.feature_names))
    assert holes[-1].all()
    assert (holes.any(axis=1) & ~holes.all(axis=1)).sum() >= 15


def test_a_test_period_too_close_is_refused_with_days_that_would_do(frame):
    with pytest.raises(JobError, match="known only from 2018-08-08") as caught:
        train(frame, SPEC, TRAIN, parse_period("2018-08-07..2018-08-12"), NO_SETTINGS)
    assert "--test 2018-08-08..2018-08-13" in caught.value.hint
    check_gap(TRAIN, parse_period("2018-08-08..2018-08-13"), SPEC.label_delay_ms)


@pytest.mark.parametrize("text", ["2018-07-25", "2018-07-32..2018-08-01", "2018-08-02..2018-08-01", ""])
def test_a_period_that_is_none_is_refused(text):
    with pytest.raises(SettingsError):
        parse_period(text)


def test_labels_that_are_not_mature_are_refused(frame):
    last_day = frame.event_time >= TEST.end_ms - DAY_MS
    with pytest.raises(JobError, match=r"test rows .* have no label yet"):
        train(frame.assign(label=frame.label.astype(object).where(~last_day, None)), SPEC, TRAIN, TEST, NO_SETTINGS)


@pytest.mark.parametrize(("spoil", "fact"), [
    (lambda frame: frame[frame.event_time < TEST.start_ms], "no test rows"),
    (lambda frame: frame[frame.event_time >= TRAIN.end_ms], "no train rows"),
    (lambda frame: frame[(frame.event_time < TRAIN.end_ms) | (frame.event_time >= TEST.start_ms)], "no rows between"),
    (lambda frame: frame.assign(label=False), "all have the label 0"),
    (lambda frame: frame.drop(columns="amount"), "no column 'amount'"),
    (lambda frame: pd.concat([frame, frame.tail(3)]), "3 events twice"),
])
def test_a_training_set_that_cannot_do_is_refused(frame, spoil, fact):
    with pytest.raises(JobError, match=fact):
        train(spoil(frame), SPEC, TRAIN, TEST, NO_SETTINGS)


def test_an_export_that_differs_is_refused(frame, result):
    rows = read_rows(open_training_set(frame, SPEC), SPEC, TRAIN.start_ms, TRAIN.end_ms)
    fitted = train_module.fit_local(SPEC, rows.x, rows.label)
    good = train_module.Scorer(result.onnx)
    check_export(fitted, good, rows)
    with pytest.raises(JobError, match="differs from XGBoost by"):
        check_export(fitted, lambda x: good(np.nan_to_num(x)), rows)  # as if null became 0


@pytest.mark.slow
def test_spark_fits_the_same_recipe_where_one_process_is_too_small(frame, result, tmp_path, monkeypatch):
    rows = tmp_path / "rows"
    rows.mkdir()
    frame.iloc[: len(frame) // 2].to_parquet(rows / "a.parquet")
    frame.iloc[len(frame) // 2 :].to_parquet(rows / "b.parquet")
    monkeypatch.setattr(train_module, "LOCAL_ROWS", 2 * PER_DAY)
    monkeypatch.setattr(train_module, "fit_local", lambda spec, x, label: fit_local(spec, x, label) if x.shape[1] == 1 else None)
    spread = train(rows, SPEC, TRAIN, TEST, Settings(home=tmp_path / "home", spark_master="local[2]"))
    assert spread.manifest.parameters == result.manifest.parameters
    assert abs(spread.manifest.metrics["model"]["auc"] - result.manifest.metrics["model"]["auc"]) < 0.03
    assert spread.manifest.data["fitted_by"] == "spark"


def test_parquet_on_disk_gives_the_same_model_as_the_frame(frame, result, tmp_path):
    frame.to_parquet(tmp_path / "rows.parquet")
    assert train(str(tmp_path / "rows.parquet"), SPEC, TRAIN, TEST, NO_SETTINGS).onnx == result.onnx


def test_rows_that_a_later_delta_version_removed_stay_removed(frame, tmp_path):
    table = tmp_path / "training"
    for rows in (frame, frame.head(500)):
        deltalake.write_deltalake(table, rows, mode="overwrite")
    assert len(list(table.glob("*.parquet"))) > 1, "what was removed lies there still"
    training_set = open_training_set(table, SPEC)
    assert training_set.origin == {"table": "training", "version": 1}
    assert len(read_rows(training_set, SPEC, 0, TEST.end_ms)) == 500
    known = {"service_hash": SERVICE.definition_hash, "bronze_version": 7, "transactions": 1000, "unlabelled": 3}
    (table / "_manifest.json").write_text(json.dumps(known))
    assert open_training_set(table, SPEC).origin == {"table": "training", "version": 1, **known}
    (table / "_manifest.json").write_text(json.dumps({**known, "unlabelled": 300}))
    with pytest.raises(JobError, match="300 of 1,000 transactions had no label"):
        open_training_set(table, SPEC)
    (table / "_manifest.json").write_text(json.dumps({**known, "service_hash": "00000000"}))
    with pytest.raises(JobError, match="fraud@00000000"):
        open_training_set(table, SPEC)
    for commit in (table / "_delta_log").iterdir():
        commit.unlink()
    with pytest.raises(JobError, match="cannot be read"):
        open_training_set(table, SPEC)


def test_the_first_model_is_champion_the_second_only_when_told(settings, result):
    first = register(settings, result)
    second = register(settings, result)
    assert [first.alias, second.alias] == ["champion", "challenger"]
    assert champion(settings.models, "fraud") == first.folder
    third = register(settings, result, make_champion=True)
    assert champion(settings.models, "fraud") == third.folder
    with tracking_client(settings) as client:
        aliases = {alias: str(number) for alias, number in client.get_registered_model("fraud").aliases.items()}
    assert aliases == {"champion": third.version, "challenger": second.version, "previous": first.version}


def test_a_version_that_can_go_live_has_what_monitors_compare_it_with(settings, result, frame):
    registered = register(settings, result)
    reference = read_reference(settings.models, "fraud", registered.version)
    test = frame[(frame.event_time >= TEST.start_ms) & (frame.event_time < TEST.end_ms)]
    assert (reference.n, reference.labelled) == (len(test), 1.0)
    model = load_bundle(registered.folder, SERVICE, settings.key_folder)
    matrix = test[list(SERVICE.feature_names)].to_numpy()
    wrong = (model.score(matrix) >= model.threshold) != test.label.to_numpy()
    assert reference.losses["error"] == (wrong.sum(), len(test))
    live = count_columns(matrix, reference.edges)  # what is served is float64, what was trained on float32
    assert live.tolist() == np.sum(reference.counts, axis=0).tolist()


def test_the_run_holds_parameters_metrics_and_the_bundle(settings, result):
    registered = register(settings, result)
    with tracking_client(settings) as client:
        run = client.get_run(registered.run_id)
        names = {item.path for item in client.list_artifacts(registered.run_id, "bundle")}
    assert run.info.status == "FINISHED"
    assert run.data.metrics["auc"] == result.manifest.metrics["model"]["auc"]
    assert run.data.params["n_estimators"] == "20"
    assert run.data.tags["service_hash"] == SERVICE.definition_hash
    assert names == {f"bundle/{name}" for name in ("manifest.json", "manifest.sig", "model.onnx", "golden.json", "model_card.md")}


def test_the_model_card_says_how_good_and_on_what(settings, result):
    card = (register(settings, result).folder / "model_card.md").read_text()
    assert "Model fraud, version 1" in card
    assert f"| {result.manifest.metrics['model']['auc']:.3f} |" in card
    assert "2018-08-08..2018-08-14" in card


def test_a_registry_that_does_not_answer_is_an_error_of_ours(result, tmp_path):
    (tmp_path / "no-database").write_text("this is text")
    broken = Settings(home=tmp_path / "home", mlflow=f"sqlite:///{tmp_path / 'no-database'}")
    with pytest.raises(JobError, match="MLflow"):
        register(broken, result)


def test_days_are_whole_and_inclusive():
    assert Period(FIRST, FIRST).end_ms - Period(FIRST, FIRST).start_ms == DAY_MS
    assert (TRAIN.days, str(TRAIN)) == (7, "2018-07-25..2018-07-31")


def test_features_are_read_as_float32_with_null_as_nan(frame, tmp_path):
    path = tmp_path / "rows.parquet"
    frame.to_parquet(path)
    assert pq.read_table(path)["terminal_fraud_ratio_7d"].null_count > 0
    rows = read_rows(open_training_set(path, SPEC), SPEC, TRAIN.start_ms, TRAIN.end_ms)
    column = SERVICE.feature_names.index("terminal_fraud_ratio_7d")
    expected = frame[frame.event_time < TRAIN.end_ms]["terminal_fraud_ratio_7d"].to_numpy().astype(np.float32)
    np.testing.assert_array_equal(rows.x[:, column], expected)
    assert rows.x.dtype == np.float32
