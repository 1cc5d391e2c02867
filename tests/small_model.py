"""A real bundle, trained in a moment on noise: for tests of what surrounds a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from feature_repo.bundle import Golden, Manifest, Model, Scorer, load_bundle, promote, write_bundle
from feature_repo.fraud import FRAUD, SERVICE
from jobs.fit import fit_local, to_onnx


def promote_small_model(models: Path, version: str = "1", defaults: dict[str, float] | None = None) -> Model:
    """Train, write and promote a model in ``models``; a fifth of what it was trained on was null. Returns it as it is loaded."""
    rng, width = np.random.default_rng(7), len(SERVICE.feature_names)
    rows = rng.normal(10, 10, size=(400, width))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    label = (np.nan_to_num(rows[:, 0]) + np.nan_to_num(rows[:, 3]) > 20).astype(int)
    onnx = to_onnx(fit_local(FRAUD, rows.astype(np.float32), label), width, FRAUD.name)
    golden = Golden([[None if np.isnan(x) else float(x) for x in row] for row in rows[:8]], Scorer(onnx)(rows[:8]).tolist())
    manifest = Manifest(model=FRAUD.name, version=version, service=SERVICE.name, service_hash=SERVICE.definition_hash, views={},
                        inputs=list(SERVICE.feature_names), threshold=0.5, defaults=defaults or {}, label=FRAUD.label, label_delay_ms=0,
                        train=("2018-01-01", "2018-01-02"), test=("2018-01-09", "2018-01-10"), seed=0, parameters={}, metrics={},
                        data={}, frameworks={})
    folder = models / FRAUD.name / version
    write_bundle(folder, manifest, onnx, golden, "# trained on noise\n")
    promote(models, folder)
    return load_bundle(folder, SERVICE)
