"""The three training sets beside one another: how much they differ, and what that does to a model that is trained on each.

``ideal`` holds what arrived later too: what a model gains from it, it gains only from data that nobody would have had.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from feature_repo.bundle import Scorer
from feature_repo.models import ModelSpec
from jobs.lineage import lineage
from jobs.spark import use_session, write_text
from jobs.train import labelled, measure, newest_rows, not_blocked, train
from jobs.training_rows import Period, open_training_set, read_rows
from jobs.training_set import MODES, Mode, build_training_set
from schemas.errors import JobError
from schemas.settings import Settings

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame, SparkSession

__all__ = ["Comparison", "Difference", "compare"]

KEYS = ["event_id", "event_time"]
PAIRS: tuple[tuple[Mode, Mode], ...] = (("known", "ideal"), ("known", "served"), ("served", "ideal"))


@dataclass(frozen=True)
class Difference:
    """One feature in two modes: over ``rows`` that both have, in how many it differs, where it is null in one only, and by how much on
    average where both have a value that differs (null: nowhere)."""

    feature: str
    rows: int
    differing: int
    null_in_one: int
    mean_difference: float | None


@dataclass(frozen=True)
class Comparison:
    """``differences`` of each pair of modes, by its name; ``rows`` of each mode.

    ``metrics`` has, by mode trained on, what the model seems worth on its own test rows, and what it is worth on ``judged_on``: those
    that scoring would have seen. ``illusion`` is the first for ideal less the second, by metric: what only hindsight gave.
    """

    period: str
    rows: dict[str, int]
    differences: dict[str, list[Difference]]
    metrics: dict[str, dict[str, dict[str, float]]]
    judged_on: Mode | None
    illusion: dict[str, float]
    path: str


def compare(settings: Settings, spec: ModelSpec, period: Period, train_period: Period | None = None, test_period: Period | None = None,
            spark: SparkSession | None = None) -> Comparison:
    """Build ``known`` and ``ideal``, and ``served`` where predictions are archived, over ``period`` and compare them row by row.

    With a ``train_period`` and a ``test_period`` in it a model is trained on each. Served rows that are degraded count as they are.
    The report is written beside the sets, as ``<path>``. Raises JobError where there is nothing to compare.
    """
    with lineage(settings, "compare") as run, use_session(spark, settings, "compare") as own:
        paths: dict[Mode, str] = {}
        for mode in MODES:
            try:
                paths[mode] = build_training_set(settings, spec, period.start_ms, period.end_ms, mode, own).path
            except JobError:
                if mode != "served":
                    raise
        tables = {mode: own.read.format("delta").load(path) for mode, path in paths.items()}
        pairs = [(a, b) for a, b in PAIRS if a in paths and b in paths]
        differences = {f"{a}-{b}": _differences(tables[a], tables[b], spec) for a, b in pairs}
        rows: dict[str, int] = {mode: table.count() for mode, table in tables.items()}
        metrics: dict[str, dict[str, dict[str, float]]] = {}
        judged_on: Mode | None = None
        if train_period and test_period:
            judged_on = "served" if rows.get("served") == rows["known"] else "known"
            metrics = {mode: _worth(settings, spec, path, paths[judged_on], train_period, test_period, own) for mode, path in paths.items()}
        path = f"{settings.tables}/training_sets/{spec.name}-compare-{period}.json"
        found = Comparison(str(period), rows, differences, metrics, judged_on, _illusion(metrics), path)
        write_text(own, path, json.dumps(asdict(found), indent=1))
        for read in paths.values():
            run.reads_table(read)
        run.writes_file(path)
        return found


def _differences(a: DataFrame, b: DataFrame, spec: ModelSpec) -> list[Difference]:
    from pyspark.sql import functions as F

    both = a.alias("a").join(b.alias("b"), KEYS)
    measures: list[Column] = [F.count(F.lit(1)).alias("rows")]
    for i, name in enumerate(spec.service.feature_names):
        x, y = F.col(f"a.{name}"), F.col(f"b.{name}")
        measures += [F.count_if(~x.eqNullSafe(y)).alias(f"differing_{i}"), F.count_if(x.isNull() != y.isNull()).alias(f"null_{i}"),
                     F.avg(F.when(x != y, F.abs(x - y))).alias(f"mean_{i}")]
    seen = both.agg(*measures).collect()[0].asDict()
    return [Difference(name, seen["rows"], seen[f"differing_{i}"], seen[f"null_{i}"], seen[f"mean_{i}"])
            for i, name in enumerate(spec.service.feature_names)]


def _worth(settings: Settings, spec: ModelSpec, path: str, judged_on: str, train_period: Period, test_period: Period,
           spark: SparkSession) -> dict[str, dict[str, float]]:
    """The model's metrics on the test rows of its own training set, and on those of ``judged_on``."""
    trained = train(path, spec, train_period, test_period, settings, spark=spark)
    opened = open_training_set(judged_on, spec)
    after = read_rows(opened, spec, train_period.end_ms, test_period.end_ms)
    gap, test = after.where(after.event_time < test_period.start_ms), after.where(after.event_time >= test_period.start_ms)
    test = labelled(test, "test", test_period)
    judged = test.where(not_blocked(spec, newest_rows(opened, spec, train_period), gap, test))
    return {"own": trained.manifest.metrics["model"], "judged": measure(spec, judged, Scorer(trained.onnx)(judged.x))}


def _illusion(metrics: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    """By how much the ideal set's own test rows flatter the model."""
    ideal = metrics.get("ideal")
    return {name: value - ideal["judged"][name] for name, value in ideal["own"].items()
            if name in ideal["judged"] and name not in ("rows", "positives")} if ideal else {}
