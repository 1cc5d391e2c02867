"""What becomes of each record of a chunk: into the sets, on to ``<source>.valid``, or to the dead letters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from feature_repo.views import FeatureView
from schemas.admission import admit
from schemas.contracts import HINTS, Contract
from schemas.envelope import LATE, SOURCE_OFFSET, Headers, check_cloud_event, clock, dead_letter_headers
from schemas.errors import ContractError

__all__ = ["Outgoing", "Sorted", "sort_chunk"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to publish: it came from source offset ``offset`` and keeps its key, value and arrival time."""

    offset: int
    key: bytes | None
    value: bytes | None
    arrival_ms: int
    headers: Headers


@dataclass(slots=True)
class Sorted:
    """``admitted[v]`` holds the (event, arrival ms) pairs of view v."""

    admitted: list[list[tuple[Any, int]]]
    valid: list[Outgoing] = field(default_factory=list)
    dead: list[Outgoing] = field(default_factory=list)


def sort_chunk(contract: Contract, views: Sequence[FeatureView], records: Sequence[Any]) -> Sorted:
    """Sort aiokafka ``records`` of one partition.

    A valid record that is too late for some view is kept out of that view's sets only; it is scored and archived all the same,
    marked late. A clock record is passed on, so that whoever reads the valid topic knows how far its source has been read.
    """
    result = Sorted([[] for _ in views])
    decode, valid = contract.decode, result.valid
    bounds = [(view.allowed_lateness_ms, view.max_skew_ms, into) for view, into in zip(views, result.admitted, strict=True)]
    for record in records:
        headers = list(record.headers)
        try:
            if headers:
                if clock(headers):
                    valid.append(Outgoing(record.offset, None, b"", record.timestamp, [*headers, source_header(record.offset)]))
                    continue
                check_cloud_event(headers, contract)
            event = decode(record.value)
            arrival = record.timestamp
            late = False
            for lateness, skew, into in bounds:
                verdict = admit(event.event_time, arrival, lateness, skew)
                if verdict == "admitted":
                    into.append((event, arrival))
                elif verdict == "late":
                    late = True
                else:
                    raise ContractError("clock-skew", f"event_time is {event.event_time - arrival} ms after arrival, allowed are {skew} ms",
                                        hint=HINTS["clock-skew"])
        except ContractError as error:
            why = dead_letter_headers(error, record.topic, record.partition, record.offset, record.timestamp)
            result.dead.append(Outgoing(record.offset, record.key, record.value, record.timestamp, [*headers, *why]))
            continue
        headers.append(source_header(record.offset))
        if late:
            headers.append((LATE, b"1"))
        valid.append(Outgoing(record.offset, record.key, record.value, arrival, headers))
    return result


def source_header(offset: int) -> tuple[str, bytes]:
    return SOURCE_OFFSET, b"%d" % offset
