"""The few hashes beside the event sets that say how far each consumer has come, and how they are read together.

``applied:<view>@<hash>``  partition -> last source offset whose records are in the sets (moved by compare-and-set only);
                           ``from:<partition>`` -> "offset arrival-ms" of the first record that was applied after there was nothing,
                           where the log had lost those before it: the sets lack them until a backfill or time makes up for it
                           (offset 0: a backfill has, down to what reads could still need then)
``{applied:<view>@<hash>}:ms``  partition -> arrival time of that record; moved with the mark, in one script and on one shard
``hot:<view>@<hash>``      entities whose sets have grown long, for the compactor
``scored:<service>``       partition -> last source offset whose prediction is acknowledged
``scored-ms:<service>``    partition -> arrival time of that record: no later read will be for an earlier arrival
``heard-ms``               <source>/<partition> -> when the newest event of it arrived, as workers said at their last look (live mode)
``serving:<service>``      partition -> release epoch (0: none) of whatever its scorer will score next
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from feature_repo.views import FeatureService, FeatureView
from feature_repo.wire import Wire, pack

__all__ = ["FROM", "HEARD_MS", "NOTHING", "Progress", "applied_key", "applied_ms_key", "hot_key", "lowest", "offsets", "scored_key",
           "scored_ms_key", "serving_key", "shortages"]

HEARD_MS = "heard-ms"
FROM = "from:"
FROM_BYTES = FROM.encode()
NOTHING = -1
"""The mark of a partition of which nothing has been applied or scored."""


def applied_key(view: FeatureView) -> str:
    return f"applied:{view.versioned_name}"


def applied_ms_key(view: FeatureView) -> str:
    return f"{{{applied_key(view)}}}:ms"


def hot_key(view: FeatureView) -> str:
    return f"hot:{view.versioned_name}"


def scored_key(service: str) -> str:
    return f"scored:{service}"


def scored_ms_key(service: str) -> str:
    return f"scored-ms:{service}"


def serving_key(service: str) -> str:
    return f"serving:{service}"


def offsets(reply: Any) -> dict[int, int]:
    """An HGETALL reply (RESP2 list or RESP3 map) as partition -> number."""
    return {int(partition): int(value) for partition, value in _pairs(reply) if not partition.startswith(FROM_BYTES)}


def shortages(reply: Any) -> dict[int, tuple[int, int]]:
    """Of the same reply: partition -> (offset, arrival ms) of the first record in the sets, where those before it are not."""
    told = {int(field[len(FROM):]): value.split() for field, value in _pairs(reply) if field.startswith(FROM_BYTES)}
    return {partition: (int(offset), int(arrival_ms)) for partition, (offset, arrival_ms) in told.items()}


def _pairs(reply: Any) -> Iterable[tuple[bytes, bytes]]:
    return reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)


def lowest(held: Mapping[int, int], partitions: int) -> int | None:
    """The lowest of what ``offsets`` gave; None where one of ``partitions`` is not in it."""
    return min(held.values()) if held.keys() >= set(range(partitions)) else None


class Progress:
    """How far every group that matters has come in a source, in one round trip.

    Parameters
    ----------
    views
        All views that are kept up to date.
    services
        The feature services whose scorers count for their sources; none where no scorer runs.
    """

    def __init__(self, url: str, views: Iterable[FeatureView], services: Iterable[FeatureService], timeout_ms: int = 5000) -> None:
        self._wire = Wire(url, timeout_ms)
        self._views, self._services = tuple(views), tuple(services)

    def groups(self, source: str) -> dict[str, dict[int, int]]:
        """Per group name, partition -> last source offset it is done with."""
        names = [applied_key(view) for view in self._views if view.source == source]
        names += [scored_key(service.name) for service in self._services if service.source == source]
        replies = self._wire.exchange([pack(("HGETALL", name)) for name in names])
        return {name: offsets(reply) for name, reply in zip(names, replies, strict=True)}

    def reached(self, source: str) -> dict[int, int]:
        """Partition -> last source offset that every group is done with; a partition that some group lacks is left out."""
        marks = list(self.groups(source).values())
        shared = set.intersection(*map(set, marks)) if marks else set()
        return {partition: min(mark[partition] for mark in marks) for partition in shared}

    def close(self) -> None:
        self._wire.close()
