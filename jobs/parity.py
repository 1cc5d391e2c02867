"""Parity: every archived prediction recomputed from the archive and classified; ``unexplained`` is a bug, and gates releases."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.kernel import USED, XOR
from feature_repo.vector import request_features
from feature_repo.views import FeatureService
from jobs.classify import Read, Verdict, classify, same_values, stamped_later
from jobs.erased_reads import excuse
from jobs.events import bronze, bronze_path, bronze_version, end_offsets, events
from jobs.features import Reads, from_bytes, sweep_entities
from jobs.lineage import lineage
from jobs.served import ABSENT, FINGERPRINT, OTHER_DEFINITION, REFUSED, STAMP_WORDS, N, asked_events, topic_of
from jobs.settled import LAST_MS, SCHEMA, Open, complete_until, covered, every_prediction, open_predictions, verdict_basis
from jobs.spark import use_session, write_text
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["EXAMPLES", "Parity", "parity", "parity_path"]

EXAMPLES = 20
VERDICTS = ("exact", "in_flight", "unexplained", "erased", "degraded", "other_definition")
WHY = {
    Verdict.DROPPED: "a record at or below the stamp is missing from what was served",
    Verdict.NO_SUCH_SET: "no set that the stamp allows gives the served count and fingerprint",
    Verdict.OTHER_VALUES: "the set is right by count and fingerprint, the values are not",
    Verdict.TOO_MANY_SETS: "more sets are possible than can be tried",
    Verdict.NOT_ARCHIVED: "the scored record is not in the archive",
    Verdict.NO_STAMP: "the prediction has no stamp of this view and is not degraded",
    Verdict.REFUSED_WITH_VALUES: "the stamp says refused, yet there are values",
}


@dataclass(frozen=True)
class Parity:
    """Counts by verdict. ``predictions`` are distinct ids; ``duplicates`` are further records of an id; ``erased``: a person's events,
    which the reads may have had, were erased since (docs/erase.md).
    """

    predictions: int
    exact: int
    in_flight: int
    unexplained: int
    erased: int
    degraded: int
    other_definition: int
    duplicates: int
    bronze_version: int
    seconds: float
    examples: list[dict[str, Any]] = field(default_factory=list)


def parity_path(settings: Settings, service: FeatureService, answers: bool = False) -> str:
    return f"{settings.tables}/parity/{service.name}{'.answers' if answers else ''}"


def parity(settings: Settings, service: FeatureService, spark: SparkSession | None = None, *, again: bool = False,
           answers: bool = False) -> Parity:
    """Classify every archived prediction made with ``service`` as it is defined now.

    The verdict of each is a row of the Delta table ``<tables>/parity/<service>``; the counts are in its ``_report.json`` too. Verdicts that
    an earlier run has settled are carried over (``jobs.settled``); with ``again`` every prediction is recomputed. With ``answers`` it is
    about what was answered by request, each answer of an event for itself, in ``<tables>/parity/<service>.answers``.
    """
    with lineage(settings, "parity") as run, use_session(spark, settings, "parity") as own:
        began = time.monotonic()
        version, path = bronze_version(own, settings), parity_path(settings, service, answers)
        run.reads_table(bronze_path(settings), version)
        archive = bronze(own, settings, version)
        basis = verdict_basis(own, settings, service, version)
        to_judge = (every_prediction(archive, service, answers) if again else
                    open_predictions(own, path, basis, archive, service, answers))
        verdicts = classified(archive, to_judge, service, basis, answers)
        verdicts.write.format("delta").mode("overwrite").option("overwriteSchema", "true").save(path)
        to_judge.predictions.unpersist()
        excuse(own, settings, archive, service, path, topic_of(service, answers))
        run.writes_table(path)
        table = own.read.format("delta").load(path)
        counts = {verdict: count for verdict, count in table.groupBy("verdict").count().collect()}
        worst = table.where("verdict = 'unexplained'").orderBy("event_time", "prediction_id").limit(EXAMPLES).collect()
        distinct = sum(counts.values())
        result = Parity(predictions=distinct, **{verdict: counts.get(verdict, 0) for verdict in VERDICTS},
                        duplicates=archive.where(archive.topic == topic_of(service, answers)).count() - distinct, bronze_version=version,
                        seconds=round(time.monotonic() - began, 2), examples=[_example(row.asDict(), service) for row in worst])
        write_text(own, f"{path}/_report.json", json.dumps(asdict(result), indent=1))
        return result


def classified(archive: DataFrame, to_judge: Open, service: FeatureService, basis: str, answers: bool) -> DataFrame:
    """One row per distinct prediction (SCHEMA): what is carried, and verdicts on the rest."""
    from pyspark.sql import functions as F

    seen = (to_judge.from_ms, LAST_MS)
    queries = to_judge.predictions.withColumn("query", F.lit(True))
    numbers = [name for name in service.event_columns if name != "event_time"]
    of_source = events(archive, service.source, service.views, numbers, seen).withColumn("query", F.lit(False))
    if answers:
        asked = events(asked_events(archive, service), service.source, service.views, numbers, seen)
        of_source = of_source.unionByName(asked.withColumn("admitted", F.lit(0)).withColumn("query", F.lit(False)))
    others = {source: events(archive, source, service.views, event_time=seen)
              for source in {view.source for view in service.views} - {service.source}}
    rows = of_source.unionByName(queries, allowMissingColumns=True)
    newest_ms = archive.agg(F.max("arrival_ms")).collect()[0][0]
    conclude = Conclude(service, basis, end_offsets(archive), complete_until(newest_ms, answers))
    fresh = sweep_entities(rows, others, service, Judge(service), conclude, SCHEMA)
    return fresh if to_judge.carried is None else fresh.unionByName(to_judge.carried)


@dataclass(frozen=True)
class Judge:
    """From the reads of a view to (verdict, recomputed values) of each."""

    service: FeatureService

    def __call__(self, reads: Reads) -> Any:
        view, queries = reads.view, reads.queries
        served = vectors(queries, self.service)[:, self.service.view_slice(view)]
        stamps = from_bytes(queries["stamps"], np.int64).reshape(-1, len(self.service.views), STAMP_WORDS)
        stamps = stamps[:, self.service.views.index(view)]
        applied = offsets(queries[f"applied_{view.name}"])
        values, folded = reads.sweep()
        later = stamped_later(view, reads.records, reads.arrivals, reads.starts, reads.ends, reads.t, reads.horizons, applied)
        exact = ((values == served) | (np.isnan(values) & np.isnan(served))).all(axis=1) & ~later & reads.found
        exact &= (folded[:, USED] == stamps[:, N]) & (folded[:, XOR] == stamps[:, FINGERPRINT])
        exact &= (stamps[:, ABSENT] == 0) & (stamps[:, REFUSED] == 0)
        answers = np.column_stack((np.zeros(len(values)), values))
        degraded = queries["degraded"].to_numpy()
        for i in np.flatnonzero(~exact):
            answers[i, 0] = self._one(reads, i, served[i], stamps[i], applied[i], bool(degraded[i]))
        return answers

    def _one(self, reads: Reads, i: Any, served: Any, stamp: Any, applied: Any, degraded: bool) -> Verdict:
        if not reads.found[i]:
            return Verdict.NOT_ARCHIVED
        if stamp[ABSENT]:
            return Verdict.DEGRADED if degraded else Verdict.NO_STAMP
        if stamp[REFUSED]:
            return Verdict.REFUSED if np.isnan(served).all() else Verdict.REFUSED_WITH_VALUES
        rows = slice(reads.starts[i], reads.ends[i])
        return classify(Read(reads.view, reads.records[rows], reads.arrivals[rows], int(reads.t[i]), reads.current[i],
                             int(reads.modes[i]), reads.horizons[i], applied, served, int(stamp[N]), int(stamp[FINGERPRINT])))


@dataclass(frozen=True)
class Conclude:
    """From the verdicts on a prediction's views to that on the prediction.

    ``ends``: topic -> partition -> last archived offset; ``complete_ms`` as ``jobs.settled.complete_until`` gives it.
    """

    service: FeatureService
    basis: str
    ends: dict[str, dict[str, int]]
    complete_ms: int

    def __call__(self, queries: pa.Table, own: pa.Table, answers: dict[str, Any]) -> pa.RecordBatch:
        import pyarrow as pa

        views = self.service.views
        codes = np.column_stack([answers[view.name][:, 0] for view in views]).astype(np.int64)
        served = vectors(queries, self.service)
        recomputed = np.column_stack([*(answers[view.name][:, 1:] for view in views),
                                      np.full((len(served), len(self.service.request)), np.nan)])
        there = own["event_id"].is_valid().to_numpy()
        columns = {name: own[name].fill_null(0).to_numpy() for name in self.service.event_columns}
        request_features(self.service, recomputed, columns)
        of_served = served.copy()
        request_features(self.service, of_served, columns)
        is_own = [a == b for a, b in zip(own["event_id"].to_pylist(), queries["event_id"].to_pylist(), strict=True)]
        unexplained = [[view.name for view, code in zip(views, row, strict=True) if Verdict(code).unexplained] for row in codes]
        conclusions: list[tuple[str, str | None, str | None]] = []
        for i, fault in enumerate(queries["fault"].to_pylist()):
            worst = int(np.argmax(codes[i]))
            verdict = Verdict(codes[i, worst])
            if fault is not None:
                conclusions.append(("other_definition" if fault == OTHER_DEFINITION else "unexplained", None, fault))
            elif verdict.unexplained:
                conclusions.append(("unexplained", views[worst].name, WHY[verdict]))
            elif not is_own[i]:
                conclusions.append(("unexplained", None, "the record at the source position is another event"))
            elif there[i] and not same_values(of_served[i], served[i]):
                conclusions.append(("unexplained", None, "request-time features do not follow from the served window features"))
            elif verdict in (Verdict.DEGRADED, Verdict.REFUSED):
                conclusions.append(("degraded", views[worst].name, None))
            else:
                conclusions.append(("exact" if verdict is Verdict.EXACT else "in_flight", None, None))
        names, of_views, why = zip(*conclusions, strict=True)
        settled = np.array([name != "unexplained" for name in names])
        for view in views:
            settled &= covered(offsets(queries[f"applied_{view.name}"]), self.ends.get(view.source, {}),
                               queries["arrival_ms"].to_numpy(), self.complete_ms)
        told = [name == "unexplained" for name in names]
        return pa.RecordBatch.from_pydict({
            **{name: queries[name].combine_chunks() for name in
               ("prediction_id", "event_id", "event_time", "model", "model_version", "logged_position")},
            "verdict": pa.array(names, pa.string()), "view": pa.array(of_views, pa.string()),
            "views": pa.array(unexplained, pa.list_(pa.string())), "why": pa.array(why, pa.string()),
            "served": pa.array([row if tell else None for row, tell in zip(served, told, strict=True)], pa.list_(pa.float64())),
            "recomputed": pa.array([row if tell else None for row, tell in zip(recomputed, told, strict=True)], pa.list_(pa.float64())),
            "basis": pa.array([self.basis] * len(names), pa.string()), "settled": pa.array(settled),
        })


def vectors(queries: pa.Table, service: FeatureService) -> Any:
    """float64[n, F] as served; of a prediction that is no vector of ``service``, nulls."""
    import pyarrow.compute as pc

    width = len(service.feature_names)
    fits = pc.equal(pc.binary_length(queries["features"]), 8 * width).to_numpy()
    if fits.all():
        return from_bytes(queries["features"]).reshape(-1, width)
    matrix = np.full((len(fits), width), np.nan)
    matrix[fits] = from_bytes(queries["features"].filter(fits), width=width)
    return matrix


def offsets(column: pa.ChunkedArray) -> Any:
    """int64[n, P] of a binary column; -1 where a row has fewer."""
    rows = [np.frombuffer(value, np.int64) for value in column.to_numpy(zero_copy_only=False)]
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    matrix = np.full((len(rows), max(int(lengths.max(initial=0)), 1)), -1)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = np.concatenate([*rows, np.empty(0, np.int64)])
    return matrix


def _example(row: dict[str, Any], service: FeatureService) -> dict[str, Any]:
    """A row of the table with the features that differ, by name."""
    del row["views"]

    def number(x: float) -> float | None:
        return None if x != x else x

    pairs = zip(service.feature_names, row.pop("served"), row.pop("recomputed"), strict=True)
    return {**row, "differs": {name: {"served": number(a), "recomputed": number(b)} for name, a, b in pairs
                               if not (a == b or (a != a and b != b))}}
