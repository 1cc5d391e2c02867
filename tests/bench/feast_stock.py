"""What most would build: values written to Feast's own Redis store, read by ``get_online_features``, scored by scikit-learn's wrapper."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from feature_repo.fraud import SERVICE
from feature_repo.vector import request_features

__all__ = ["BATCH", "ENTITIES", "filled_store", "measure", "open_store"]

BATCH = 500
ENTITIES = 500
DATABASE = 5
"""Of the same Redis server, apart from the event sets."""


def measure(redis: str, fitted: Any) -> tuple[float, float]:
    """Events/s by requests of one row and of ``BATCH`` rows: every view's features, the request-time ones, ``predict_proba``."""
    with tempfile.TemporaryDirectory(prefix="bench-feast-") as folder:
        store = filled_store(Path(folder), redis)
        service = store.get_feature_service(SERVICE.name)

        def score(rows: list[dict[str, str]]) -> None:
            found = store.get_online_features(features=service, entity_rows=rows).to_dict()
            matrix = np.array([found.get(name, [None] * len(rows)) for name in SERVICE.feature_names], np.float64).T.copy()
            event = {"event_time": np.full(len(rows), 1_530_403_200_000), "amount_minor": np.full(len(rows), 1_000)}
            request_features(SERVICE, matrix, event)
            fitted.predict_proba(matrix.astype(np.float32))

        r = np.random.default_rng(2)
        rows = [{"card_id": str(card), "terminal_id": str(terminal)} for card, terminal in r.integers(0, ENTITIES, (BATCH, 2)).tolist()]
        def one_by_one() -> None:
            for row in rows[:100]:
                score([row])

        return _rate(one_by_one, 100), _rate(lambda: score(rows), BATCH)


def open_store(folder: Path, redis: str) -> Any:
    """Feast's, over its own Redis store, with its registry in ``folder``."""
    from feast import FeatureStore, RepoConfig

    at = urlsplit(redis)
    return FeatureStore(config=RepoConfig(
        project="bench", provider="local", registry=str(folder / "registry.db"), entity_key_serialization_version=3,
        online_store={"type": "redis", "connection_string": f"{at.hostname}:{at.port},db={DATABASE}"}))


def filled_store(folder: Path, redis: str) -> Any:
    """The same, with values of ``ENTITIES`` cards and terminals."""
    from feature_repo.definitions import ENTITIES as JOIN_KEYS
    from feature_repo.definitions import FEATURE_SERVICES, FEATURE_VIEWS

    store = open_store(folder, redis)
    store.apply([*JOIN_KEYS.values(), *FEATURE_VIEWS.values(), *FEATURE_SERVICES.values()])
    _write(store, FEATURE_VIEWS)
    return store


def _rate(work: Any, events: int, seconds: float = 3.0) -> float:
    """Events/s over at least ``seconds``, once warm."""
    work()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work()
        times += 1
    return times * events / (time.perf_counter() - began)


def _write(store: Any, views: Any) -> None:
    """Values for every entity, in Feast's own form: these views have no batch source that it could materialise from."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    r, now = np.random.default_rng(1), datetime.now(UTC)
    for view in views.values():
        key, names = view.join_keys[0], [feature.name for feature in view.features]
        rows = [(EntityKey(join_keys=[key], entity_values=[Value(string_val=str(number))]),
                 {name: Value(double_val=value) for name, value in zip(names, values, strict=True)}, now, now)
                for number, values in enumerate(r.gamma(1.0, 20.0, (ENTITIES, len(names))).tolist())]
        store._get_provider().online_write_batch(store.config, store.get_feature_view(view.name), rows, None)
