"""The late ledger: events that came too late for a view, and what they would have changed had they been in time.

Counterfactual: a late record counts as arrived at its event time, all else as it was. A served value would have differed where that
changes what the kernel makes of the records before the scored event; what was in flight does not enter. A decision is score >= threshold
by the model version and the threshold that are logged with the prediction; it flips where the vector with those values gives the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.bundle import Scorer, load_bundle, read_bundle
from feature_repo.manifest import MODEL_FILE
from feature_repo.models import ModelSpec
from feature_repo.vector import request_features
from feature_repo.views import DAY_MS, HOUR_MS, MINUTE_MS, FeatureService, FeatureView
from jobs.events import bronze, bronze_path, bronze_version, events
from jobs.features import SEES_ALL, Reads, sweep_entities
from jobs.lineage import lineage
from jobs.parity import vectors
from jobs.served import logged
from jobs.spark import use_session
from schemas.errors import BundleError, DefinitionError
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["Late", "ViewLateness", "late"]

EXAMPLES = 20
BUCKETS_MS = (MINUTE_MS, 10 * MINUTE_MS, HOUR_MS, 6 * HOUR_MS, DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
QUANTILES = (0.5, 0.9, 0.99, 1.0)
SCHEMA = ("prediction_id string, event_id string, event_time long, model_version string, score double, would_score double, "
          "threshold double, alert boolean, would_alert boolean, views array<string>, features array<string>, served array<double>, "
          "would_be array<double>")


@dataclass(frozen=True)
class ViewLateness:
    """Of the valid records of a view's source: how many came too late for it, and by how much more than ``allowed_ms``.

    ``by_ms`` are quantiles (approximate but for the last, the largest), ``histogram`` is how many were late by at most so many ms
    and more than the bound before; None is no bound.
    """

    view: str
    source: str
    allowed_ms: int
    records: int
    late: int
    share: float
    by_ms: dict[str, int]
    histogram: list[tuple[int | None, int]]


@dataclass(frozen=True)
class Late:
    """``judged`` of the ``predictions`` have today's definition and were not degraded; ``changed`` of them would have had another value.

    ``decided`` of the changed were scored by a model whose bundle is there; ``to_alert`` and ``to_none`` of those would have flipped.
    """

    model: str
    views: list[ViewLateness]
    predictions: int
    judged: int
    changed: int
    decided: int
    to_alert: int
    to_none: int
    changed_by_feature: dict[str, int]
    bronze_version: int
    seconds: float
    examples: list[dict[str, Any]] = field(default_factory=list)


def late(settings: Settings, spec: ModelSpec, view: str | None = None, spark: SparkSession | None = None) -> Late:
    """The ledger of one view, or of all that ``spec`` reads, over the whole archive.

    Each prediction that would have differed is a row of the Delta table ``<tables>/late/<service>``. Raises DefinitionError for a view
    that the model does not read, JobError where there is no archive.
    """
    service = spec.service
    judged_views = tuple(each for each in service.views if view in (None, each.name))
    if not judged_views:
        raise DefinitionError(f"model {spec.name!r} reads no view {view!r}", hint=f"one of {', '.join(v.name for v in service.views)}")
    began = time.monotonic()
    with lineage(settings, "late") as run, use_session(spark, settings, "late") as own:
        version = bronze_version(own, settings)
        archive = bronze(own, settings, version)
        run.reads_table(bronze_path(settings), version)
        counted, ledger, rows = _changed(archive, service, judged_views, _bundles(settings, spec))
        path = f"{settings.tables}/late/{service.name}"
        rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(path)
        run.writes_table(path)
        found = _totals(own.read.format("delta").load(path))
        return Late(spec.name, [_of_view(each, ledger[each.source].get) for each in judged_views],
                    counted.get["predictions"], counted.get["judged"], **found, bronze_version=version,
                    seconds=round(time.monotonic() - began, 2))


def _changed(archive: DataFrame, service: FeatureService, judged: Sequence[FeatureView],
             bundles: dict[str, bytes]) -> tuple[Any, dict[str, Any], DataFrame]:
    """What is counted on the way, of predictions and by source of records; and the rows of SCHEMA."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as F

    counted, ledger = Observation(), {view.source: Observation() for view in service.views}
    usable = F.col("fault").isNull() & ~F.col("degraded")
    predictions = logged(archive, service).where("nth = 1").observe(counted, F.count("*").alias("predictions"),
                                                                    F.count_if(usable).alias("judged")).where(usable)
    queries = predictions.drop("nth", "logged_ms", "logged_position").withColumn("query", F.lit(True))

    def records(source: str) -> DataFrame:
        """Late ones count as admitted: ``TwoWays`` tells them by their times."""
        numbers = [name for name in service.event_columns if name != "event_time"] if source == service.source else []
        found = events(archive, source, service.views, numbers)
        if source in ledger:
            found = found.observe(ledger[source], *_measures([view for view in service.views if view.source == source]))
        every = sum(1 << bit for bit, view in enumerate(service.views) if view.source == source)
        return found.withColumn("admitted", F.lit(every))

    others = {source: records(source) for source in ledger if source != service.source}
    rows = records(service.source).withColumn("query", F.lit(False)).unionByName(queries, allowMissingColumns=True)
    names = frozenset(view.name for view in judged)
    return counted, ledger, sweep_entities(rows, others, service, TwoWays(names), Compare(service, bundles), SCHEMA)


def _measures(views: Sequence[FeatureView]) -> list[Any]:
    from pyspark.sql import functions as F

    measures = [F.count("*").alias("records")]
    for view in views:
        by = F.col("arrival_ms") - F.col("event_time") - view.allowed_lateness_ms
        measures += [F.count_if(by > 0).alias(f"{view.name}_late"),
                     F.percentile_approx(F.when(by > 0, by), list(QUANTILES), 10_000).alias(f"{view.name}_by"),
                     *(F.count_if((by > above) & (by <= bound)).alias(f"{view.name}_{i}")
                       for i, (above, bound) in enumerate(pairwise((0, *BUCKETS_MS, SEES_ALL))))]
    return measures


def _of_view(view: FeatureView, measured: dict[str, Any]) -> ViewLateness:
    n, found = measured["records"], measured[f"{view.name}_late"]
    by = zip((f"p{quantile:.0%}".rstrip("%") for quantile in QUANTILES), measured[f"{view.name}_by"] or (), strict=False)
    return ViewLateness(view.name, view.source, view.allowed_lateness_ms, n, found, found / n if n else 0.0,
                        {("max" if name == "p100" else name): int(value) for name, value in by},
                        [(bound, measured[f"{view.name}_{i}"]) for i, bound in enumerate((*BUCKETS_MS, None))])


def _bundles(settings: Settings, spec: ModelSpec) -> dict[str, bytes]:
    """The trees of every version that is there and fits today's features, verified."""
    found = {}
    for folder in sorted((settings.models / spec.name).glob("*/")):
        try:
            load_bundle(folder, spec.service, settings.key_folder)
            found[PurePath(folder).name] = read_bundle(folder, settings.key_folder)[1][MODEL_FILE]
        except BundleError:  # of other features, or damaged: its decisions are counted as not judged
            continue
    return found


@dataclass(frozen=True)
class TwoWays:
    """The values over what had arrived in time, and, for ``views``, with late records as if they had."""

    views: frozenset[str]

    def __call__(self, reads: Reads) -> Any:
        too_late = reads.arrivals[:, 0] - reads.records[:, 0] > reads.view.allowed_lateness_ms
        never, in_time = reads.arrivals.copy(), reads.arrivals.copy()
        never[too_late] = SEES_ALL
        in_time[too_late, 0] = reads.records[too_late, 0]
        known = replace(reads, arrivals=never).sweep()[0]
        other = replace(reads, arrivals=in_time).sweep()[0] if too_late.any() and reads.view.name in self.views else known
        return np.column_stack((known, other))


@dataclass(frozen=True)
class Compare:
    """One row for each prediction that would have differed."""

    service: FeatureService
    bundles: dict[str, bytes]

    def __call__(self, queries: pa.Table, own: pa.Table, answers: dict[str, Any]) -> pa.RecordBatch:
        import pyarrow as pa

        service = self.service
        served = vectors(queries, service)
        would_be, differs = served.copy(), np.zeros(served.shape, bool)
        for view in service.views:
            known, other = np.split(answers[view.name], 2, axis=1)
            columns = service.view_slice(view)
            differs[:, columns] = ~((known == other) | (np.isnan(known) & np.isnan(other)))
            would_be[:, columns] = np.where(differs[:, columns], other, served[:, columns])
        there = np.flatnonzero(differs.any(axis=1) & own["event_id"].is_valid().to_numpy())
        served, would_be, differs = served[there], would_be[there], differs[there]
        queries, own = queries.take(pa.array(there)), own.take(pa.array(there))
        if len(there):
            request_features(service, would_be, {name: own[name].to_numpy() for name in service.event_columns})
        differs |= ~((served == would_be) | (np.isnan(served) & np.isnan(would_be)))
        versions = queries["model_version"].to_pylist()
        would_score = np.full(len(there), np.nan)
        for version in {version for version in versions if version in self.bundles}:
            mine = np.array([each == version for each in versions])
            would_score[mine] = _scorer(self.bundles[version])(would_be[mine])
        score, threshold = (queries[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("score", "threshold"))
        judged = ~np.isnan(would_score) & ~np.isnan(score)
        names = np.array(service.feature_names)
        of_views = [set(names[service.view_slice(view)]) for view in service.views]
        changed = [names[row].tolist() for row in differs]

        def of_features(matrix: Any) -> pa.Array:
            return pa.array([[None if np.isnan(x) else x for x in row[mask]] for row, mask in zip(matrix, differs, strict=True)],
                            pa.list_(pa.float64()))

        return pa.RecordBatch.from_pydict({
            **{name: queries[name].combine_chunks() for name in ("prediction_id", "event_id", "event_time", "model_version", "score")},
            "would_score": pa.array(would_score, mask=~judged), "threshold": queries["threshold"].combine_chunks(),
            "alert": pa.array(score >= threshold, mask=~judged), "would_alert": pa.array(would_score >= threshold, mask=~judged),
            "views": pa.array([[view.name for view, own_names in zip(service.views, of_views, strict=True) if own_names & set(row)]
                               for row in changed], pa.list_(pa.string())),
            "features": pa.array(changed, pa.list_(pa.string())), "served": of_features(served), "would_be": of_features(would_be)})


@lru_cache(maxsize=8)
def _scorer(onnx: bytes) -> Scorer:
    return Scorer(onnx)


def _totals(table: DataFrame) -> dict[str, Any]:
    from pyspark.sql import functions as F

    alert, would = F.col("alert"), F.col("would_alert")
    changed, decided, to_alert, to_none = table.agg(F.count("*"), F.count("would_alert"), F.count_if(~alert & would),
                                                    F.count_if(alert & ~would)).collect()[0]
    features = table.select(F.explode("features").alias("feature")).groupBy("feature").count().orderBy(F.desc("count"), "feature").collect()
    moved = F.coalesce(F.abs(F.col("would_score") - F.col("score")), F.lit(0.0))
    flips = F.coalesce(alert != would, F.lit(False))
    worst = table.orderBy(flips.desc(), moved.desc(), "event_time", "prediction_id").limit(EXAMPLES).collect()
    examples = []
    for row in worst:
        told = row.asDict()
        pairs = zip(told.pop("features"), told.pop("served"), told.pop("would_be"), strict=True)
        examples.append({**told, "differs": {name: {"served": a, "would_be": b} for name, a, b in pairs}})
    return {"changed": changed, "decided": decided, "to_alert": to_alert, "to_none": to_none,
            "changed_by_feature": dict(features), "examples": examples}
