"""Training sets: one row a labelled transaction, features as they were (``known``), could be (``ideal``) or were served (``served``)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feature_repo.archive_table import FOR_EVER, open_archive
from feature_repo.delta_files import begin_replacing, replace_by_parts, write_file, write_table
from feature_repo.identity import digest, row_digests
from feature_repo.labelled import key_columns, labelled_records, labelled_rows
from feature_repo.models import ModelSpec
from feature_repo.vector import request_features
from feature_repo.views import DAY_MS, FeatureService
from jobs.archive_rows import ArchiveRows
from jobs.events import bronze, bronze_path
from jobs.features import Finish, feature_columns, from_bytes, history_ms, read_values, sweep_entities
from jobs.labels import labelled, labels
from jobs.lineage import lineage
from jobs.parts import PARTS, PartWriter, written
from jobs.served import logged
from jobs.spark import DELETED_FILE_RETENTION, use_session
from jobs.training_rows import CONTENT_HASH
from schemas.errors import FindingError, JobError
from schemas.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

__all__ = ["MODES", "Engine", "Mode", "TrainingSet", "build_training_set", "fits_in_process",
           "training_set"]

Engine = Literal["auto", "spark", "process"]
Mode = Literal["known", "ideal", "served"]
PROPERTIES = {"delta.dataSkippingStatsColumns": "event_time", "delta.deletedFileRetentionDuration": DELETED_FILE_RETENTION}
"""Of a table made anew: sets are read whole, or by event time."""
LOGGED = ("logged_ms", "logged_position")
MODES: tuple[Mode, ...] = ("known", "ideal", "served")


@dataclass(frozen=True)
class TrainingSet:
    """A training set and what is known of it; ``manifest`` is also in ``_manifest.json`` beside the data."""

    path: str
    manifest: dict[str, Any]


def training_set(settings: Settings, spec: ModelSpec, start_ms: int, end_ms: int, mode: Mode = "known",
                 spark: SparkSession | None = None) -> str:
    """The path of the Delta table that ``build_training_set`` writes."""
    return build_training_set(settings, spec, start_ms, end_ms, mode, spark).path


def fits_in_process(settings: Settings, spec: ModelSpec, start_ms: int, end_ms: int, as_of_ms: int | None = None) -> bool:
    """Whether so few archived records are needed that no Spark is: what ``engine`` ``auto`` asks when it is given no session."""
    return _Asked(settings, spec, start_ms, end_ms, "known", as_of_ms, None, "").small()


def build_training_set(settings: Settings, spec: ModelSpec, start_ms: int, end_ms: int, mode: Mode = "known",
                       spark: SparkSession | None = None, as_of_ms: int | None = None, *, engine: Engine = "auto",
                       version: int | None = None) -> TrainingSet:
    """One row per labelled transaction with start_ms <= event time < end_ms, from the archive at ``version`` (default: as it is now).

    Columns: event_id, event_time, the entities, label, then the features of ``spec.service`` in its order (null: no
    value); mode ``served`` adds ``degraded``. Of transactions with one identity the first to arrive counts. What arrived after
    ``as_of_ms`` (default: nothing) is not there; the label is of the highest revision; transactions without one are counted in the
    manifest and left out. Same archive version, definitions and as_of_ms: same rows, told by ``content_hash``, whatever the engine.

    ``engine`` ``process`` computes in this process, ``spark`` on Spark, ``auto`` in this process where no more than
    ``settings.process_rows`` archived records are needed, and no session is given. Raises JobError where there is nothing to read.
    """
    began = time.monotonic()
    path = f"{settings.tables}/training_sets/{spec.name}-{mode}-{_day(start_ms)}..{_day(end_ms - 1)}"
    asked = _Asked(settings, spec, start_ms, end_ms, mode, as_of_ms, version, path)
    if engine == "auto":
        engine = "process" if spark is None and mode != "served" and asked.small() else "spark"
    with lineage(settings, "training-set") as run:
        if engine == "process":
            manifest = asked.in_process()
        else:
            with use_session(spark, settings, "training-set") as own:
                manifest = asked.on_spark(own)
        manifest |= {"engine": engine, "seconds": round(time.monotonic() - began, 2)}
        write_file(f"{path}/_manifest.json", json.dumps(manifest, indent=1))
        run.reads_table(bronze_path(settings), manifest["bronze_version"])
        run.writes_table(path)
    return TrainingSet(path, manifest)


@dataclass(frozen=True)
class _Asked:
    """A training set to be built; both ways of building write its table and return its manifest."""

    settings: Settings
    spec: ModelSpec
    start_ms: int
    end_ms: int
    mode: Mode
    as_of_ms: int | None
    version: int | None
    path: str

    def small(self) -> bool:
        """Whether so few archived records are needed that this process can hold them."""
        until_ms = FOR_EVER if self.as_of_ms is None else self.as_of_ms
        archive = open_archive(self.settings, self.version)
        return labelled_records(archive, self.spec, self.start_ms, self.end_ms, until_ms) <= self.settings.process_rows

    def in_process(self) -> dict[str, Any]:
        if self.mode == "served":
            raise JobError("served sets are built by Spark", hint="--engine spark")
        archive = open_archive(self.settings, self.version)
        as_of_ms = archive.newest_ms if self.as_of_ms is None else self.as_of_ms
        built = labelled_rows(archive, self.spec, self.start_ms, self.end_ms, as_of_ms, ideal=self.mode == "ideal")
        manifest = self._manifest(archive.version, as_of_ms, archive.oldest_ms(_sources(self.spec.service)), built.counts,
                                  digest(row_digests(built.table)))
        write_table(self.path, built.table, note=_note(manifest))
        return manifest

    def on_spark(self, spark: SparkSession) -> dict[str, Any]:
        from pyspark.sql import functions as F

        archive = open_archive(self.settings, self.version)
        as_of_ms = archive.newest_ms if self.as_of_ms is None else self.as_of_ms
        schema = _schema(self.spec.service, logged=self.mode == "served")
        table = begin_replacing(self.path, schema, PROPERTIES)
        rows = ArchiveRows(spark, archive, as_of_ms)
        source = _Source(rows, self.spec, self.start_ms, self.end_ms, PartWriter(self.path, schema))
        if self.mode == "served":
            counted, told = source.served(bronze(spark, self.settings, archive.version).where(F.col("arrival_ms") <= as_of_ms))
        else:
            counted, told = source.recomputed(ideal=self.mode == "ideal")
        parts, content = written(told)
        counts = {name: int(value or 0) for name, value in counted.get.items()}
        manifest = self._manifest(archive.version, as_of_ms, archive.oldest_ms(_sources(self.spec.service)), counts, content)
        replace_by_parts(table, schema, parts, _note(manifest))
        return manifest

    def _manifest(self, version: int, as_of_ms: int, history_from_ms: int | None, counts: dict[str, int], content: int) -> dict[str, Any]:
        """Raises FindingError where there is nothing to read."""
        period, service = [_day(self.start_ms), _day(self.end_ms - 1)], self.spec.service
        if not counts["transactions"]:
            served = " with a prediction" if self.mode == "served" else ""
            raise FindingError(f"no transaction in {'..'.join(period)} is archived{served}", hint="headrace archive")
        return {
            "model": self.spec.name, "mode": self.mode, "service": service.name, "service_hash": service.definition_hash, "period": period,
            "rows": counts["transactions"] - counts["unlabelled"], **counts,
            "labelled_percent": round(100 * (1 - counts["unlabelled"] / counts["transactions"]), 2),
            "as_of_ms": as_of_ms, "history_from_ms": history_from_ms, "labels_mature": as_of_ms >= self.end_ms + self.spec.label_delay_ms,
            "bronze_version": version, "seed": self.spec.seed, CONTENT_HASH: f"{content:016x}",
        }


@dataclass(frozen=True)
class _Source:
    """The archive as it was known, which rows of it are wanted, and who writes them."""

    archive: ArchiveRows
    spec: ModelSpec
    start_ms: int
    end_ms: int
    writer: PartWriter

    def recomputed(self, ideal: bool) -> tuple[Any, DataFrame]:
        from pyspark.sql import functions as F

        service = self.spec.service
        past = self.start_ms - history_ms(service.views)
        numbers = [name for name in service.event_columns if name != "event_time"]
        of_source = self.archive.events(service.source, service.views, numbers=numbers, event_time=(past, self.end_ms))
        counted, rows = self._labelled(of_source, ("arrival_ms", "position"))
        rows = rows.withColumn("query", F.col("first") & F.col("label").isNotNull()).drop("first")
        others = {source: self.archive.events(source, service.views, event_time=(past, self.end_ms))
                  for source in _sources(service) if source != service.source}
        return counted, sweep_entities(rows, others, service, read_values, _vectors(service, self.writer), PARTS, ideal=ideal)

    def served(self, archive: DataFrame) -> tuple[Any, DataFrame]:
        """The logged vectors: of an event's predictions, with the features of today's definition, the first."""
        from pyspark.sql import functions as F

        service = self.spec.service
        usable = logged(archive, service).where(F.col("fault").isNull() & F.col("event_time").between(self.start_ms, self.end_ms - 1))
        counted, rows = self._labelled(usable.select(*key_columns(service), "degraded", "features", *LOGGED), LOGGED)
        rows = rows.where(F.col("first") & F.col("label").isNotNull()).select(*key_columns(service), "label", "degraded", "features")
        return counted, rows.mapInArrow(_logged(service, self.writer), PARTS)

    def _labelled(self, rows: DataFrame, order: tuple[str, str]) -> tuple[Any, DataFrame]:
        """``rows`` with ``label`` and ``first``, the period's first ones; and their counts once the result was computed."""
        from pyspark.sql import Observation
        from pyspark.sql import functions as F

        found = labelled(rows, labels(self.archive, self.spec, self.start_ms, self.end_ms), order)
        found = found.withColumn("first", F.col("first") & (F.col("event_time") >= self.start_ms))
        counted, one = Observation(), F.col("first")
        return counted, found.observe(
            counted, F.count_if(one).alias("transactions"), F.count_if(one & F.col("label").isNull()).alias("unlabelled"),
            F.sum(F.when(one, F.col("label"))).alias("positives"))


def _note(manifest: dict[str, Any]) -> dict[str, str]:
    """What stands in the table's log, so that ``open_training_set`` sees whether the manifest beside the table is its own."""
    return {CONTENT_HASH: manifest[CONTENT_HASH]}


def _sources(service: FeatureService) -> list[str]:
    return sorted({service.source, *(view.source for view in service.views)})


def _schema(service: FeatureService, *, logged: bool) -> pa.Schema:
    import pyarrow as pa

    keys = [(name, pa.int64() if name == "event_time" else pa.string()) for name in key_columns(service)]
    features = [(name, pa.float64()) for name in service.feature_names]
    return pa.schema([*keys, ("label", pa.int64()), *features, *([("degraded", pa.bool_())] if logged else [])])


def _vectors(service: FeatureService, writer: PartWriter) -> Finish:
    """From answers to written rows: the whole vector, request-time features included, by the code that serves."""

    def finish(queries: pa.Table, own: pa.Table, answers: dict[str, Any]) -> pa.RecordBatch:
        import pyarrow as pa

        matrix = np.empty((queries.num_rows, len(service.feature_names)))
        for view in service.views:
            matrix[:, service.view_slice(view)] = answers[view.name]
        request_features(service, matrix, {name: own[name].to_numpy() for name in service.event_columns})
        keys = [queries[name].combine_chunks() for name in (*key_columns(service), "label")]
        return writer.write([pa.RecordBatch.from_arrays([*keys, *feature_columns(matrix)], schema=writer.schema)])

    return finish


def _logged(service: FeatureService, writer: PartWriter) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Logged vectors as columns of written rows."""

    def rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            keys = [batch[name] for name in (*key_columns(service), "label")]
            columns = [*keys, *feature_columns(from_bytes(batch["features"])), batch["degraded"]]
            yield pa.RecordBatch.from_arrays(columns, schema=writer.schema)

    return lambda batches: writer(rows(batches))


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // DAY_MS * DAY_MS / 1000, UTC).date().isoformat()
