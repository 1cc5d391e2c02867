"""What a model version is compared with: frozen bins and losses of a stretch that it was judged on, as plain JSON beside the bundles.

    <models>/<model>/references/<version>.json

It is written once, before the version goes live: monitors count in its bins from the first prediction of that version on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from feature_repo.bins import MINIMUM_N, count_columns, quantile_edges
from feature_repo.manifest import write_synced
from feature_repo.models import DriftPolicy, ModelSpec
from feature_repo.views import DAY_MS
from schemas.errors import BundleError, DefinitionError

__all__ = ["ERROR", "MISSED", "Reference", "build_reference", "loss_streams", "read_reference", "reference_path", "write_reference"]

GROWING = {"count", "sum", "count_distinct", "count_same"}
"""Window functions that rise as the window fills; a mean, a ratio or an extreme hardly does."""
ERROR, MISSED = "error", "missed"
"""Streams of losses: was the alert wrong; of the true ones, was there none. ``error/<slice>`` is the first within a slice."""


class Reference(msgspec.Struct, frozen=True):
    """``counts`` int[cells][F][22] and ``score_counts`` int[cells][22], cells of equal length from Monday 00:00 UTC.

    ``losses``: stream -> (sum, number) at age ``age_ms``; ``labelled``: the share of predictions that had a label by then. ``filling``:
    features whose windows reached back behind all history, so that they have gone on growing since.
    """

    model: str
    version: str
    features: list[str]
    edges: list[list[float]]
    score_edges: list[float]
    counts: list[list[list[int]]]
    score_counts: list[list[int]]
    losses: dict[str, tuple[float, int]]
    labelled: float
    n: int
    days: float
    age_ms: int
    window_ms: int
    from_ms: int
    until_ms: int
    filling: list[str] = []

    @property
    def name(self) -> str:
        return f"{self.model}@{self.version}"


def loss_streams(policy: DriftPolicy, event_time: int, alert: bool, label: bool) -> list[tuple[str, bool]]:
    """The streams that this prediction has a loss in, with the loss."""
    wrong = alert != label
    found = [(ERROR, wrong), *((f"{ERROR}/{each.name}", wrong) for each in policy.slices if each.chosen(event_time))]
    return [*found, (MISSED, wrong)] if label else found


def build_reference(spec: ModelSpec, version: str, *, features: Any, scores: Any, threshold: float, labels: Any, event_time: Any,
                    predicted_ms: Any, history_from_ms: int | None = None, others: tuple[Any, Any, Any] | None = None) -> Reference:
    """The reference of ``version`` from a stretch of its own predictions that it was not trained on.

    Parameters
    ----------
    features
        float64[n, F] in service order, NaN is null.
    labels
        float64[n], 0 or 1 as known when the prediction was the policy's ``age_ms`` old, NaN where nothing was known.
    event_time, predicted_ms
        int64[n], UTC ms; the second is when the event arrived.
    others
        ``features``, ``scores`` and ``predicted_ms`` of further predictions, without labels: they stand for hours of the week that are
        thin without them.
    history_from_ms
        When the oldest event that features were computed from arrived; None: nobody knows, all windows count as full.

    Raises DefinitionError for a model without drift policy, or for rows that do not fit it.
    """
    if spec.drift is None:
        raise DefinitionError(f"model {spec.name!r} has no drift policy", hint="declare one with the model")
    policy, matrix, n = spec.drift, np.asarray(features, float), len(scores)
    if not n or matrix.shape != (n, len(spec.service.feature_names)):
        raise DefinitionError(f"a reference from a matrix {matrix.shape} and {n} scores", hint="one row a prediction, one column a feature")
    times, scores, labels = np.asarray(predicted_ms, np.int64), np.asarray(scores, float), np.asarray(labels, float)
    edges, score_edges = [quantile_edges(column) for column in matrix.T], quantile_edges(scores)
    sources = [(matrix, scores, _cells(policy, times)), *([(*others[:2], _cells(policy, others[2]))] if others is not None else [])]
    shapes = []
    for cell in range(policy.week_windows):
        rows = [(x[cells == cell], score[cells == cell]) for x, score, cells in sources]
        shapes.append(rows[0] if len(rows[0][0]) >= MINIMUM_N else max(rows, key=lambda each: len(each[0])))
    counts = [count_columns(x, edges) for x, _ in shapes]
    score_counts = [count_columns(score[:, None], [score_edges])[0] for _, score in shapes]
    losses: dict[str, tuple[float, int]] = {}
    known = ~np.isnan(labels)
    for at, score, label in zip(np.asarray(event_time)[known].tolist(), scores[known].tolist(), labels[known].tolist(), strict=True):
        for stream, loss in loss_streams(policy, at, score >= threshold, bool(label)):
            total, number = losses.get(stream, (0.0, 0))
            losses[stream] = total + loss, number + 1
    return Reference(
        spec.name, version, list(spec.service.feature_names), [edge.tolist() for edge in edges], score_edges.tolist(),
        [of_cell.tolist() for of_cell in counts], [of_cell.tolist() for of_cell in score_counts], losses, float(known.mean()), n,
        max(int(times.max() - times.min()), 1) / DAY_MS, policy.age_ms, policy.window_ms, int(times.min()), int(times.max()),
        _filling(spec, int(np.median(times)), history_from_ms))


def _cells(policy: DriftPolicy, times_ms: Any) -> Any:
    """int64[n]: which of the week's windows each time lies in."""
    of_week = (times_ms // policy.window_ms * policy.window_ms + 3 * DAY_MS) % (7 * DAY_MS)  # 1970 began on a Thursday
    return of_week * policy.week_windows // (7 * DAY_MS)


def _filling(spec: ModelSpec, at_ms: int, history_from_ms: int | None) -> list[str]:
    if history_from_ms is None:
        return []
    return [feature.name for view in spec.service.views for feature in view.features if feature.function in GROWING
            and at_ms - view.delay_ms - feature.window_ms < history_from_ms]


def reference_path(models: Path, model: str, version: str) -> Path:
    return models / model / "references" / f"{version}.json"


def write_reference(models: Path, reference: Reference) -> Path:
    """Raises BundleError where the version has another one: what a version is compared with does not change."""
    path, data = reference_path(models, reference.model, reference.version), msgspec.json.encode(reference)
    held = read_reference(models, reference.model, reference.version)
    if held is not None and held != reference:
        raise BundleError(f"{reference.name} has a reference", hint="a version's reference is written once")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    write_synced(draft, data)
    draft.replace(path)
    return path


def read_reference(models: Path, model: str, version: str) -> Reference | None:
    """None where the version has none. Raises BundleError where it cannot be read."""
    path = reference_path(models, model, version)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Reference)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise BundleError(f"{path} is not a reference: {error}",
                          hint="bring it back from a copy; without it nothing is judged of that version") from error
