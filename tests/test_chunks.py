"""Chunks of several partitions in one message: which come together, and what becomes of each when the lane is through with them."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import consumer
from confluent_kafka import Producer
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from schemas.fraud import OUTCOMES
from streams.agents import Lane, _settle
from streams.chunks import CHUNK_MAX, TOGETHER_MAX, Chunk, PacedFetcher, _rounds

SIZES = st.one_of(st.integers(1, 20), st.integers(TOGETHER_MAX // 2, TOGETHER_MAX + 1), st.integers(CHUNK_MAX - 1, 2 * CHUNK_MAX + 1))


@given(st.dictionaries(st.builds(TP, st.sampled_from(("a", "b")), st.integers(0, 3)), SIZES, max_size=6))
def test_every_record_is_in_one_message_and_those_of_a_partition_come_in_order(sizes: dict[TP, int]) -> None:
    fetched = {tp: range(size) for tp, size in sizes.items()}
    rounds = list(_rounds(fetched, Counter(dict.fromkeys(fetched, 3))))
    for tp, records in fetched.items():
        assert [record for chunks in rounds for chunk in chunks if chunk.tp == tp for record in chunk.records] == list(records)
    for chunks in rounds:
        assert len({chunk.tp for chunk in chunks}) == len(chunks)
        assert len({chunk.tp.topic for chunk in chunks}) == 1
        assert sum(len(chunk.records) for chunk in chunks) <= (TOGETHER_MAX if len(chunks) > 1 else CHUNK_MAX)
        assert {chunk.epoch for chunk in chunks} == {3}
    if sum(sizes.values()) <= TOGETHER_MAX:
        assert len(rounds) == len({tp.topic for tp in sizes})


class FaustConsumer:
    """Of a Faust consumer what is asked for when chunks are done."""

    def __init__(self, refuses: int | None = None) -> None:
        self.seeks: Counter[TP] = Counter()
        self.told: dict[int, int] = {}
        self.sought: dict[int, int] = {}
        self._refuses = refuses

    def epoch(self, tp: TP) -> int:
        return self.seeks[tp]

    def done(self, tp: TP, offset: int) -> None:
        self.told[tp.partition] = offset

    async def seek(self, tp: TP, offset: int) -> None:
        if tp.partition == self._refuses:
            raise TimeoutError
        self.sought[tp.partition] = offset


def part(*partitions: int) -> list[Chunk]:
    return [Chunk(TP("a", p), [SimpleNamespace(offset=10 * p + n) for n in range(3)], 0) for p in partitions]


async def settled(consumer: FaustConsumer, chunks: list[Chunk], resumes: list[int | None]) -> None:
    applied: asyncio.Future[list[int | None]] = asyncio.get_running_loop().create_future()
    applied.set_result(resumes)
    await _settle(consumer, chunks, applied)


def test_a_seek_of_one_partition_that_fails_leaves_the_others_done() -> None:
    consumer = FaustConsumer(refuses=0)
    with pytest.raises(TimeoutError):
        asyncio.run(settled(consumer, part(0, 1, 2), [4, None, None]))
    assert consumer.told == {1: 13, 2: 23}


def test_a_partition_that_was_moved_meanwhile_is_not_moved_again() -> None:
    consumer = FaustConsumer()
    consumer.seeks[TP("a", 1)] = 1
    asyncio.run(settled(consumer, part(0, 1), [4, 5]))
    assert (consumer.told, consumer.sought) == ({}, {0: 4})


class Worker:
    def __init__(self) -> None:
        self.did: list[Any] = []

    def apply(self, partition: int, records: Any, committed: int) -> int | None:
        self.did.append((partition, len(records), committed))
        return 5 if partition == 1 else None

    def flush(self) -> None:
        self.did.append("flush")


def test_a_lane_applies_every_chunk_then_flushes_once() -> None:
    worker: Any = Worker()
    assert Lane("a", worker).apply(part(0, 1, 2), [7, 8, 9]) == [None, 5, None]
    assert worker.did == [(0, 3, 7), (1, 3, 8), (2, 3, 9), "flush"]


def test_a_fetch_waits_long_where_the_one_before_brought_nothing_and_only_there(kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PacedFetcher, "busy", (7, 64 << 10), raising=False)
    monkeypatch.setattr(PacedFetcher, "idle", (90, 1), raising=False)
    asked: list[tuple[tuple[int, int], bool]] = []

    class Recorded(PacedFetcher):
        async def _proc_fetch_request(self, assignment: Any, node_id: Any, request: Any) -> Any:
            brought = await super()._proc_fetch_request(assignment, node_id, request)
            asked.append(((request._max_wait_ms, request._min_bytes), brought))
            return brought

    monkeypatch.setattr(consumer, "Fetcher", Recorded)

    async def read() -> None:
        reader = consumer.AIOKafkaConsumer(bootstrap_servers=kafka)
        await reader.start()
        reader.assign([TopicPartition(OUTCOMES, 0), TopicPartition(OUTCOMES, 1)])
        await reader.seek_to_end()
        producer = Producer({"bootstrap.servers": kafka})
        for number in range(5):
            before = len(asked)
            while len(asked) < before + 3:  # some that find nothing
                await reader.getmany(timeout_ms=20)
            producer.produce(OUTCOMES, b"{}", partition=number % 2)
            producer.flush()
            assert await reader.getmany(timeout_ms=5000)
        await reader.stop()

    asyncio.run(read())
    limits = [limit for limit, _ in asked]
    assert limits[1:] == [(7, 64 << 10) if brought else (90, 1) for _, brought in asked[:-1]]
    assert sum(brought for _, brought in asked) == 5
    assert limits.count((90, 1)) > 5
