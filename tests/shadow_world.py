"""Predictions as a scorer publishes them, without events and stores: for tests of what shadows and pairs make of them."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Producer

from feature_repo.bundle import Model
from feature_repo.fraud import FRAUD, SERVICE
from feature_repo.vector import VectorBuilder
from schemas.fraud import PREDICTION, Transaction
from schemas.releases import Release
from services.ledger import read_topic
from services.release_log import ReleaseLog
from services.scoring import Arrived, predict
from services.shadow_scores import prediction_decoder

START_MS = 1_530_000_000_000
PARTITIONS = 4


def make_predictions(n: int, model: Model, epoch: int | None, seed: int = 0, step_ms: int = 1000, first: int = 0) -> list[bytes]:
    """``n`` values: random vectors, a fifth null, scored by ``model``."""
    random_, found = np.random.default_rng(seed), []
    builder, decode = VectorBuilder(SERVICE), PREDICTION.decode
    events = [Transaction(f"e{seed}-{first + i}", START_MS + (first + i) * step_ms, f"c{i % 50}", f"t{i % 20}", 100 + i) for i in range(n)]
    arrived = [Arrived(event, 0, i, event.event_time, False) for i, event in enumerate(events)]
    rows = random_.normal(10, 10, size=(n, len(SERVICE.feature_names)))
    rows[random_.random(rows.shape) < 0.2] = np.nan
    scores = model.score(rows).tolist()
    for scored, row, score in zip(predict(FRAUD.name, builder, arrived, None, model, START_MS, epoch), rows.tolist(), scores, strict=True):
        made = msgspec.structs.replace(decode(scored.value), features=[None if np.isnan(x) else x for x in row], score=score,
                                       alert=score >= model.threshold, degraded=False)
        found.append(msgspec.json.encode(made))
    return found


def publish_predictions(kafka: str, values: list[bytes], seed: int = 0) -> None:
    """In order, each to some partition."""
    r, producer = random.Random(seed), Producer({"bootstrap.servers": kafka, "acks": "all", "enable.idempotence": True})
    decode = prediction_decoder(FRAUD).decode
    for value in values:
        made = decode(value)
        producer.produce(SERVICE.predictions, value, made.subject.encode(), r.randrange(PARTITIONS), timestamp=made.arrival_ms)
        producer.poll(0)
    assert producer.flush(60) == 0


def release_with_shadows(kafka: str, release_id: str, version: str, at_ms: int, shadows: tuple[str, ...]) -> Release:
    log = ReleaseLog(kafka)
    try:
        log._publish(msgspec.structs.replace(log.catch_up().following(release_id, FRAUD.name, version, at_ms, "a test", "test"),
                                             shadows=list(shadows)))
        made = log.catch_up().current(FRAUD.name)
        assert made is not None
        assert made.release_id == release_id
        return made
    finally:
        log.close()


def read_values(kafka: str, topic: str) -> list[Any]:
    return [message.value() for message in read_topic(kafka, topic)]
