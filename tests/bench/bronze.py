"""An archive of any size as ``headrace archive`` would have it, written without Spark or Kafka, column by column."""

from __future__ import annotations

from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.archive_table import bronze_path
from schemas.fraud import OUTCOMES, TRANSACTIONS
from schemas.settings import Settings
from tests.bench.load import Events

__all__ = ["write_bronze"]

PARTITIONS = 4
FILE_ROWS = 1_000_000
HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))


def write_bronze(settings: Settings, events: Events, known_after_ms: int) -> None:
    """Transactions that arrive when they happen, and outcomes of all of them ``known_after_ms`` later; a file per million arrivals."""
    for topic, after_ms in ((TRANSACTIONS, 0), (OUTCOMES, known_after_ms)):
        for first in range(0, len(events), FILE_ROWS):
            rows = slice(first, min(first + FILE_ROWS, len(events)))
            n, numbers = rows.stop - first, np.arange(first, rows.stop)
            cards = texts(events.cards[rows])
            last = ([',"amount_minor":', texts(events.amounts[rows])] if topic == TRANSACTIONS
                    else [',"fraud":', pc.if_else(pa.array(events.frauds[rows]), "true", "false")])
            value = joined('{"event_id":"', texts(numbers + events.first), '","event_time":', texts(events.times[rows]),
                           ',"card_id":"', cards, '","terminal_id":"', texts(events.terminals[rows]), '"', *last, "}")
            table = pa.table({
                "topic": pa.repeat(topic, n), "partition": pa.array((numbers % PARTITIONS).astype(np.int32)),
                "offset": pa.array(numbers // PARTITIONS), "arrival_ms": pa.array(events.times[rows] + after_ms),
                "key": cards.cast(pa.binary()), "value": value.cast(pa.binary()), "headers": pa.nulls(n, HEADERS)})
            deltalake.write_deltalake(bronze_path(settings), table, mode="append", partition_by=["topic"])


def texts(numbers: Any) -> pa.Array:
    return pa.array(numbers).cast(pa.string())


def joined(*parts: Any) -> pa.Array:
    """Texts and columns of texts, one after the other."""
    return pc.binary_join_element_wise(*parts, "")
