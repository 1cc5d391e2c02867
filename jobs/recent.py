"""The newest served vectors, for the days of the week that a model's test rows lack: features and scores need no label."""

from __future__ import annotations

import heapq
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest

from feature_repo.archive_table import control_records, open_archive
from feature_repo.models import DriftPolicy, ModelSpec
from feature_repo.views import FeatureService
from schemas.monitoring import DECISIONS, ECHOING, RetrainDecision
from schemas.settings import Settings

__all__ = ["Served", "recent", "served"]

MOST = 200_000
"""Of a week of predictions a sample: cells of a reference want some thousands of rows."""


class Served(msgspec.Struct, frozen=True):
    prediction_id: str
    arrival_ms: int
    service_hash: str
    degraded: bool
    features: list[float | None]


DECODE = msgspec.json.Decoder(Served).decode


def recent(settings: Settings, spec: ModelSpec, from_ms: int, until_ms: int, most: int = MOST) -> tuple[Any, Any]:
    """Archived predictions, each once, ``most`` at most, made with the features of ``spec`` in whole windows of [from_ms, until_ms).

    None that was degraded, and only of windows that a monitor has judged and found neither a fault of the feed in nor the echo of one:
    half a window would tell half a day for a whole one, and of one that nobody has judged nothing is known. Raises JobError without an
    archive.

    Returns
    -------
    predicted_ms : int64[n]
    features : float64[n, F], NaN is null.
    """
    assert spec.drift is not None
    archive, service, size = open_archive(settings), spec.service, spec.drift.window_ms
    sound = _sound(settings, spec.name, spec.drift, from_ms, until_ms)

    def decode(batch: Any) -> list[Served]:
        found = [one for value in batch["value"].to_pylist() if (one := served(value, service)) is not None]
        return [one for one in found if not one.degraded and one.arrival_ms // size * size in sound]

    rows = (one for part in archive.batches(service.predictions, from_ms, until_ms, decode) for one in part)
    chosen = heapq.nsmallest(most, rows, key=lambda one: xxh3_64_intdigest(one.prediction_id.encode()))
    each_once = list({one.prediction_id: one for one in chosen}.values())
    features = np.array([[np.nan if value is None else value for value in one.features] for one in each_once], np.float64)
    return np.array([one.arrival_ms for one in each_once], np.int64), features.reshape(len(each_once), len(service.feature_names))


def _sound(settings: Settings, model: str, policy: DriftPolicy, from_ms: int, until_ms: int) -> set[int]:
    """When the windows begin that lie in [from_ms, until_ms) and tell something, by what monitors said of each."""
    held: dict[tuple[str, int], bytes] = {}
    control_records(settings, [DECISIONS], held)
    judged, spoiled = set(), []
    for value in held.values():
        with suppress(msgspec.MsgspecError):  # whoever wrote it, it was no monitor
            each = msgspec.json.decode(value, type=RetrainDecision)
            if each.model != model or each.by != "policy":
                continue
            window_ms = each.at_ms - policy.window_ms
            judged.add(window_ms)
            if faults := {signal.signal for signal in each.signals if signal.family == "feed" and signal.status == "ALARM"}:
                spoiled.append((window_ms, each.at_ms + (policy.echo_ms if faults & ECHOING else 0)))
    return {at for at in judged if from_ms <= at <= until_ms - policy.window_ms
            and not any(first <= at < last for first, last in spoiled)}


def served(value: bytes | None, service: FeatureService) -> Served | None:
    """The prediction; None where it is none, or was made with other features than those of ``service``."""
    try:
        one = DECODE(value or b"")
    except msgspec.MsgspecError:  # whoever wrote it, it was not scored here
        return None
    return one if one.service_hash == service.definition_hash and len(one.features) == len(service.feature_names) else None
