"""The newest served vectors, for the days of the week that a model's test rows lack: features and scores need no label."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest

from feature_repo.archive_table import control_records, open_archive
from feature_repo.models import ModelSpec
from feature_repo.views import FeatureService
from schemas.monitoring import DECISIONS, RetrainDecision
from schemas.settings import Settings

__all__ = ["Served", "recent", "served"]

MOST = 200_000
"""Of a week of predictions a sample: cells of a reference want some thousands of rows."""
ALL = 1 << 64


class Served(msgspec.Struct, frozen=True):
    prediction_id: str
    arrival_ms: int
    service_hash: str
    degraded: bool
    features: list[float | None]


DECODE = msgspec.json.Decoder(Served).decode


def recent(settings: Settings, spec: ModelSpec, from_ms: int, until_ms: int, most: int = MOST) -> tuple[Any, Any]:
    """About ``most`` archived predictions that were made with the features of ``spec`` in [from_ms, until_ms).

    None that was degraded, and none of windows in which the feed was at fault or of their echo. Raises JobError without an archive.

    Returns
    -------
    predicted_ms : int64[n]
    features : float64[n, F], NaN is null.
    """
    archive, service = open_archive(settings), spec.service
    there = archive.count(service.predictions, from_ms, until_ms)
    share, spoiled = min(ALL, ALL * most // max(there, 1)), _spoiled(settings, spec)

    def decode(batch: Any) -> list[Served]:
        found = [one for value in batch["value"].to_pylist() if (one := served(value, service)) is not None]
        return [one for one in found if not one.degraded and from_ms <= one.arrival_ms < until_ms
                and xxh3_64_intdigest(one.prediction_id.encode()) < share
                and not any(first <= one.arrival_ms < last for first, last in spoiled)]

    rows = [one for part in archive.batches(service.predictions, from_ms, until_ms, decode) for one in part]
    features = np.array([[np.nan if value is None else value for value in one.features] for one in rows], np.float64)
    return np.array([one.arrival_ms for one in rows], np.int64), features.reshape(len(rows), len(service.feature_names))


def _spoiled(settings: Settings, spec: ModelSpec) -> list[tuple[int, int]]:
    """From when to when what was predicted tells nothing, by what monitors said of each window."""
    assert spec.drift is not None
    held: dict[tuple[str, int], bytes] = {}
    control_records(settings, [DECISIONS], held)
    decided = [msgspec.json.decode(value, type=RetrainDecision) for value in held.values()]
    return [(each.at_ms - spec.drift.window_ms, each.at_ms + spec.drift.echo_ms) for each in decided
            if each.model == spec.name and each.by == "policy" and each.reason.startswith("pipeline")]


def served(value: bytes | None, service: FeatureService) -> Served | None:
    """The prediction; None where it is none, or was made with other features than those of ``service``."""
    try:
        one = DECODE(value or b"")
    except msgspec.MsgspecError:  # whoever wrote it, it was not scored here
        return None
    return one if one.service_hash == service.definition_hash and len(one.features) == len(service.feature_names) else None
