"""The few hashes beside the event sets that say how far each consumer has come, and how they are read together.

``applied:<view>@<hash>``  partition -> last source offset whose records are in the sets (moved by compare-and-set only)
``scored:<service>``       partition -> last source offset whose prediction is acknowledged
``scored-ms:<service>``    partition -> arrival time of that record: no later read will be for an earlier arrival
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from feature_repo.views import FeatureView
from feature_repo.wire import Wire, pack

__all__ = ["NOTHING", "Progress", "applied_key", "offsets", "scored_key", "scored_ms_key"]

NOTHING = -1
"""The mark of a partition of which nothing has been applied or scored."""


def applied_key(view: FeatureView) -> str:
    return f"applied:{view.versioned_name}"


def scored_key(service: str) -> str:
    return f"scored:{service}"


def scored_ms_key(service: str) -> str:
    return f"scored-ms:{service}"


def offsets(reply: Any) -> dict[int, int]:
    """An HGETALL reply (RESP2 list or RESP3 map) as partition -> number."""
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {int(partition): int(value) for partition, value in pairs}


class Progress:
    """How far every group that matters has come in a source, in one round trip.

    Parameters
    ----------
    views
        All views that are kept up to date.
    service
        Name of the feature service whose scorer counts for its source; None where no scorer runs.
    """

    def __init__(self, url: str, views: Iterable[FeatureView], service: str | None, service_source: str, timeout_ms: int = 5000) -> None:
        self._wire = Wire(url, timeout_ms)
        self._views = tuple(views)
        self._service, self._service_source = service, service_source

    def groups(self, source: str) -> dict[str, dict[int, int]]:
        """Per group name, partition -> last source offset it is done with."""
        names = [applied_key(view) for view in self._views if view.source == source]
        if self._service is not None and source == self._service_source:
            names.append(scored_key(self._service))
        replies = self._wire.exchange([pack(("HGETALL", name)) for name in names])
        return {name: offsets(reply) for name, reply in zip(names, replies, strict=True)}

    def reached(self, source: str) -> dict[int, int]:
        """Partition -> last source offset that every group is done with; a partition that some group lacks is left out."""
        marks = list(self.groups(source).values())
        shared = set.intersection(*map(set, marks)) if marks else set()
        return {partition: min(mark[partition] for mark in marks) for partition in shared}

    def close(self) -> None:
        self._wire.close()
