"""Train a model on one period, judge it on a later one, and put all that is known about it into a manifest.

    train ──────────┤ label delay: alerts ├──────────── test
                      threshold, no label needed

The days between train and test are as long as a label takes. Nothing of them is trained on; the alert threshold is set on their
scores, because they are the newest rows that the model has not seen, and a threshold by alert budget needs no labels. A retrain, which has
to learn from the newest labels that there are, tests on the days right after those it trained on, and sets the threshold there.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.bundle import Golden, Manifest, Scorer
from feature_repo.models import ModelSpec
from feature_repo.reference import Reference, build_reference
from feature_repo.views import DAY_MS
from jobs.fit import fit_local, fit_spark, recipe, to_onnx
from jobs.lineage import lineage
from jobs.metrics import alert_threshold, average_precision, card_precision_at_k, known_compromised, roc_auc
from jobs.spark import use_session
from jobs.training_rows import (
    UNLABELLED_AT_MOST,
    Period,
    Rows,
    TrainingSet,
    check_gap,
    check_known,
    count_labels,
    open_training_set,
    read_rows,
)
from schemas.errors import FindingError, JobError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

__all__ = ["LOCAL_ROWS", "TrainResult", "measure", "not_blocked", "train"]

LOCAL_ROWS = 2_000_000
"""Up to here one process fits (29 float32 features: 232 MB); above it Spark does."""
ONNX_TOLERANCE = 1e-5
GOLDEN_ROWS = 32


@dataclass(frozen=True)
class TrainResult:
    """A trained model that is not registered yet: its manifest has no version and no files. ``judged`` are the test rows that its metrics
    are of, ``scores`` what it gave them; ``reference`` is what monitors will compare it with (None: it is not watched)."""

    spec: ModelSpec
    manifest: Manifest
    onnx: bytes
    golden: Golden
    judged: Rows
    scores: np.ndarray[Any, Any]
    reference: Reference | None = None


def train(source: Any, spec: ModelSpec, train_period: Period, test_period: Period, settings: Settings, *,
          data: dict[str, Any] | None = None, spark: SparkSession | None = None, known_ms: int | None = None,
          recent: tuple[Any, Any] | None = None) -> TrainResult:
    """Fit ``spec`` on ``train_period``, measure it and its baselines on the same rows of ``test_period``.

    Parameters
    ----------
    source
        See ``open_training_set``; it spans both periods and the days between.
    data
        What else is known of where the rows came from (offsets, mode), for the manifest.
    spark
        The session to use if there are more than ``LOCAL_ROWS`` rows to fit; without it one is made for them.
    known_ms
        The time of a retrain. All labels of both periods were known by then, and no gap is asked for.
    recent
        (predicted_ms int64[m], features float64[m, F]) of predictions since, for days of the week that the test period lacks.

    Raises FindingError: labels not mature, only one class. Raises JobError: periods too close, ONNX that differs from XGBoost.
    """
    with lineage(settings, "train") as run:
        if isinstance(source, str | Path):
            run.reads_table(str(source))
        return _train(source, spec, train_period, test_period, settings, data, spark, known_ms, recent)


def _train(source: Any, spec: ModelSpec, train_period: Period, test_period: Period, settings: Settings, data: dict[str, Any] | None,
           spark: SparkSession | None, known_ms: int | None, recent: tuple[Any, Any] | None) -> TrainResult:
    if known_ms is None:
        check_gap(train_period, test_period, spec.label_delay_ms)
    else:
        check_known(train_period, test_period, spec.label_delay_ms, known_ms)
    training_set = open_training_set(source, spec)
    after = read_rows(training_set, spec, train_period.end_ms, test_period.end_ms)
    gap, test = after.where(after.event_time < test_period.start_ms), after.where(after.event_time >= test_period.start_ms)
    test = labelled(test, "test", test_period)
    unseen = gap if known_ms is None else test
    if not len(unseen):
        raise FindingError("the training set has no rows between train and test", hint="build it from the first to the last day")
    train_rows, train_positives = count_labels(training_set, train_period.start_ms, train_period.end_ms)
    large = bool(training_set.files) and train_rows > LOCAL_ROWS
    if large:
        with use_session(spark, settings, f"train-{spec.name}") as session:
            fitted = fit_spark(spec, session, training_set.files, train_period.start_ms, train_period.end_ms)
        seen = newest_rows(training_set, spec, train_period)
    else:
        seen = labelled(read_rows(training_set, spec, train_period.start_ms, train_period.end_ms), "train", train_period)
        fitted = fit_local(spec, seen.x, seen.label)
    onnx = to_onnx(fitted, len(spec.service.feature_names), spec.name)
    score = Scorer(onnx)
    check_export(fitted, score, test)
    threshold = alert_threshold(unseen.day, unseen.card, score(unseen.x), spec.alerts_per_day)
    judged = test.where(not_blocked(spec, seen, gap, test))
    if not 0 < judged.label.sum() < len(judged):
        raise FindingError(f"every {spec.label} event of the test period is of a {spec.subject_word} known before",
                       hint="take a longer test period")
    columns = {name: [spec.service.feature_names.index(name)] for name in spec.baselines}
    scores = {
        "model": score(judged.x),
        **{f"only_{name}": fit_local(spec, seen.x[:, column], seen.label).predict_proba(judged.x[:, column])[:, 1]
           for name, column in columns.items()},
        "dummy": np.full(len(judged), seen.label.mean()),
    }
    metrics = {name: measure(spec, judged, each) for name, each in scores.items()}
    on_test = score(test.x)
    alerts = on_test >= threshold
    pairs = set(zip(test.day[alerts].tolist(), test.card[alerts].tolist(), strict=True))
    metrics["model"][f"alerted_{spec.subject_word}s_per_day"] = len(pairs) / test_period.days
    manifest = Manifest(
        model=spec.name, version="", service=spec.service.name, service_hash=spec.service.definition_hash,
        views={view.name: view.definition_hash for view in spec.service.views}, inputs=list(spec.service.feature_names),
        threshold=threshold, defaults=dict(spec.defaults), label=spec.label, label_delay_ms=spec.label_delay_ms,
        train=(str(train_period.first), str(train_period.last)), test=(str(test_period.first), str(test_period.last)),
        seed=spec.seed, parameters=dict(recipe(spec)), metrics=metrics, frameworks=frameworks(), git_commit=git_commit(),
        data={**training_set.origin, **(data or {}), "train_rows": train_rows, "train_positives": train_positives,
              "fitted_by": "spark" if large else "local"},
    )
    others = None if recent is None else (recent[1], score(recent[1]), recent[0])
    reference = reference_of(spec, test, on_test, threshold, training_set.origin.get("history_from_ms"), others)
    return TrainResult(spec, manifest, onnx, golden_rows(spec, test, on_test, score), judged, scores["model"], reference)


def reference_of(spec: ModelSpec, test: Rows, scores: np.ndarray[Any, Any], threshold: float,
                 history_from_ms: int | None, others: tuple[Any, Any, Any] | None) -> Reference | None:
    """Test rows stand for what was served: they were not trained on, and come as they do in service. Their labels are all mature.

    ``others`` were served, and are newer.
    """
    if spec.drift is None:
        return None
    return build_reference(spec, "", features=test.x, scores=scores, threshold=threshold, labels=test.label, event_time=test.event_time,
                           predicted_ms=test.event_time, history_from_ms=history_from_ms, others=others)


def labelled(rows: Rows, what: str, period: Period) -> Rows:
    """The rows whose label is known; raises FindingError where too few are, or all are alike."""
    if not len(rows):
        raise FindingError(f"the training set has no {what} rows of {period}", hint="is that period archived?")
    known = ~np.isnan(rows.label)
    missing = 1 - known.mean()
    if missing > UNLABELLED_AT_MOST:
        raise FindingError(f"{missing:.1%} of the {len(rows):,} {what} rows of {period} have no label yet",
                       hint="labels are not mature: take earlier days, or archive the outcomes first")
    rows = rows.where(known)
    if not 0 < rows.label.sum() < len(rows):
        raise FindingError(f"the {len(rows):,} {what} rows of {period} all have the label {int(rows.label[0])}",
                       hint="take a longer period")
    return rows


def newest_rows(training_set: TrainingSet, spec: ModelSpec, period: Period) -> Rows:
    """The last days of a period that is too large for one process, as many as fit: for baselines and known cards."""
    start = period.end_ms - DAY_MS
    while start > period.start_ms and count_labels(training_set, start - DAY_MS, period.end_ms)[0] <= LOCAL_ROWS:
        start -= DAY_MS
    return labelled(read_rows(training_set, spec, start, period.end_ms), "train", period)


def check_export(fitted: Any, score: Scorer, rows: Rows) -> None:
    """Raise JobError unless the ONNX form gives what XGBoost gives, on ``rows`` and on rows without any feature."""
    x = np.concatenate([rows.x, np.full((1, rows.x.shape[1]), np.nan, dtype=np.float32)])
    difference = float(np.max(np.abs(score(x) - fitted.predict_proba(x)[:, 1])))
    if not difference <= ONNX_TOLERANCE:
        raise JobError(f"the ONNX form differs from XGBoost by {difference:.2g} on {len(x):,} rows",
                       hint="are xgboost, onnxmltools and onnxruntime the locked versions?")


def not_blocked(spec: ModelSpec, seen: Rows, gap: Rows, test: Rows) -> np.ndarray[Any, Any]:
    """Which test rows are judged: where a true label blocks its subject, those of cards not known to be compromised when the day began."""
    fresh = np.ones(len(test), dtype=bool)
    if spec.blocks:  # as the handbook does
        delay_days = -(-spec.label_delay_ms // DAY_MS)
        event_day, card, label = (np.concatenate([getattr(rows, name) for rows in (seen, gap, test)]) for name in ("day", "card", "label"))
        for day in np.unique(test.day):
            fresh &= ~((test.day == day) & np.isin(test.card, known_compromised(event_day, card, label, int(day), delay_days)))
    return fresh


def measure(spec: ModelSpec, judged: Rows, score: np.ndarray[Any, Any]) -> dict[str, float]:
    """How good ``score`` is on the rows that are judged."""
    k = spec.alerts_per_day
    return {
        "rows": len(judged), "positives": int(judged.label.sum()), "auc": roc_auc(judged.label, score),
        "average_precision": average_precision(judged.label, score),
        f"{spec.subject_word}_precision_{k}": card_precision_at_k(judged.day, judged.card, score, judged.label, k),
    }


def golden_rows(spec: ModelSpec, rows: Rows, scores: np.ndarray[Any, Any], score: Scorer) -> Golden:
    """Rows from the lowest to the highest score, half of them with every other feature taken away, the last with none left."""
    picked = np.argsort(scores, kind="stable")[np.linspace(0, len(rows) - 1, GOLDEN_ROWS).astype(int)]
    x = rows.x[picked].astype(np.float64)
    holes = np.random.default_rng(spec.seed).random(x.shape) < 0.5
    x[1::2][holes[1::2]] = np.nan
    x[-1] = np.nan
    inputs = [[None if np.isnan(value) else float(value) for value in row] for row in x]
    return Golden(inputs, score(x).tolist())


def frameworks() -> dict[str, str]:
    return {name: version(name) for name in ("headrace", "numpy", "onnxmltools", "onnxruntime", "xgboost-cpu")}


def git_commit() -> str | None:
    """The commit of this source, with ``-dirty`` where it was changed; None where it is not run from a clone."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        tracked = git("ls-files", "--error-unmatch", here.name)
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*") if tracked else None
    except OSError:
        return None  # no git on this machine
