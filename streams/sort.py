"""What becomes of each record of a chunk: into the sets, on to ``<source>.valid``, or to the dead letters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from feature_repo.views import FeatureView
from schemas.admission import MAX_SKEW_MS, admit
from schemas.contracts import HINTS, Contract
from schemas.envelope import LATE, SOURCE_OFFSET, VALUE_BYTES, Headers, check_cloud_event, clock, dead_letter_headers
from schemas.errors import ContractError
from schemas.topics import BROKER_MAX_BYTES

__all__ = ["Outgoing", "Sorted", "sort_chunk"]

FOR_EVER_MS = 1 << 62
OURS = frozenset({SOURCE_OFFSET, LATE})
"""Headers by which the valid topic's readers know a record's origin: no producer may bring its own."""


class Outgoing(msgspec.Struct, frozen=True, gc=False):
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


def sort_chunk(contract: Contract, views: Sequence[FeatureView], place: tuple[str, int], records: Sequence[Any]) -> Sorted:
    """Sort aiokafka ``records`` of the partition ``place``.

    A valid record that is too late for some view is kept out of that view's sets only; it is scored and archived all the same,
    marked late. A clock record is passed on, so that whoever reads the valid topic knows how far its source has been read.
    """
    result = Sorted([[] for _ in views])
    decode, valid, on_time = contract.decode, result.valid, []
    lateness = min((view.allowed_lateness_ms for view in views), default=FOR_EVER_MS)
    skew = min((view.max_skew_ms for view in views), default=MAX_SKEW_MS)
    for record in records:
        offset, arrival, value, headers = record.offset, record.timestamp, record.value, record.headers
        try:
            if headers:
                headers = [pair for pair in headers if pair[0] not in OURS]
                if not value and clock(headers):
                    valid.append(Outgoing(offset, None, b"", arrival, [*headers, source_header(offset)]))
                    continue
                check_cloud_event(headers, contract)
            event = decode(value)
            outgoing = [*headers, (SOURCE_OFFSET, b"%d" % offset)]
            if -skew <= arrival - event.event_time <= lateness:  # every view admits it: nearly always
                on_time.append((event, arrival))
            elif _admit_by_view(event, arrival, views, result.admitted):
                outgoing.append((LATE, b"1"))
        except ContractError as error:
            result.dead.append(_dead_letter(place, record, headers, error))
            continue
        valid.append(Outgoing(offset, record.key, value, arrival, outgoing))
    for admitted in result.admitted:
        admitted += on_time
    return result


def _admit_by_view(event: Any, arrival_ms: int, views: Sequence[FeatureView], admitted: Sequence[list[tuple[Any, int]]]) -> bool:
    """Admit ``event`` to the views that take it. Returns whether it is late for any; raises ContractError on a clock skew."""
    verdicts = [admit(event.event_time, arrival_ms, view.allowed_lateness_ms, view.max_skew_ms) for view in views]
    verdicts = verdicts or ["clock-skew"]  # without a view nothing is late
    if "clock-skew" in verdicts:
        raise ContractError("clock-skew", f"event_time is {event.event_time - arrival_ms} ms after arrival", hint=HINTS["clock-skew"])
    for verdict, into in zip(verdicts, admitted, strict=True):
        if verdict == "admitted":
            into.append((event, arrival_ms))
    return "late" in verdicts


def _dead_letter(place: tuple[str, int], record: Any, headers: Sequence[tuple[str, bytes]], error: ContractError) -> Outgoing:
    """The original bytes, with why and from where. A value that was sent compressed and is larger than the broker takes is left out."""
    why = dead_letter_headers(error, *place, record.offset, record.timestamp)
    value = record.value
    if value is not None and len(value) > BROKER_MAX_BYTES:
        why.append((VALUE_BYTES, b"%d" % len(value)))
        value = None
    return Outgoing(record.offset, record.key, value, record.timestamp, [*headers, *why, source_header(record.offset)])


def source_header(offset: int) -> tuple[str, bytes]:
    return SOURCE_OFFSET, b"%d" % offset
