"""What surrounds a value: CloudEvents binary headers on events, provenance headers on what headrace derives, clock records.

CloudEvents Kafka binding 1.0, binary mode: attributes travel as ``ce_`` headers, the value is the data alone. They are accepted
and written, never required: meaning comes from the value and from the record's Kafka timestamp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from schemas.contracts import Contract
from schemas.errors import ContractError

__all__ = [
    "ATTRIBUTES",
    "CE_TYPE",
    "CLOCK_HEADERS",
    "CLOCK_TYPE",
    "LATE",
    "PROBE",
    "SCORED_EVENT",
    "SENT_NS",
    "SOURCE_OFFSET",
    "SPECIFICATION",
    "VALUE_BYTES",
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

ATTRIBUTES = (CE_TYPE, "ce_specversion")
"""Headers that can contradict a contract."""
SPECIFICATION = b"1.0"

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MINUTE = int((datetime(9999, 12, 31, 23, 59, tzinfo=UTC) - EPOCH).total_seconds()) // 60

SOURCE_OFFSET = "hr_source_offset"
LATE = "hr_late"
SCORED_EVENT = "hr_event"
"""On a prediction that was made by request: the event itself, which may never come by the log."""
VALUE_BYTES = "hr_value_bytes"
"""On a dead letter without its value: how large that was."""
SENT_NS = "hr_sent_ns"
"""When a paced record was due, ns since 1970: latency counts from there, whenever it really left."""

PROBE = "hr_probe_ns"
"""On a prediction in a canary now and then: "<champion>/<candidate>", ns that each took to score one and the same row."""


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


def cloud_event_headers(contract: Contract, source: str) -> Callable[[str, int], Headers]:
    """A function of (event id, event time in ms) that returns the CloudEvents 1.0 attributes of that event.

    What is the same for all events of ``contract`` from ``source`` is made here, once.

    >>> from schemas.fraud import TRANSACTION
    >>> dict(cloud_event_headers(TRANSACTION, "/replay")("t-1", 1_529_280_015_007))["ce_time"]
    b'2018-06-18T00:00:15.007Z'
    """
    version, kind, origin = ("ce_specversion", b"1.0"), (CE_TYPE, contract.type.encode()), ("ce_source", source.encode())
    content = ("content-type", b"application/json")

    def headers(event_id: str, event_time_ms: int) -> Headers:
        minute, rest = divmod(event_time_ms, 60_000)
        time = b"%b%02d.%03dZ" % (_minute_text(minute), rest // 1000, rest % 1000)
        return [version, kind, origin, ("ce_id", event_id.encode()), ("ce_time", time), content]

    return headers


@lru_cache(maxsize=4096)
def _minute_text(minute: int) -> bytes:
    """RFC 3339 up to and with the colon before the seconds; 9999 is the last year it has."""
    return (EPOCH + timedelta(minutes=min(max(minute, 0), LAST_MINUTE))).strftime("%Y-%m-%dT%H:%M:").encode()


def check_cloud_event(headers: Iterable[tuple[str, bytes | None]] | None, contract: Contract) -> None:
    """Nothing where the headers are absent or agree with ``contract``; ContractError where they contradict it."""
    for name, value in headers or ():
        if name == CE_TYPE and value != contract.type_bytes:
            raise ContractError("wrong-type", f"ce_type is {(value or b'')[:80]!r}, this topic takes {contract.type}",
                                hint="send the event to its own topic, or correct ce_type")
        if name == "ce_specversion" and value != SPECIFICATION:
            raise ContractError("wrong-type", f"ce_specversion is {(value or b'')[:20]!r}, supported is 1.0", hint="use CloudEvents 1.0")


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
