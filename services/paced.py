"""Publishing in real time at a fixed rate, in open loop: each record has its due time from the start, however slow the others are."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from feature_repo.models import Emission
from schemas.envelope import SENT_NS
from services.events import Encoder, Record
from services.publisher import Publisher
from services.timeline import Timeline

__all__ = ["Paced", "publish_paced"]

LEAD_NS = 200_000_000  # the first record is due when encoding has begun
AHEAD_ROWS = 500  # encoded at once: more would hold up what is due meanwhile
SERVE_EVERY = 1_000


@dataclass
class Paced:
    """How it went. ``behind_ms`` is how late the latest record was sent: where it is large, the rate was not kept."""

    sent: dict[str, int] = field(default_factory=dict)
    behind_ms: float = 0.0
    seconds: float = 0.0
    arrival_ms: int | None = None


def publish_paced(bootstrap: str, batches: Iterable[pa.RecordBatch], rate: float, *, source: str, emissions: Sequence[Emission],
                  restamp: bool = False, stamp: bool = False, tell: Callable[[Paced], None] = lambda paced: None) -> Paced:
    """Publish ``rate`` records a second until the rows end.

    Outcomes take their place among the events where they become known in the time that the rows tell; later ones are not
    sent. A record's timestamp is its arrival in that time (a broker that stamps arrival itself replaces it). With ``restamp`` the
    rows happen now: event time and arrival are when they are due. With ``stamp`` each record says when it was due, in header
    ``hr_sent_ns``. ``tell`` is called now and then.
    """
    publisher, result = Publisher(bootstrap, [emission.topic for emission in emissions], linger_ms=0), Paced()
    encoders = {emission.topic: Encoder(emission.topic, source) for emission in emissions}
    batches = iter(batches)
    batches = itertools.chain(list(itertools.islice(batches, 1)), batches)  # opens and reads the file before the clock starts
    start_ns, monotonic_ns = time.time_ns() + LEAD_NS, time.monotonic_ns() + LEAD_NS
    rows = happening_now(batches, start_ns, rate) if restamp else batches
    period_ns = 1e9 / rate
    for number, record in enumerate(in_order_of_arrival(Timeline(rows, emissions), encoders)):
        due_ns = int(number * period_ns)
        if stamp:
            record = record._replace(headers=[*record.headers, (SENT_NS, b"%d" % (start_ns + due_ns))])
        if (early_ns := monotonic_ns + due_ns - time.monotonic_ns()) > 0:
            publisher.serve()
            time.sleep(early_ns / 1e9)
        result.behind_ms = max(result.behind_ms, (time.monotonic_ns() - monotonic_ns - due_ns) / 1e6)
        publisher.queue(record)
        result.sent[record.topic] = result.sent.get(record.topic, 0) + 1
        result.arrival_ms = record.arrival_ms
        if number % SERVE_EVERY == 0:
            publisher.serve()
            tell(result)
    publisher.flush()
    result.seconds = (time.monotonic_ns() - monotonic_ns) / 1e9
    tell(result)
    return result


def in_order_of_arrival(timeline: Timeline, encoders: Mapping[str, Encoder]) -> Iterator[Record]:
    """Events and what becomes known of them among them."""
    while (until_ms := timeline.read_until_ms(AHEAD_ROWS)) is not None:
        records = (encoder.records(timeline.take(topic, until_ms)) for topic, encoder in encoders.items())
        yield from heapq.merge(*records, key=lambda record: record.arrival_ms)


def happening_now(batches: Iterable[pa.RecordBatch], start_ns: int, rate: float) -> Iterator[pa.RecordBatch]:
    """The same rows, row n happening n / ``rate`` seconds after ``start_ns``."""
    number = 0
    for batch in batches:
        due_ms = (start_ns + (np.arange(number, number + batch.num_rows) * (1e9 / rate)).astype(np.int64)) // 1_000_000
        number += batch.num_rows
        yield batch.set_column(batch.schema.get_field_index("event_time"), "event_time", pa.array(due_ms))
