"""A backfill is killed, and Redis is flushed under load: real drivers, workers, scorer, Kafka, Redis and Delta."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import redis
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from feature_repo.appends import floor_ms
from feature_repo.fills import DONE, fill_key
from feature_repo.fraud import CARD_SPEND, SERVICE, VIEWS
from jobs.archive import archive
from jobs.backfill import backfill
from jobs.events import bronze_path
from jobs.fill_rows import PARTITIONS_PER_TASK, UNITS_PER_PARTITION
from schemas.settings import Settings
from schemas.topics import sources
from services.ledger import end_offsets
from services.runtime.embedded import Runtime
from tests.deadline import eventually
from tests.log_world import HEADERS
from tests.test_backfill import store
from tests.test_faults import caught_up
from tests.world_check import Sent, event_time, expected_sets, publish, small_world, stored_sets, wrong_sets

__all__ = ["store"]


def plain_bronze(spark: Any, settings: Settings, sent: Sent) -> None:
    """The archive of a world without faults."""
    rows = [("transactions", i % 2, i // 2, arrival, None, msgspec.json.encode(event), None)
            for i, (event, arrival) in enumerate(sent.transactions)]
    names = ("topic", "partition", "offset", "arrival_ms", "key", "value", "headers")
    types = (pa.string(), pa.int32(), pa.int64(), pa.int64(), pa.binary(), pa.binary(), HEADERS)
    table = pa.table({name: pa.array(column, kind) for name, column, kind in zip(names, zip(*rows, strict=True), types, strict=True)})
    spark.createDataFrame(table).coalesce(2).write.format("delta").partitionBy("topic").save(bronze_path(settings))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["spark", "process"])
def test_killed_at_random_moments_it_goes_on_with_the_units_that_were_not_done(
    spark: Any, store: redis.Redis, redis_url: str, tmp_path: Path, engine: str,
) -> None:
    """Two kills here; BACKFILL_KILLS=10 takes some minutes."""
    r, kills, sent = random.Random(8), int(os.environ.get("BACKFILL_KILLS", "2")), small_world(6_000, seed=8, cards=1_500)
    settings = Settings(home=tmp_path, partitions=2)
    plain_bronze(spark, settings, sent)
    environment = {**os.environ, "HEADRACE_HOME": str(tmp_path), "HEADRACE_REDIS": redis_url, "HEADRACE_PARTITIONS": "2"}
    command = [sys.executable, "-m", "services.cli", "backfill", CARD_SPEND.name, "--json", "--engine", engine, "--rate"]
    slowly = "250"  # records a second: seconds are left after each moment, so that it does not end while nobody looks

    def units() -> tuple[int, int]:
        """Done, and begun but not done."""
        fields = store.hgetall(fill_key(CARD_SPEND))
        done = sum(value.startswith(DONE) for value in fields.values())
        return done, max(0, len(fields) - 1 - done)

    done, redone, tasks = 0, [], (os.cpu_count() or 2) if engine == "spark" else 1
    all_units = tasks * PARTITIONS_PER_TASK * UNITS_PER_PARTITION
    for kill in range(kills):
        until = done + r.randrange(1, max(2, 2 + (all_units - 4 - done) // (kills - kill)))  # more may be done than was waited for
        driver = subprocess.Popen([*command, slowly], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        eventually(lambda until=until: units()[0] >= until)
        driver.kill()
        driver.wait()
        before, (done, begun) = done, units()
        assert done >= max(before, until), "what was done stays done"
        redone.append(begun)
    finished = subprocess.run([*command, "inf"], env=environment, capture_output=True, text=True, check=True)
    (told,) = json.loads(finished.stdout)["views"]
    assert told["units_before"] >= done > 0
    assert max(redone) <= tasks, "at most one unit a task is begun anew"
    assert {name: records for name, (records, _) in stored_sets(store, CARD_SPEND).items()} == expected_sets(CARD_SPEND, sent.transactions)
    size = 8 * CARD_SPEND.record_words
    copies = sum(store.strlen(key) for key in store.scan_iter(f"{CARD_SPEND.versioned_name}:*")) // size - len(sent.transactions)
    print(f"units begun at each kill {redone}, copies left by them {copies}")
    assert redis_url not in finished.stderr


@pytest.mark.slow
def test_redis_flushed_under_load_is_rebuilt_from_what_the_log_no_longer_has(spark: Any, tmp_path: Path) -> None:
    sent = small_world(9_000, seed=9, cards=400, terminals=200, step_ms=120_000)
    home = Settings(home=tmp_path / "home", time="replay")
    with Runtime(home, ("worker", "scorer")) as runtime:
        store = redis.Redis.from_url(runtime.redis)
        send_slices(runtime, sent, 0, 6_000)
        eventually(lambda: caught_up(runtime))
        archive(home, runtime.kafka, spark)
        forget_log(runtime.kafka)
        store.flushall()
        send_slices(runtime, sent, 6_000, 7_500)
        eventually(lambda: caught_up(runtime))
        assert len(wrong_sets(store, Sent(sent.transactions[:7_500], sent.outcomes[:7_500]))) > 100, "the log alone does not bring it back"

        sending = threading.Thread(target=send_slices, args=(runtime, sent, 7_500, 9_000))
        sending.start()
        archive(home, runtime.kafka, spark)
        found = [backfill(home, runtime.redis, view, (SERVICE,), spark=spark) for view in VIEWS]
        sending.join()
        eventually(lambda: caught_up(runtime))
        for view, done in zip(VIEWS, found, strict=True):
            arrived = sent.transactions if view.source == "transactions" else sent.outcomes
            stored = stored_sets(store, view)
            for entity, records in expected_sets(view, arrived).items():
                got, floor = stored.get(entity, (set(), 0))
                needed = max(floor, done.floor_ms or 0)
                assert {r for r in got if event_time(r) > needed} == {r for r in records if event_time(r) > needed}, (view.name, entity)
                assert floor <= floor_ms(view, sent.transactions[-1][1], SERVICE.scored_lateness_ms)
        assert min(found[0].added, found[2].added) > 0, "the view of a day may need nothing of what was lost by now"
        archive(home, runtime.kafka, spark)
        assert [backfill(home, runtime.redis, view, (SERVICE,), spark=spark).added for view in VIEWS] == [0, 0, 0]
        store.close()


def send_slices(runtime: Runtime, sent: Sent, start: int, end: int) -> None:
    producer = Producer({"bootstrap.servers": runtime.kafka, "acks": "all", "linger.ms": 5})
    for at in range(start, end, 250):
        publish(producer, "transactions", sent.transactions[at : min(at + 250, end)])
        publish(producer, "outcomes", sent.outcomes[at : min(at + 250, end)])
        producer.flush(60)


def forget_log(kafka: str) -> None:
    """The sources' records are gone, as retention would have it."""
    admin = AdminClient({"bootstrap.servers": kafka})
    places = [TopicPartition(source, partition, high) for source in sources(Settings())
              for partition, (_, high) in end_offsets(kafka, source).items()]
    for deleted in admin.delete_records(places).values():
        deleted.result(30)
