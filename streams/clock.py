"""Idle partitions of a source are told the time, in live mode. In a replay whoever replays tells it.

Windows of monitors, labels that mature, trims and tiles wait until every partition has passed a time. One that gets nothing passes none: as
long as a partition of outcomes is silent, nobody would hear of drift. So the worker that owns it sends it a clock record, whose time is
the broker's; workers, scorers and joins pass it like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, cast

from confluent_kafka import KafkaException

from feature_repo.marks import NOTHING
from feature_repo.version_keys import VersionKeys
from feature_repo.views import FeatureView
from schemas.envelope import CLOCK_HEADERS
from schemas.errors import LogError
from streams.publisher import ASK_S, Publisher

__all__ = ["BEHIND_MS", "TILES_BEHIND_MS", "IdleClock", "arrival_is_ours", "behind"]

BEHIND_MS, TILES_BEHIND_MS = 60_000, 5_000
"""So far a partition may be behind the newest arrival; the second where a view has tiles: what is not passed stays raw. Workers see each
other's clock records sooner: a system that sleeps falls silent."""


def behind(passed_ms: int | None, newest_ms: int, most_ms: int) -> bool:
    """Whether a partition that has passed ``passed_ms`` is more than ``most_ms`` behind ``newest_ms``, the newest arrival of all."""
    return passed_ms is None or newest_ms - passed_ms > most_ms


class IdleClock:
    """Of the partitions of ``topic`` that one worker owns. One thread.

    Parameters
    ----------
    views
        All that are fed now: the newest arrival is that of what was applied to any.
    stamped
        Whether the broker says when a record of ``topic`` arrived, asked once. A producer's clock may be wrong, and is told to nobody.
    publisher
        What the worker publishes with.
    """

    def __init__(self, topic: str, views: Callable[[], Sequence[FeatureView]], keys: VersionKeys, stamped: Callable[[], bool],
                 publisher: Publisher) -> None:
        self._topic, self._views, self._keys, self._publisher = topic, views, keys, publisher
        self._stamped = cache(stamped)
        self._told: dict[int, int | None] = {}  # partition -> what it had passed when it was last told

    def tell(self, partition: int, passed_ms: int | None) -> None:
        """Send ``partition``, which is idle and has passed ``passed_ms``, a clock record if it is behind, and none is on its way.

        Raises StoreError and LogError where the store or Kafka does not answer.
        """
        if self._told.get(partition, NOTHING) == passed_ms:
            return
        views = self._views()
        newest_ms, most_ms = self._keys.arrived_ms(views), TILES_BEHIND_MS if any(view.hops for view in views) else BEHIND_MS
        if newest_ms is not None and behind(passed_ms, newest_ms, most_ms) and self._stamped():
            self._publisher.send(self._topic, partition, None, b"", newest_ms, CLOCK_HEADERS)
            self._publisher.wait()
            self._told[partition] = passed_ms

    def forget(self, partition: int) -> None:
        """The partition has, or had, another owner."""
        self._told.pop(partition, None)


def arrival_is_ours(bootstrap: str, topics: Iterable[str]) -> bool:
    """Whether the publisher, not the broker, says when a record of ``topics`` arrived. Raises LogError without an answer."""
    from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    asked = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic) for topic in topics], request_timeout=ASK_S)
    try:
        answers = [cast(Any, answer.result(2 * ASK_S)) for answer in asked.values()]
    except (KafkaException, TimeoutError) as error:
        raise LogError(f"Kafka at {bootstrap} does not say how its topics are set: {error}",
                       hint="`headrace topics` creates the catalogue's topics") from error
    return all(answer["message.timestamp.type"].value == "CreateTime" for answer in answers)
