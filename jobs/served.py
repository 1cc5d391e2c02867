"""Archived predictions as rows: what was served, and the stamps that say from what."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.positions import ANSWER_SHIFT, ASKED, PARTITION_SHIFT, asked_position, position_of
from feature_repo.views import FeatureService
from jobs.arrow_batches import map_values
from schemas.envelope import SCORED_EVENT
from schemas.errors import ContractError
from schemas.topics import PREDICTION_TOPICS, answered_topic

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

__all__ = ["ABSENT", "FINGERPRINT", "OTHER_DEFINITION", "REFUSED", "STAMP_WORDS", "N", "asked_events", "logged", "topic_of"]

STAMP_WORDS = 4
N, FINGERPRINT, REFUSED, ABSENT = range(STAMP_WORDS)
"""int64 words of one view's stamp in column ``stamps``; ABSENT is 1 where a prediction has no stamp of the view."""
OTHER_DEFINITION = "other definition"
"""The fault of a prediction that was made with another version of the feature service: nothing to compare it with here."""


def topic_of(service: FeatureService, answers: bool) -> str:
    """Where the predictions of ``service`` are logged: those of the log's events, or those that were asked for and answered."""
    return answered_topic(service.predictions) if answers else service.predictions


def logged(archive: DataFrame, service: FeatureService, answers: bool = False) -> DataFrame:
    """Every archived prediction; ``nth`` 1 is *the* prediction of its id (its lowest offset), others are copies.

    ``features`` is float64[F] as bytes, NaN for null; ``stamps`` int64[views, STAMP_WORDS]; ``applied_<view>`` int64, an offset per
    partition. event_time, arrival_ms and position are the source record's; logged_ms and logged_position the prediction's own. ``score``
    and ``threshold`` are null without a model. ``fault`` says why a row cannot be judged; null is well. With ``answers`` they are those
    that were made by request: an event that is asked about twice has two, each with ``nth`` 1; positions are those of ``asked_events``.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    entities = service.entities
    applied = tuple(f"applied_{view.name}" for view in service.views)

    def typed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            values = zip(batch["value"].to_numpy(zero_copy_only=False), batch["partition"].to_pylist(), batch["offset"].to_pylist(),
                         strict=True)
            found = [_decoded(value, f"{partition}/{offset}", service) for value, partition, offset in values]
            at = (batch["partition"].to_numpy().astype(np.int64) << PARTITION_SHIFT) + batch["offset"].to_numpy()
            rows = [p for p, _ in found]
            places = asked_position(service.source, batch["partition"].to_numpy().astype(np.int64), batch["offset"].to_numpy()) if answers \
                else [position_of(service.source, p.source_partition, p.source_offset) for p in rows]
            texts = {name: pa.array([getattr(p, name) for p in rows], pa.string()) for name in (*entities, "model", "model_version")}
            yield pa.RecordBatch.from_pydict({
                "prediction_id": pa.array([p.prediction_id for p in rows], pa.string()),
                "logged_ms": batch["arrival_ms"], "logged_position": pa.array(at),
                "event_id": pa.array([p.event_id for p in rows], pa.string()),
                "event_time": pa.array([p.event_time for p in rows], pa.int64()),
                "arrival_ms": pa.array([p.arrival_ms for p in rows], pa.int64()),
                "position": pa.array(places, pa.int64()),
                **texts,
                "degraded": pa.array([p.degraded for p in rows], pa.bool_()),
                **{name: pa.array([getattr(p, name) for p in rows], pa.float64()) for name in ("score", "threshold")},
                "features": pa.array([np.array(p.features, np.float64).tobytes() for p in rows], pa.binary()),
                "stamps": pa.array([_stamps(p, service) for p in rows], pa.binary()),
                **{column: pa.array([np.array(p.applied.get(view.name, ()), np.int64).tobytes() for p in rows], pa.binary())
                   for column, view in zip(applied, service.views, strict=True)},
                "fault": pa.array([fault for _, fault in found], pa.string()),
            })

    schema = ", ".join([
        "prediction_id string, logged_ms long, logged_position long, event_id string, event_time long, arrival_ms long, position long",
        *(f"{name} string" for name in (*entities, "model", "model_version")), "degraded boolean, score double, threshold double",
        "features binary, stamps binary",
        *(f"{name} binary" for name in applied), "fault string"])
    records = archive.where(F.col("topic") == topic_of(service, answers)).select("partition", "offset", "arrival_ms", "value")
    rows = map_values(records, typed, schema)
    if answers:
        return rows.withColumn("nth", F.lit(1))
    return rows.withColumn("nth", F.row_number().over(Window.partitionBy("prediction_id").orderBy("logged_position")))


def asked_events(archive: DataFrame, service: FeatureService) -> DataFrame:
    """The events that were asked about, as bronze rows of the service's source at positions made from those of their answers."""
    from pyspark.sql import functions as F

    own = F.filter("headers", lambda header: header["key"] == SCORED_EVENT)
    offset = F.shiftleft(F.col("partition").cast("long"), ANSWER_SHIFT) + F.col("offset")
    return archive.where(F.col("topic") == topic_of(service, True)).select(
        F.lit(service.source).alias("topic"), F.lit(ASKED).alias("partition"), offset.alias("offset"), "arrival_ms",
        F.try_element_at(own, F.lit(-1))["value"].alias("value"), F.lit(None).cast(archive.schema["headers"].dataType).alias("headers"))


def _decoded(value: bytes | None, place: str, service: FeatureService) -> tuple[Any, str | None]:
    contract = PREDICTION_TOPICS[service.predictions]
    try:
        prediction = contract.decode(value)
    except ContractError as error:
        nobody = [""] * len(service.entities)
        return contract.record(place, "", 0, *nobody, 0, 0, 0, "", None, "", None, None, None, False, False, [], [], {}, 0), error.fact
    if prediction.service_hash != service.definition_hash:
        return prediction, OTHER_DEFINITION
    if len(prediction.features) != len(service.feature_names):
        return prediction, f"{len(prediction.features)} features instead of {len(service.feature_names)}"
    return prediction, None


def _stamps(prediction: Any, service: FeatureService) -> bytes:
    by_view = {stamp.view: stamp for stamp in prediction.stamps}
    words: list[int] = []
    for view in service.views:
        stamp = by_view.get(view.name)
        if stamp is None:
            words += (0, 0, 0, 1)
        else:
            fingerprint = int(stamp.fingerprint, 16)
            words += (stamp.n, fingerprint - (fingerprint >> 63 << 64), stamp.refused, 0)
    return struct.pack(f"<{len(words)}q", *words)
