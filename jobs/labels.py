"""What is known of scored events: told by outcomes, or read from what their subjects did not do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from feature_repo.history import entity_codes
from feature_repo.identity import first_of_each, number_identities
from feature_repo.labelled import LABEL_RANGE
from feature_repo.models import Absence, ModelSpec, Outcomes
from jobs.archive_rows import ArchiveRows
from jobs.arrow_batches import in_slices, one_batch, whole

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

__all__ = ["labelled", "labels"]


def labels(archive: ArchiveRows, spec: ModelSpec, start_ms: int, end_ms: int) -> DataFrame:
    """What was known of events with start_ms <= event_time < end_ms: event_id, event_time and ``known`` (long).

    The label of an event is its highest ``known``, modulo LABEL_RANGE. It follows from the archive and the arguments alone: the same
    version gives the same labels.
    """
    if isinstance(spec.labels, Outcomes):
        return _told(archive, spec, spec.labels, start_ms, end_ms)
    return _absences(archive, spec, spec.labels, start_ms, end_ms)


def labelled(rows: DataFrame, known: DataFrame, order: tuple[str, str]) -> DataFrame:
    """``rows`` with ``label``, null where nothing is known, and ``first``: whether a row is the first of its identity by ``order``."""
    fields = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in rows.schema)

    def typed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        table = whole(batches)
        if table is None:
            return
        told = table["known"].is_valid().to_numpy()
        codes = number_identities(entity_codes([table["event_id"]])[0], table["event_time"].to_numpy())
        newest = np.full(codes.max() + 1, -1)
        np.maximum.at(newest, codes[told], table["known"].drop_null().to_numpy())
        table, codes = table.drop_columns(["known"]).filter(pa.array(~told)), codes[~told]
        label = newest[codes]
        table = table.append_column("label", pa.array(label % LABEL_RANGE, mask=label < 0))
        first = first_of_each(codes, np.stack([table[name].to_numpy() for name in order], axis=1))
        yield from in_slices(one_batch(table.append_column("first", pa.array(first))))

    both = rows.unionByName(known, allowMissingColumns=True).repartition("event_id")
    return both.mapInArrow(typed, f"{fields}, label long, first boolean")


def _told(archive: ArchiveRows, spec: ModelSpec, told: Outcomes, start_ms: int, end_ms: int) -> DataFrame:
    from pyspark.sql import functions as F

    outcomes = archive.events(told.topic, spec.service.views, numbers=("revision", told.field), event_time=(start_ms, end_ms),
                              sets=False)
    return outcomes.select("event_id", "event_time", (F.col("revision") * LABEL_RANGE + F.col(told.field)).alias("known"))


def _absences(archive: ArchiveRows, spec: ModelSpec, absent: Absence, start_ms: int, end_ms: int) -> DataFrame:
    """1 where nothing of the subject is archived that happened in (t, t + label delay]; a row where that time is over."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    subject, delay_ms, views = spec.subject, spec.label_delay_ms, spec.service.views
    end_ms = min(end_ms, archive.until_ms - delay_ms + 1)
    columns = ("event_id", "event_time", subject)
    asked = archive.events(spec.service.source, views, event_time=(start_ms, end_ms)).select(*columns, F.lit(False).alias("did"))
    did = archive.events(absent.topic, views, event_time=(start_ms, end_ms + delay_ms)).select(*columns, F.lit(True).alias("did"))
    # From the latest back: one pass, where a frame that reaches forward would be gone through for every row. What was done at the
    # very time t comes after the question of t, so it does not count.
    backwards = Window.partitionBy(subject).orderBy(F.desc("event_time"), "did").rowsBetween(Window.unboundedPreceding, Window.currentRow)
    following = F.last(F.when(F.col("did"), F.col("event_time")), ignorenulls=True).over(backwards)
    known = asked.unionByName(did).withColumn("following", following).where(~F.col("did"))
    absence = F.col("following").isNull() | (F.col("following") > F.col("event_time") + delay_ms)
    return known.select("event_id", "event_time", absence.cast("long").alias("known"))
