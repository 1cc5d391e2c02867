"""Batches that the worker builds itself: what a broker makes of them, and the private parts of aiokafka that they stand on."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import pytest
from aiokafka.codec import lz4_encode
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from schemas.errors import LogError
from services.ledger import read_topic
from streams import batches
from streams.batches import BATCH_BYTES, LZ4, Batches
from streams.chunks import ChunkConsumer, ChunkRecords

PLACE = TopicPartition("chunked", 1)
RECORDS: list[tuple[int, bytes | None, bytes | None, Any]] = [
    (1_000 + n, b"k" if n % 3 else None, b'{"n":%d}' % n if n % 5 else None, [("trace", b"7"), ("none", None)][: n % 3])
    for n in range(50)]


@pytest.fixture
def topic(kafka: str) -> str:
    name = f"batches-{os.urandom(4).hex()}"
    config = {"message.timestamp.type": "CreateTime", "max.message.bytes": str(3 * BATCH_BYTES)}
    admin = AdminClient({"bootstrap.servers": kafka})
    for created in admin.create_topics([NewTopic(name, 2, 1, config=config)]).values():
        created.result(30)
    return name


def built() -> bytes:
    builder = BatchBuilder(BATCH_BYTES, LZ4)
    for at_ms, key, value, headers in RECORDS:
        builder.append(timestamp=at_ms, key=key, value=value, headers=headers)
    return bytes(builder._build())


def test_a_broker_hands_out_every_record_as_it_was_added_and_in_order(kafka: str, topic: str) -> None:
    """Batch by batch: three of them, one of which is a single record that is larger than a batch."""
    out = Batches(kafka, lambda: False)
    large = os.urandom(2 * BATCH_BYTES)
    for at_ms, key, value, headers in RECORDS:
        out.add(topic, 1, key, value, at_ms, headers)
    out.add(topic, 1, b"large", large, 2_000, [])
    out.add(topic, 1, b"last", b"", 3_000, [])
    out.wait()
    out.wait()  # of nothing
    found = [(m.partition(), m.timestamp()[1], m.key(), m.value(), m.headers() or []) for m in read_topic(kafka, topic)]
    sent = [*RECORDS, (2_000, b"large", large, []), (3_000, b"last", b"", [])]
    assert found == [(1, *record) for record in sent]


def test_what_is_refused_is_an_error_and_what_comes_after_it_goes_out(kafka: str, topic: str) -> None:
    out = Batches(kafka, lambda: False)
    out.add(topic, 0, None, os.urandom(4 * BATCH_BYTES), 1, [])
    with pytest.raises(LogError, match="refused"):
        out.wait()
    out.add(topic, 0, None, b"small", 1, [])
    out.wait()
    assert [m.value() for m in read_topic(kafka, topic)] == [b"small"]


def test_more_than_may_be_held_goes_out_before_somebody_waits(kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "HELD_BYTES", 2 * BATCH_BYTES)
    out = Batches(kafka, lambda: False)
    values = [b"%d" % n + bytes(BATCH_BYTES // 2) for n in range(10)]
    for value in values:
        out.add(topic, 0, None, value, 1, [])
    assert 0 < len(list(read_topic(kafka, topic))) < len(values)
    out.wait()
    assert [m.value() for m in read_topic(kafka, topic)] == values


def test_who_is_told_to_stop_does_not_wait_for_a_broker_that_is_not_there() -> None:
    out = Batches("127.0.0.1:1", lambda: True)
    out.add("any", 0, None, b"v", 1, [])
    with pytest.raises(LogError, match="stopped"):
        out.wait()


def test_batches_are_compressed_as_fast_as_lz4_can() -> None:
    Batches("127.0.0.1:1", lambda: True)
    plain = BatchBuilder(BATCH_BYTES, 0)
    for at_ms, key, value, headers in RECORDS:
        plain.append(timestamp=at_ms, key=key, value=value, headers=headers)
    header = len(BatchBuilder(BATCH_BYTES, 0)._build())
    assert built()[header:] == lz4_encode(bytes(plain._build())[header:], level=1)


def test_the_records_of_a_chunk_say_what_aiokafkas_own_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChunkConsumer, "chunk_topics", frozenset({PLACE.topic}))
    stock, lean = (read(kind, built(), 7) for kind in (PartitionRecords, ChunkRecords))
    assert [fields(record) for record in lean] == [fields(record) for record in stock]
    assert {type(record) for record in lean}.isdisjoint({type(record) for record in stock})
    assert all(before.offset + 1 == after.offset for before, after in pairwise(lean))
    assert lean[0].offset == 7


def test_other_topics_of_the_process_have_aiokafkas_own() -> None:
    assert [type(record) for record in read(ChunkRecords, built(), 0)] == [type(record) for record in read(PartitionRecords, built(), 0)]


def test_a_chunk_with_a_wrong_checksum_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChunkConsumer, "chunk_topics", frozenset({PLACE.topic}))
    with pytest.raises(CorruptRecordException):
        read(ChunkRecords, built()[:-1] + b"?", 0)


def read(kind: Any, fetched: bytes, offset: int) -> list[Any]:
    return list(kind(PLACE, MemoryRecords(fetched), [], offset, None, None, True, 0))


def fields(record: Any) -> tuple[Any, ...]:
    return record.offset, record.timestamp, record.timestamp_type, record.key, record.value, list(record.headers)
