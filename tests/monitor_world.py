"""A seeded stream of predictions and evaluations of the fraud model whose changes are known, and its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from feature_repo.fraud import FRAUD
from feature_repo.models import DriftPolicy, ModelSpec, Slice
from feature_repo.reference import Reference, build_reference
from feature_repo.views import DAY_MS, HOUR_MS
from schemas.evaluations import EVALUATIONS, Evaluation, evaluation_id
from schemas.fraud import PREDICTIONS, Prediction
from streams.monitors.watch import Watch, watched

START = 1_530_000_000_000 // (7 * DAY_MS) * 7 * DAY_MS
WINDOW = 6 * HOUR_MS
POLICY = DriftPolicy(age_ms=12 * HOUR_MS, window_ms=WINDOW, slices=(Slice("night", lambda at_ms: at_ms % DAY_MS < 7 * HOUR_MS),),
                     labels=100, cooldown_ms=WINDOW)
SPEC = replace(FRAUD, drift=POLICY)
NAMES = SPEC.service.feature_names
THRESHOLD = 0.8
DELAY_MS = 8 * HOUR_MS


@dataclass
class Record:
    """As aiokafka's: what readers look at."""

    offset: int
    timestamp: int
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Change:
    """In windows from ``since`` on, before ``until``. ``wrong``: share of alerts turned round; ``shift`` of the first feature, and of
    scores, in deviations; ``scale`` of the feature ``scaled``."""

    since: int = 1 << 30
    until: int = 1 << 31
    wrong: float = 0.0
    shift: float = 0.0
    score: float = 0.0
    volume: float = 1.0
    nulls: float = 0.0
    scale: float = 1.0
    scaled: str = "amount"
    copies: float = 0.0
    ahead_ms: int = 0
    degraded: float = 0.0


@dataclass
class Stream:
    """``predictions`` and ``evaluations``: by partition, in order."""

    predictions: list[list[Record]] = field(default_factory=list)
    evaluations: list[list[Record]] = field(default_factory=list)


def draw(random: Any, n: int) -> tuple[Any, Any, Any]:
    """Features float64[n, F], scores and labels: an alert is wrong once in twenty."""
    features = random.normal(size=(n, len(NAMES)))
    features[:, 3][random.random(n) < 0.05] = np.nan
    scores = 1 / (1 + np.exp(-features[:, 0] - random.normal(size=n)))
    labels = (scores >= THRESHOLD) ^ (random.random(n) < 0.05)
    return features, scores, labels


def make_reference(version: str = "1", seed: int = 1000, n: int = 40_000, spec: ModelSpec = SPEC,
                   history_days: float | None = None) -> Reference:
    random = np.random.default_rng(seed)
    features, scores, labels = draw(random, n)
    times = START - 14 * DAY_MS + np.arange(n) * (14 * DAY_MS // n)
    return build_reference(spec, version, features=features, scores=scores, threshold=THRESHOLD, labels=labels.astype(float),
                           event_time=times, predicted_ms=times,
                           history_from_ms=None if history_days is None else int(times[0] - history_days * DAY_MS))


def make_watch(partitions: int = 2, read: Callable[[str], Reference | None] | None = None, spec: ModelSpec = SPEC) -> Watch:
    from pathlib import Path

    (watch,) = watched([spec], Path("nowhere"), partitions)
    known = make_reference()
    watch.read = read if read is not None else (lambda version: known if version == "1" else None)
    return watch


def make_stream(windows: int, per_window: int = 800, partitions: int = 2, seed: int = 0, change: Change | Sequence[Change] = (),
                version: Callable[[int], str | None] = lambda window: "1", quiet: range = range(0), window_ms: int = WINDOW,
                delay_ms: int = DELAY_MS) -> Stream:
    """``per_window`` predictions in each window, by turns to the partitions; partition 0 alone in windows of ``quiet``."""
    changes = (change,) if isinstance(change, Change) else change
    random = np.random.default_rng(seed)
    rows: list[tuple[int, Any]] = []
    told: list[tuple[int, Any]] = []
    number = 0
    for window in range(windows):
        on = next((each for each in changes if each.since <= window < each.until), None)
        n = round(per_window * (on.volume if on else 1.0))
        features, scores, labels = draw(random, n)
        if on:
            features[:, 0] += on.shift
            features[:, NAMES.index(on.scaled)] *= on.scale
            features[random.random(n) < on.nulls, 5] = np.nan
            scores = 1 / (1 + np.exp(-np.log(scores / (1 - scores)) - on.score))
            labels = labels ^ (random.random(n) < on.wrong)
        degraded = random.random(n) < (on.degraded if on else 0.0)
        for i in range(n):
            arrival = START + window * window_ms + i * window_ms // n
            partition = 0 if window in quiet else number % partitions
            event = f"e{seed}-{number}"
            at = arrival + (on.ahead_ms if on else 0)
            row = [None if x != x or degraded[i] else x for x in features[i].tolist()]
            made: Any = Prediction(f"p{event}", event, at, "c", "t", partition, number, arrival, "fraud", version(window), "hash",
                              float(scores[i]), THRESHOLD, bool(scores[i] >= THRESHOLD), bool(degraded[i]), False, row, [], {}, arrival)
            rows.append((partition, made))
            number += 1
            if on and random.random() < on.copies:
                rows.append((partition, msgspec.structs.replace(made, source_offset=number)))
                number += 1
            said = Evaluation(evaluation_id(made.prediction_id, 0), made.prediction_id, event, at, "c", "fraud", version(window),
                              made.score, THRESHOLD, made.alert, made.degraded, bool(labels[i]), None, 0, arrival, arrival + delay_ms,
                              arrival + delay_ms)
            told.append((partition, said))
    stream = Stream([[] for _ in range(partitions)], [[] for _ in range(partitions)])
    for partition, prediction in rows:
        _append(stream.predictions[partition], prediction, prediction.arrival_ms)
    for partition, evaluation in sorted(told, key=lambda each: each[1].at_ms):
        _append(stream.evaluations[partition], evaluation, evaluation.at_ms)
    return stream


def _append(log: list[Record], record: Any, at_ms: int) -> None:
    log.append(Record(len(log), at_ms, msgspec.json.encode(record)))


def logs(stream: Stream) -> dict[tuple[str, int], list[Record]]:
    return {**{(PREDICTIONS, p): log for p, log in enumerate(stream.predictions)},
            **{(EVALUATIONS, p): log for p, log in enumerate(stream.evaluations)}}
