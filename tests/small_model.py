"""A real bundle, trained in a moment on noise: for tests of what surrounds a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from feature_repo.bundle import Golden, Manifest, Model, Scorer, load_bundle, promote, write_bundle
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.views import FeatureService
from jobs.fit import fit_local, to_onnx
from jobs.registry import register
from jobs.train import TrainResult
from schemas.settings import Settings

Learnt = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def promote_small_model(models: Path, version: str = "1", **told: Any) -> Model:
    """Train, write and promote a model in ``models``. Returns it as it is loaded; ``told`` replaces what its manifest says."""
    folder = write_small_model(models, version, SERVICE, **told)
    promote(models, folder)
    return load_bundle(folder, SERVICE, models.parent / "keys")


def write_small_model(models: Path, version: str, service: FeatureService, **told: Any) -> Path:
    """Its folder, signed by the home's own key."""
    result = small_result(service, version=version, **told)
    folder = models / FRAUD.name / version
    write_bundle(folder, result.manifest, result.onnx, result.golden, "# trained on noise\n", models.parent / "keys")
    return folder


def register_small_model(settings: Settings, learnt: Learnt | None = None) -> str:
    """The version that it was registered as; it is not live."""
    figures = {"rows": 400, "positives": 100, "auc": 0.5, "average_precision": 0.25, "card_precision_100": 0.0,
               "alerted_cards_per_day": 0.0}
    result = small_result(SERVICE, learnt, metrics={"model": figures}, parameters={"n_estimators": FRAUD.trees, "max_depth": FRAUD.depth,
                                                                           "learning_rate": FRAUD.learning_rate},
                          data={"train_rows": 400, "train_positives": 100})
    return register(settings, result, promote_first=False).version


def small_result(service: FeatureService, learnt: Learnt | None = None, **told: Any) -> TrainResult:
    """Of a training on ``learnt``, rows and their labels; else on noise, a fifth of which is null."""
    rng, width = np.random.default_rng(7), len(service.feature_names)
    rows = rng.normal(10, 10, size=(400, width))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    label = (np.nan_to_num(rows[:, 0]) + np.nan_to_num(rows[:, 3]) > 20).astype(int)
    if learnt is not None:
        rows, label = learnt
    onnx = to_onnx(fit_local(FRAUD, rows.astype(np.float32), label), width, FRAUD.name)
    golden = Golden([[None if np.isnan(x) else float(x) for x in row] for row in rows[:8]], Scorer(onnx)(rows[:8]).tolist())
    manifest = Manifest(model=FRAUD.name, version="", service=service.name, service_hash=service.definition_hash, views={},
                        inputs=list(service.feature_names), threshold=0.5, defaults={}, label=FRAUD.label, label_delay_ms=0,
                        train=("2018-01-01", "2018-01-02"), test=("2018-01-09", "2018-01-10"), seed=0, parameters={}, metrics={},
                        data={}, frameworks={})
    judged: Any = None  # nothing here asks what it was judged on
    return TrainResult(FRAUD, msgspec.structs.replace(manifest, **told), onnx, golden, judged, np.empty(0))
