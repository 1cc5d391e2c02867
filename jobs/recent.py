"""The newest served vectors, for the days of the week that a model's test rows lack: features and scores need no label."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable
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
    half a window would tell half a day for a whole one, and of one that nobody has judged, or whose values could not be, nothing is known.
    Raises JobError without an archive.

    Returns
    -------
    predicted_ms : int64[n]
    features : float64[n, F], NaN is null.
    """
    assert spec.drift is not None
    archive, service, size = open_archive(settings), spec.service, spec.drift.window_ms
    sound = _sound(settings, spec.name, spec.drift, from_ms, until_ms)

    smallest, lock = Smallest(most), threading.Lock()

    def decode(batch: Any) -> None:
        found = (one for value in batch["value"].to_pylist() if (one := served(value, service)) is not None)
        sample = [one for one in found if not one.degraded and one.arrival_ms // size * size in sound]
        with lock:
            smallest.add(sample)

    archive.batches(service.predictions, from_ms, until_ms, decode)
    chosen = smallest.chosen()
    features = np.array([[np.nan if value is None else value for value in one.features] for one in chosen], np.float64)
    return np.array([one.arrival_ms for one in chosen], np.int64), features.reshape(len(chosen), len(service.feature_names))


class Smallest:
    """The ``most`` predictions with the smallest hashes, each once, in whatever order they come: holds twice as many and a batch."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[int, Served] = {}

    def add(self, found: Iterable[Served]) -> None:
        for one in found:
            place = xxh3_64_intdigest(one.prediction_id.encode())
            held = self._held.get(place)
            self._held[place] = one if held is None else min(one, held, key=msgspec.json.encode)
        if len(self._held) > 2 * self._most:
            self._held = dict(heapq.nsmallest(self._most, self._held.items()))

    def chosen(self) -> list[Served]:
        return [self._held[place] for place in heapq.nsmallest(self._most, self._held)]


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
            if any(signal.signal == "null-share" and signal.status != "INSUFFICIENT_DATA" for signal in each.signals):
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
