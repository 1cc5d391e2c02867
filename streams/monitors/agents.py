"""Where monitors meet Faust: which topics they read, and what reads each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

from confluent_kafka import KafkaException, Producer

from feature_repo.checkpoints import Checkpoints
from feature_repo.reference import Reference
from feature_repo.use_cases import models
from schemas.envelope import CE_TYPE
from schemas.errors import BundleError, LogError
from schemas.evaluations import EVALUATIONS
from schemas.monitoring import ASKS, CONTROL, RUNS, WINDOWS
from schemas.settings import Settings
from schemas.topics import DERIVED_MAX_BYTES
from streams.monitors.readers import CountReader, MonitorReader, Reader
from streams.monitors.state import Said
from streams.monitors.watch import watched
from streams.publisher import LogEnds, next_offset

__all__ = ["monitor_reader", "monitored_topics", "when_readable"]

log = logging.getLogger(__name__)
SECOND_STAGE = (WINDOWS, RUNS, ASKS)
RETRY_S = 10.0


def monitored_topics(settings: Settings) -> list[str]:
    """Those of models with a drift policy; none where there is no such model."""
    predictions = [spec.service.predictions for spec in models(settings) if spec.drift is not None]
    return [*predictions, EVALUATIONS, *SECOND_STAGE] if predictions else []


def monitor_reader(topic: str, settings: Settings, stopping: threading.Event) -> Reader:
    """What reads one of ``monitored_topics``, in one thread."""
    assert settings.kafka is not None
    assert settings.redis is not None
    watches = {watch.model: watch for watch in watched(models(settings), settings.models, settings.partitions)}
    for watch in watches.values():
        watch.read = partial(when_readable, watch.read, stopping)
    given = watches, Checkpoints(settings.redis.get_secret_value()), Sender(settings.kafka, stopping), Records(settings.kafka), stopping
    return MonitorReader(topic, *given) if topic in SECOND_STAGE else CountReader(topic, *given)


def when_readable(read: Callable[[str], Reference | None], stopping: threading.Event, version: str) -> Reference | None:
    """``read`` of ``version``, again and again while it is damaged: a window that is judged without it would be judged for good, and a
    worker that ends would take the joins with it. Raises BundleError when the worker is stopping.
    """
    while True:
        try:
            return read(version)
        except BundleError as error:
            log.error("monitors wait for a reference that can be read: %s (%s)", error, error.hint)
            if stopping.wait(RETRY_S):
                raise


class Records:
    """What the log has; raises LogError where the broker does not answer."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self.end = LogEnds(bootstrap)

    def next_offset(self, topic: str, partition: int, offset: int) -> int:
        return next_offset(self._bootstrap, topic, partition, offset)


class Sender:
    """Publishes to topics of one partition. Raises LogError where the broker refuses, or when the worker is stopping."""

    def __init__(self, bootstrap: str, stopping: threading.Event) -> None:
        self._bootstrap, self._stopping = bootstrap, stopping
        self._refused: list[Any] = []

    @cached_property
    def _producer(self) -> Producer:
        """Made when there is something to say: most lanes seldom have."""
        return Producer({"bootstrap.servers": self._bootstrap, "acks": "all", "enable.idempotence": True, "compression.type": "lz4",
                         "message.timeout.ms": 0, "message.max.bytes": DERIVED_MAX_BYTES, "on_delivery": self._delivered})

    def send(self, said: Sequence[Said]) -> None:
        for one in said:
            headers: Any = [("ce_specversion", b"1.0"), (CE_TYPE, CONTROL[one.topic].type_bytes), ("ce_source", b"headrace/monitor"),
                            ("ce_id", one.key.encode()), ("content-type", b"application/json")]
            try:
                self._producer.produce(one.topic, one.value.encode(), one.key.encode(), 0, timestamp=one.at_ms, headers=headers)
            except (KafkaException, BufferError) as error:
                raise LogError(f"cannot publish to {one.topic}: {error}", hint="topics come from the catalogue") from error
        while self._producer.flush(0.5):
            if self._stopping.is_set():
                raise LogError("stopped while the broker had not acknowledged everything", hint="it is published again on restart")
        if self._refused:
            refused, self._refused = self._refused[0], []
            raise LogError(f"broker refused a record: {refused}", hint="see the broker's log; topics come from the catalogue")

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            self._refused.append(error)
