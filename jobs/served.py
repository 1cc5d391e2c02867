"""Archived predictions as rows: what was served, and the stamps that say from what."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from feature_repo.positions import PARTITION_SHIFT, position_of
from feature_repo.views import FeatureService
from schemas.errors import ContractError
from schemas.topics import PREDICTION_TOPICS

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

__all__ = ["ABSENT", "FINGERPRINT", "OTHER_DEFINITION", "REFUSED", "STAMP_WORDS", "N", "logged"]

STAMP_WORDS = 4
N, FINGERPRINT, REFUSED, ABSENT = range(STAMP_WORDS)
"""int64 words of one view's stamp in column ``stamps``; ABSENT is 1 where a prediction has no stamp of the view."""
OTHER_DEFINITION = "other definition"
"""The fault of a prediction that was made with another version of the feature service: nothing to compare it with here."""


def logged(archive: DataFrame, service: FeatureService) -> DataFrame:
    """Every archived prediction; ``nth`` 1 is *the* prediction of its id (its lowest offset), others are copies.

    ``features`` is float64[F] as bytes, NaN for null; ``stamps`` int64[views, STAMP_WORDS]; ``applied_<view>`` int64, an offset per
    partition. event_time, arrival_ms and position are the source record's; logged_ms and logged_position the prediction's own. ``score``
    and ``threshold`` are null without a model. ``fault`` says why a row cannot be judged; null is well.
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
            texts = {name: pa.array([getattr(p, name) for p in rows], pa.string()) for name in (*entities, "model", "model_version")}
            yield pa.RecordBatch.from_pydict({
                "prediction_id": pa.array([p.prediction_id for p in rows], pa.string()),
                "logged_ms": batch["arrival_ms"], "logged_position": pa.array(at),
                "event_id": pa.array([p.event_id for p in rows], pa.string()),
                "event_time": pa.array([p.event_time for p in rows], pa.int64()),
                "arrival_ms": pa.array([p.arrival_ms for p in rows], pa.int64()),
                "position": pa.array([position_of(service.source, p.source_partition, p.source_offset) for p in rows], pa.int64()),
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
    records = archive.where(F.col("topic") == service.predictions).select("partition", "offset", "arrival_ms", "value")
    rows = records.mapInArrow(typed, schema)
    return rows.withColumn("nth", F.row_number().over(Window.partitionBy("prediction_id").orderBy("logged_position")))


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
