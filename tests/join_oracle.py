"""What the join must publish, by brute force: JSON by ``json``, every outcome looked at for every prediction."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from typing import Any

from feature_repo.fraud import FRAUD
from feature_repo.views import DAY_MS

HORIZON_MS = 10 * DAY_MS
OTHER = replace(FRAUD, name="other")
SPECS = {"predictions": FRAUD, "other-predictions": OTHER}
VALID = "outcomes.valid"
Logs = dict[tuple[str, int], list[Any]]
"""Records by topic and partition."""


def expected(log: Logs, horizon_ms: int = HORIZON_MS) -> dict[str, tuple[int, dict[str, Any]]]:
    """Evaluation id -> (partition, record) by brute force."""
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    told = defaultdict(list)
    for (topic, _), records in sorted(log.items()):
        for record in records if topic == VALID else ():
            event = json.loads(record.value)
            if record.timestamp - event["event_time"] <= horizon_ms:
                told[event["event_id"], event["event_time"]].append((event.get("revision", 0), event["fraud"], record.timestamp))
    first: dict[str, tuple[int, dict[str, Any]]] = {}
    for (topic, partition), records in sorted(log.items()):
        for record in records if topic in SPECS else ():
            try:
                prediction = json.loads(record.value)
            except ValueError:
                continue
            if prediction["arrival_ms"] - prediction["event_time"] <= horizon_ms:
                first.setdefault(prediction["prediction_id"], (partition, prediction))
    for identity, (partition, p) in first.items():
        highest, previous = -1, None
        for revision, label, outcome_ms in told[p["event_id"], p["event_time"]]:
            if revision <= highest:
                continue
            same = ("event_id", "event_time", "model", "model_version", "score", "threshold", "alert", "degraded")
            found[f"{identity}:{revision}"] = partition, {name: p[name] for name in same} | {
                "evaluation_id": f"{identity}:{revision}", "prediction_id": identity, "subject": p["card_id"], "label": label,
                "previous": previous, "revision": revision, "predicted_ms": p["arrival_ms"], "outcome_ms": outcome_ms,
                "at_ms": max(p["arrival_ms"], outcome_ms)}
            highest, previous = revision, label
    return found
