"""How many predictions of 30 features the first stage counts on one core, beside only decoding the same bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from feature_repo.bins import BINS, quantile_edges
from feature_repo.reference import Reference
from schemas.fraud import Prediction
from schemas.records import ViewStamp
from streams.monitors.counts import Counts, count_predictions
from streams.monitors.watch import Watch
from tests.bench.report import Figure
from tests.monitor_world import POLICY, START, WINDOW, Record

__all__ = ["measure"]

FEATURES, CHUNK, CHUNKS, ROUNDS = 30, 4_000, 10, 5


def measure(tell: Callable[[str], None]) -> list[Figure]:
    tell(f"monitors: {CHUNK * CHUNKS:,} predictions of {FEATURES} features, {ROUNDS} rounds")
    random = np.random.default_rng(0)
    matrix = random.lognormal(size=(CHUNK * CHUNKS, FEATURES))
    records = _records(matrix, random)
    reference = _reference(matrix)
    watch = Watch("fraud", POLICY, "predictions", "fraud", "hash", "transactions", None, 1, lambda version: reference)
    decode = msgspec.json.Decoder(Prediction).decode
    bare, counted, rates = [], [], []
    for _ in range(ROUNDS):
        began = time.process_time()
        for record in records:
            decode(record.value)
        bare.append(time.process_time() - began)
        state, began = Counts(), time.process_time()
        for start in range(0, len(records), CHUNK):
            count_predictions(state, 0, records[start:start + CHUNK], watch)
            msgspec.json.encode(state)
        counted.append(time.process_time() - began)
        rates.append(len(records) / counted[-1])
    part = state.open["fraud"]
    assert part.counts["n"] + sum(part.counts.get(name, 0) for name in ("copies", "unreadable")) == len(records)
    size = sum(len(record.value) for record in records) / len(records)
    detail: dict[str, Any] = {"bytes": round(size), "decode_us": round(min(bare) / len(records) * 1e6, 2),
                              "count_us": round(min(counted) / len(records) * 1e6, 2)}
    return [Figure("monitors", f"predictions of {FEATURES} features counted on one core", max(rates), "a second", 100_000,
                   baseline="only decoding the same bytes in full", ratio=min(bare) / min(counted), detail=detail)]


def _records(matrix: Any, random: Any) -> list[Record]:
    stamps = [ViewStamp(name, 40, "0123456789abcdef", START, False) for name in ("card_spend", "terminal_activity", "terminal_risk")]
    applied = {stamp.view: [10_000, 10_001, 10_002, 10_003] for stamp in stamps}
    known = random.random(matrix.shape) >= 0.02
    records = []
    for i, (row, there) in enumerate(zip(matrix.tolist(), known.tolist(), strict=True)):
        features = [value if present else None for value, present in zip(row, there, strict=True)]
        at = START + i * WINDOW // len(matrix)
        made = Prediction(f"{i:032x}", f"event-{i}", at, f"c{i % 997}", f"t{i % 499}", 0, i, at, "fraud", "1", "0123456789abcdef",
                          random.random(), 0.5, False, False, False, features, stamps, applied, at)
        records.append(Record(i, at, msgspec.json.encode(made)))
    return records


def _reference(matrix: Any) -> Reference:
    edges = [quantile_edges(column).tolist() for column in matrix.T]
    return Reference("fraud", "1", [f"f{i}" for i in range(FEATURES)], edges, quantile_edges(np.linspace(0, 1, 1000)).tolist(),
                     [[[0] * (BINS + 2)] * FEATURES], [[0] * (BINS + 2)], {}, 1.0, len(matrix), 1.0, POLICY.age_ms, POLICY.window_ms, 0, 0)
