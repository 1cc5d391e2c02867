"""A model of real size that nobody should trust: as many trees as the fraud model has, grown on noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from feature_repo.bundle import Golden, Manifest, Scorer, promote, write_bundle
from feature_repo.fraud import FRAUD, SERVICE
from jobs.fit import fit_local, to_onnx

__all__ = ["promote_noise"]

ROWS = 20_000
DAY = ("2018-07-01", "2018-07-01")


def promote_noise(models: Path) -> Any:
    """Make it the champion in ``models``; returns the fitted ``XGBClassifier``."""
    r, width = np.random.default_rng(3), len(SERVICE.feature_names)
    x = r.gamma(1.0, 20.0, (ROWS, width))
    x[r.random(x.shape) < 0.1] = np.nan
    label = (np.nan_to_num(x[:, :8]).sum(axis=1) + r.normal(0, 40, ROWS) > 180).astype(int)
    fitted = fit_local(FRAUD, x.astype(np.float32), label)
    onnx = to_onnx(fitted, width, FRAUD.name)
    rows = [[None if np.isnan(value) else float(value) for value in row] for row in x[:8]]
    manifest = Manifest(
        model=FRAUD.name, version="bench", service=SERVICE.name, service_hash=SERVICE.definition_hash, views={},
        inputs=list(SERVICE.feature_names), threshold=0.5, defaults={}, label=FRAUD.label, label_delay_ms=FRAUD.label_delay_ms,
        train=DAY, test=DAY, seed=FRAUD.seed, parameters={}, metrics={}, data={}, frameworks={})
    folder = models / FRAUD.name / "bench"
    golden = Golden(rows, Scorer(onnx)(x[:8]).tolist())
    write_bundle(folder, manifest, onnx, golden, "# grown on noise, for the bench\n", models.parent / "keys")
    promote(models, folder)
    return fitted
