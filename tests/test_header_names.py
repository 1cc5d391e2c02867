"""Kafka's header names are text, its protocol does not hold anybody to it: a name that is no UTF-8 stops nothing here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords
from confluent_kafka import Producer

from jobs.archive import archive
from jobs.events import bronze_path
from schemas.envelope import SOURCE_OFFSET, header
from schemas.fraud import TRANSACTIONS
from schemas.settings import Settings
from schemas.topics import dead_letter_topic, valid_topic
from services.ledger import read_events, read_topic
from services.runtime.embedded import Runtime
from streams import header_names
from tests.deadline import eventually
from tests.odd_headers import NAME
from tests.world_check import Sent, read_predictions, small_world, wrong_sets

THIRD = 20
STOCK = MemoryRecords, header_names.TolerantRecords.__base__
READ = NAME.decode("utf-8", "replace")
"""How Java's clients, Spark and the feature worker read it."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, Settings, Sent]]:
    """Plain events, then odd ones and one that is no event, then plain ones again; all in partition 0."""
    settings = Settings(home=tmp_path_factory.mktemp("names"), time="replay")
    sent = Sent(small_world(3 * THIRD, seed=3).transactions)
    with Runtime(settings, ("worker", "scorer")) as runtime:
        plain = Producer({"bootstrap.servers": runtime.kafka, "acks": "all"})
        values = [(msgspec.json.encode(event).decode(), arrival_ms) for event, arrival_ms in sent.transactions]
        for first in (0, 2 * THIRD):
            for value, arrival_ms in values[first : first + THIRD]:
                plain.produce(TRANSACTIONS, value, partition=0, timestamp=arrival_ms)
            assert plain.flush(30) == 0
            if first == 0:
                send_odd(runtime.kafka, [*values[THIRD : 2 * THIRD], ("{", values[2 * THIRD][1])])
        yield runtime, settings, sent


def send_odd(bootstrap: str, values: list[tuple[str, int]]) -> None:
    lines = "\n".join(json.dumps({"topic": TRANSACTIONS, "value": value, "arrival_ms": arrival_ms}) for value, arrival_ms in values)
    subprocess.run([sys.executable, "-m", "tests.odd_headers", bootstrap], input=lines, text=True, check=True,
                   env={**os.environ, "AIOKAFKA_NO_EXTENSIONS": "1"}, cwd=Path(__file__).parents[1])


def test_worker_and_scorer_go_on_and_dead_letters_keep_the_name_as_it_can_be_read(running: tuple[Runtime, Settings, Sent]) -> None:
    runtime, _, sent = running
    eventually(lambda: len(read_predictions(runtime.kafka).first) == len(sent.transactions))
    predictions = read_predictions(runtime.kafka)
    assert {p.event_id for p in predictions.first.values()} == {event.event_id for event, _ in sent.transactions}
    assert wrong_sets(redis.Redis.from_url(runtime.redis), sent) == []
    odd = [header(m.headers(), READ) for m in read_events(runtime.kafka, valid_topic(TRANSACTIONS))]
    assert odd == [None] * THIRD + [b"7"] * THIRD + [None] * THIRD
    (letter,) = eventually(lambda: list(read_topic(runtime.kafka, dead_letter_topic(TRANSACTIONS))))
    assert (letter.value(), header(letter.headers(), READ), header(letter.headers(), "hr_reason")) == (b"{", b"7", b"not-json")
    assert header(letter.headers(), SOURCE_OFFSET) == b"%d" % (2 * THIRD)
    assert {process.restarts for process in runtime.state.processes} == {0}


def test_the_archive_has_them_with_the_name_as_it_can_be_read(spark: Any, running: tuple[Runtime, Settings, Sent]) -> None:
    runtime, settings, _ = running
    archive(settings, runtime.kafka, spark)
    rows = spark.read.format("delta").load(bronze_path(settings)).where(f"topic = '{TRANSACTIONS}'").orderBy("offset").collect()
    assert [dict(row.headers or []).get(READ) for row in rows] == [None] * THIRD + [b"7"] * (THIRD + 1) + [None] * THIRD


def test_aiokafka_as_it_comes_stops_at_such_a_name(running: tuple[Runtime, Settings, Sent], monkeypatch: pytest.MonkeyPatch) -> None:
    """The control; when this fails, streams/header_names.py can go."""
    runtime, _, _ = running
    for place, stock in zip(("MemoryRecords", "PartitionRecords"), STOCK, strict=True):
        monkeypatch.setattr(fetcher, place, stock)
    with pytest.raises(UnicodeDecodeError):
        asyncio.run(names_of(runtime.kafka))
    header_names.install()
    assert asyncio.run(names_of(runtime.kafka)) == [set()] * THIRD + [{READ, "plain"}] * (THIRD + 1) + [set()] * THIRD


async def names_of(bootstrap: str) -> list[set[str]]:
    """The header names of everything in partition 0 of the source."""
    names: list[set[str]] = []
    async with asyncio.timeout(30), AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        place = TopicPartition(TRANSACTIONS, 0)
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        while len(names) <= 3 * THIRD:
            names += [{name for name, _ in record.headers} for record in (await consumer.getmany(timeout_ms=1000)).get(place, [])]
    return names
