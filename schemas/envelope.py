"""What surrounds a value: CloudEvents binary headers on events, provenance headers on what headrace derives, clock records.

CloudEvents Kafka binding 1.0, binary mode: attributes travel as ``ce_`` headers, the value is the data alone. They are accepted
and written, never required: meaning comes from the value and from the record's Kafka timestamp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from schemas.contracts import Contract
from schemas.errors import ContractError

__all__ = [
    "CE_TYPE",
    "CLOCK_HEADERS",
    "LATE",
    "SOURCE_OFFSET",
    "Headers",
    "check_cloud_event",
    "clock",
    "cloud_event_headers",
    "dead_letter_headers",
    "header",
]

Headers = list[tuple[str, bytes]]
CE_TYPE = "ce_type"
CLOCK_TYPE = b"headrace.clock.v1"
CLOCK_HEADERS: Headers = [(CE_TYPE, CLOCK_TYPE)]
"""Headers of a clock record: no event, it says that its partition has been read up to its timestamp."""

SOURCE_OFFSET = "hr_source_offset"
LATE = "hr_late"


def header(headers: Iterable[tuple[str, bytes | None]] | None, name: str) -> bytes | None:
    """The last value of header ``name``, None where it is absent."""
    found = None
    for key, value in headers or ():
        if key == name:
            found = value
    return found


def clock(headers: Iterable[tuple[str, bytes | None]] | None) -> bool:
    """Whether a record with these headers is a clock record."""
    return bool(headers) and header(headers, CE_TYPE) == CLOCK_TYPE


def cloud_event_headers(contract: Contract, source: str, event_id: str, event_time_ms: int) -> Headers:
    """CloudEvents 1.0 attributes of one event."""
    time = datetime.fromtimestamp(event_time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [("ce_specversion", b"1.0"), (CE_TYPE, contract.type.encode()), ("ce_source", source.encode()),
            ("ce_id", event_id.encode()), ("ce_time", time.encode()), ("content-type", b"application/json")]


def check_cloud_event(headers: Iterable[tuple[str, bytes | None]] | None, contract: Contract) -> None:
    """Nothing where the headers are absent or agree with ``contract``; ContractError where they contradict it."""
    attributes: Mapping[str, bytes | None] = dict(headers or ())
    stated = attributes.get(CE_TYPE)
    if stated is not None and stated != contract.type.encode():
        raise ContractError("wrong-type", f"ce_type is {stated[:80]!r}, this topic takes {contract.type}",
                            hint="send the event to its own topic, or correct ce_type")
    version = attributes.get("ce_specversion")
    if version is not None and version != b"1.0":
        raise ContractError("wrong-type", f"ce_specversion is {version[:20]!r}, supported is 1.0", hint="use CloudEvents 1.0")


def dead_letter_headers(error: ContractError, topic: str, partition: int, offset: int, arrival_ms: int) -> Headers:
    """Why and from where, under the names Kafka's own dead-letter queues use (KIP-1034) and two of ours."""
    return [
        ("__streams.errors.exception", b"ContractError"),
        ("__streams.errors.message", error.fact.encode("utf-8", "replace")[:1000]),
        ("__streams.errors.topic", topic.encode()),
        ("__streams.errors.partition", str(partition).encode()),
        ("__streams.errors.offset", str(offset).encode()),
        ("hr_reason", error.reason.encode()),
        ("hr_hint", error.hint.encode("utf-8", "replace")),
        ("hr_arrival_ms", str(arrival_ms).encode()),
    ]
