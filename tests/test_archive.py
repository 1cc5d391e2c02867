"""The archive as a process: while records come in, killed in mid-write, with topics that grow. Real Kafka, Spark and Delta."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from feature_repo.fraud import VIEWS
from jobs.archive import STATISTICS, WRITING, archive
from jobs.coverage import coverage
from jobs.events import bronze, bronze_path, bronze_version, complete_path, events
from jobs.spark import ROW_GROUP_BYTES
from schemas.envelope import CLOCK_HEADERS
from schemas.fraud import PREDICTIONS, TRANSACTIONS
from schemas.settings import Settings
from services.ledger import end_offsets, read_topic
from services.runtime.embedded import Runtime
from tests.archive_process import TOPICS, Ledger, kill, rounds, start
from tests.deadline import eventually


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Kafka of this module alone: all that is in it is archived."""
    with Runtime(Settings(home=tmp_path_factory.mktemp("kafka"), kafka=None, redis=None), roles=()) as runtime:
        yield runtime.kafka


@pytest.fixture
def ledger(kafka: str) -> Ledger:
    return Ledger(kafka)


def archived(spark: Any, settings: Settings, version: int | None = None) -> Counter[tuple[str, int, int, bytes]]:
    reader = spark.read.format("delta")
    table = (reader if version is None else reader.option("versionAsOf", version)).load(bronze_path(settings))
    return Counter((row.topic, row.partition, row.offset, bytes(row["value"])) for row in table.collect())


def published(kafka: str) -> Counter[tuple[str, int, int, bytes]]:
    return Counter((topic, m.partition(), m.offset(), m.value()) for topic in TOPICS for m in read_topic(kafka, topic))


def without_source(rows: Counter[tuple[str, int, int, bytes]]) -> int:
    """Predictions whose transaction is not there."""
    sources = {(partition, offset) for topic, partition, offset, _ in rows if topic == TRANSACTIONS}
    return sum(tuple(map(int, value.split(b"/"))) not in sources
               for topic, _, _, value in rows if topic == PREDICTIONS and b"/" in value and len(value) < 20)


@pytest.mark.slow
def test_archive_continuous_has_each_record_once_while_they_come_and_ends_well(spark: Any, kafka: str, ledger: Ledger,
                                                                                tmp_path: Path) -> None:
    settings, over = Settings(home=tmp_path), threading.Event()
    ledger.transact()

    def publish() -> None:
        while not over.wait(0.005):
            ledger.transact()

    publisher = threading.Thread(target=publish)
    publisher.start()
    process, said = start(tmp_path, kafka, "--continuous", "0.1")
    try:
        eventually(lambda: process.poll() is not None or sum(told["rows"] > 0 for told in rounds(said)) >= 4, timeout_s=600)
        process.terminate()
        assert process.wait(120) == 0, (tmp_path / "errors").read_text()
    finally:
        over.set()
        publisher.join()
        kill(process)
    told, rows = rounds(said), archived(spark, settings)
    assert set(rows.values()) == {1}
    assert sum(one["rows"] for one in told) == rows.total()
    for topic, ends in told[-1]["end_offsets"].items():
        for partition, end in ends.items():
            assert {o for t, p, o, _ in rows if (t, p) == (topic, int(partition))} == set(range(end)), "nothing was passed over"
    assert rows.keys() <= published(kafka).keys()

    complete = int(Path(complete_path(settings)).read_text())
    assert complete == told[-1]["version"]
    assert without_source(archived(spark, settings, complete)) == 0
    # Negative control: in other versions there are predictions that came before their source.
    assert any(without_source(archived(spark, settings, version)) for version in range(complete))

    archive(settings, kafka, spark)
    assert archived(spark, settings) == published(kafka)
    assert {row[:3] for row in archived(spark, settings)} >= set(ledger.acknowledged)


def test_what_the_archive_writes_by_is_not_left_to_other_tables(spark: Any, kafka: str, ledger: Ledger, tmp_path: Path) -> None:
    settings, before = Settings(home=tmp_path), {name: spark.conf.get(name, None) for name in WRITING}
    ledger.transact()
    archive(settings, kafka, spark)
    assert {name: spark.conf.get(name, None) for name in WRITING} == before
    path = f"{tmp_path}/other"
    spark.range(1).write.format("delta").save(path)  # which has none of the archive's columns
    properties = [spark.sql(f"DESCRIBE DETAIL delta.`{table}`").collect()[0]["properties"] for table in (bronze_path(settings), path)]
    assert [STATISTICS.items() <= of_table.items() for of_table in properties] == [True, False]


def uncommitted_files(home: Path) -> set[str]:
    """Data files, whole ones, in the table's folder that no version has."""
    log = "".join(path.read_text() for path in (home / "tables/bronze/_delta_log").glob("*.json"))
    return {path.name for path in data_files(home) if path.name not in log and path.read_bytes().endswith(b"PAR1")}


def data_files(home: Path) -> list[Path]:
    return [path for path in (home / "tables/bronze").rglob("*.parquet") if "_delta_log" not in path.parts]


def unrecorded_commits(home: Path) -> set[str]:
    """Streams of which a version of the table holds a batch that their checkpoint does not say is done."""
    logs = [json.loads(line) for path in (home / "tables/bronze/_delta_log").glob("*.json") for line in path.read_text().splitlines()]
    written = {entry["txn"]["appId"]: entry["txn"]["version"] for entry in logs if "txn" in entry}
    found = set()
    for checkpoint in (home / "tables/_checkpoints/bronze").glob("*/metadata"):
        done = [int(path.name) for path in checkpoint.parent.glob("commits/[0-9]*")]
        if written.get(json.loads(checkpoint.read_text())["id"], -1) > max(done, default=-1):
            found.add(checkpoint.parent.name)
    return found


def stopped_at(process: subprocess.Popen[bytes], moment: Callable[[], Any]) -> bool:
    """Whether the process was frozen while ``moment`` held; False: it ended before that."""
    pause = threading.Event()
    while process.poll() is None:
        if moment():
            os.killpg(process.pid, signal.SIGSTOP)
            if moment():
                return True
            os.killpg(process.pid, signal.SIGCONT)
        pause.wait(0.0005)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("moment", [uncommitted_files, unrecorded_commits])
def test_a_driver_killed_in_mid_write_leaves_nothing_out_and_nothing_twice(
    spark: Any, kafka: str, ledger: Ledger, tmp_path: Path, moment: Callable[[Path], set[str]],
) -> None:
    """P17."""
    home = tmp_path / "home"
    settings = Settings(home=home)
    ledger.publish_all(200)
    archive(settings, kafka, spark)
    for _ in range(10):
        ledger.publish_all(200)
        process, _ = start(home, kafka)
        try:
            if stopped_at(process, lambda: moment(home)):
                break
            assert process.wait() == 0, (home / "errors").read_text()
        finally:
            kill(process)
    left = moment(home)
    assert left, "the moment was missed ten times"
    control = tmp_path / "control"
    shutil.copytree(home, control)

    for _ in range(3):
        archive(settings, kafka, spark)
        assert archived(spark, settings) == published(kafka)

    # Negative controls: without what guards it, the same kill doubles rows, and the comparison sees it.
    if moment is uncommitted_files:  # a table without a log would have them all
        loose = spark.read.schema("value binary").option("ignoreCorruptFiles", "true").parquet(*map(str, data_files(home)))
        assert loose.count() > published(kafka).total()
    else:
        for stream in left:  # another writer's name: the table cannot know that it has this batch
            (control / "tables/_checkpoints/bronze" / stream / "metadata").write_text(json.dumps({"id": str(uuid.uuid4())}))
            (control / "tables/_checkpoints/bronze" / stream / ".metadata.crc").unlink()
        archive(Settings(home=control), kafka, spark)
        rows = archived(spark, Settings(home=control))
        assert set(rows) == set(published(kafka))
        assert 2 in rows.values()


@pytest.mark.slow
def test_partitions_that_are_added_while_the_archive_runs_are_read_from_their_beginning(spark: Any, kafka: str, ledger: Ledger,
                                                                                         tmp_path: Path) -> None:
    settings, before = Settings(home=tmp_path), len(end_offsets(kafka, TRANSACTIONS))
    process, said = start(tmp_path, kafka, "--continuous", "0.1")
    try:
        ledger.publish_all(20)
        eventually(lambda: process.poll() is not None or rounds(said), timeout_s=600)
        admin = AdminClient({"bootstrap.servers": kafka})
        for made in admin.create_partitions([NewPartitions(topic, before + 2) for topic in TOPICS]).values():
            made.result(30)
        for topic in TOPICS:
            eventually(lambda topic=topic: ledger.partitions(topic) == before + 2)  # type: ignore[misc]
        for partition in range(before + 2):
            for topic in TOPICS:
                ledger.publish(topic, [os.urandom(20) for _ in range(5)], partition)
        ends = {topic: {str(p): high for p, (_, high) in end_offsets(kafka, topic).items()} for topic in TOPICS}
        eventually(lambda: process.poll() is not None or any(told["end_offsets"] == ends for told in rounds(said)), timeout_s=600)
        process.terminate()
        assert process.wait(120) == 0, (tmp_path / "errors").read_text()
    finally:
        kill(process)
    rows = archived(spark, settings)
    assert rows == published(kafka)
    assert {(topic, partition) for topic, partition, _, _ in rows} == {(t, p) for t in TOPICS for p in range(before + 2)}


def test_a_large_file_is_read_in_parts_that_a_small_heap_holds(spark: Any, tmp_path: Path) -> None:
    text = "concat(sha2(cast(id as string), 256), sha2(cast(-id as string), 256)) text"
    spark.range(0, 600_000, 1, 1).selectExpr("id", text).write.format("delta").save(str(tmp_path))
    file, = (pq.ParquetFile(path).metadata for path in tmp_path.glob("*.parquet"))
    sizes = [file.row_group(group).total_byte_size for group in range(file.num_row_groups)]
    assert sum(sizes) > 4 * ROW_GROUP_BYTES
    assert max(sizes) < 1.5 * ROW_GROUP_BYTES


def test_clock_records_say_how_far_an_archive_reaches(spark: Any, runtime: Any, tmp_path: Path) -> None:
    """In live mode all of them; in a replay, which sends one a step, what begins a partition: else the log's beginning would seem lost."""
    producer, kafka = Producer({"bootstrap.servers": runtime.endpoints.kafka}), runtime.endpoints.kafka
    for value, headers in ((b"", CLOCK_HEADERS), (b"1", []), (b"", CLOCK_HEADERS)):
        producer.produce("transactions", value, partition=0, headers=headers)
        producer.flush()
    for time, offsets in (("live", [0, 1, 2]), ("replay", [0, 1])):
        settings = Settings(home=tmp_path / time, time=time)
        archive(settings, kafka, spark)
        span = coverage(spark, settings, "transactions")[0]
        assert (span.first, span.last) == (offsets[0], offsets[-1])
        rows = bronze(spark, settings, bronze_version(spark, settings)).where("topic = 'transactions'").collect()
        assert sorted(row.offset for row in rows) == offsets
        assert events(bronze(spark, settings, bronze_version(spark, settings)), "transactions", VIEWS).count() == 0
